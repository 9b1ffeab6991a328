//! Requests that wait for a worker: the core's queue, with one wake-up channel per request.
//!
//! Every function of [`PoolQueue`] runs under the pool's lock. A client may leave at any time. A task that is dropped while
//! its request waits removes the request ([`QueueEntry`]). A booking for a task that is gone is released at once.
//!
//! Bounds: the limits of [`QueueConfig`] on requests and bytes, over all tenants and per tenant.
//! There is one channel per waiting request. A pump costs what [`LateQueue::pump`] costs, plus one
//! wake-up per placement.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use wardrop_core::queue::{Dispatch, LateQueue, Limit, Offer, QueueConfig, QueueStats, QueuedRequest};
use wardrop_core::{Error, RequestId, Router};

use super::WorkerPool;
use crate::Clock;

/// Reason why a request does not wait in the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum QueueError {
    /// The request exceeds a limit of the queue.
    Refused {
        /// Limit that the request exceeds.
        limit: Limit,
        /// Seconds until another try makes sense.
        retry_after_s: f64,
    },
    /// The pool has no queue.
    Off,
    /// No worker is available.
    NoWorker,
    /// The router refused the request.
    RouterRefused,
}

/// Sender that wakes the task of a waiting request.
type Wake = oneshot::Sender<Result<Dispatch, QueueError>>;
/// Receiver of the placement of a waiting request.
pub(super) type PlacementReceiver = oneshot::Receiver<Result<Dispatch, QueueError>>;

/// The queue of one pool.
pub(super) struct PoolQueue {
    /// The waiting requests and the rules of their order.
    queue: LateQueue,
    /// Wake-up of every request in `queue`.
    wakes: HashMap<RequestId, Wake>,
    /// Buffer of one pump; empty between pumps.
    placed: Vec<Dispatch>,
}

impl PoolQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// The configuration is out of bounds.
    pub fn new(config: QueueConfig) -> Result<Self, Error> {
        Ok(Self {
            queue: LateQueue::new(config)?,
            wakes: HashMap::new(),
            placed: Vec::new(),
        })
    }

    /// Adds a request and pumps, so that a request finds its placement at once when a worker has room.
    ///
    /// # Errors
    /// The queue or the router refuses the request.
    pub fn offer(
        &mut self,
        router: &Router,
        request: QueuedRequest,
        now_s: f64,
    ) -> Result<PlacementReceiver, QueueError> {
        let id = request.id;
        match self.queue.offer(router, request, now_s) {
            Ok(Offer::Taken) => {}
            Ok(Offer::Refused { limit, retry_after_s }) => {
                return Err(QueueError::Refused { limit, retry_after_s });
            }
            Err(Error::NoWorker { .. }) => return Err(QueueError::NoWorker),
            Err(_) => return Err(QueueError::RouterRefused),
        }
        let (wake, receiver) = oneshot::channel();
        self.wakes.insert(id, wake);
        self.pump(router, now_s);
        Ok(receiver)
    }

    /// Places every request that a worker has room for, and wakes its task.
    ///
    /// A booking that is released frees room, so the loop pumps again. Without a worker all requests stay in the queue.
    pub fn pump(&mut self, router: &Router, now_s: f64) {
        loop {
            let outcome = self.queue.pump(router, now_s, &mut self.placed);
            let mut given_back = false;
            for dispatch in self.placed.drain(..) {
                let id = dispatch.id;
                let wake = self.wakes.remove(&id);
                if wake.is_none_or(|wake| wake.send(Ok(dispatch)).is_err()) {
                    given_back |= router.release(id, now_s).is_ok();
                }
            }
            self.give_up();
            if outcome.is_err() || !given_back {
                return;
            }
        }
    }

    /// Refuses every request whose deadline cannot be met any more.
    fn give_up(&mut self) {
        for id in self.queue.take_too_late() {
            let refused = QueueError::Refused {
                limit: Limit::Deadline,
                retry_after_s: self.queue.retry_after_s(),
            };
            if let Some(wake) = self.wakes.remove(&id) {
                let _ = wake.send(Err(refused));
            }
        }
    }

    /// Places every request now, regardless of room. Without a worker the requests end when the queue is dropped.
    ///
    /// It sets the longest wait to the smallest positive time, so that the age of every request
    /// exceeds it.
    pub fn flush(&mut self, router: &Router, now_s: f64) {
        let at_once = QueueConfig {
            max_wait_s: f64::MIN_POSITIVE,
            ..*self.queue.config()
        };
        if self.queue.set_config(at_once).is_ok() {
            self.pump(router, now_s + 1e-9);
        }
    }

    /// Ends the wait of every request, for a reason that no later pump can change.
    pub fn end_all(&mut self, reason: QueueError) {
        for (id, wake) in self.wakes.drain() {
            self.queue.cancel(id);
            let _ = wake.send(Err(reason));
        }
    }

    /// Removes a request whose task ended. Returns whether the request still waited.
    fn cancel(&mut self, id: RequestId) -> bool {
        self.wakes.remove(&id);
        self.queue.cancel(id)
    }

    /// Counts and state of the queue.
    pub fn stats(&self) -> QueueStats {
        self.queue.stats()
    }

    /// Changes the configuration; waiting requests stay in the queue.
    ///
    /// # Errors
    /// The configuration is out of bounds; the former one stays.
    pub fn set_config(&mut self, config: QueueConfig) -> Result<(), Error> {
        self.queue.set_config(config)
    }
}

/// A request's place in the queue.
///
/// Dropping the entry removes a waiting request, and releases a booking that no task received.
pub(crate) struct QueueEntry {
    /// Pool whose queue holds the request.
    pool: Arc<WorkerPool>,
    /// Id of the request, and of its booking.
    id: RequestId,
    /// Channel on which the placement or the refusal arrives, once.
    receiver: PlacementReceiver,
    /// Clock of the service, for the release of an unwanted booking.
    clock: Clock,
    /// Whether the task received the answer and so owns the booking.
    taken: bool,
}

impl QueueEntry {
    /// An entry for a request that the queue has taken.
    pub(super) fn new(
        pool: Arc<WorkerPool>,
        id: RequestId,
        receiver: PlacementReceiver,
        clock: Clock,
    ) -> Self {
        Self {
            pool,
            id,
            receiver,
            clock,
            taken: false,
        }
    }

    /// Whether the request has no placement yet.
    pub fn is_waiting(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Waits for the placement. `None` when the queue was removed.
    ///
    /// The inner error reports that the request's deadline cannot be met any more.
    pub async fn placed(mut self) -> Option<Result<Dispatch, QueueError>> {
        let answer = (&mut self.receiver).await.ok();
        self.taken = answer.is_some();
        answer
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let now_s = self.clock.now_s();
        let mut guard = self.pool.lock();
        let state = &mut *guard;
        let waited = state.queue.as_mut().is_some_and(|queue| queue.cancel(self.id));
        // The request was placed meanwhile, and its booking is still in the channel. The queue may be off by now.
        if !waited && matches!(self.receiver.try_recv(), Ok(Ok(_))) {
            let _ = state.router.release(self.id, now_s);
        }
        state.pump(now_s);
        self.pool.unlock(guard);
    }
}
