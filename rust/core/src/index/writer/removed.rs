//! Removed and cleared events: copies taken away, and workers that leave.
//!
//! An engine removes a block as often as it stored it. A removal therefore takes a further copy first, and
//! the holder's bit only with the last copy. Blocks that no worker holds and that have no child then leave
//! the tree.
//!
//! Engines evict a prompt from its end, so the blocks of one event often lie in one frame. They are collected
//! as bits and removed in one write section per frame: matches are disturbed once per frame, not once per
//! block.
//!
//! Cost: O(blocks) for a removed event, O(frames of the worker) for a cleared one.

use std::sync::atomic::Ordering;

use super::super::Slot;
use super::super::arena::{get, set};
use super::super::engine_hashes::BlockGroup;
use super::super::frame::{BlockId, FRAME_BLOCKS, FrameId, OWNER_WORD};
use super::super::shared::Shared;
use super::super::slots::bits;
use super::{PREFETCH_MIN, Writer};
use crate::event::Tier;
use crate::hash::EngineHash;

/// Blocks of one frame that a removed event takes, collected before the tree changes.
///
/// Invariant: `gone` is a subset of `held`, so that counting the bits of `gone` counts real removals.
struct PendingRemoval {
    /// The frame.
    id: FrameId,
    /// Blocks that the worker holds in the event's tier before the removal, as bits.
    held: u64,
    /// Blocks to remove, as bits.
    gone: u64,
}

impl Writer {
    /// Takes away one copy of each block. Returns the number of blocks that the worker did not hold.
    ///
    /// A pending removal is applied early in two cases. A block of another frame needs a collection of its
    /// own. A block that this very event removed a moment ago may mean another block once the removal is
    /// applied.
    pub(super) fn remove(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        hashes: &[EngineHash],
    ) -> usize {
        let (mut unknown, mut pending) = (0, None::<PendingRemoval>);
        for (at, &engine_hash) in hashes.iter().enumerate() {
            if at % FRAME_BLOCKS as usize == 0 {
                let next = &hashes[at..hashes.len().min(at + FRAME_BLOCKS as usize)];
                if next.len() >= PREFETCH_MIN {
                    self.prefetch_blocks(shared, next.iter().map(|engine_hash| engine_hash.0));
                }
            }
            let mut block = self.resolve(shared, slot, engine_hash.0);
            if let Some(of) = &pending
                && block.is_none_or(|block| block.frame() != of.id || of.gone >> block.offset() & 1 == 1)
            {
                // Another frame, or a block removed a moment ago: apply the removal, which may change what
                // the hash means.
                self.apply_removal(shared, (slot, tier), pending.take());
                block = self.resolve(shared, slot, engine_hash.0);
            }
            let Some(block) = block else {
                unknown += 1;
                continue;
            };
            let of = pending.get_or_insert_with(|| PendingRemoval {
                id: block.frame(),
                held: shared.paths.mask(block.frame(), slot, tier),
                gone: 0,
            });
            if of.held >> block.offset() & 1 == 0 {
                unknown += 1;
            } else if !self.copies.take(block, slot, tier) {
                of.gone |= 1 << block.offset();
            }
        }
        self.apply_removal(shared, (slot, tier), pending);
        unknown
    }

    /// Removes the collected blocks of one frame, in one write section.
    ///
    /// Aliases go with the last tier that held their block. The frame leaves the worker's set when the worker
    /// holds nothing more of it.
    fn apply_removal(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        pending: Option<PendingRemoval>,
    ) {
        let Some(PendingRemoval { id, held, gone }) = pending.filter(|pending| pending.gone != 0) else {
            return;
        };
        shared
            .paths
            .set_mask(&mut self.allocator, id, (slot, tier), held & !gone);
        let left = shared.paths.mask_any(id, slot);
        let count = u64::from(gone.count_ones());
        self.workers[slot.index()].blocks[tier.index()] -= count;
        shared.count_lower(slot, tier, |blocks| blocks - count);
        if self.engine_hashes.has_aliases() {
            for offset in bits(gone & !left) {
                self.engine_hashes.remove_alias(slot, BlockId::new(id, offset));
            }
        }
        if left == 0 {
            self.workers[slot.index()].frames.remove(id);
        }
        self.free_dead(shared, id);
    }

    /// Forgets everything that the worker in `slot` holds. O(frames of the worker).
    ///
    /// The count of clears is odd meanwhile. A match that sees another count than at its start is made again,
    /// since it may mix blocks from before and after. A removal by events needs no such count: each block of
    /// it was held at some moment of the match.
    pub(in crate::index) fn remove_worker(&mut self, shared: &Shared, slot: Slot) {
        let Some(held) = self.workers.get_mut(slot.index()).map(std::mem::take) else {
            return;
        };
        self.frame_set_bytes -= held.frames.bytes();
        if held.frames.is_empty() {
            return;
        }
        shared.clears.fetch_add(1, Ordering::Release);
        shared.count_lower(slot, Tier::Host, |blocks| blocks - held.blocks[1]);
        shared.count_lower(slot, Tier::Disk, |blocks| blocks - held.blocks[2]);
        for id in held.frames.iter() {
            for tier in Tier::ALL {
                let mask = shared.paths.mask(id, slot, tier);
                if mask == 0 {
                    continue;
                }
                shared.paths.set_mask(&mut self.allocator, id, (slot, tier), 0);
                for offset in bits(mask) {
                    self.copies.forget(BlockId::new(id, offset), slot, tier);
                    if self.engine_hashes.has_aliases() {
                        self.engine_hashes.remove_alias(slot, BlockId::new(id, offset));
                    }
                }
            }
            self.free_dead(shared, id);
        }
        shared.clears.fetch_add(1, Ordering::Release);
    }

    /// Frees the blocks of a frame that no worker holds, and their common engine hashes. The frame's parents
    /// follow when they are dead too.
    ///
    /// The hashes must leave the table before their chunk is freed: the table compares engine hashes in the
    /// chunk. [`PathTree::free_dead`](super::super::path_tree::PathTree::free_dead) calls back at the right
    /// moment.
    pub(in crate::index) fn free_dead(&mut self, shared: &Shared, id: FrameId) {
        let Self {
            allocator,
            engine_hashes,
            ..
        } = self;
        shared.paths.free_dead(allocator, id, &mut |id, blocks| {
            let header = shared.paths.header(id);
            let named = get(&header[OWNER_WORD]) & blocks;
            set(&header[OWNER_WORD], get(&header[OWNER_WORD]) & !blocks);
            let engine_hash = |offset| get(shared.engine_hash_word(header, offset));
            if named.count_ones() as usize >= PREFETCH_MIN {
                engine_hashes.common.prefetch(&bits(named).map(engine_hash));
            }
            for offset in bits(named) {
                let was_in = engine_hashes
                    .common
                    .remove(engine_hash(offset), BlockGroup::of(BlockId::new(id, offset)));
                assert!(was_in, "a common engine hash must be in the table");
            }
        });
    }
}
