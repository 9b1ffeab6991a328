//! Silence of workers: a stream whose worker stopped sending heartbeats is broken off, so that its request can move.
//!
//! A stopped process keeps its connections open, so no error ever arrives on them. The routing service knows from the heartbeats that the
//! worker is silent. One task looks at all workers with streams; a stream pays for this only while it waits.
//!
//! Complexity: O(workers with streams) per look, O(1) per stream at its start and end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use wardrop_core::WorkerId;
use wardrop_service::WorkerPool;

/// Time between two looks at the workers. It adds to the longest silence of a stream.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Streams by the worker that they wait for.
#[derive(Default)]
pub struct Silences {
    workers: Mutex<HashMap<WorkerId, Listeners>>,
}

/// Streams that wait for one worker.
struct Listeners {
    pool: Arc<WorkerPool>,
    /// Signals by the number of their stream.
    signals: HashMap<u64, Arc<Signal>>,
    next: u64,
}

/// The message to one stream.
#[derive(Default)]
struct Signal {
    silent: AtomicBool,
    waker: AtomicWaker,
}

/// One stream's interest in its worker. Dropping it ends the interest.
pub struct Listening {
    silences: Arc<Silences>,
    worker: WorkerId,
    number: u64,
    signal: Arc<Signal>,
}

impl Silences {
    /// No streams yet, and the task that looks at their workers.
    pub fn start() -> Arc<Self> {
        let silences = Arc::new(Self::default());
        let weak = Arc::downgrade(&silences);
        tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                look.tick().await;
                let Some(silences) = weak.upgrade() else { return };
                silences.look();
            }
        });
        silences
    }

    /// Registers a stream that waits for `worker`.
    pub fn listen(self: &Arc<Self>, pool: &Arc<WorkerPool>, worker: WorkerId) -> Listening {
        let signal = Arc::new(Signal::default());
        let mut workers = self.workers.lock();
        let listeners = workers.entry(worker).or_insert_with(|| Listeners {
            pool: pool.clone(),
            signals: HashMap::new(),
            next: 0,
        });
        let number = listeners.next;
        listeners.next += 1;
        listeners.signals.insert(number, signal.clone());
        Listening {
            silences: self.clone(),
            worker,
            number,
            signal,
        }
    }

    fn look(&self) {
        for (worker, listeners) in self.workers.lock().iter() {
            if listeners.pool.is_silent(*worker) {
                for signal in listeners.signals.values() {
                    signal.silent.store(true, Ordering::Release);
                    signal.waker.wake();
                }
            }
        }
    }
}

impl Listening {
    /// Ready once the worker is silent.
    pub fn poll_silent(&self, task: &mut Context<'_>) -> Poll<()> {
        // The flag is read after the waker is in place: a signal between the two is seen here or wakes the task.
        self.signal.waker.register(task.waker());
        if self.signal.silent.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut workers = self.silences.workers.lock();
        if let Some(listeners) = workers.get_mut(&self.worker) {
            listeners.signals.remove(&self.number);
            if listeners.signals.is_empty() {
                workers.remove(&self.worker);
            }
        }
    }
}
