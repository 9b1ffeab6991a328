//! What this router has in flight, for its followers: the open bookings for a snapshot, and a ring of the changes since.
//!
//! Invariant: a snapshot and the changes after it, in order, give the open bookings. Both are taken under one lock.
//!
//! Bounded: the open bookings are those of this router, and the ring has a fixed number of places for all followers together.
//! O(1) per change and a copy of the hashes per booking. Nothing waits for a follower.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;
use wardrop_core::WorkerId;
use wardrop_core::ledger::Work;

use crate::pool::Role;

/// One booking of this router.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnBooking {
    /// Model of the worker's pool.
    pub model: Arc<str>,
    /// Role of the worker's pool.
    pub role: Role,
    /// Booked worker.
    pub worker: WorkerId,
    /// What the worker has to do for the prompt.
    pub work: Work,
    /// Local hashes of the leading blocks of the prompt.
    pub hashes: Vec<u64>,
    /// Blocks of the prompt beyond `hashes`.
    pub further_blocks: u32,
    /// Whether the answer comes in one piece.
    pub is_unstreamed: bool,
}

/// One change of the open bookings, each with the id of its booking.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A booking was made.
    Booked(u64, Arc<OwnBooking>),
    /// The first token came.
    PrefillDone(u64),
    /// The booking lives on.
    Renewed(u64),
    /// The booking ended.
    Released(u64),
}

/// An open booking in a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Open {
    /// The booking.
    pub booking: Arc<OwnBooking>,
    /// Whether its first token came.
    pub is_prefill_done: bool,
}

/// The bookings for followers.
pub(super) struct Outbox {
    state: Mutex<State>,
}

struct State {
    next_id: u64,
    open: HashMap<u64, Open>,
    changes: broadcast::Sender<Change>,
}

impl Outbox {
    /// No bookings, and a ring with places for `changes`, rounded up to a power of two.
    pub fn new(changes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                next_id: 1,
                open: HashMap::default(),
                changes: broadcast::channel(changes).0,
            }),
        }
    }

    /// Announces a booking, with at most `hash_blocks` hashes.
    pub fn book(self: &Arc<Self>, mut booking: OwnBooking, hash_blocks: usize) -> Announced {
        let beyond = booking.hashes.len().saturating_sub(hash_blocks);
        booking.hashes.truncate(hash_blocks);
        booking.further_blocks = booking.further_blocks.saturating_add(beyond as u32);
        let booking = Arc::new(booking);
        let state = &mut *self.state.lock();
        let id = state.next_id;
        state.next_id += 1;
        let open = Open {
            booking: booking.clone(),
            is_prefill_done: false,
        };
        state.open.insert(id, open);
        state.send(Change::Booked(id, booking));
        Announced {
            outbox: self.clone(),
            id,
        }
    }

    /// The open bookings, and every change after this call.
    pub fn subscribe(&self) -> (Vec<(u64, Open)>, broadcast::Receiver<Change>) {
        let state = self.state.lock();
        let open = state.open.iter().map(|(&id, open)| (id, open.clone()));
        (open.collect(), state.changes.subscribe())
    }

    /// Open bookings.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.state.lock().open.len()
    }
}

impl State {
    /// Without a follower the change is dropped: the next follower begins with a snapshot.
    fn send(&self, change: Change) {
        let _ = self.changes.send(change);
    }
}

/// An open booking that followers know of. Dropping it reports the end of the booking.
pub(crate) struct Announced {
    outbox: Arc<Outbox>,
    id: u64,
}

impl Announced {
    /// The first token came. A second call does nothing.
    pub fn prefill_done(&self) {
        let state = &mut *self.outbox.state.lock();
        if let Some(open) = state.open.get_mut(&self.id)
            && !std::mem::replace(&mut open.is_prefill_done, true)
        {
            state.send(Change::PrefillDone(self.id));
        }
    }

    /// The booking lives on.
    pub fn renew(&self) {
        let state = &*self.outbox.state.lock();
        if state.open.contains_key(&self.id) {
            state.send(Change::Renewed(self.id));
        }
    }

    /// The booking ended. A second call does nothing.
    pub fn release(&self) {
        let state = &mut *self.outbox.state.lock();
        if state.open.remove(&self.id).is_some() {
            state.send(Change::Released(self.id));
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.release();
    }
}
