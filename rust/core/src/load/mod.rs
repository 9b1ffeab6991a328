//! Work in flight per worker: book, prefill done, release.
//!
//! Columns by slot, so that a price reads plain slices. A booking adds its uncached prompt tokens until its first token,
//! its blocks (as a set: blocks shared by two requests of a worker count once) and one request until its release.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::hash::{LocalHash, SequenceHash, sequence_hashes};
use crate::index::Slot;
use crate::router::RequestId;

/// One open booking.
#[derive(Clone, Debug)]
struct Booking {
    slot: Slot,
    /// Uncached prompt tokens while the first token is awaited, then 0.
    prefill_tokens: u64,
    blocks: Vec<SequenceHash>,
    /// Bits of the (non-negative) expiry time: they order like the time itself.
    expires_bits: u64,
}

/// The load of every worker.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Uncached prompt tokens of requests before their first token, by slot.
    pub prefill_tokens: Vec<u64>,
    /// Distinct blocks of requests in flight, by slot.
    pub decode_blocks: Vec<u64>,
    /// Requests in flight, by slot.
    pub active_requests: Vec<u32>,
    active: Vec<FxHashMap<SequenceHash, u32>>,
    bookings: FxHashMap<RequestId, Booking>,
    by_expiry: BTreeSet<(u64, RequestId)>,
}

impl Load {
    /// Make room for `slot` in every column.
    pub fn ensure(&mut self, slot: Slot) {
        let len = self.active.len().max(slot.index() + 1);
        self.prefill_tokens.resize(len, 0);
        self.decode_blocks.resize(len, 0);
        self.active_requests.resize(len, 0);
        self.active.resize_with(len, FxHashMap::default);
    }

    /// Open bookings.
    pub fn len(&self) -> usize {
        self.bookings.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.bookings.is_empty()
    }

    /// Whether a booking has this id.
    pub fn contains(&self, request: RequestId) -> bool {
        self.bookings.contains_key(&request)
    }

    /// Leading blocks of a request that are in flight on the worker already.
    pub fn shared_blocks(&self, slot: Slot, chain: &[SequenceHash]) -> u32 {
        let active = &self.active[slot.index()];
        chain.iter().take_while(|hash| active.contains_key(hash)).count() as u32
    }

    /// Open a booking. The id must be free.
    pub fn book(
        &mut self,
        request: RequestId,
        slot: Slot,
        prefill_tokens: u64,
        locals: &[LocalHash],
        expires_at_s: f64,
    ) {
        let blocks = sequence_hashes(locals);
        let active = &mut self.active[slot.index()];
        for &block in &blocks {
            *active.entry(block).or_insert(0) += 1;
        }
        self.decode_blocks[slot.index()] = active.len() as u64;
        self.prefill_tokens[slot.index()] += prefill_tokens;
        self.active_requests[slot.index()] += 1;
        let expires_bits = expires_at_s.max(0.0).to_bits();
        let booking = Booking {
            slot,
            prefill_tokens,
            blocks,
            expires_bits,
        };
        let previous = self.bookings.insert(request, booking);
        assert!(previous.is_none(), "a request must be booked once");
        self.by_expiry.insert((expires_bits, request));
    }

    /// The first token is out: the prompt's tokens no longer wait. `None`: not booked. Twice is harmless.
    pub fn prefill_done(&mut self, request: RequestId) -> Option<Slot> {
        let booking = self.bookings.get_mut(&request)?;
        self.prefill_tokens[booking.slot.index()] -= std::mem::take(&mut booking.prefill_tokens);
        Some(booking.slot)
    }

    /// The request ended. `None`: not booked.
    pub fn release(&mut self, request: RequestId) -> Option<Slot> {
        let booking = self.bookings.remove(&request)?;
        self.by_expiry.remove(&(booking.expires_bits, request));
        let slot = booking.slot.index();
        self.prefill_tokens[slot] -= booking.prefill_tokens;
        self.active_requests[slot] -= 1;
        let active = &mut self.active[slot];
        for block in &booking.blocks {
            let count = active.get_mut(block).expect("a booked block must be counted");
            *count -= 1;
            if *count == 0 {
                active.remove(block);
            }
        }
        self.decode_blocks[slot] = active.len() as u64;
        Some(booking.slot)
    }

    /// Release what expired at or before `now_s`; how many.
    pub fn expire(&mut self, now_s: f64) -> usize {
        let now_bits = now_s.max(0.0).to_bits();
        let mut expired = 0;
        while let Some(&(bits, request)) = self.by_expiry.first() {
            if bits > now_bits {
                break;
            }
            self.release(request);
            expired += 1;
        }
        expired
    }

    /// Drop every booking of a worker; how many.
    pub fn remove_worker(&mut self, slot: Slot) -> usize {
        let of_worker =
            |(request, booking): (&RequestId, &Booking)| (booking.slot == slot).then_some(*request);
        let requests: Vec<RequestId> = self.bookings.iter().filter_map(of_worker).collect();
        for &request in &requests {
            self.release(request);
        }
        requests.len()
    }
}
