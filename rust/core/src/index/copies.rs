//! Copies of a block beyond the first.
//!
//! An engine may store one block several times and removes each copy. A run of vLLM shows it: with a count
//! per block the predicted cached tokens were exact for 900 of 900 requests, and with a plain set for 881.
//! The holder mask says that a worker holds a block; this map counts the further copies. Few blocks have any,
//! so the common case is an empty map and no look-up.
//!
//! Example. A worker stores a block three times: one bit in the mask and the count 2 here. Two removals take
//! the count to 0, and the third clears the bit.

use super::Slot;
use super::frame::{BlockId, FRAME_BLOCKS};
use super::hash_tables::{Map, make_room};
use crate::event::Tier;

/// Copies beyond the first, per (block, slot, tier).
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    /// Copies beyond the first, at least 1, by [`key`].
    extra: Map<u64, u32>,
}

/// Packs block (32 bits), slot (16 bits) and tier (2 bits) into one word.
///
/// 50 of 64 bits are used. The tier comes last, so the keys of one block lie close together.
fn key(block: BlockId, slot: Slot, tier: Tier) -> u64 {
    u64::from(block.get()) << 18 | u64::from(slot.as_u16()) << 2 | tier.index() as u64
}

impl Copies {
    /// Counts one more copy of a block that the worker holds already. The count stops at 2³² − 1: an engine
    /// that stores a block that often is not believed further.
    pub(super) fn add(&mut self, block: BlockId, slot: Slot, tier: Tier) {
        make_room(&mut self.extra);
        let count = self.extra.entry(key(block, slot, tier)).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Takes away one of several copies; `false` when the worker holds only one copy.
    pub(super) fn take(&mut self, block: BlockId, slot: Slot, tier: Tier) -> bool {
        // Most fleets have no further copies; then no look-up is made.
        if self.extra.is_empty() {
            return false;
        }
        match self.extra.get_mut(&key(block, slot, tier)) {
            None => false,
            Some(1) => self.extra.remove(&key(block, slot, tier)).is_some(),
            Some(count) => {
                *count -= 1;
                true
            }
        }
    }

    /// Sets the number of copies beyond the first, at least 1.
    pub(super) fn set(&mut self, block: BlockId, slot: Slot, tier: Tier, extra: u32) {
        make_room(&mut self.extra);
        self.extra.insert(key(block, slot, tier), extra);
    }

    /// Every block with further copies, and their number, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BlockId, Slot, Tier, u32)> + '_ {
        self.extra.iter().map(|(&key, &extra)| {
            let slot = Slot((key >> 2) as u32 & 0xFFFF);
            let block = BlockId::from_number((key >> 18) as u32);
            (block, slot, Tier::ALL[(key & 3) as usize], extra)
        })
    }

    /// Forgets the further copies of a block.
    ///
    /// For removals that take all copies at once: a cleared cache, or an eviction.
    pub(super) fn forget(&mut self, block: BlockId, slot: Slot, tier: Tier) {
        if !self.extra.is_empty() {
            self.extra.remove(&key(block, slot, tier));
        }
    }

    /// Number of (block, slot, tier) triples with further copies.
    pub(super) fn len(&self) -> usize {
        self.extra.len()
    }

    /// Bytes that one event's blocks in a frame may make the map allocate: the grown map beside the old one.
    pub(super) fn growth_bytes(&self) -> u64 {
        let full = self.extra.len() + FRAME_BLOCKS as usize > self.extra.capacity();
        if full { 2 * self.bytes().max(4096) } else { 0 }
    }

    /// Bytes of the map, from its capacity.
    pub(super) fn bytes(&self) -> u64 {
        self.extra.allocation_size() as u64
    }
}
