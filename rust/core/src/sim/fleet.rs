//! The event loop: requests in, routers asked, engines run, KV events carried back.
//!
//! At one moment everything due happens first (ends of iterations, transfers, arrivals), then idle engines with work start,
//! in order of their index: so an arrival at the very end of an iteration still joins the next one, as in Dynamo's replay.

use std::collections::VecDeque;

use super::agenda::{Agenda, Event};
use super::config::{FleetSpec, Role, SimError};
use super::engine::{CacheChange, Desk, Signal, Worker};
use super::fault::FaultKind;
use super::link::Links;
use super::pool::NONE;
use super::record::{End, GapHistogram, Outcome, Requests, Samples, Totals};
use super::tier::TierChange;
use super::workload::{Naming, Workload};
use crate::queue::{LateQueue, Offer, QueuedRequest};
use crate::rng::Rng;
use crate::{
    EngineHash, Error, KvEvent, LocalHash, RequestId, RouteRequest, Router, RouterConfig, StoredBlock, Tier,
    WorkerId, WorkerSpec,
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

struct Fleet<'a> {
    spec: &'a FleetSpec,
    desk: Desk<'a>,
    pools: Vec<Pool>,
    workers: Vec<Worker>,
    standing: Vec<Standing>,
    pool_of: Vec<usize>,
    dirty: Vec<u32>,
    agenda: Agenda,
    links: Links,
    rng: Rng,
    feed: VecDeque<(f64, u32, KvEvent)>,
    hashes: Vec<LocalHash>,
    spare_blocks: Vec<StoredBlock>,
    /// Requests that wait for this one, as a linked list: first child, next sibling.
    first_child: Vec<u32>,
    next_sibling: Vec<u32>,
    /// Requests without a predecessor, in order.
    roots: Vec<u32>,
    next_root: usize,
    open: usize,
    now_ms: f64,
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
        return Err(super::config::bad(
            "routers",
            routers.len(),
            "one configuration per pool",
        ));
    }
    let mut requests = Requests::new(workload.len());
    let mut gaps = GapHistogram::new();
    let mut totals = Totals::default();
    let desk = Desk {
        workload,
        naming: Naming::new(workload, spec.pools[0].engine.block_size)?,
        requests: &mut requests,
        gaps: &mut gaps,
        totals: &mut totals,
        changes: Vec::new(),
        signals: Vec::new(),
        parked: Vec::new(),
        reserved: Vec::new(),
    };
    let mut fleet = Fleet::new(spec, desk, routers)?;
    let mut samples = Samples::default();
    fleet.run(&mut samples)?;
    let end_ms = fleet.now_ms;
    Ok(Outcome {
        requests,
        gaps,
        samples,
        totals,
        end_ms,
    })
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
    fn new(spec: &'a FleetSpec, desk: Desk<'a>, routers: &[RouterConfig]) -> Result<Self, SimError> {
        let mut pools = Vec::new();
        let mut workers = Vec::new();
        let mut pool_of = Vec::new();
        for (index, (pool, config)) in spec.pools.iter().zip(routers).enumerate() {
            let router = Router::new(config.clone()).map_err(refused("a router configuration"))?;
            pools.push(Pool {
                router,
                queue: queue(spec, index)?,
                role: pool.role,
                first: workers.len(),
            });
            workers.extend(
                pool.speeds
                    .iter()
                    .map(|speed| Worker::new(&pool.engine, pool.role, *speed)),
            );
            pool_of.resize(workers.len(), index);
        }
        let len = desk.workload.len();
        let mut fleet = Self {
            spec,
            pools,
            standing: vec![Standing::default(); workers.len()],
            links: Links::new(spec.transfer, workers.len()),
            workers,
            pool_of,
            dirty: Vec::new(),
            agenda: Agenda::default(),
            rng: Rng::new(spec.seed),
            feed: VecDeque::new(),
            hashes: Vec::new(),
            spare_blocks: Vec::new(),
            first_child: vec![NOBODY; len],
            next_sibling: vec![NOBODY; len],
            roots: Vec::new(),
            next_root: 0,
            open: len,
            now_ms: 0.0,
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

    fn run(&mut self, samples: &mut Samples) -> Result<(), SimError> {
        while self.open > 0 {
            let arrival_ms = self.next_arrival_ms();
            let event_ms = self.agenda.next_ms();
            // Samples go on for ever: alone they mean that nothing can happen any more.
            if arrival_ms.is_none() && self.agenda.only_samples() {
                break;
            }
            let Some(now_ms) = [arrival_ms, event_ms].into_iter().flatten().reduce(f64::min) else {
                break;
            };
            self.now_ms = now_ms;
            while let Some(event) = self.agenda.pop_until(now_ms) {
                self.handle(event, samples)?;
            }
            while self.next_arrival_ms().is_some_and(|at_ms| at_ms <= now_ms) {
                let request = self.roots[self.next_root];
                self.next_root += 1;
                self.arrive(request)?;
            }
            self.start_idle();
        }
        Ok(())
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

    fn handle(&mut self, event: Event, samples: &mut Samples) -> Result<(), SimError> {
        match event {
            Event::Fault(index) => self.fault(index as usize)?,
            Event::Dropped(worker, incarnation) => self.dropped(worker as usize, incarnation)?,
            Event::Pass(worker, stamp) => {
                if self.standing[worker as usize].stamp == stamp {
                    self.workers[worker as usize].finish(&mut self.desk);
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
            Event::Arrival(request) => self.arrive(request)?,
            Event::Sample => self.sample(samples),
        }
        Ok(())
    }

    // ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────

    fn arrive(&mut self, request: u32) -> Result<(), SimError> {
        let i = request as usize;
        if self.desk.requests.arrival_ms[i].is_nan() {
            self.desk.requests.arrival_ms[i] = self.now_ms;
        }
        if self.pools[0].queue.is_some() {
            return self.offer(0, request);
        }
        let Some((worker, expected)) = self.route(0, request)? else {
            self.retry(request);
            return Ok(());
        };
        self.bound(request, worker, expected)
    }

    /// A request was placed on a worker of the first pool.
    fn bound(&mut self, request: u32, worker: usize, expected: u32) -> Result<(), SimError> {
        let i = request as usize;
        if !self.standing[worker].alive {
            return self.connection_failed(request, worker);
        }
        self.desk.requests.worker[i] = worker as u32;
        self.desk.requests.expected_tokens[i] = expected;
        self.workers[worker].enqueue(request, &self.desk);
        self.nudge(worker as u32);
        Ok(())
    }

    fn hash(&mut self, request: u32) {
        let workload = self.desk.workload;
        let naming = self.desk.naming;
        self.hashes.clear();
        let whole = naming.whole_blocks(workload, request);
        self.hashes
            .extend((0..whole).map(|index| local_hash(naming.block(workload, request, index))));
    }

    /// Put a request into pool `at`'s queue, and place what can be placed.
    fn offer(&mut self, at: usize, request: u32) -> Result<(), SimError> {
        self.hash(request);
        let tokens = self.desk.workload.input_tokens[request as usize];
        let waiting = QueuedRequest::new(request_id(request), self.hashes.as_slice().into(), tokens);
        let now_s = self.now_ms * 1e-3;
        let pool = &mut self.pools[at];
        let queue = pool
            .queue
            .as_mut()
            .expect("a pool that is offered requests must have a queue");
        match queue.offer(&pool.router, waiting, now_s) {
            Ok(Offer::Taken) => self.pump(at),
            Ok(Offer::Refused { .. }) => {
                self.close(request, End::Rejected);
                Ok(())
            }
            Err(Error::NoWorker { .. }) => {
                self.retry(request);
                Ok(())
            }
            Err(error) => Err(refused("a waiting request")(error)),
        }
    }

    /// Place what pool `at`'s queue can place now.
    fn pump(&mut self, at: usize) -> Result<(), SimError> {
        let now_s = self.now_ms * 1e-3;
        let pool = &mut self.pools[at];
        let Some(queue) = pool.queue.as_mut().filter(|queue| !queue.is_empty()) else {
            return Ok(());
        };
        let mut placed = Vec::new();
        match queue.pump(&mut pool.router, now_s, &mut placed) {
            // Without a worker all wait for the next one.
            Ok(()) | Err(Error::NoWorker { .. }) => {}
            Err(error) => return Err(refused("a queue's placement")(error)),
        }
        self.desk.totals.decisions += placed.len() as u64;
        let block_size = self.spec.pools[at].engine.block_size;
        for dispatch in placed {
            let (request, worker) = (dispatch.id.0 as u32, dispatch.worker.instance as usize);
            if at == 0 {
                self.bound(request, worker, dispatch.overlap_blocks * block_size)?;
            } else {
                self.ask_for_room(request, worker)?;
            }
        }
        Ok(())
    }

    /// Ask pool `at`'s router. `None`: nobody is available.
    fn route(&mut self, at: usize, request: u32) -> Result<Option<(usize, u32)>, SimError> {
        self.hash(request);
        let workload = self.desk.workload;
        let question = RouteRequest {
            request_id: Some(request_id(request)),
            local_hashes: &self.hashes,
            input_tokens: workload.input_tokens[request as usize],
            ..RouteRequest::default()
        };
        self.desk.totals.decisions += 1;
        match self.pools[at].router.route(&question, self.now_ms * 1e-3) {
            Ok(decision) => {
                let tokens = decision.overlap_blocks * self.spec.pools[at].engine.block_size;
                Ok(Some((decision.worker.instance as usize, tokens)))
            }
            Err(Error::NoWorker { .. }) => Ok(None),
            Err(error) => Err(refused("a request")(error)),
        }
    }

    fn retry(&mut self, request: u32) {
        let i = request as usize;
        self.desk.requests.retries[i] += 1;
        if self.desk.requests.retries[i] > MAX_RETRIES {
            self.close(request, End::Failed);
            return;
        }
        self.agenda.push(
            self.now_ms + self.spec.retry_ms.max(0.001),
            Event::Arrival(request),
        );
    }

    /// The router sent a request to a dead worker: the caller sees a broken connection, and so does the router.
    fn connection_failed(&mut self, request: u32, worker: usize) -> Result<(), SimError> {
        let pool = &mut self.pools[self.pool_of[worker]];
        pool.router
            .release(request_id(request), self.now_ms * 1e-3)
            .map_err(refused("a release"))?;
        pool.router
            .set_available(worker_id(worker), false)
            .map_err(refused("a quarantine"))?;
        self.retry(request);
        Ok(())
    }

    fn close(&mut self, request: u32, end: End) {
        let i = request as usize;
        self.desk.requests.end[i] = end as u8;
        self.desk.requests.end_ms[i] = self.now_ms;
        self.open -= 1;
        let mut child = self.first_child[i];
        let last_turn = child == NOBODY;
        while child != NOBODY {
            self.agenda.push(
                self.now_ms + self.desk.workload.think_ms[child as usize] / self.spec.rate,
                Event::Arrival(child),
            );
            child = self.next_sibling[child as usize];
        }
        if last_turn && self.spec.concurrency.is_some() && self.next_root < self.roots.len() {
            self.agenda
                .push(self.now_ms, Event::Arrival(self.roots[self.next_root]));
            self.next_root += 1;
        }
    }

    /// Act on what a worker's iterations brought.
    fn signals(&mut self, worker: u32) -> Result<(), SimError> {
        let now_s = self.now_ms * 1e-3;
        let at = self.pool_of[worker as usize];
        let role = self.pools[at].role;
        let mut signals = std::mem::take(&mut self.desk.signals);
        for signal in signals.drain(..) {
            match signal {
                Signal::First(request) if role == Role::Aggregated => {
                    self.pools[at]
                        .router
                        .prefill_done(request_id(request), now_s)
                        .map_err(refused("the end of a prefill"))?;
                }
                Signal::First(_) => {}
                Signal::Done(request) => {
                    let output = self.desk.workload.output_tokens[request as usize];
                    let told = crate::ledger::Outcome {
                        output_tokens: Some(output),
                        cached_tokens: None,
                        at_first_token: role == Role::Prefill,
                    };
                    self.pools[at]
                        .router
                        .finish(request_id(request), told, now_s)
                        .map_err(refused("a release"))?;
                    if role == Role::Prefill {
                        self.hand_over(request)?;
                    } else {
                        self.close(request, End::Complete);
                    }
                }
                Signal::Rejected(request) => {
                    self.pools[at]
                        .router
                        .release(request_id(request), now_s)
                        .map_err(refused("a release"))?;
                    self.close(request, End::Rejected);
                }
            }
        }
        self.desk.signals = signals;
        self.pump(at)
    }

    // ── split ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A prompt is done: choose who decodes.
    fn hand_over(&mut self, request: u32) -> Result<(), SimError> {
        if self.pools[1].queue.is_some() {
            return self.offer(1, request);
        }
        let Some((to, _)) = self.route(1, request)? else {
            let from = self.desk.requests.worker[request as usize] as usize;
            self.workers[from].let_go(request);
            self.retry(request);
            return Ok(());
        };
        self.ask_for_room(request, to)
    }

    /// A decode worker was chosen: its KV goes there once it has room. The sender's blocks stay until they have been sent.
    fn ask_for_room(&mut self, request: u32, to: usize) -> Result<(), SimError> {
        let from = self.desk.requests.worker[request as usize] as usize;
        if !self.standing[to].alive {
            self.workers[from].let_go(request);
            return self.connection_failed(request, to);
        }
        let now_s = self.now_ms * 1e-3;
        self.pools[1]
            .router
            .prefill_done(request_id(request), now_s)
            .map_err(refused("the end of a prefill"))?;
        self.desk.requests.decode_worker[request as usize] = to as u32;
        if let Some(end_ms) = self.workers[to].offer(request, self.now_ms, &self.desk) {
            self.expect_end(to as u32, end_ms);
        }
        self.mark(to as u32);
        Ok(())
    }

    /// Room is reserved: send the KV.
    fn send_kv(&mut self, request: u32, tokens: u32) {
        let i = request as usize;
        let (from, to) = (
            self.desk.requests.worker[i] as usize,
            self.desk.requests.decode_worker[i] as usize,
        );
        let bytes = f64::from(tokens) * self.spec.pools[0].engine.kv_bytes_per_token;
        self.desk.totals.transfer_bytes += bytes;
        let done_ms = self.links.send(from, to, bytes, self.now_ms);
        self.agenda.push(
            done_ms,
            Event::Transferred(request, self.desk.requests.retries[i]),
        );
    }

    fn transferred(&mut self, request: u32, attempt: u32) {
        let i = request as usize;
        if self.desk.requests.retries[i] != attempt {
            // Its decode worker died on the way, and the request has begun again.
            return;
        }
        let (from, to) = (self.desk.requests.worker[i], self.desk.requests.decode_worker[i]);
        self.workers[from as usize].let_go(request);
        self.mark(from);
        if let Some(end_ms) = self.workers[to as usize].activate(request, self.now_ms) {
            self.expect_end(to, end_ms);
        }
        self.mark(to);
    }

    // ── engines ───────────────────────────────────────────────────────────────────────────────────────────────────────

    fn mark(&mut self, worker: u32) {
        if !std::mem::replace(&mut self.standing[worker as usize].dirty, true) {
            self.dirty.push(worker);
        }
    }

    /// Something was put into a worker's queue: start it, or cut what it is doing.
    fn nudge(&mut self, worker: u32) {
        if self.workers[worker as usize].busy() {
            if let Some(end_ms) = self.workers[worker as usize].interrupt(self.now_ms) {
                self.expect_end(worker, end_ms);
            }
        } else {
            self.mark(worker);
        }
    }

    fn expect_end(&mut self, worker: u32, end_ms: f64) {
        let standing = &mut self.standing[worker as usize];
        standing.stamp += 1;
        self.agenda.push(end_ms, Event::Pass(worker, standing.stamp));
    }

    fn start_idle(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for worker in dirty.drain(..) {
            let at = worker as usize;
            self.standing[at].dirty = false;
            if self.workers[at].busy() || !self.standing[at].alive || !self.workers[at].has_work() {
                continue;
            }
            if self.workers[at].not_before_ms > self.now_ms {
                self.agenda
                    .push(self.workers[at].not_before_ms, Event::Wake(worker));
                continue;
            }
            self.workers[at].start(self.now_ms, &mut self.desk);
            self.carry(worker);
            if self.workers[at].busy() {
                self.expect_end(worker, self.workers[at].end_ms());
            }
            let mut reserved = std::mem::take(&mut self.desk.reserved);
            for (request, tokens) in reserved.drain(..) {
                self.send_kv(request, tokens);
            }
            self.desk.reserved = reserved;
            while let Some((request, ready_ms)) = self.desk.parked.pop() {
                self.agenda.push(ready_ms, Event::Onboarded(worker, request));
            }
            // A request too large for the cache is refused before anything ran.
            if !self.desk.signals.is_empty() && self.signals(worker).is_err() {
                debug_assert!(false, "a rejected request must have been booked");
            }
        }
        self.dirty.append(&mut dirty);
    }

    // ── feed ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Turn a worker's cache changes into KV events on their way to its router.
    fn carry(&mut self, worker: u32) {
        let mut changes = std::mem::take(&mut self.desk.changes);
        if self.pools[self.pool_of[worker as usize]].role != Role::Decode {
            let mut at = 0;
            while at < changes.len() {
                let (event, used) = self.event(&changes[at..]);
                at += used;
                if let Some(event) = event {
                    self.send(worker, event);
                }
            }
        }
        changes.clear();
        self.desk.changes = changes;
    }

    /// The KV event for the first change; runs of removals become one event. Returns how many changes it covers.
    fn event(&mut self, changes: &[CacheChange]) -> (Option<KvEvent>, usize) {
        match changes[0] {
            CacheChange::Stored { request, from, to } => {
                let (workload, naming) = (self.desk.workload, self.desk.naming);
                let mut blocks = std::mem::take(&mut self.spare_blocks);
                blocks.extend((from..to).map(|index| {
                    let block = naming.block(workload, request, index);
                    StoredBlock {
                        engine_hash: engine_hash(block),
                        local_hash: local_hash(block),
                    }
                }));
                let parent = (from > 0).then(|| engine_hash(naming.block(workload, request, from - 1)));
                (
                    Some(KvEvent::Stored {
                        parent,
                        blocks,
                        tier: Tier::Device,
                    }),
                    1,
                )
            }
            CacheChange::Removed { .. } => {
                let removed = changes.iter().map_while(|change| match change {
                    CacheChange::Removed { block } => Some(engine_hash(*block)),
                    _ => None,
                });
                let blocks: Vec<EngineHash> = removed.collect();
                let used = blocks.len();
                (
                    Some(KvEvent::Removed {
                        blocks,
                        tier: Tier::Device,
                    }),
                    used,
                )
            }
            CacheChange::Tier(change) => (Self::tier_event(change), 1),
        }
    }

    /// Host and disk are told; a network tier belongs to nobody, so no worker reports it.
    fn tier_event(change: TierChange) -> Option<KvEvent> {
        let tier = |level| [Tier::Host, Tier::Disk].get(level).copied();
        match change {
            TierChange::Stored { level, block, parent } => tier(level).map(|tier| KvEvent::Stored {
                parent: (parent != NONE).then(|| engine_hash(parent)),
                blocks: vec![StoredBlock {
                    engine_hash: engine_hash(block),
                    local_hash: local_hash(block),
                }],
                tier,
            }),
            TierChange::Removed { level, block } => tier(level).map(|tier| KvEvent::Removed {
                blocks: vec![engine_hash(block)],
                tier,
            }),
        }
    }

    fn send(&mut self, worker: u32, event: KvEvent) {
        self.desk.totals.events_sent += 1;
        if self.spec.feed.loss > 0.0 && self.rng.unit() < self.spec.feed.loss {
            self.desk.totals.events_lost += 1;
            return;
        }
        if self.spec.feed.delay_ms > 0.0 {
            let at_ms = self.now_ms + self.spec.feed.delay_ms;
            self.feed.push_back((at_ms, worker, event));
            self.agenda.push(at_ms, Event::Feed);
            return;
        }
        self.apply(worker, event);
    }

    fn deliver(&mut self) {
        while self
            .feed
            .front()
            .is_some_and(|(at_ms, _, _)| *at_ms <= self.now_ms)
        {
            if let Some((_, worker, event)) = self.feed.pop_front() {
                self.apply(worker, event);
            }
        }
    }

    fn apply(&mut self, worker: u32, event: KvEvent) {
        let pool = &mut self.pools[self.pool_of[worker as usize]];
        // Refusals are expected after a loss or a crash: they are counted, and the feed goes on.
        if pool.router.apply(worker_id(worker as usize), &event).is_err() {
            self.desk.totals.events_refused += 1;
        }
        if let KvEvent::Stored { mut blocks, .. } = event {
            blocks.clear();
            self.spare_blocks = blocks;
        }
    }

    // ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn join(&mut self, worker: usize) -> Result<(), SimError> {
        let pool = self.pool_of[worker];
        let engine = &self.spec.pools[pool].engine;
        let spec = WorkerSpec::default()
            .with_total_kv_blocks(u64::from(engine.num_blocks))
            .with_max_num_seqs(engine.max_num_seqs)
            .with_max_num_batched_tokens(engine.max_num_batched_tokens);
        if self.standing[worker].known {
            self.pools[pool]
                .router
                .remove_worker(worker_id(worker))
                .map_err(refused("a departure"))?;
        }
        self.pools[pool]
            .router
            .add_worker(worker_id(worker), spec)
            .map_err(refused("a worker"))?;
        let standing = &mut self.standing[worker];
        standing.known = true;
        standing.alive = true;
        standing.incarnation += 1;
        self.pump(pool)
    }

    fn fault(&mut self, index: usize) -> Result<(), SimError> {
        let fault = self.spec.faults[index];
        let worker = fault.worker;
        match fault.kind {
            FaultKind::Join if self.standing[worker].alive => Ok(()),
            FaultKind::Join => self.join(worker),
            FaultKind::Crash { detect_ms } if self.standing[worker].alive => self.crash(worker, detect_ms),
            FaultKind::Crash { .. } => Ok(()),
            FaultKind::Hang { for_ms } => {
                if let Some(end_ms) = self.workers[worker].hang(self.now_ms, for_ms) {
                    self.expect_end(worker as u32, end_ms);
                }
                Ok(())
            }
            FaultKind::Speed { factor } => {
                let speed = self.spec.pools[self.pool_of[worker]].speeds[worker - self.first_of(worker)];
                self.workers[worker].speed = speed * factor;
                if let Some(end_ms) = self.workers[worker].cut(self.now_ms) {
                    self.expect_end(worker as u32, end_ms);
                }
                Ok(())
            }
        }
    }

    fn first_of(&self, worker: usize) -> usize {
        self.pools[self.pool_of[worker]].first
    }

    fn crash(&mut self, worker: usize, detect_ms: f64) -> Result<(), SimError> {
        let standing = &mut self.standing[worker];
        standing.alive = false;
        standing.stamp += 1;
        let incarnation = standing.incarnation;
        if self.workers[worker].settle(self.now_ms) {
            self.workers[worker].finish(&mut self.desk);
            self.signals(worker as u32)?;
        }
        let decodes = self.pools[self.pool_of[worker]].role == Role::Decode;
        for request in self.workers[worker].crash() {
            if decodes {
                let from = self.desk.requests.worker[request as usize];
                self.workers[from as usize].let_go(request);
                self.mark(from);
            }
            self.connection_failed(request, worker)?;
        }
        self.agenda.push(
            self.now_ms + detect_ms,
            Event::Dropped(worker as u32, incarnation),
        );
        Ok(())
    }

    fn dropped(&mut self, worker: usize, incarnation: u32) -> Result<(), SimError> {
        let standing = &mut self.standing[worker];
        if standing.incarnation == incarnation && standing.known && !standing.alive {
            standing.known = false;
            let router = &mut self.pools[self.pool_of[worker]].router;
            router
                .remove_worker(worker_id(worker))
                .map_err(refused("a departure"))?;
        }
        Ok(())
    }

    // ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    fn sample(&mut self, samples: &mut Samples) {
        samples.at_ms.push(self.now_ms);
        samples.running.extend(self.workers.iter().map(Worker::running));
        samples.waiting.extend(self.workers.iter().map(Worker::waiting));
        samples
            .active_blocks
            .extend(self.workers.iter().map(Worker::active_blocks));
        self.agenda.push(self.now_ms + self.spec.sample_ms, Event::Sample);
    }
}
