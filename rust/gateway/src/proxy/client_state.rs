//! The state of one client connection: it waits for a request, sends a head, or is served.
//!
//! The socket, the connection's loop, the bodies of its answers and the list of idle connections share one state. All of them run on
//! the connection's thread, except an eviction, which comes from the accept thread.
//!
//! ```text
//! Idle ── first byte ──▶ Head ── head complete ──▶ Request ── answer written ──▶ Idle
//! ```
//! Phases change with relaxed atomics: all changes come from one thread, and an eviction reads the
//! phase again on that thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The first byte of a request.
    Idle = 0,
    /// The rest of a request's head.
    Head = 1,
    /// The end of an answer.
    Request = 2,
}

/// State of one client connection.
pub struct ClientState {
    /// Present [`Phase`], as its number.
    phase: AtomicU8,
    /// The socket took no byte at the last write.
    write_blocked: AtomicBool,
    /// An answer was written past hyper, which then closes the connection without a wait for the client.
    is_refused: AtomicBool,
    /// Task of the body that waits for a socket that takes no bytes.
    body: Mutex<Option<Waker>>,
    /// Wakes the connection's loop after an eviction.
    eviction: tokio::sync::Notify,
    /// Position in `idle`; 0 while the connection is not idle.
    idle_since: AtomicU64,
    /// List of idle connections of the serving thread.
    idle: Arc<IdleConnections>,
}

impl ClientState {
    /// The state of a new connection, which is idle.
    pub fn new(idle: Arc<IdleConnections>) -> Arc<Self> {
        let state = Arc::new(Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            write_blocked: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            body: Mutex::new(None),
            eviction: tokio::sync::Notify::new(),
            idle_since: AtomicU64::new(0),
            idle,
        });
        state.idle.add(&state);
        state
    }

    /// What the connection waits for.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Request,
        }
    }

    /// Records that bytes of the client arrived.
    ///
    /// Further bytes of a head, or of a next request behind it, change nothing.
    pub fn received(&self) {
        if self.phase() == Phase::Idle {
            self.leave_idle(Phase::Head);
        }
    }

    /// Marks a request as being served until the guard is dropped.
    pub fn serve(self: &Arc<Self>) -> RequestGuard {
        self.leave_idle(Phase::Request);
        RequestGuard(self.clone())
    }

    /// Waits until the connection has to close, because it is idle and another client needs its place.
    pub async fn evicted(&self) {
        self.eviction.notified().await;
    }

    /// Records that the socket takes no bytes, or takes bytes again.
    pub fn set_write_blocked(&self, blocked: bool) {
        self.write_blocked.store(blocked, Ordering::Relaxed);
        if !blocked && let Some(body) = self.body.lock().take() {
            body.wake();
        }
    }

    /// Records that the client got its last answer past hyper.
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// Whether the client got its last answer past hyper.
    pub fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    /// Whether a body has to wait because the socket takes no bytes. `body` is woken when the socket takes bytes again.
    pub fn must_wait(&self, body: &Waker) -> bool {
        if !self.write_blocked.load(Ordering::Relaxed) {
            return false;
        }
        *self.body.lock() = Some(body.clone());
        true
    }

    /// Enters a phase in which the connection is not evicted.
    fn leave_idle(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.idle.remove(self);
    }
}

impl Drop for ClientState {
    fn drop(&mut self) {
        self.idle.remove(self);
    }
}

/// Mark of a request that is served on the connection; dropping it removes the mark.
pub struct RequestGuard(Arc<ClientState>);

impl RequestGuard {
    /// The connection on which the request is served.
    pub fn client(&self) -> &ClientState {
        &self.0
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.phase.store(Phase::Idle as u8, Ordering::Relaxed);
        self.0.idle.add(&self.0);
    }
}

/// Idle connections of one serving thread, oldest first. Adding, removing and taking the oldest cost O(log n).
#[derive(Default)]
pub struct IdleConnections {
    /// Last position that was given out; positions only grow, so their order is the order of
    /// idling.
    next: AtomicU64,
    /// Idle connections by position. The accept thread and the serving thread share the lock.
    list: Mutex<BTreeMap<u64, std::sync::Weak<ClientState>>>,
}

impl IdleConnections {
    /// Closes the connection that is idle for the longest time; whether there was one.
    pub fn evict_oldest(&self) -> bool {
        let mut list = self.list.lock();
        // A connection that ends at this moment is still listed: it gives up its place by itself.
        while let Some((_, state)) = list.pop_first() {
            if let Some(state) = state.upgrade() {
                drop(list);
                state.eviction.notify_one();
                return true;
            }
        }
        false
    }

    /// Lists a connection as the one that idles for the shortest time.
    fn add(&self, state: &Arc<ClientState>) {
        let position = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        state.idle_since.store(position, Ordering::Relaxed);
        self.list.lock().insert(position, Arc::downgrade(state));
    }

    /// Takes a connection off the list; does nothing for one that is not listed.
    fn remove(&self, state: &ClientState) {
        let position = state.idle_since.swap(0, Ordering::Relaxed);
        if position != 0 {
            self.list.lock().remove(&position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(state: &ClientState) -> bool {
        let mut context = std::task::Context::from_waker(Waker::noop());
        std::pin::pin!(state.evicted()).poll(&mut context).is_ready()
    }

    #[test]
    fn the_connection_that_is_idle_longest_is_evicted() {
        let idle = Arc::new(IdleConnections::default());
        let [first, second, third] = [(); 3].map(|()| ClientState::new(idle.clone()));
        drop(first.serve());
        second.received();
        assert!(idle.evict_oldest());
        assert!(
            is_evicted(&third),
            "the first was used later, the second sends a head"
        );
        assert!(idle.evict_oldest());
        assert!(is_evicted(&first));
        assert!(!idle.evict_oldest());
        assert!(!is_evicted(&second));
    }

    #[test]
    fn a_connection_that_is_gone_leaves_the_list() {
        let idle = Arc::new(IdleConnections::default());
        drop(ClientState::new(idle.clone()));
        assert!(idle.list.lock().is_empty());
        let state = ClientState::new(idle.clone());
        let served = state.serve();
        assert!(idle.list.lock().is_empty());
        drop(served);
        assert_eq!(idle.list.lock().len(), 1);
    }
}
