//! The workers of one model in one role: their router, their health, their event streams.

mod control;
mod members;
mod restart;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use wardrop_core::latency::Pass;
use wardrop_core::ledger::{EngineQueue, Outcome};
use wardrop_core::predicted::PredictedSize;
use wardrop_core::queue::{QueueStats, QueuedRequest};
use wardrop_core::{
    Decision, Error, KvEvent, RequestId, RouteRequest, Router, RouterConfig, Snapshot, Stage, WorkerId,
    WorkerSpec,
};

pub use control::PoolCurves;
pub use members::Member;

use super::cursor::{EventCursor, Step, Verdict};
use super::health::{Fault, Health, HealthOptions};
use super::index::{AnarchyIndex, AnarchyReport};
use super::position::FeedPosition;
use super::waiting::{NoWait, Wait, Waiters};
use crate::GatewayError;
use crate::feed::dynamo::{ForwardPass, WorkerEvent};

/// Ranks that one instance may have; discovery is believed only so far.
const MAX_RANKS: u32 = 1024;

/// What the workers of a pool do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Prefill and decode.
    Aggregated,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Aggregated, Self::Prefill, Self::Decode];

    /// Value of the `worker_type` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aggregated => "aggregated",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// A worker as discovery tells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerUpsert {
    /// The model that it serves.
    pub model: String,
    /// What it does.
    pub role: Role,
    /// Its instance.
    pub instance: u64,
    /// Its first rank.
    #[serde(default)]
    pub dp_start: u32,
    /// How many ranks it has.
    #[serde(default = "one")]
    pub dp_size: u32,
    /// KV blocks of one rank.
    #[serde(default)]
    pub total_kv_blocks: Option<u64>,
    /// Sequences that one rank runs at once.
    #[serde(default)]
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step of one rank.
    #[serde(default)]
    pub max_num_batched_tokens: Option<u32>,
}

fn one() -> u32 {
    1
}

/// The workers of one model in one role.
pub struct WorkerPool {
    /// The model's name.
    pub model: Arc<str>,
    /// What its workers do.
    pub role: Role,
    options: HealthOptions,
    /// Shared with the state: decisions do not wait for those who write there.
    router: Arc<Router>,
    state: Mutex<State>,
    index: AnarchyIndex,
    /// Workers registered, read without the lock.
    size: AtomicUsize,
    /// Seconds, as bits; 0 without a queue.
    longest_wait_bits: AtomicU64,
}

struct State {
    router: Arc<Router>,
    /// Late binding, when it is on.
    waiters: Option<Waiters>,
    workers: BTreeMap<WorkerId, Worker>,
}

struct Worker {
    spec: WorkerSpec,
    ranks: u32,
    available: bool,
    fault: Option<Fault>,
    health: Health,
    cursor: EventCursor,
    position: Arc<FeedPosition>,
    forward_pass: Option<ForwardPass>,
    audit: Audit,
}

/// Predicted against reported cached tokens, summed over finished requests.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Audit {
    requests: u64,
    predicted_tokens: u64,
    reported_tokens: u64,
    /// Σ |predicted − reported|.
    absolute_error_tokens: u64,
}

/// What became of a list of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyCounts {
    /// Applied by the router.
    pub applied: u64,
    /// Refused by the router: unknown parents, unknown blocks.
    pub refused: u64,
    /// For workers that are not registered or not this feed's.
    pub foreign: u64,
    /// Seen before.
    pub duplicates: u64,
    /// Not about a worker's own memory.
    pub passed_over: u64,
    /// Workers whose restored blocks this proved, found too old, and found to be of a past incarnation.
    pub judged: [u64; 3],
}

/// One worker in a status report.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is told by itself")]
pub struct WorkerReport {
    pub instance: u64,
    pub dp_rank: u32,
    pub available: bool,
    pub fault: Option<Fault>,
    pub failures: u64,
    pub synced: bool,
    /// Its blocks are from a saved index, and nothing has proved them yet.
    pub restored: bool,
    pub needs_resync: bool,
    pub last_event_id: Option<u64>,
    pub event_gaps: u64,
    pub events_lost: u64,
    pub event_duplicates: u64,
    pub incarnations: u64,
    pub event_age_s: Option<f64>,
    pub heartbeat_age_s: Option<f64>,
    pub prefill_tokens: u64,
    pub decode_blocks: u64,
    pub active_requests: u32,
    pub held_blocks: [u64; 3],
    pub audited_requests: u64,
    pub predicted_cached_tokens: u64,
    pub reported_cached_tokens: u64,
    pub cached_tokens_absolute_error: u64,
    pub forward_pass: Option<ForwardPass>,
}

impl WorkerPool {
    /// An empty pool.
    pub fn new(
        model: Arc<str>,
        role: Role,
        config: RouterConfig,
        options: HealthOptions,
    ) -> Result<Self, Error> {
        let router = Arc::new(Router::new(config)?);
        let state = State {
            router: router.clone(),
            waiters: None,
            workers: BTreeMap::new(),
        };
        Ok(Self {
            model,
            role,
            options,
            router,
            state: Mutex::new(state),
            index: AnarchyIndex::new(),
            size: AtomicUsize::new(0),
            longest_wait_bits: AtomicU64::new(0),
        })
    }

    /// Chooses and books as soon as the chosen worker has room.
    pub fn wait(self: &Arc<Self>, request: QueuedRequest, clock: std::time::Instant) -> Result<Wait, NoWait> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let waiters = state.waiters.as_mut().ok_or(NoWait::Off)?;
        let id = request.id;
        let receiver = waiters.offer(&state.router, request, clock.elapsed().as_secs_f64())?;
        self.unlock(guard);
        Ok(Wait::new(self.clone(), id, receiver, clock))
    }

    /// Works on the queue, where there is one.
    pub(super) fn with_waiters(&self, work: impl FnOnce(&mut Waiters, &Router)) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(waiters) = &mut state.waiters {
            work(waiters, &state.router);
        }
        self.unlock(guard);
    }

    /// The state, for what may place requests; to be given back by [`WorkerPool::unlock`].
    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock();
        self.router.keep_placements(self.index.wants(self.size()));
        state
    }

    /// Unlocks, and tells the index what was placed.
    fn unlock(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.index.record(&self.router.take_placements());
    }

    /// Counts and state of the queue, where there is one.
    pub fn queue_stats(&self) -> Option<QueueStats> {
        self.state.lock().waiters.as_ref().map(Waiters::stats)
    }

    /// The worker's instance has several ranks.
    pub fn has_several_ranks(&self, worker: WorkerId) -> bool {
        let state = self.state.lock();
        state.workers.get(&worker).is_some_and(|known| known.ranks > 1)
    }

    /// Workers registered.
    pub fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Workers that may be chosen now.
    pub fn routable(&self) -> usize {
        self.state
            .lock()
            .workers
            .values()
            .filter(|worker| worker.available)
            .count()
    }

    /// Adds an instance with its ranks, or takes over its new figures. A known worker keeps blocks, load and health.
    pub fn upsert(&self, upsert: &WorkerUpsert) -> Result<(), GatewayError> {
        if upsert.dp_size == 0 || upsert.dp_size > MAX_RANKS || upsert.dp_start > u32::MAX - MAX_RANKS {
            return Err(GatewayError::Config(format!(
                "dp_size must be 1 to {MAX_RANKS}, got {} (dp_start {})",
                upsert.dp_size, upsert.dp_start
            )));
        }
        let mut spec = WorkerSpec::default();
        spec.total_kv_blocks = upsert.total_kv_blocks;
        spec.max_num_seqs = upsert.max_num_seqs;
        spec.max_num_batched_tokens = upsert.max_num_batched_tokens;
        let ranks = upsert.dp_start..upsert.dp_start + upsert.dp_size;
        let mut state = self.state.lock();
        let gone: Vec<WorkerId> = state
            .workers
            .keys()
            .filter(|id| id.instance == upsert.instance && !ranks.contains(&id.dp_rank))
            .copied()
            .collect();
        for id in gone {
            state.remove(id)?;
        }
        for rank in ranks {
            state.add(WorkerId::new(upsert.instance, rank), spec.clone(), upsert.dp_size)?;
        }
        self.size.store(state.workers.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets an instance with its ranks; whether it was known.
    pub fn remove(&self, instance: u64) -> Result<bool, GatewayError> {
        let mut state = self.state.lock();
        let gone: Vec<WorkerId> = state
            .workers
            .keys()
            .filter(|id| id.instance == instance)
            .copied()
            .collect();
        for id in &gone {
            state.remove(*id)?;
        }
        self.size.store(state.workers.len(), Ordering::Relaxed);
        Ok(!gone.is_empty())
    }

    /// Chooses and books, one atomic step; `mark` is told the end of each stage.
    pub fn route(
        &self,
        request: &RouteRequest<'_>,
        now_s: f64,
        mark: impl FnMut(Stage),
    ) -> Result<Placement, Error> {
        self.router.keep_placements(self.index.wants(self.size()));
        let decision = self.router.route_marked(request, now_s, mark)?;
        self.index.record(&self.router.take_placements());
        let state = self.state.lock();
        let ranks = state.workers.get(&decision.worker).map(|worker| worker.ranks);
        Ok(Placement {
            decision,
            several_ranks: ranks.is_some_and(|ranks| ranks > 1),
        })
    }

    /// Books a placement that the client made.
    pub fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        self.router.book(request, worker, now_s)
    }

    /// The prompt of a booked request was processed. A booking that is gone already needs nothing.
    pub fn prefill_done(&self, request: RequestId, now_s: f64) {
        let mut state = self.lock();
        let _ = state.router.prefill_done(request, now_s);
        state.pump(now_s);
        self.unlock(state);
        // On a decode worker nothing waits for a first token: its prefill ends with its booking.
        if self.role != Role::Decode {
            self.index.first_token(request, now_s);
        }
    }

    /// A first token came, `ttft_s` after its request: for a policy of this pool that adapts to what it sees.
    pub fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        self.router.observe_first_token(ttft_s, now_s);
    }

    /// A booked request is over. A booking that is gone already needs nothing.
    pub fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) {
        let mut state = self.lock();
        let _ = state.router.finish(request, outcome, now_s);
        state.pump(now_s);
        self.unlock(state);
        if outcome.at_first_token {
            self.index.first_token(request, now_s);
        }
        self.index.finish(request, outcome.output_tokens, now_s);
    }

    /// A request that was pinned to the worker failed: it is not chosen until it is seen alive.
    pub fn fail(&self, worker: WorkerId, now_s: f64) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.health.fail(now_s);
        }
        state.review(worker, now_s, self.options);
    }

    /// The connection to an instance's own feed broke: none of its ranks is chosen until it is seen alive.
    pub fn lost(&self, instance: u64, now_s: f64) {
        let mut state = self.state.lock();
        let ids: Vec<WorkerId> = state
            .workers
            .keys()
            .filter(|id| id.instance == instance)
            .copied()
            .collect();
        for id in ids {
            if let Some(known) = state.workers.get_mut(&id) {
                known.health.fail(now_s);
            }
            state.review(id, now_s, self.options);
        }
    }

    /// A failure that the worker was blamed for was not its own.
    pub fn absolve(&self, worker: WorkerId, now_s: f64) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.health.absolve();
        }
        state.review(worker, now_s, self.options);
    }

    /// The worker's heartbeats stopped.
    pub fn is_silent(&self, worker: WorkerId) -> bool {
        self.state
            .lock()
            .workers
            .get(&worker)
            .is_some_and(|known| known.fault == Some(Fault::Silent))
    }

    /// Compares predicted with reported cached tokens of a finished request.
    pub fn audit(&self, worker: WorkerId, predicted_tokens: u64, reported_tokens: u64) {
        if let Some(known) = self.state.lock().workers.get_mut(&worker) {
            known.audit.requests += 1;
            known.audit.predicted_tokens += predicted_tokens;
            known.audit.reported_tokens += reported_tokens;
            known.audit.absolute_error_tokens += predicted_tokens.abs_diff(reported_tokens);
        }
    }

    /// Applies events of a publisher's feed; `owner` is the instance that the feed belongs to, when that is known.
    pub fn apply(
        &self,
        events: Vec<WorkerEvent>,
        (publisher, owner): (u64, Option<u64>),
        now_s: f64,
    ) -> ApplyCounts {
        let mut counts = ApplyCounts::default();
        let mut state = self.state.lock();
        for WorkerEvent {
            worker,
            event_id,
            event,
        } in events
        {
            if owner.is_some_and(|owner| owner != worker.instance) || !state.workers.contains_key(&worker) {
                counts.foreign += 1;
                continue;
            }
            state.apply(worker, (publisher, event_id), event, now_s, &mut counts);
            state.review(worker, now_s, self.options);
        }
        counts
    }

    /// Takes note of an engine step or heartbeat; whether the worker is known and the feed's own.
    pub fn forward_pass(&self, step: ForwardPass, owner: Option<u64>, now_s: f64) -> bool {
        let Some(worker) = step.worker() else { return false };
        if owner.is_some_and(|owner| owner != worker.instance) {
            return false;
        }
        let mut state = self.state.lock();
        let Some(known) = state.workers.get_mut(&worker) else {
            return false;
        };
        known.health.heartbeat(now_s);
        teach(&state.router, worker, &step);
        state.router.engine_queue(worker, waiting(&step), now_s);
        let Some(known) = state.workers.get_mut(&worker) else {
            return false;
        };
        known.forward_pass = Some(step);
        state.review(worker, now_s, self.options);
        true
    }

    /// A feed of KV events of an instance is followed.
    pub fn feed_followed(&self, instance: u64, publisher: u64) {
        for (id, worker) in &self.state.lock().workers {
            if id.instance == instance {
                worker.position.followed(publisher);
            }
        }
    }

    /// The feed of an instance (or of any, when unknown) was disconnected: events may be missing.
    pub fn feed_interrupted(&self, owner: Option<u64>) {
        for (id, worker) in &mut self.state.lock().workers {
            if owner.is_none_or(|owner| owner == id.instance) {
                worker.cursor.miss(0);
                worker.position.forget();
            }
        }
    }

    /// Replaces the blocks of every worker whose stream is not known from its start by those in the dump.
    ///
    /// Workers that are synced keep what they have: their live state is newer than any dump. Returns (workers replaced, events).
    pub fn load_dump(&self, dump: Vec<WorkerEvent>) -> (usize, ApplyCounts) {
        let mut counts = ApplyCounts::default();
        let mut per_worker: BTreeMap<WorkerId, Vec<KvEvent>> = BTreeMap::new();
        for WorkerEvent { worker, event, .. } in dump {
            match event {
                Some(event) => per_worker.entry(worker).or_default().push(event),
                None => counts.passed_over += 1,
            }
        }
        let mut state = self.state.lock();
        let ids: Vec<WorkerId> = state.workers.keys().copied().collect();
        let mut replaced = 0;
        for id in ids {
            let blocks = per_worker.remove(&id).unwrap_or_default();
            let Some(worker) = state.workers.get_mut(&id) else {
                continue;
            };
            if worker.cursor.is_synced() {
                continue;
            }
            replaced += 1;
            worker.position.forget();
            let events = worker.cursor.load_dump(blocks);
            let (position, standing) = (worker.position.clone(), worker.cursor.standing());
            let _ = state.router.apply(id, &KvEvent::Cleared);
            for event in events {
                match state.router.apply(id, &event) {
                    Ok(()) => counts.applied += 1,
                    Err(_) => counts.refused += 1,
                }
            }
            position.set(standing);
        }
        counts.foreign += per_worker.len() as u64;
        (replaced, counts)
    }

    /// Looks for silence and for bookings past their time; how many of the latter ended.
    pub fn sweep(&self, now_s: f64) -> usize {
        let mut state = self.lock();
        let ids: Vec<WorkerId> = state.workers.keys().copied().collect();
        for id in ids {
            state.review(id, now_s, self.options);
        }
        let expired = state.router.expire(now_s);
        state.pump(now_s);
        self.unlock(state);
        expired
    }

    /// Works on what routing lost of late, within its share of a core; may take as long as one window does.
    pub fn solve_anarchy(&self, now_s: f64) {
        self.index.solve(now_s);
    }

    /// What routing loses here, once there is something to tell.
    pub fn anarchy(&self) -> Option<AnarchyReport> {
        self.index.report()
    }

    /// What is predicted of caches; `None` when nothing is.
    pub fn predicted(&self) -> Option<PredictedSize> {
        self.router.predicted()
    }

    /// The router's own view.
    pub fn snapshot(&self) -> Snapshot {
        self.router.snapshot()
    }

    /// All workers for a status report.
    pub fn report(&self, now_s: f64) -> Vec<WorkerReport> {
        let state = self.state.lock();
        let snapshot = state.router.snapshot();
        let loads = snapshot.workers.iter().map(|worker| (worker.worker, worker));
        let loads: BTreeMap<WorkerId, _> = loads.collect();
        state
            .workers
            .iter()
            .map(|(id, worker)| {
                let load = loads.get(id);
                WorkerReport {
                    instance: id.instance,
                    dp_rank: id.dp_rank,
                    available: worker.available,
                    fault: worker.fault,
                    failures: worker.health.failures,
                    synced: worker.cursor.is_synced(),
                    restored: worker.cursor.is_restored(),
                    needs_resync: worker.cursor.needs_resync(),
                    last_event_id: worker.cursor.last_id(),
                    event_gaps: worker.cursor.gaps,
                    events_lost: worker.cursor.lost_events,
                    event_duplicates: worker.cursor.duplicates,
                    incarnations: worker.cursor.incarnations,
                    event_age_s: worker.health.event_age_s(now_s),
                    heartbeat_age_s: worker.health.heartbeat_age_s(now_s),
                    prefill_tokens: load.map_or(0, |l| l.prefill_tokens),
                    decode_blocks: load.map_or(0, |l| l.decode_blocks),
                    active_requests: load.map_or(0, |l| l.active_requests),
                    held_blocks: load.map_or([0; 3], |l| l.held_blocks),
                    audited_requests: worker.audit.requests,
                    predicted_cached_tokens: worker.audit.predicted_tokens,
                    reported_cached_tokens: worker.audit.reported_tokens,
                    cached_tokens_absolute_error: worker.audit.absolute_error_tokens,
                    forward_pass: worker.forward_pass.clone(),
                }
            })
            .collect()
    }
}

/// An engine's report of one of its steps teaches the curves.
fn teach(router: &Router, worker: WorkerId, step: &ForwardPass) {
    let ran = &step.scheduled_requests;
    let pass = Pass {
        prefills: ran.num_prefill_requests,
        prefill_tokens: ran.sum_prefill_tokens,
        prefill_kv_tokens: ran.sum_prefill_kv_tokens,
        decodes: ran.num_decode_requests,
        decode_kv_tokens: ran.sum_decode_kv_tokens,
        seconds: step.wall_time,
    };
    router.teach(worker, |curves, position| curves.pass(position, &pass));
}

/// What an engine says waits in it.
fn waiting(step: &ForwardPass) -> EngineQueue {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    EngineQueue {
        waiting_prompts: count(step.queued_requests.num_prefill_requests),
        waiting_tokens: step.queued_requests.sum_prefill_tokens,
        computed_prompts: count(step.scheduled_requests.num_prefill_requests),
    }
}

/// A decision with what the pin needs to know.
#[derive(Debug)]
pub struct Placement {
    /// What the router decided.
    pub decision: Decision,
    /// The instance has several ranks, so that the rank has to be pinned too.
    pub several_ranks: bool,
}

impl State {
    /// Something ended or changed: place those that wait for it.
    fn pump(&mut self, now_s: f64) {
        if let Some(waiters) = &mut self.waiters {
            waiters.pump(&self.router, now_s);
        }
    }

    fn add(&mut self, id: WorkerId, spec: WorkerSpec, ranks: u32) -> Result<(), Error> {
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.spec == spec
        {
            worker.ranks = ranks;
            return Ok(());
        }
        if self.workers.contains_key(&id) {
            self.remove(id)?;
        }
        self.router.add_worker(id, spec.clone())?;
        self.workers.insert(
            id,
            Worker {
                spec,
                ranks,
                available: true,
                fault: None,
                health: Health::default(),
                cursor: EventCursor::default(),
                position: Arc::default(),
                forward_pass: None,
                audit: Audit::default(),
            },
        );
        Ok(())
    }

    fn remove(&mut self, id: WorkerId) -> Result<(), Error> {
        if let Some(worker) = self.workers.remove(&id) {
            worker.position.forget();
        }
        self.router.remove_worker(id)
    }

    fn apply(
        &mut self,
        id: WorkerId,
        (publisher, event_id): (u64, u64),
        event: Option<KvEvent>,
        now_s: f64,
        counts: &mut ApplyCounts,
    ) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.health.event(now_s);
        let same_publisher = worker.position.publisher() == Some(publisher);
        let step = match worker.cursor.judge(event_id, same_publisher) {
            Some((verdict, step)) => {
                counts.judged[verdict as usize] += 1;
                if verdict != Verdict::Exact {
                    tracing::info!(
                        worker_id = id.instance,
                        dp_rank = id.dp_rank,
                        ?verdict,
                        "saved blocks of a worker do not hold"
                    );
                }
                step
            }
            None => worker.cursor.advance(event_id),
        };
        match step {
            Step::Duplicate => {
                counts.duplicates += 1;
                return;
            }
            Step::NewIncarnation | Step::Forget => {
                worker.position.forget();
                let _ = self.router.apply(id, &KvEvent::Cleared);
            }
            Step::Apply => {}
        }
        match event {
            None => counts.passed_over += 1,
            Some(event) => {
                worker.cursor.keep(&event);
                match self.router.apply(id, &event) {
                    Ok(()) => counts.applied += 1,
                    Err(_) => counts.refused += 1,
                }
            }
        }
        worker.position.told(publisher, worker.cursor.standing());
    }

    /// Brings the router's view of a worker in line with its health.
    fn review(&mut self, id: WorkerId, now_s: f64, options: HealthOptions) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.fault = worker.health.fault(now_s, options);
        let available = worker.fault.is_none();
        if available != worker.available {
            worker.available = available;
            let _ = self.router.set_available(id, available);
            tracing::info!(worker_id = id.instance, dp_rank = id.dp_rank, available, fault = ?worker.fault, "worker availability changed");
        }
    }
}
