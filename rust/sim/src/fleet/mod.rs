//! The event loop: requests in, routers asked, engines run, KV events carried back.
//!
//! At one moment everything due happens first (ends of iterations, transfers, arrivals), then idle engines with work start,
//! in order of their index: so an arrival at the very end of an iteration still joins the next one, as in Dynamo's replay.

mod anarchy;
mod engines;
mod faults;
mod feed;
mod requests;
mod roster;
mod seen;
mod split;

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::agenda::{Agenda, Event};
use crate::config::{FleetSpec, Role, SimError};
use crate::engine::{Desk, Worker};
use crate::fault::FaultKind;
use crate::link::Links;
use crate::record::{Outcome, Samples};
use crate::timing::Timing;
use crate::workload::{Naming, Workload};
use anarchy::PoolMeter;
use seen::Seen;

use wardrop_core::latency::Pass;
use wardrop_core::queue::LateQueue;
use wardrop_core::rng::Rng;
use wardrop_core::{
    EngineHash, Error, KvEvent, LocalHash, RequestId, Router, RouterConfig, StoredBlock, WorkerId,
};

/// A request that found no worker this often has failed.
const MAX_RETRIES: u32 = 1_000;

/// One pool: its router and its workers' global indices.
struct Pool {
    router: Router,
    /// Late binding in front of the router, where the fleet asks for it.
    queue: Option<LateQueue>,
    role: Role,
    first: usize,
    /// What its decisions lose, where that is measured.
    meter: Option<PoolMeter>,
}

/// What the fleet knows of a worker beside its engine.
#[derive(Clone, Copy, Default)]
struct Standing {
    /// Registered with its router.
    known: bool,
    alive: bool,
    /// Counts lives, so that a late drop does not hit the next one.
    incarnation: u32,
    /// Counts plans, so that a cut run's old end is ignored.
    stamp: u32,
    dirty: bool,
}

pub(crate) struct Fleet<'a> {
    spec: Cow<'a, FleetSpec>,
    pub(crate) desk: Desk<'a>,
    pools: Vec<Pool>,
    workers: Vec<Worker>,
    standing: Vec<Standing>,
    pool_of: Vec<usize>,
    dirty: Vec<u32>,
    agenda: Agenda,
    links: Links,
    rng: Rng,
    feed: VecDeque<(f64, u32, KvEvent)>,
    reports: VecDeque<(f64, u32, Pass)>,
    hashes: Vec<LocalHash>,
    spare_blocks: Vec<StoredBlock>,
    /// Requests that wait for this one, as a linked list: first child, next sibling.
    first_child: Vec<u32>,
    next_sibling: Vec<u32>,
    /// Attempts that the row's former users made.
    former_attempts: Vec<u32>,
    /// Requests without a predecessor, in order.
    roots: Vec<u32>,
    next_root: usize,
    pub(crate) open: usize,
    pub(crate) now_ms: f64,
    samples: Samples,
    /// Requests that ended since they were last taken out, where someone takes them.
    pub(crate) closed: Option<Vec<u32>>,
    /// Outcomes since the last look, where someone looks.
    seen: Option<Seen>,
}

const NOBODY: u32 = u32::MAX;

/// Run `workload` over the fleet. `routers` has one configuration per pool. Deterministic in all arguments.
///
/// Cost: O(blocks of the prompt) per request for the cache, plus the router's own, plus O(batch) per run of iterations.
pub fn simulate(
    spec: &FleetSpec,
    workload: &Workload,
    routers: &[RouterConfig],
) -> Result<Outcome, SimError> {
    spec.validate()?;
    workload.validate()?;
    if routers.len() != spec.pools.len() {
        return Err(crate::config::bad(
            "routers",
            routers.len(),
            "one configuration per pool",
        ));
    }
    let naming = Naming::new(workload, spec.pools[0].engine.block_size)?;
    let mut fleet = Fleet::new(
        Cow::Borrowed(spec),
        Desk::new(Cow::Borrowed(workload), naming),
        routers,
    )?;
    fleet.run_until(f64::INFINITY)?;
    fleet.outcome()
}

fn refused(action: &'static str) -> impl Fn(Error) -> SimError {
    move |error| SimError::Router {
        action,
        reason: error.to_string(),
    }
}

/// The queue of pool `index`.
fn queue(spec: &FleetSpec, index: usize) -> Result<Option<LateQueue>, SimError> {
    let config = spec.queues.get(index).copied().flatten();
    config
        .map(LateQueue::new)
        .transpose()
        .map_err(refused("a queue configuration"))
}

fn mix(x: u64) -> u64 {
    Rng::new(x).next_u64()
}

fn local_hash(block: u32) -> LocalHash {
    LocalHash(mix(u64::from(block)))
}

fn engine_hash(block: u32) -> EngineHash {
    EngineHash(mix(u64::from(block) | 1 << 40))
}

fn worker_id(worker: usize) -> WorkerId {
    WorkerId {
        instance: worker as u64,
        dp_rank: 0,
    }
}

fn request_id(request: u32) -> RequestId {
    RequestId(u64::from(request))
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(
        spec: Cow<'a, FleetSpec>,
        desk: Desk<'a>,
        routers: &[RouterConfig],
    ) -> Result<Self, SimError> {
        let mut pools = Vec::new();
        let mut workers = Vec::new();
        let mut pool_of = Vec::new();
        for (index, (pool, config)) in spec.pools.iter().zip(routers).enumerate() {
            let router = Router::new(config.clone()).map_err(refused("a router configuration"))?;
            router.keep_placements(spec.anarchy_window > 0);
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
        let len = desk.workload.len();
        let mut fleet = Self {
            pools,
            standing: vec![Standing::default(); workers.len()],
            links: Links::new(spec.transfer, workers.len()),
            workers,
            pool_of,
            dirty: Vec::new(),
            agenda: Agenda::default(),
            rng: Rng::new(spec.seed),
            spec,
            feed: VecDeque::new(),
            reports: VecDeque::new(),
            hashes: Vec::new(),
            spare_blocks: Vec::new(),
            first_child: vec![NOBODY; len],
            next_sibling: vec![NOBODY; len],
            former_attempts: vec![0; len],
            roots: Vec::new(),
            next_root: 0,
            open: len,
            now_ms: 0.0,
            samples: Samples::default(),
            closed: None,
            seen: None,
            desk,
        };
        fleet.set_up()?;
        Ok(fleet)
    }

    fn set_up(&mut self) -> Result<(), SimError> {
        for i in (0..self.desk.workload.len()).rev() {
            let after = self.desk.workload.after[i];
            if after == NOBODY {
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

    /// Everything that happens up to `until_ms`; true when something may happen later.
    pub(crate) fn run_until(&mut self, until_ms: f64) -> Result<bool, SimError> {
        while self.open > 0 {
            // Samples go on for ever: alone they mean that nothing can happen any more.
            if self.next_arrival_ms().is_none() && self.agenda.only_samples() {
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

    /// What the run left behind.
    pub(crate) fn outcome(mut self) -> Result<Outcome, SimError> {
        let anarchy = self.anarchy()?;
        let regimes = self.pools.iter().map(|pool| pool.router.regime_changes());
        Ok(Outcome {
            anarchy,
            regimes: regimes.collect(),
            requests: self.desk.requests,
            gaps: self.desk.gaps,
            samples: self.samples,
            totals: self.desk.totals,
            end_ms: self.now_ms,
        })
    }

    /// When something happens next.
    pub(crate) fn next_ms(&self) -> Option<f64> {
        let due = [self.next_arrival_ms(), self.agenda.next_ms()];
        due.into_iter().flatten().reduce(f64::min)
    }

    /// Everything that happens at `now_ms`, the earliest time at which something does.
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
        self.start_idle()
    }

    /// The next open-loop arrival.
    fn next_arrival_ms(&self) -> Option<f64> {
        if self.spec.concurrency.is_some() {
            return None;
        }
        self.roots
            .get(self.next_root)
            .map(|request| self.desk.workload.arrival_ms[*request as usize] / self.spec.rate)
    }

    /// A further row for a request. See [`crate::live`].
    pub(crate) fn add_row(&mut self) -> u32 {
        let workload = self.desk.workload.to_mut();
        let row = workload.len() as u32;
        workload.arrival_ms.push(0.0);
        workload.input_tokens.push(1);
        workload.output_tokens.push(1);
        workload.after.push(NOBODY);
        workload.think_ms.push(0.0);
        workload.block_start.push(0);
        self.desk.requests.add_row();
        self.first_child.push(NOBODY);
        self.next_sibling.push(NOBODY);
        self.former_attempts.push(0);
        row
    }

    /// Which attempt a row's request is at: what is under way for another one, or for the row's last user, is stale.
    fn attempt(&self, row: u32) -> u32 {
        let i = row as usize;
        self.former_attempts[i].wrapping_add(self.desk.requests.retries[i])
    }

    /// The row's request has ended, and it is there for another one.
    pub(crate) fn clear_row(&mut self, row: u32) {
        let i = row as usize;
        self.former_attempts[i] = self.attempt(row).wrapping_add(1);
        self.desk.requests.clear_row(i);
    }

    /// The request in this row arrives when its time comes.
    pub(crate) fn add_root(&mut self, row: u32) {
        self.roots.push(row);
        self.open += 1;
    }

    /// When the request added last arrives, if it has not yet.
    pub(crate) fn last_root_ms(&self) -> Option<f64> {
        let last = self.roots.get(self.next_root..)?.last()?;
        Some(self.desk.workload.arrival_ms[*last as usize])
    }

    /// Drop the list of those that have arrived.
    pub(crate) fn forget_roots(&mut self) {
        self.roots.drain(..self.next_root);
        self.next_root = 0;
    }

    /// Another timing for all engines of a pool.
    pub(crate) fn set_timing(&mut self, pool: usize, timing: &Timing) {
        for (worker, of) in self.workers.iter_mut().zip(&self.pool_of) {
            if *of == pool {
                worker.set_timing(timing.clone());
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), SimError> {
        match event {
            Event::Fault(index) => self.fault(index as usize)?,
            Event::Dropped(worker, incarnation) => self.dropped(worker as usize, incarnation)?,
            Event::Pass(worker, stamp) => {
                if self.standing[worker as usize].stamp == stamp {
                    self.workers[worker as usize].finish(&mut self.desk);
                    self.report(worker);
                    self.mark(worker);
                    self.signals(worker)?;
                }
            }
            Event::Wake(worker) => self.mark(worker),
            Event::Onboarded(worker, request) => {
                if let Some(end_ms) = self.workers[worker as usize].landed(request, self.now_ms) {
                    self.expect_end(worker, end_ms);
                } else {
                    self.mark(worker);
                }
            }
            Event::Transferred(request, attempt) => self.transferred(request, attempt),
            Event::Feed => self.deliver(),
            Event::Metrics => self.deliver_reports(),
            Event::Arrival(request) => self.arrive(request)?,
            Event::Sample => self.sample(),
        }
        Ok(())
    }

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
