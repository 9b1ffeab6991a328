//! Requests that wait for a worker: the core's queue with a wake-up for each of them.
//!
//! All of it runs under the pool's lock. A request whose task is gone when its turn comes gives its booking back at once, so
//! no client that left holds a place; and a task that is dropped while it waits takes its request out ([`QueueEntry`]).

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use wardrop_core::queue::{Dispatch, LateQueue, Limit, Offer, QueueConfig, QueueStats, QueuedRequest};
use wardrop_core::{Error, RequestId, Router};

use super::WorkerPool;
use crate::Clock;

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum QueueError {
    /// A bound of the queue was met.
    Refused {
        /// Which.
        limit: Limit,
        /// When another try makes sense.
        retry_after_s: f64,
    },
    /// The pool has no queue.
    Off,
    /// Nobody is available.
    NoWorker,
    /// The router refused the request.
    RouterRefused,
}

type Wake = oneshot::Sender<Result<Dispatch, QueueError>>;
/// Where the answer comes.
pub(super) type PlacementReceiver = oneshot::Receiver<Result<Dispatch, QueueError>>;

/// The queue of one pool.
pub(super) struct PoolQueue {
    queue: LateQueue,
    wakes: HashMap<RequestId, Wake>,
    placed: Vec<Dispatch>,
}

impl PoolQueue {
    pub fn new(config: QueueConfig) -> Result<Self, Error> {
        Ok(Self {
            queue: LateQueue::new(config)?,
            wakes: HashMap::new(),
            placed: Vec::new(),
        })
    }

    /// Takes a request in and pumps: when there is room the answer is there at once.
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

    /// Places what can be placed and wakes it. Without a worker everybody waits for the next pump.
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

    /// Tells those whose deadline cannot be met any more.
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

    /// Places everybody now. Who can not be placed, for want of a worker, loses its wait.
    pub fn flush(&mut self, router: &Router, now_s: f64) {
        let at_once = QueueConfig {
            max_wait_s: f64::MIN_POSITIVE,
            ..*self.queue.config()
        };
        if self.queue.set_config(at_once).is_ok() {
            self.pump(router, now_s + 1e-9);
        }
    }

    /// The request's task ended. True when it still waited.
    fn cancel(&mut self, id: RequestId) -> bool {
        self.wakes.remove(&id);
        self.queue.cancel(id)
    }

    pub fn stats(&self) -> QueueStats {
        self.queue.stats()
    }

    pub fn set_config(&mut self, config: QueueConfig) -> Result<(), Error> {
        self.queue.set_config(config)
    }
}

/// A place in the queue. Dropped while it waits, it takes its request out; dropped with an answer that nobody took, it
/// gives the booking back.
pub(crate) struct QueueEntry {
    pool: Arc<WorkerPool>,
    id: RequestId,
    receiver: PlacementReceiver,
    clock: Clock,
    taken: bool,
}

impl QueueEntry {
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

    /// Waits for the worker. `None` when the pool is gone.
    ///
    /// # Errors
    /// Its deadline cannot be met any more.
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
        self.pool.with_queue(|queue, router| {
            // Placed in the meantime: the answer lies in the channel.
            if !queue.cancel(self.id) && matches!(self.receiver.try_recv(), Ok(Ok(_))) {
                let _ = router.release(self.id, now_s);
            }
            queue.pump(router, now_s);
        });
    }
}
