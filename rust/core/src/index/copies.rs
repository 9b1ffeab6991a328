//! Copies of a block beyond the first.

use super::Slot;
use super::frame::{BlockId, FRAME_BLOCKS};
use super::hash_tables::{Map, make_room};
use crate::event::Tier;

/// Copies beyond the first, per (block, slot, tier). Few blocks have any.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    extra: Map<u64, u32>,
}

fn key(block: BlockId, slot: Slot, tier: Tier) -> u64 {
    u64::from(block.get()) << 18 | u64::from(slot.as_u16()) << 2 | tier.index() as u64
}

impl Copies {
    /// One more copy of a block that is held already.
    pub fn add(&mut self, block: BlockId, slot: Slot, tier: Tier) {
        make_room(&mut self.extra);
        let count = self.extra.entry(key(block, slot, tier)).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Take one of several copies away; `false` when there is only one.
    pub fn take(&mut self, block: BlockId, slot: Slot, tier: Tier) -> bool {
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

    /// So many copies beyond the first, at least one.
    pub fn set(&mut self, block: BlockId, slot: Slot, tier: Tier, extra: u32) {
        make_room(&mut self.extra);
        self.extra.insert(key(block, slot, tier), extra);
    }

    /// Every block with more than one copy, and how many beyond the first, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, Slot, Tier, u32)> + '_ {
        self.extra.iter().map(|(&key, &extra)| {
            let slot = Slot((key >> 2) as u32 & 0xFFFF);
            let block = BlockId::from_number((key >> 18) as u32);
            (block, slot, Tier::ALL[(key & 3) as usize], extra)
        })
    }

    /// Forget the further copies of a block.
    pub fn forget(&mut self, block: BlockId, slot: Slot, tier: Tier) {
        if !self.extra.is_empty() {
            self.extra.remove(&key(block, slot, tier));
        }
    }

    /// Blocks with more than one copy.
    pub fn len(&self) -> usize {
        self.extra.len()
    }

    /// Bytes by which a frame's blocks may make this grow, old and new.
    pub fn growth_bytes(&self) -> u64 {
        let full = self.extra.len() + FRAME_BLOCKS as usize > self.extra.capacity();
        if full { 2 * self.bytes().max(4096) } else { 0 }
    }

    /// Bytes, from the capacity.
    pub fn bytes(&self) -> u64 {
        self.extra.allocation_size() as u64
    }
}
