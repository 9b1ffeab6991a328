//! Event loop of a fleet: requests arrive, routers decide, engines run, KV events travel back.
//!
//! ```text
//! agenda ─▶ earliest event ─▶ handle: faults, ends of iterations, transfers, deliveries, arrivals
//!        ─▶ all events of this moment done ─▶ start idle engines that have work ─▶ next moment
//! ```
//!
//! At one moment, every event that is due happens first: ends of iterations, transfers, arrivals. Idle
//! engines with work start afterwards, in order of their index. An arrival at the very end of an iteration
//! therefore joins the next one, as in Dynamo's replay.
//!
//! Time is virtual: it jumps from event to event, and nothing waits. Every random number comes from one
//! seeded generator, and no map is iterated in its own order. One seed thus gives one result.
//!
//! Files by idea: `agenda` orders events, `requests` and `handoff` follow a request, `iterations` and
//! `signals` an engine. `kv_events` and `pass_reports` carry reports with delay and loss. `faults` and
//! `membership` change the fleet, and `rows` reuses rows in a live fleet.

mod agenda;
mod anarchy;
mod faults;
mod handoff;
mod ids;
mod iterations;
mod kv_events;
mod links;
mod membership;
mod observer;
mod pass_reports;
mod plan;
mod requests;
mod rows;
mod signals;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use wardrop_core::latency::Pass;
use wardrop_core::queue::LateQueue;
use wardrop_core::rng::Rng;
use wardrop_core::{KvEvent, LocalHash, PolicyConfig, Router, RouterConfig, StoredBlock};

use agenda::{Agenda, Event, Incarnation};
use anarchy::PoolMeter;
use links::Links;
use observer::Observer;
use plan::PlanRun;

use crate::engine::{RunState, SharedBlocks, Worker};
use crate::error::{SimError, out_of_range, router_refused};
use crate::record::{Outcome, Samples};
use crate::spec::{FaultKind, FleetSpec, Plan, Role};
use crate::workload::{BlockNames, Workload};

/// Marks the absence of a request.
const NO_REQUEST: u32 = u32::MAX;

/// One pool: its router, and the queue in front of it.
struct Pool {
    /// The production router of the pool.
    router: Router,
    /// Queue in front of the router, if the fleet has one.
    queue: Option<LateQueue>,
    /// What the workers of the pool compute.
    role: Role,
    /// Index of the pool's first worker over all pools.
    first: usize,
    /// Meter of the price of anarchy, if the fleet measures it.
    meter: Option<PoolMeter>,
}

/// State of a worker outside its engine.
#[derive(Clone, Copy, Default)]
struct WorkerStatus {
    /// Whether the worker is registered with its router.
    is_registered: bool,
    /// Whether the worker's process runs.
    is_alive: bool,
    /// Number of times the worker has joined. A removal of an earlier incarnation has no effect.
    incarnation: u32,
    /// Number of the current plan of iterations. The end of an earlier plan has no effect.
    plan: u32,
    /// Whether the worker is in the fleet's start queue.
    is_queued: bool,
}

/// A message from a worker to its router that is still on the way.
struct Delayed<T> {
    /// When the message arrives, milliseconds.
    at_ms: f64,
    /// Index of the sender over all pools.
    worker: u32,
    /// What it says.
    message: T,
}

impl<T> Delayed<T> {
    /// Takes the oldest message out of `messages` if it is due by `now_ms`.
    fn pop_due(messages: &mut VecDeque<Self>, now_ms: f64) -> Option<Self> {
        if messages.front()?.at_ms > now_ms {
            return None;
        }
        messages.pop_front()
    }
}

/// A fleet in virtual time. Vectors over workers span all pools; vectors over requests have one entry per row.
pub(crate) struct Fleet<'a> {
    /// What the fleet is made of. Borrowed for a batch run, owned by a live fleet.
    spec: Cow<'a, FleetSpec>,
    pub(crate) state: RunState<'a>,
    /// One entry per pool: one for an aggregated fleet, prefill and decode for a split one.
    pools: Vec<Pool>,
    workers: Vec<Worker>,
    status: Vec<WorkerStatus>,
    /// Pool of each worker.
    pool_of: Vec<usize>,
    /// Workers that may have to start an iteration, once the events of this moment have happened.
    start_queue: Vec<u32>,
    /// Events to come, except arrivals that depend on no request.
    agenda: Agenda,
    /// Requests on the way into their worker's engine, with a wait that the router does not see.
    entering: BTreeMap<u32, Incarnation>,
    /// Links between prefill and decode workers, with their queues.
    links: Links,
    /// The only source of chance outside the routers: loss and delay of events.
    rng: Rng,
    /// KV events on their way, in order of arrival.
    delayed_events: VecDeque<Delayed<KvEvent>>,
    /// Reports of passes on their way, in order of arrival.
    delayed_passes: VecDeque<Delayed<Pass>>,
    /// Working memory: local hashes of the prompt that is being routed.
    hashes: Vec<LocalHash>,
    /// Working memory: blocks of the last stored event.
    spare_blocks: Vec<StoredBlock>,
    /// First request that waits for the end of each request. `next_sibling` continues the list.
    first_child: Vec<u32>,
    next_sibling: Vec<u32>,
    /// Attempts of the former requests of each row.
    former_attempts: Vec<u32>,
    /// Requests without a predecessor, in order of arrival.
    roots: Vec<u32>,
    /// Position in `roots` of the next request to arrive.
    next_root: usize,
    /// Number of requests that have not ended.
    pub(crate) open_requests: usize,
    /// The present, milliseconds of the run.
    pub(crate) now_ms: f64,
    /// Samples of every worker's state, if the specification asks for them.
    samples: Samples,
    /// Rows whose requests ended since the list was last taken; `None` where no caller takes them.
    pub(crate) ended_rows: Option<Vec<u32>>,
    /// Counts for a controller; `None` if there is no controller.
    observer: Option<Observer>,
    /// Placements chosen in advance; `None` if the routers decide.
    plan: Option<PlanRun>,
}

/// Runs `workload` over the fleet `spec`. `routers` has one configuration per pool.
///
/// The result depends on nothing but the arguments. Cost: O(blocks of the prompt) per request for the cache, the cost of
/// the router, and O(batch) per run of iterations.
///
/// # Errors
/// [`SimError::Config`] when the fleet or the workload is out of range, and [`SimError::Router`] when a router refuses a
/// call that every fleet needs.
pub fn simulate(
    spec: &FleetSpec,
    workload: &Workload,
    routers: &[RouterConfig],
) -> Result<Outcome, SimError> {
    workload.validate()?;
    let mut fleet = Fleet::new(Cow::Borrowed(spec), Cow::Borrowed(workload), routers)?;
    fleet.run_until(f64::INFINITY)?;
    fleet.outcome()
}

/// Runs `workload` over the fleet `spec` with the placements and the order of `plan`.
///
/// The routers only keep their books. The result depends on nothing but the arguments.
///
/// # Errors
/// [`SimError::Config`] when the fleet, the workload or the plan is out of range.
pub fn simulate_plan(spec: &FleetSpec, workload: &Workload, plan: Plan) -> Result<Outcome, SimError> {
    workload.validate()?;
    spec.validate()?;
    plan.validate(spec, workload)?;
    let configs = spec.pools.iter().map(|pool| {
        RouterConfig::new(pool.engine.block_size)
            .with_policy(PolicyConfig::RoundRobin)
            .with_booking_ttl_s(1e9)
            .with_max_bookings(1 << 24)
            .with_prefill_tracking(pool.role != Role::Decode)
            .with_decode_tracking(pool.role != Role::Prefill)
    });
    let configs: Vec<RouterConfig> = configs.collect();
    let mut fleet = Fleet::new(Cow::Borrowed(spec), Cow::Borrowed(workload), &configs)?;
    fleet.follow(plan);
    fleet.run_until(f64::INFINITY)?;
    fleet.outcome()
}

/// The queue of pool `index`, if the specification has one.
fn queue(spec: &FleetSpec, index: usize) -> Result<Option<LateQueue>, SimError> {
    let config = spec.queues.get(index).copied().flatten();
    config
        .map(LateQueue::new)
        .transpose()
        .map_err(router_refused("a queue configuration"))
}

impl<'a> Fleet<'a> {
    /// A fleet at time 0 with `workload` to come. `workload` must be valid.
    pub(crate) fn new(
        spec: Cow<'a, FleetSpec>,
        workload: Cow<'a, Workload>,
        routers: &[RouterConfig],
    ) -> Result<Self, SimError> {
        spec.validate()?;
        if routers.len() != spec.pools.len() {
            return Err(out_of_range(
                "routers",
                routers.len(),
                "one configuration per pool",
            ));
        }
        let names = BlockNames::new(&workload, spec.pools[0].engine.block_size)?;
        let mut state = RunState::new(workload, names);
        state.shared_blocks = spec.shared_cache.then(SharedBlocks::unbounded);
        let mut pools = Vec::new();
        let mut workers = Vec::new();
        let mut pool_of = Vec::new();
        for (index, (pool, config)) in spec.pools.iter().zip(routers).enumerate() {
            let router = Router::new(config.clone()).map_err(router_refused("a router configuration"))?;
            router.record_decisions(spec.anarchy_window > 0);
            pools.push(Pool {
                router,
                queue: queue(&spec, index)?,
                role: pool.role,
                first: workers.len(),
                meter: PoolMeter::new(spec.anarchy_window),
            });
            workers.extend(
                pool.speeds.iter().map(|speed| {
                    Worker::new(&pool.engine, pool.role, *speed).with_reports(spec.feed.metrics)
                }),
            );
            pool_of.resize(workers.len(), index);
        }
        let len = state.workload.len();
        let mut fleet = Self {
            pools,
            status: vec![WorkerStatus::default(); workers.len()],
            links: Links::new(spec.transfer, workers.len()),
            workers,
            pool_of,
            start_queue: Vec::new(),
            agenda: Agenda::default(),
            entering: BTreeMap::new(),
            rng: Rng::new(spec.seed),
            spec,
            delayed_events: VecDeque::new(),
            delayed_passes: VecDeque::new(),
            hashes: Vec::new(),
            spare_blocks: Vec::new(),
            first_child: vec![NO_REQUEST; len],
            next_sibling: vec![NO_REQUEST; len],
            former_attempts: vec![0; len],
            roots: Vec::new(),
            next_root: 0,
            open_requests: len,
            now_ms: 0.0,
            samples: Samples::default(),
            ended_rows: None,
            observer: None,
            plan: None,
            state,
        };
        fleet.set_up()?;
        Ok(fleet)
    }

    /// Orders the requests, plans the faults, registers the workers, and enters the first events.
    fn set_up(&mut self) -> Result<(), SimError> {
        for i in (0..self.state.workload.len()).rev() {
            let after = self.state.workload.after[i];
            if after == NO_REQUEST {
                self.roots.push(i as u32);
            } else {
                self.next_sibling[i] = self.first_child[after as usize];
                self.first_child[after as usize] = i as u32;
            }
        }
        self.roots.reverse();
        for (i, fault) in self.spec.faults.iter().enumerate() {
            self.agenda.push(fault.at_ms, Event::Fault(i as u32));
        }
        for worker in 0..self.workers.len() {
            let mut plan: Vec<_> = self
                .spec
                .faults
                .iter()
                .filter(|fault| fault.worker == worker)
                .collect();
            plan.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
            if plan.first().is_none_or(|fault| fault.kind != FaultKind::Join) {
                self.join(worker)?;
            }
        }
        if self.spec.sample_ms > 0.0 {
            self.agenda.push(0.0, Event::Sample);
        }
        if let Some(concurrency) = self.spec.concurrency {
            let first = (concurrency as usize).min(self.roots.len());
            for i in 0..first {
                self.agenda.push(0.0, Event::Arrival(self.roots[i]));
            }
            self.next_root = first;
        }
        Ok(())
    }

    /// Runs all events up to `until_ms`. Returns true if further events may follow.
    pub(crate) fn run_until(&mut self, until_ms: f64) -> Result<bool, SimError> {
        while self.open_requests > 0 {
            // Samples never end. If only samples are left, no request can make progress any more.
            if self.next_arrival_ms().is_none() && self.agenda.has_only_samples() {
                return Ok(false);
            }
            let Some(now_ms) = self.next_ms() else {
                return Ok(false);
            };
            if now_ms > until_ms {
                return Ok(true);
            }
            self.step(now_ms)?;
        }
        Ok(false)
    }

    /// Ends the run and returns its results.
    pub(crate) fn outcome(mut self) -> Result<Outcome, SimError> {
        let anarchy = self.anarchy()?;
        let bound = self.bound();
        let regimes = self.pools.iter().map(|pool| pool.router.regime_changes());
        let counters = self.pools.iter().map(|pool| pool.router.counters());
        let decided_statically = counters.map(|counters| counters.decided_statically);
        Ok(Outcome {
            anarchy,
            bound,
            regimes: regimes.collect(),
            price_guards: self.pools.iter().map(|pool| pool.router.price_guard()).collect(),
            decided_statically: decided_statically.collect(),
            requests: self.state.requests,
            gaps: self.state.gaps,
            samples: self.samples,
            totals: self.state.totals,
            end_ms: self.now_ms,
        })
    }

    /// Time of the next event, in milliseconds.
    pub(crate) fn next_ms(&self) -> Option<f64> {
        let due = [self.next_arrival_ms(), self.agenda.next_ms()];
        due.into_iter().flatten().reduce(f64::min)
    }

    /// Runs all events at `now_ms`, which must be [`Fleet::next_ms`].
    pub(crate) fn step(&mut self, now_ms: f64) -> Result<(), SimError> {
        self.now_ms = now_ms;
        while let Some(event) = self.agenda.pop_until(now_ms) {
            self.handle(event)?;
        }
        while self.next_arrival_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            let request = self.roots[self.next_root];
            self.next_root += 1;
            self.arrive(request)?;
        }
        self.start_idle_engines()
    }

    /// Time of the next arrival that does not depend on other requests, in milliseconds.
    fn next_arrival_ms(&self) -> Option<f64> {
        if self.spec.concurrency.is_some() {
            return None;
        }
        self.roots
            .get(self.next_root)
            .map(|request| self.state.workload.arrival_ms[*request as usize] / self.spec.rate)
    }

    /// Runs one event.
    fn handle(&mut self, event: Event) -> Result<(), SimError> {
        match event {
            Event::Fault(index) => self.fault(index as usize)?,
            Event::Removal { worker, incarnation } => self.discovery_removes(worker as usize, incarnation)?,
            Event::IterationsEnd { worker, plan } => {
                if self.status[worker as usize].plan == plan {
                    self.workers[worker as usize].finish(&mut self.state);
                    self.report_pass(worker);
                    self.queue_start(worker);
                    self.handle_signals(worker)?;
                }
            }
            Event::Wake(worker) => self.queue_start(worker),
            Event::Onboarded { worker, request } => {
                if let Some(end_ms) = self.workers[worker as usize].blocks_onboarded(request, self.now_ms) {
                    self.schedule_end(worker, end_ms);
                } else {
                    self.queue_start(worker);
                }
            }
            Event::Transferred { request, attempt } => self.transferred(request, attempt),
            Event::Entry { request, at } => self.enter_after_wait(request, at)?,
            Event::Delivery => self.deliver_events(),
            Event::ReportDelivery => self.deliver_passes(),
            Event::Arrival(request) => self.arrive(request)?,
            Event::Sample => self.sample(),
        }
        Ok(())
    }

    /// Samples the state of every worker, and enters the next sample.
    fn sample(&mut self) {
        let samples = &mut self.samples;
        samples.at_ms.push(self.now_ms);
        samples.running.extend(self.workers.iter().map(Worker::running));
        samples.waiting.extend(self.workers.iter().map(Worker::waiting));
        samples
            .active_blocks
            .extend(self.workers.iter().map(Worker::active_blocks));
        self.agenda.push(self.now_ms + self.spec.sample_ms, Event::Sample);
    }
}
