//! The workers of one model in one role: their router, their health, their event streams.

mod anarchy;
mod booking;
mod control;
mod cursor;
mod explanation;
mod feed;
mod health;
mod members;
mod position;
mod queue;
mod report;
mod restart;
mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use wardrop_core::ledger::Outcome;
use wardrop_core::queue::{QueueStats, QueuedRequest};
use wardrop_core::{
    Decision, Error, RequestId, RouteRequest, Router, RouterConfig, Stage, WorkerId, WorkerSpec,
};

use wardrop_engines::dynamo::ForwardPass;

use self::anarchy::AnarchyMeter;
pub(crate) use self::anarchy::AnarchyReport;
pub use self::booking::{Booking, Leg};
pub(crate) use self::control::PoolCurves;
use self::cursor::EventCursor;
pub(crate) use self::explanation::Explanation;
pub(crate) use self::feed::EventSource;
pub(crate) use self::health::HealthOptions;
use self::health::{Fault, Health};
pub(crate) use self::members::{Member, WorkerUpsert};
use self::position::FeedPosition;
pub(crate) use self::queue::QueueError;
use self::queue::{PoolQueue, QueueEntry};
use self::report::Audit;
pub(crate) use self::report::WorkerReport;
pub(crate) use self::saved::SavedFleet;
use crate::Clock;

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
    anarchy: AnarchyMeter,
    /// Workers registered, read without the lock.
    size: AtomicUsize,
    /// Seconds, as bits; 0 without a queue.
    longest_wait_bits: AtomicU64,
}

struct State {
    router: Arc<Router>,
    /// Late binding, when it is on.
    queue: Option<PoolQueue>,
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

impl WorkerPool {
    /// An empty pool.
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
        };
        Ok(Self {
            model,
            role,
            options,
            router,
            state: Mutex::new(state),
            anarchy: AnarchyMeter::new(),
            size: AtomicUsize::new(0),
            longest_wait_bits: AtomicU64::new(0),
        })
    }

    /// Chooses and books as soon as the chosen worker has room.
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

    /// Works on the queue, where there is one.
    fn with_queue(&self, work: impl FnOnce(&mut PoolQueue, &Router)) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(queue) = &mut state.queue {
            work(queue, &state.router);
        }
        self.unlock(guard);
    }

    /// The state, for what may place requests; to be given back by [`WorkerPool::unlock`].
    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock();
        self.router.record_decisions(self.anarchy.wants(self.size()));
        state
    }

    /// Unlocks, and tells the price-of-anarchy meter what was placed.
    fn unlock(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.anarchy.record(&self.router.take_decisions());
    }

    /// Counts and state of the queue, where there is one.
    pub(crate) fn queue_stats(&self) -> Option<QueueStats> {
        self.state.lock().queue.as_ref().map(PoolQueue::stats)
    }

    /// Chooses and books, one atomic step; `mark` is told the end of each stage.
    pub(crate) fn route(
        &self,
        request: &RouteRequest<'_>,
        now_s: f64,
        mark: impl FnMut(Stage),
    ) -> Result<Placement, Error> {
        self.router.record_decisions(self.anarchy.wants(self.size()));
        let decision = self.router.route_marked(request, now_s, mark)?;
        self.anarchy.record(&self.router.take_decisions());
        let state = self.state.lock();
        let ranks = state.workers.get(&decision.worker).map(|worker| worker.ranks);
        Ok(Placement {
            decision,
            several_ranks: ranks.is_some_and(|ranks| ranks > 1),
        })
    }

    /// Books a placement that the client made.
    pub(crate) fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        self.router.book(request, worker, now_s)
    }

    /// The prompt of a booked request was processed. A booking that is gone already needs nothing.
    pub(crate) fn prefill_done(&self, request: RequestId, now_s: f64) {
        let mut state = self.lock();
        let _ = state.router.prefill_done(request, now_s);
        state.pump(now_s);
        self.unlock(state);
        // On a decode worker nothing waits for a first token: its prefill ends with its booking.
        if self.role != Role::Decode {
            self.anarchy.first_token(request, now_s);
        }
    }

    /// A first token came, `ttft_s` after its request: for a policy of this pool that adapts to what it sees.
    pub(crate) fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        self.router.observe_first_token(ttft_s, now_s);
    }

    /// A booked request is over. A booking that is gone already needs nothing.
    pub(crate) fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) {
        let mut state = self.lock();
        let _ = state.router.finish(request, outcome, now_s);
        state.pump(now_s);
        self.unlock(state);
        if outcome.at_first_token {
            self.anarchy.first_token(request, now_s);
        }
        self.anarchy.finish(request, outcome.output_tokens, now_s);
    }

    /// A request that was pinned to the worker failed: it is not chosen until it is seen alive.
    pub(crate) fn fail(&self, worker: WorkerId, now_s: f64) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.health.fail(now_s);
        }
        state.review(worker, now_s, self.options);
    }

    /// The connection to an instance's own feed broke: none of its ranks is chosen until it is seen alive.
    pub(crate) fn lost(&self, instance: u64, now_s: f64) {
        let mut state = self.state.lock();
        for id in state.ranks_of(instance) {
            if let Some(known) = state.workers.get_mut(&id) {
                known.health.fail(now_s);
            }
            state.review(id, now_s, self.options);
        }
    }

    /// A failure that the worker was blamed for was not its own.
    pub(crate) fn withdraw_failure(&self, worker: WorkerId, now_s: f64) {
        let mut state = self.state.lock();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.health.withdraw_failure();
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

    /// Looks for silence and for bookings past their time; how many of the latter ended.
    pub(crate) fn sweep(&self, now_s: f64) -> usize {
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
    pub(crate) fn solve_anarchy(&self, now_s: f64) {
        self.anarchy.solve(now_s);
    }
}

/// A decision with what the pin needs to know.
#[derive(Debug)]
pub(crate) struct Placement {
    /// What the router decided.
    pub decision: Decision,
    /// The instance has several ranks, so that the rank has to be pinned too.
    pub several_ranks: bool,
}

impl State {
    /// Something ended or changed: place those that wait for it.
    fn pump(&mut self, now_s: f64) {
        if let Some(queue) = &mut self.queue {
            queue.pump(&self.router, now_s);
        }
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
