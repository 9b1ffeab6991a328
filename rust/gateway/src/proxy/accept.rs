//! Accepts client connections within the limit, and continues after the operating system refuses a connection.
//!
//! One thread accepts for all serving threads. Bounds: `limits.connections` places, an inbox of
//! 64 connections per serving thread, and [`MAX_REFUSED`] refused connections that still read their
//! answer. Cost: O(log idle connections) when a place has to be freed,
//! otherwise O(1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use super::client_state::IdleConnections;
use super::linger::linger;
use super::server::ServerPhase;
use super::shared::Shared;
use crate::error::Refusal;

/// First and longest pause after the operating system gave no connection, for example because all descriptors are taken.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause; each failure doubles the pause up to it.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the place of an idle connection that is closing.
const EVICTION_WAIT: Duration = Duration::from_millis(200);
/// Interval between two looks for the freed place.
const EVICTION_POLL: Duration = Duration::from_millis(2);
/// Most refused connections that wait for their clients to read the answer. A further one closes at once, and its client may see a
/// reset.
const MAX_REFUSED: usize = 64;
/// Most bytes of a refused client that are discarded while it reads its answer.
const REFUSED_BYTES: usize = 1 << 20;

/// A client connection with its place among all connections.
pub struct Accepted {
    /// The socket, registered with no event loop yet.
    pub stream: std::net::TcpStream,
    /// Counts the connection until it is closed.
    pub place: ConnectionPlace,
}

/// One of `limits.connections` places; dropping it frees the place.
pub struct ConnectionPlace(Arc<Shared>);

impl ConnectionPlace {
    /// Takes a place; `None` when all are taken.
    ///
    /// The count is raised before it is compared. A refused connection lowers it again when the
    /// place is dropped.
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let place = Self(shared.clone());
        let before = shared.connections.fetch_add(1, Ordering::Relaxed);
        (before < shared.config.limits.connections).then_some(place)
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One serving thread, as the accept thread reaches it.
pub struct ServingThread {
    /// Queue from which the thread takes new connections.
    pub inbox: mpsc::Sender<Accepted>,
    /// The thread's idle connections.
    pub idle: Arc<IdleConnections>,
}

/// The accept loop's state, which outlives a panic of the loop.
pub struct Acceptor {
    /// The bound socket; the loop works on a copy of it.
    listener: std::net::TcpListener,
    /// All serving threads, at least one.
    serving: Vec<ServingThread>,
    /// State of the door.
    shared: Arc<Shared>,
    /// Number of the next serving thread, modulo their count.
    next: AtomicUsize,
    /// Places of refused connections that still read their answer.
    refused: Arc<Semaphore>,
}

impl Acceptor {
    /// Accepts from `listener` and gives the connections to `serving` in turn.
    pub fn new(listener: std::net::TcpListener, serving: Vec<ServingThread>, shared: Arc<Shared>) -> Self {
        Self {
            listener,
            serving,
            shared,
            next: AtomicUsize::new(0),
            refused: Arc::new(Semaphore::new(MAX_REFUSED)),
        }
    }

    /// Accepts until the gateway drains.
    ///
    /// Without free descriptors, clients wait in the listener's backlog until a connection closes.
    pub async fn run(&self, mut phase: watch::Receiver<ServerPhase>) {
        let mut pause = PAUSE;
        // A copy stays behind, so that the loop can start again.
        let listener = loop {
            match self.listener.try_clone().and_then(TcpListener::from_std) {
                Ok(listener) => break listener,
                Err(error) => self.rest(&error, &mut pause).await,
            }
            if *phase.borrow() != ServerPhase::Run {
                return;
            }
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase != ServerPhase::Run) => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    pause = PAUSE;
                    self.place(stream).await;
                }
                Err(error) => self.rest(&error, &mut pause).await,
            }
        }
    }

    /// Closes an idle connection for its descriptor and pauses, after the operating system gave no connection.
    async fn rest(&self, error: &std::io::Error, pause: &mut Duration) {
        self.shared.metrics.accept_errors.inc();
        if *pause == PAUSE {
            tracing::warn!(%error, "no client connection can be accepted; the gateway tries again");
        }
        self.evict();
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(MAX_PAUSE);
    }

    /// Gives a connection to a serving thread, or answers 503 when every place is taken by a client
    /// at work.
    async fn place(&self, stream: tokio::net::TcpStream) {
        let Some(place) = self.make_place().await else {
            let refusal = Refusal::ConnectionsFull {
                limit: self.shared.config.limits.connections,
            };
            self.shared
                .metrics
                .refusals
                .with_label_values(&[refusal.code()])
                .inc();
            // A blocking write would let one slow client hold up all new clients.
            let _ = stream.try_write(&refusal.raw_answer());
            // A client that has sent its request already would lose the answer to a reset.
            if let Ok(permit) = self.refused.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    linger(&stream, REFUSED_BYTES).await;
                    drop(permit);
                });
            }
            return;
        };
        // A socket is registered with one event loop, so it moves to another thread unregistered.
        let Ok(stream) = stream.into_std() else { return };
        let mut accepted = Accepted { stream, place };
        for _ in 0..self.serving.len() {
            match self.next_thread().inbox.try_send(accepted) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                    accepted = back;
                }
            }
        }
        // All inboxes are full: the backlog of the listener holds further clients until a thread has room.
        let _ = self.next_thread().inbox.send(accepted).await;
    }

    /// A place for one more connection. When all are taken, the connection that is idle longest gives up its place.
    ///
    /// nginx frees a connection in the same way. Clients with a pool keep idle connections open,
    /// and an idle client must not keep a busy one out.
    async fn make_place(&self) -> Option<ConnectionPlace> {
        if let Some(place) = ConnectionPlace::take(&self.shared) {
            return Some(place);
        }
        if !self.evict() {
            return None;
        }
        let deadline = tokio::time::Instant::now() + EVICTION_WAIT;
        while tokio::time::Instant::now() < deadline {
            tokio::time::sleep(EVICTION_POLL).await;
            if let Some(place) = ConnectionPlace::take(&self.shared) {
                return Some(place);
            }
        }
        None
    }

    /// Asks one idle connection to close. Returns whether there was one on any serving thread.
    fn evict(&self) -> bool {
        let evicted = (0..self.serving.len()).any(|_| self.next_thread().idle.evict_oldest());
        if evicted {
            self.shared.metrics.evictions.inc();
        }
        evicted
    }

    fn next_thread(&self) -> &ServingThread {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.serving[next % self.serving.len()]
    }
}
