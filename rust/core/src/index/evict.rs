//! Eviction: keeps the index within its memory budget.
//!
//! The clock algorithm (F. Corbató's second chance, 1968) picks a frame that no store and no match used for
//! one round. Only frames without children qualify: a cold conversation goes from its end, and a shared
//! prefix stays while prompts go on from it. An evicted frame goes for all its holders. A match marks the
//! frames it uses with one bit, written only while it is clear.
//!
//! Exact least-recently-used order would make every match write to a list that all threads share. Refusing
//! new blocks would fill the index with the past. Dropping the oldest first would drop the system prompt that
//! every request begins with (`docs/adr/0008-eviction-by-second-chance.md`).
//!
//! After an eviction the index understates what a worker holds; it never overstates it. Later events about
//! evicted blocks count as unknown parents and unknown blocks. A store is refused when nothing can be
//! evicted.
//!
//! Cost: a few frames per store into a full index on average, two rounds of all frames at worst.

use super::Slot;
use super::arena::get;
use super::budget::Budget;
use super::frame::{BlockId, FrameId};
use super::shared::Shared;
use super::slots::{bits, low_bits};
use super::writer::Writer;
use crate::event::{StoredBlock, Tier};

impl Writer {
    /// Evicts until blocks fit behind `after`; how many of `wanted` fit. 0 means that nothing fits.
    ///
    /// Bytes are counted before they are allocated, with the growth of every structure that the blocks touch.
    /// The budget then holds at every moment, not only afterwards.
    ///
    /// The block limit may admit a part of `wanted`. The byte limit admits all or none, since growth comes in
    /// steps.
    pub(super) fn evict_for_blocks(
        &mut self,
        shared: &Shared,
        (slot, after): (Slot, BlockId),
        wanted: &[StoredBlock],
        budget: Budget,
    ) -> usize {
        loop {
            let blocks = budget.blocks.saturating_sub(self.allocator.blocks());
            let room = blocks.min(wanted.len() as u64) as usize;
            let fits = budget.bytes == u64::MAX || {
                let hashes = wanted.iter().map(|block| block.engine_hash.0);
                let growth = self.allocator.growth_bytes(wanted.len())
                    + self.engine_hashes.common.growth_bytes(hashes)
                    + self.allocator.sibling_growth_bytes();
                let growth = growth + self.workers[slot.index()].frames.growth_bytes();
                // Reserve for holders, copies and aliases: the structures never give memory back.
                let kept_free = self.copies.growth_bytes() + self.engine_hashes.alias_growth_bytes();
                self.bytes(shared) + growth + kept_free <= budget.bytes
            };
            if room == wanted.len() && fits {
                return room;
            }
            if !self.evict_one(shared, after) {
                return if fits { room } else { 0 };
            }
        }
    }

    /// Evicts until one more holder of a frame fits; `false` when nothing can be evicted.
    ///
    /// The clock never takes the frame itself. Blocks of it that no worker holds yet may still go, with a
    /// child that is evicted. The caller therefore looks for them again. O(1) while the budget has no limit
    /// of bytes.
    pub(super) fn evict_for_holder(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        first: BlockId,
        blocks: &[StoredBlock],
        budget: Budget,
    ) -> bool {
        if budget.bytes == u64::MAX {
            return true;
        }
        let (id, offset) = (first.frame(), first.offset());
        let range = low_bits(blocks.len() as u32) << offset;
        let is_new = shared.paths.mask(id, slot, tier) == 0;
        loop {
            let mut growth = 0;
            if self.engine_hashes.has_aliases() {
                growth += self.engine_hashes.alias_growth_bytes();
            }
            if get(shared.paths.owner_word(id)) & range != range {
                let hashes = blocks.iter().map(|block| block.engine_hash.0);
                growth += self.engine_hashes.common.growth_bytes(hashes);
            }
            if is_new {
                growth += shared.paths.holder_growth_bytes(&self.allocator, id, tier, slot);
                growth += self.workers[slot.index()].frames.growth_bytes();
            } else {
                growth += self.copies.growth_bytes();
            }
            if self.bytes(shared) + growth <= budget.bytes {
                return true;
            }
            if !self.evict_one(shared, BlockId::new(id, 0)) {
                return false;
            }
        }
    }

    /// Evicts the next cold frame other than that of `kept`; `false` when there is none.
    ///
    /// `kept` is the frame that the store is about to use. Evicting it would free the very blocks that room
    /// is made for.
    fn evict_one(&mut self, shared: &Shared, kept: BlockId) -> bool {
        let frames = self.allocator.frames_ever() as u32;
        // The first round clears the marks; the second finds a frame without one, or a parent whose
        // children went.
        for _ in 0..2 * frames {
            self.clock_hand = if self.clock_hand + 1 < frames {
                self.clock_hand + 1
            } else {
                0
            };
            let id = FrameId(self.clock_hand);
            if (kept == BlockId::ROOT || id != kept.frame()) && shared.paths.is_cold_leaf(id) {
                // The clock continues at the parent, so that a cold conversation goes as a whole.
                let parent = shared.paths.parent(id);
                self.evict(shared, id);
                if parent != BlockId::ROOT {
                    self.clock_hand = parent.frame().0.checked_sub(1).unwrap_or(frames - 1);
                }
                return true;
            }
        }
        false
    }

    /// Removes a frame for all its holders, with their copies and aliases. O(holders of the frame).
    fn evict(&mut self, shared: &Shared, id: FrameId) {
        let before = self.allocator.blocks();
        for tier in Tier::ALL {
            for (slot, mask) in shared.paths.holding(id, tier) {
                shared.paths.set_mask(&mut self.allocator, id, (slot, tier), 0);
                for offset in bits(mask) {
                    let block = BlockId::new(id, offset);
                    self.copies.forget(block, slot, tier);
                    if self.engine_hashes.has_aliases() {
                        self.engine_hashes.remove_alias(slot, block);
                    }
                }
                let held = &mut self.workers[slot.index()];
                let count = u64::from(mask.count_ones());
                held.blocks[tier.index()] -= count;
                held.frames.remove(id);
                shared.count_lower(slot, tier, |blocks| blocks - count);
            }
        }
        self.free_dead(shared, id);
        self.counters.blocks_evicted += before - self.allocator.blocks();
    }
}
