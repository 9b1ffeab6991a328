//! Load: work in flight per worker, from booking to release.
//!
//! Stands between `book` and the next price. The load is kept as columns by slot, so that a price reads plain
//! slices. A booking adds its uncached prompt tokens until its first token. It adds its blocks and one
//! request until its release. Blocks count as a set: two requests of a worker that share a block count it
//! once.
//!
//! ```text
//!                   prefill_tokens   decode_blocks   active_requests
//! book                   + new           + new             + 1
//! prefill done           − new
//! release, expiry        − rest          − own             − 1
//! ```
//!
//! Example with blocks of 16 tokens. A prompt of 100 blocks, 80 of them cached, is booked: 320 prefill
//! tokens, 100 blocks, 1 request. A second prompt of 100 blocks shares the first 90, and adds 10 blocks. When
//! the first prompt is released, 10 blocks leave: the other 90 belong to the second one too.
//!
//! Invariant: no sum is ever negative, and all are 0 when nothing is booked. Each booking remembers what it
//! added, and takes away exactly that. Bookings that no call releases end by expiry.
//!
//! Cost: booking and release O(blocks / 64), everything else O(1).

mod active;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

pub(crate) use active::{ActiveBlocks, RequestPath};

use crate::index::{Prompt, Scratch, Slot};
use crate::request::RequestId;
use crate::trust::Claim;

/// One open booking, with what its end must take away.
#[derive(Clone, Debug)]
struct Booking {
    /// Worker of the booking.
    slot: Slot,
    /// Position of the booking in `by_slot[slot]`. It changes when another booking of the worker is swapped
    /// into its place.
    at: u32,
    /// Uncached prompt tokens until the first token, then 0.
    prefill_tokens: u64,
    /// Blocks of the prompt.
    path: RequestPath,
    /// Time of expiry, seconds of the caller's clock.
    expires_at_s: f64,
    /// What was said of the worker's cache when the request was placed.
    claim: Claim,
    /// Blocks beyond `path`, of a prompt whose hashes are not all known.
    further_blocks: u64,
    /// Whether another router made the booking.
    is_of_peer: bool,
}

/// A request that was placed on a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Worker of the request.
    pub slot: Slot,
    /// Uncached prompt tokens.
    pub prefill_tokens: u64,
    /// Time of expiry, seconds of the caller's clock.
    pub expires_at_s: f64,
    /// What was said of the worker's cache.
    pub claim: Claim,
    /// Blocks beyond those of the prompt's hashes. They count as blocks that no other request has.
    pub further_blocks: u64,
    /// Whether another router made the booking.
    pub is_of_peer: bool,
}

/// Bookings that ended by their time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Bookings of this router.
    pub own: usize,
    /// Bookings of other routers.
    pub of_peers: usize,
}

/// Load of every worker.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Uncached prompt tokens of requests before their first token, by slot.
    pub prefill_tokens: Vec<u64>,
    /// Distinct blocks of requests in flight, by slot.
    pub decode_blocks: Vec<u64>,
    /// Requests in flight, by slot.
    pub active_requests: Vec<u32>,
    /// Blocks in flight.
    active: ActiveBlocks,
    /// Open bookings by request.
    bookings: FxHashMap<RequestId, Booking>,
    /// Open bookings that other routers made.
    of_peers: usize,
    /// Open bookings by slot, in no order. They make a leaving worker cost O(its bookings).
    by_slot: Vec<Vec<RequestId>>,
    /// Expiry times in order. Released bookings stay until their time comes or until they outnumber the open
    /// ones.
    by_expiry: VecDeque<(f64, RequestId)>,
}

impl Load {
    /// Makes room for `slot` in every column. All columns keep one length.
    pub(crate) fn ensure_slot(&mut self, slot: Slot) {
        let len = self.prefill_tokens.len().max(slot.index() + 1);
        self.prefill_tokens.resize(len, 0);
        self.decode_blocks.resize(len, 0);
        self.active_requests.resize(len, 0);
        self.by_slot.resize_with(len, Vec::new);
    }

    /// Open bookings of this router.
    pub(crate) fn len(&self) -> usize {
        self.bookings.len() - self.of_peers
    }

    /// Open bookings of other routers.
    pub(crate) fn of_peers(&self) -> usize {
        self.of_peers
    }

    /// Whether a booking with this id is open.
    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.bookings.contains_key(&request)
    }

    /// Leading blocks of a prompt that are in flight, per slot, as
    /// [`crate::index::path_tree::PathTree::overlap`].
    pub(crate) fn shared_blocks(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        depth: &mut [u32],
        scratch: &mut Scratch,
    ) {
        self.active.shared(prompt, slots, depth, scratch);
    }

    /// Opens a booking. O(blocks / 64).
    ///
    /// Panics when a booking with this id is open. The router checks it before, under the same lock.
    pub(crate) fn book(&mut self, request: RequestId, placed: Placed, prompt: &Prompt<'_>) {
        let Placed {
            slot,
            prefill_tokens,
            expires_at_s,
            claim,
            further_blocks,
            is_of_peer,
        } = placed;
        let (path, added) = self.active.add(slot, prompt);
        self.decode_blocks[slot.index()] += added + further_blocks;
        self.of_peers += usize::from(is_of_peer);
        self.prefill_tokens[slot.index()] += prefill_tokens;
        self.active_requests[slot.index()] += 1;
        // The times must stay in order: with a clock that goes back, a booking expires a little later.
        let expires_at_s = self
            .by_expiry
            .back()
            .map_or(expires_at_s, |&(last_s, _)| expires_at_s.max(last_s));
        let by_slot = &mut self.by_slot[slot.index()];
        by_slot.push(request);
        let previous = self.bookings.insert(
            request,
            Booking {
                slot,
                at: by_slot.len() as u32 - 1,
                prefill_tokens,
                path,
                expires_at_s,
                claim,
                further_blocks,
                is_of_peer,
            },
        );
        assert!(previous.is_none(), "a request must be booked once");
        self.push_expiry(expires_at_s, request);
    }

    /// What was said of the worker's cache when a booked request was placed.
    pub(crate) fn claim(&self, request: RequestId) -> Option<Claim> {
        Some(self.bookings.get(&request)?.claim)
    }

    /// Slot of a booked request.
    pub(crate) fn slot(&self, request: RequestId) -> Option<Slot> {
        Some(self.bookings.get(&request)?.slot)
    }

    /// Moves the expiry of a booking to `expires_at_s`. A request that is not booked is ignored.
    pub(crate) fn renew(&mut self, request: RequestId, expires_at_s: f64) {
        let last_s = self.by_expiry.back().map_or(expires_at_s, |&(last_s, _)| last_s);
        if let Some(booking) = self.bookings.get_mut(&request) {
            booking.expires_at_s = expires_at_s.max(last_s);
            let expires_at_s = booking.expires_at_s;
            self.push_expiry(expires_at_s, request);
        }
    }

    /// Appends an expiry; drops those of ended and renewed bookings when they are many. O(1) amortised.
    ///
    /// An entry is in force only while its time is that of the booking. An id that is booked again outlives
    /// the expiry of its first booking that way.
    fn push_expiry(&mut self, expires_at_s: f64, request: RequestId) {
        self.by_expiry.push_back((expires_at_s, request));
        if self.by_expiry.len() > 64 + 2 * self.bookings.len() {
            let bookings = &self.bookings;
            self.by_expiry.retain(|(at_s, request)| {
                bookings
                    .get(request)
                    .is_some_and(|booking| booking.expires_at_s == *at_s)
            });
        }
    }

    /// Ends the prefill of a booking: its prompt tokens no longer count. `None`: no such booking. A second
    /// call changes nothing.
    pub(crate) fn prefill_done(&mut self, request: RequestId) -> Option<Slot> {
        let booking = self.bookings.get_mut(&request)?;
        self.prefill_tokens[booking.slot.index()] -= std::mem::take(&mut booking.prefill_tokens);
        Some(booking.slot)
    }

    /// Closes a booking. `None`: no such booking.
    ///
    /// The last booking of the worker takes the place of the released one in `by_slot`, so that no list is
    /// searched.
    pub(crate) fn release(&mut self, request: RequestId) -> Option<Slot> {
        let booking = self.bookings.remove(&request)?;
        let slot = booking.slot.index();
        self.by_slot[slot].swap_remove(booking.at as usize);
        if let Some(moved) = self.by_slot[slot].get(booking.at as usize) {
            let moved = self.bookings.get_mut(moved);
            moved.expect("a booking in `by_slot` must be open").at = booking.at;
        }
        self.prefill_tokens[slot] -= booking.prefill_tokens;
        self.active_requests[slot] -= 1;
        self.decode_blocks[slot] -= self.active.remove(booking.slot, &booking.path) + booking.further_blocks;
        self.of_peers -= usize::from(booking.is_of_peer);
        Some(booking.slot)
    }

    /// Releases the bookings that expired at or before `now_s`; their numbers. O(1) when none did.
    pub(crate) fn expire(&mut self, now_s: f64) -> Expired {
        let mut expired = Expired::default();
        while let Some(&(at_s, request)) = self.by_expiry.front() {
            if at_s > now_s {
                break;
            }
            self.by_expiry.pop_front();
            let booking = self.bookings.get(&request);
            if let Some(booking) = booking.filter(|booking| booking.expires_at_s == at_s) {
                if booking.is_of_peer {
                    expired.of_peers += 1;
                } else {
                    expired.own += 1;
                }
                self.release(request);
            }
        }
        expired
    }

    /// Drops every booking of a worker; their ids. O(bookings of the worker).
    pub(crate) fn remove_worker(&mut self, slot: Slot) -> Vec<RequestId> {
        let requests = self.by_slot[slot.index()].clone();
        for &request in &requests {
            self.release(request);
        }
        self.by_slot[slot.index()] = Vec::new();
        requests
    }

    /// Distinct blocks in flight on any worker.
    #[cfg(test)]
    const fn blocks_in_flight(&self) -> u64 {
        self.active.blocks()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::hash::{LocalHash, SequenceHash, sequence_hashes};
    use crate::index::all_slots;

    const SLOTS: usize = 3;

    fn placed(slot: Slot, prefill_tokens: u64, expires_at_s: f64) -> Placed {
        Placed {
            slot,
            prefill_tokens,
            expires_at_s,
            claim: Claim::default(),
            further_blocks: 0,
            is_of_peer: false,
        }
    }

    fn prompt(locals: &[LocalHash]) -> Prompt<'_> {
        Prompt {
            locals,
            sequence: &[],
        }
    }

    /// Distinct blocks of the open requests of a slot, computed naively.
    fn union(open: &BTreeMap<u64, (usize, Vec<LocalHash>, u64)>, slot: usize) -> HashSet<SequenceHash> {
        open.values()
            .filter(|(on, ..)| *on == slot)
            .flat_map(|(_, locals, _)| sequence_hashes(locals))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_load_is_the_union_of_the_open_bookings(
            steps in proptest::collection::vec((0u64..12, 0..SLOTS, 0usize..4, 0u64..4, 0usize..150, any::<bool>()), 1..80),
        ) {
            let mut load = Load::default();
            load.ensure_slot(Slot(SLOTS as u32 - 1));
            let mut open: BTreeMap<u64, (usize, Vec<LocalHash>, u64)> = BTreeMap::new();
            for (id, slot, family, tail, len, done) in steps {
                let locals: Vec<LocalHash> =
                    (0..len as u64).map(|at| LocalHash(if at < 70 { family as u64 } else { tail })).collect();
                if open.remove(&id).is_some() {
                    prop_assert!(load.release(RequestId(id)).is_some());
                } else {
                    load.book(RequestId(id), placed(Slot(slot as u32), 100 + id, 1.0), &prompt(&locals));
                    open.insert(id, (slot, locals.clone(), 100 + id));
                    if done {
                        load.prefill_done(RequestId(id));
                        open.get_mut(&id).unwrap().2 = 0;
                    }
                }
                let mut shared = vec![0; SLOTS];
                load.shared_blocks(&prompt(&locals), &all_slots(SLOTS), &mut shared, &mut Scratch::default());
                for (slot, &shared) in shared.iter().enumerate() {
                    let blocks = union(&open, slot);
                    prop_assert_eq!(load.decode_blocks[slot], blocks.len() as u64);
                    let chain = sequence_hashes(&locals);
                    let expected = chain.iter().take_while(|hash| blocks.contains(hash)).count();
                    prop_assert_eq!(shared as usize, expected);
                    let by_slot = open.values().filter(|(on, ..)| *on == slot);
                    prop_assert_eq!(load.prefill_tokens[slot], by_slot.clone().map(|(.., tokens)| tokens).sum::<u64>());
                    prop_assert_eq!(load.active_requests[slot] as usize, by_slot.count());
                }
            }
            for id in open.keys() {
                load.release(RequestId(*id));
            }
            prop_assert_eq!((load.len(), load.blocks_in_flight()), (0, 0));
            prop_assert_eq!(load.decode_blocks, vec![0; SLOTS]);
        }
    }

    #[test]
    fn released_bookings_do_not_accumulate() {
        let mut load = Load::default();
        load.ensure_slot(Slot(0));
        for id in 0..10_000 {
            load.book(RequestId(id), placed(Slot(0), 1, 600.0 + id as f64), &prompt(&[]));
            load.release(RequestId(id));
        }
        assert!(load.by_expiry.len() <= 65);
    }

    #[test]
    fn a_booking_with_a_reused_id_expires_at_its_own_time() {
        let mut load = Load::default();
        load.ensure_slot(Slot(0));
        load.book(RequestId(1), placed(Slot(0), 1, 10.0), &prompt(&[]));
        load.release(RequestId(1));
        load.book(RequestId(1), placed(Slot(0), 1, 20.0), &prompt(&[]));
        assert_eq!(load.expire(10.0).own, 0);
        assert_eq!(load.expire(20.0).own, 1);
    }
}
