//! A pool: the workers of one model in one role, with their router, health and event streams.
//!
//! ```text
//! request ─▶ WorkerPool::route (now) or WorkerPool::wait (queue) ─▶ Router: choose and book ─▶ Placement
//! feed ─▶ WorkerPool::apply ─▶ EventCursor (order) ─▶ Router: index of blocks
//! answer ─▶ WorkerPool::prefill_done, finish ─▶ Router: load ─▶ queue: next request
//! ```
//!
//! The router has locks of its own, so a decision without a queue takes the pool's lock only to read the rank count.
//! The pool's lock guards the queue, worker health and the order of events.
//!
//! Bounds: `max_workers` of the router's configuration, the queue's limits, and the kept events of
//! [`cursor`]. A decision costs O(prompt blocks + workers), a change of load O(1) and one look at
//! the queue.

mod anarchy;
mod booking;
mod bulk;
mod control;
mod cursor;
mod engine;
mod explanation;
mod feed;
mod health;
mod held_blocks;
#[cfg(test)]
mod lock_holds;
mod members;
#[cfg(test)]
mod oracle;
mod peers;
mod position;
mod price_guard;
mod queue;
mod report;
mod restart;
mod saved;
mod trust;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use wardrop_core::ledger::Outcome;
use wardrop_core::queue::{QueueStats, QueuedRequest};
use wardrop_core::{
    Decision, Error, Misfit, RequestId, RouteRequest, Router, RouterConfig, Stage, WorkerId, WorkerSpec,
};

use wardrop_engines::dynamo::ForwardPass;

use self::anarchy::AnarchyMeter;
pub(crate) use self::anarchy::AnarchyReport;
pub use self::booking::{Booking, Leg};
pub(crate) use self::control::PoolCurves;
pub(crate) use self::cursor::StreamState;
use self::cursor::{EventCursor, KeptBudget};
pub(crate) use self::engine::{EngineFrame, EngineLoad, EngineReport};
pub(crate) use self::explanation::{Explanation, ImmediateChoice};
pub(crate) use self::feed::{ApplyCounts, EventSource};
use self::health::Health;
pub(crate) use self::health::{Fault, HealthOptions, TrustOptions};
pub(crate) use self::members::{Member, WorkerUpsert};
use self::position::FeedPosition;
pub(crate) use self::queue::QueueError;
use self::queue::{PoolQueue, QueueEntry};
pub(crate) use self::report::WorkerReport;
pub(crate) use self::saved::SavedFleet;
use self::trust::FeedTrust;
use crate::Clock;

/// Part of a request that the workers of a pool process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Workers that run prefill and decode of a request.
    Aggregated,
    /// Workers that run only the prefill.
    Prefill,
    /// Workers that run only the decode.
    Decode,
}

impl Role {
    /// Every role, in the order of the discriminants, which saved index files store.
    pub const ALL: [Self; 3] = [Self::Aggregated, Self::Prefill, Self::Decode];

    /// Name of the role in metric labels (`worker_type`), JSON and control calls.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aggregated => "aggregated",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// The workers of one model in one role.
pub struct WorkerPool {
    /// Name of the model that every worker of the pool serves.
    pub model: Arc<str>,
    /// Role of every worker in the pool.
    pub role: Role,
    /// Time limits of health and trust; the same for every worker.
    options: HealthOptions,
    /// Same router as in `state`. Decisions use this handle, so they do not wait for the pool's lock.
    router: Arc<Router>,
    /// Serialises changes of the membership, which leave `state` unlocked while blocks are removed.
    changes: Mutex<()>,
    /// Everything that calls change together. Never held while blocks of a whole worker are removed
    /// or replaced.
    state: Mutex<State>,
    /// Recorder of decisions for the live price of anarchy.
    anarchy: AnarchyMeter,
    /// Number of registered workers, kept outside `state` so that readers need no lock.
    size: AtomicUsize,
    /// Longest wait in the queue, in seconds, as the bits of an `f64`; 0 without a queue.
    longest_wait_bits: AtomicU64,
}

/// Largest share of a pool's workers that refusals may make unavailable.
///
/// When every worker refuses, the requests are wrong or the fleet is full. To skip workers would then only move load.
const MAX_SKIPPED_SHARE: f64 = 0.5;

/// State behind the pool's lock.
struct State {
    /// The router of the pool, which has locks of its own.
    router: Arc<Router>,
    /// Queue in front of the router; `None` while late binding is off.
    queue: Option<PoolQueue>,
    /// Registered workers in id order. The router knows exactly these, except while a change of
    /// membership is under way.
    workers: BTreeMap<WorkerId, Worker>,
    /// Blocks in the kept events of all workers.
    kept: KeptBudget,
    /// What the price guard found at the last look.
    misfit: Option<Misfit>,
}

/// One registered worker: one rank of an instance.
struct Worker {
    /// Sizes as discovery reported them, within their bounds.
    spec: WorkerSpec,
    /// Number of ranks of the worker's instance, at least 1.
    ranks: u32,
    /// Availability that the router knows. It follows `fault`: a worker with a fault is not available.
    available: bool,
    /// Result of the last health review.
    fault: Option<Fault>,
    /// Signs of life, failures and refusals.
    health: Health,
    /// Order of the worker's KV events.
    cursor: EventCursor,
    /// Position of the worker's feed in the index, shared with the code that saves the index.
    position: Arc<FeedPosition>,
    /// Last engine step that the worker reported.
    forward_pass: Option<ForwardPass>,
    /// Load that the engine's metrics reported last.
    engine_load: Option<EngineLoad>,
    /// Time of the last KV event whose successors were looked for, see [`EventCursor::check_tail`].
    tail_event_s: Option<f64>,
    /// What the pool remembers of the trust in the worker's index.
    trust: FeedTrust,
}

impl WorkerPool {
    /// Creates a pool without workers and without a queue.
    ///
    /// # Errors
    /// The router refuses `config`.
    pub(crate) fn new(
        model: Arc<str>,
        role: Role,
        config: RouterConfig,
        options: HealthOptions,
    ) -> Result<Self, Error> {
        let router = Arc::new(Router::new(config)?);
        let state = State {
            router: router.clone(),
            queue: None,
            workers: BTreeMap::new(),
            kept: KeptBudget::default(),
            misfit: None,
        };
        Ok(Self {
            model,
            role,
            options,
            router,
            changes: Mutex::default(),
            state: Mutex::new(state),
            anarchy: AnarchyMeter::new(),
            size: AtomicUsize::new(0),
            longest_wait_bits: AtomicU64::new(0),
        })
    }

    /// Puts a request into the queue, which books a worker as soon as the worker has room.
    ///
    /// # Errors
    /// The pool has no queue, or the queue or the router refuses the request.
    pub(crate) fn wait(
        self: &Arc<Self>,
        request: QueuedRequest,
        clock: Clock,
    ) -> Result<QueueEntry, QueueError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let queue = state.queue.as_mut().ok_or(QueueError::Off)?;
        let id = request.id;
        let receiver = queue.offer(&state.router, request, clock.now_s())?;
        self.unlock(guard);
        Ok(QueueEntry::new(self.clone(), id, receiver, clock))
    }

    /// Locks the state for a call that may place requests. The caller releases the guard with [`WorkerPool::unlock`].
    ///
    /// The router keeps the placements of the call only when the price-of-anarchy meter wants them.
    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock();
        self.router.record_decisions(self.anarchy.wants(self.size()));
        state
    }

    /// Unlocks the state and records the new placements in the price-of-anarchy meter.
    ///
    /// Recording happens after the unlock, so that no decision waits for the meter.
    fn unlock(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.anarchy.record(&self.router.take_decisions());
    }

    /// Counts and state of the queue; `None` without a queue.
    pub(crate) fn queue_stats(&self) -> Option<QueueStats> {
        self.state.lock().queue.as_ref().map(PoolQueue::stats)
    }

    /// Chooses a worker and books it in one atomic step. O(prompt blocks + workers).
    ///
    /// The router calls `mark` at the end of each stage of the decision.
    ///
    /// # Errors
    /// No worker is available, or the router refuses the request.
    pub(crate) fn route(
        &self,
        request: &RouteRequest<'_>,
        now_s: f64,
        mark: impl FnMut(Stage),
    ) -> Result<Placement, Error> {
        self.router.record_decisions(self.anarchy.wants(self.size()));
        let decision = self.router.route_marked(request, now_s, mark)?;
        self.anarchy.record(&self.router.take_decisions());
        Ok(Placement {
            several_ranks: self.chosen(decision.worker, now_s),
            decision,
        })
    }

    /// Chooses a worker and changes nothing. O(prompt blocks + workers).
    ///
    /// Unlike [`WorkerPool::route`] it makes no booking, so the load stays as it is.
    ///
    /// # Errors
    /// No worker is available, or the router refuses the request.
    pub(crate) fn weigh(&self, request: &RouteRequest<'_>, now_s: f64) -> Result<Decision, Error> {
        self.router.route(request, now_s)
    }

    /// Books the worker that the client chose, without a decision.
    ///
    /// The booking counts as load like any other. The policy is not asked.
    ///
    /// # Errors
    /// The router does not know the worker.
    pub(crate) fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        self.router.book(request, worker, now_s)
    }

    /// Removes the prompt of a booked request from the load. A booking that expired before is ignored.
    ///
    /// Room may be free now, so the queue is pumped.
    pub(crate) fn prefill_done(&self, request: RequestId, now_s: f64) {
        let mut state = self.lock();
        let _ = state.router.prefill_done(request, now_s);
        self.review_price_guard(&mut state);
        state.pump(now_s);
        self.unlock(state);
        // A decode worker runs no prefill, so its first token says nothing about the predicted TTFT.
        if self.role != Role::Decode {
            self.anarchy.first_token(request, now_s);
        }
    }

    /// Reports an observed TTFT, in seconds, to a policy that adapts to observations.
    pub(crate) fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        self.router.observe_first_token(ttft_s, now_s);
    }

    /// Releases a booking; the worker's curves learn from `outcome`. A booking that expired before is ignored.
    pub(crate) fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) {
        let mut state = self.lock();
        let _ = state.router.finish(request, outcome, now_s);
        self.review_price_guard(&mut state);
        state.pump(now_s);
        self.unlock(state);
        if outcome.at_first_token {
            self.anarchy.first_token(request, now_s);
        }
        self.anarchy.finish(request, outcome.output_tokens, now_s);
    }

    /// Records a failed request of the worker. The router skips the worker until a later sign of life.
    pub(crate) fn fail(&self, worker: WorkerId, now_s: f64) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.health.fail(now_s);
        }
        state.review(worker, now_s, self.options);
    }

    /// Records a broken connection to an instance's feed. The router skips each rank until a later sign of life.
    pub(crate) fn lost(&self, instance: u64, now_s: f64) {
        let mut state = self.state.lock();
        for id in state.ranks_of(instance) {
            if let Some(known) = state.workers.get_mut(&id) {
                known.health.fail(now_s);
            }
            state.review(id, now_s, self.options);
        }
    }

    /// Records a refusal of the worker: an answer without a token, given at once. After several in a row the router skips
    /// the worker for a while, unless too large a share of the pool is skipped already.
    pub(crate) fn refused(&self, worker: WorkerId, now_s: f64) {
        self.with_health(worker, now_s, |health| health.refused(now_s));
    }

    /// Records a first token of the worker, which ends a row of refusals.
    pub(crate) fn answered(&self, worker: WorkerId, now_s: f64) {
        self.with_health(worker, now_s, Health::answered);
    }

    /// Changes the health of a worker and reviews its availability.
    ///
    /// A worker without refusals before and after the change needs no review, which spares one per
    /// first token.
    fn with_health(&self, worker: WorkerId, now_s: f64, change: impl FnOnce(&mut Health)) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            let was = known.health.is_sound();
            change(&mut known.health);
            if was && known.health.is_sound() {
                return;
            }
        }
        state.review(worker, now_s, self.options);
    }

    /// Age at which a booking without an end or a renewal expires, in seconds.
    pub(crate) fn booking_ttl_s(&self) -> f64 {
        self.router.config().booking_ttl_s
    }

    /// Lets a booking live longer, because its request is still served.
    pub(crate) fn renew(&self, request: RequestId, now_s: f64) {
        self.router.renew(request, now_s);
    }

    /// Records that the worker was chosen for a request. Returns whether its instance has several ranks.
    ///
    /// A worker that comes back after refusals gets one request. Until this request has its answer, the router skips it.
    pub(crate) fn chosen(&self, worker: WorkerId, now_s: f64) -> bool {
        let mut state = self.state.lock();
        let Some(known) = state.workers.get_mut(&worker) else {
            return false;
        };
        let several_ranks = known.ranks > 1;
        if known.health.chosen(now_s) {
            state.review(worker, now_s, self.options);
        }
        several_ranks
    }

    /// Withdraws the last failure of a worker, because the worker did not cause the failure.
    pub(crate) fn withdraw_failure(&self, worker: WorkerId, now_s: f64) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.health.withdraw_failure();
        }
        state.review(worker, now_s, self.options);
    }

    /// Whether the worker's heartbeats stopped, as of the last review. False for a worker that never sent a heartbeat.
    pub fn is_silent(&self, worker: WorkerId) -> bool {
        self.state
            .lock()
            .workers
            .get(&worker)
            .is_some_and(|known| known.fault == Some(Fault::Silent))
    }

    /// Reviews the health of every worker and ends expired bookings. Returns the number of expired bookings. O(workers).
    pub(crate) fn sweep(&self, now_s: f64) -> usize {
        self.review_feeds(now_s);
        let mut state = self.lock();
        let ids: Vec<WorkerId> = state.workers.keys().copied().collect();
        for id in ids {
            state.review(id, now_s, self.options);
        }
        let expired = state.router.expire(now_s);
        self.review_price_guard(&mut state);
        state.pump(now_s);
        self.unlock(state);
        expired
    }

    /// Solves closed windows of the price-of-anarchy meter within its CPU budget. Blocks for as long as one window takes.
    pub(crate) fn solve_anarchy(&self, now_s: f64) {
        self.anarchy.solve(now_s);
    }
}

/// A decision, with the facts that pinning the request needs.
#[derive(Debug)]
pub(crate) struct Placement {
    /// Decision of the router, already booked.
    pub decision: Decision,
    /// Whether the instance has several ranks. Then the door pins the rank as well as the instance.
    pub several_ranks: bool,
}

impl State {
    /// Places queued requests after a change of load or of workers.
    fn pump(&mut self, now_s: f64) {
        if let Some(queue) = &mut self.queue {
            queue.pump(&self.router, now_s);
        }
    }

    /// Evaluates a worker's health and updates its availability in the router.
    ///
    /// O(workers), because the share of skipped workers bounds the next skip. Other faults always
    /// count: a silent worker is no use even when all are silent.
    fn review(&mut self, id: WorkerId, now_s: f64, options: HealthOptions) {
        let skipped = self
            .workers
            .values()
            .filter(|worker| worker.fault == Some(Fault::Refusing));
        // The worker under review counts as skipped too.
        let may_skip = (skipped.count() + 1) as f64 <= MAX_SKIPPED_SHARE * self.workers.len() as f64;
        self.share_feed(id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let was_skipped = worker.fault == Some(Fault::Refusing);
        let found = worker.health.fault(now_s, options);
        worker.fault = found.filter(|&fault| fault != Fault::Refusing || was_skipped || may_skip);
        let available = worker.fault.is_none();
        if available != worker.available {
            worker.available = available;
            let _ = self.router.set_available(id, available);
            tracing::info!(worker_id = id.instance, dp_rank = id.dp_rank, available, fault = ?worker.fault, "worker availability changed");
        }
    }
}
