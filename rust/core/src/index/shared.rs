//! The part of the index that readers see.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{Arena, get, set};
use super::engine_hashes::BlockGroup;
use super::frame::{BlockId, CHUNK_BLOCKS, Header, OWNER_WORD};
use super::path_tree::PathTree;
use super::slots::bits;
use crate::event::Tier;

/// Data that readers use without a lock while a writer changes it.
#[derive(Debug)]
pub(super) struct Shared {
    /// The tree of prompts and the holders in it.
    pub(super) paths: PathTree,
    /// Common engine hashes of the blocks, in the chunks of their local hashes. A bit of the frame's owner
    /// word says which are valid.
    pub(super) engine_hashes: Arena<8>,
    /// (worker, block) pairs in host memory and on disk, of all workers.
    pub(super) lower_blocks: AtomicU64,
    /// (worker, block) pairs in host memory and on disk, by slot.
    pub(super) lower_by_slot: Arena<1>,
    /// Twice the number of whole caches dropped: one count before a drop and one after it.
    ///
    /// A match that sees another count than at its start may mix both states.
    pub(super) clears: AtomicU64,
    /// Reads that ended early because the writer interfered in every attempt.
    pub(super) reads_given_up: AtomicU64,
}

impl Shared {
    /// Common engine hash of a block.
    pub(super) fn engine_hash_of(&self, block: BlockId) -> u64 {
        get(self.engine_hash_word(self.paths.header(block.frame()), block.offset()))
    }

    /// Block of a group that has this common engine hash.
    #[inline]
    pub(super) fn block_in(&self, group: BlockGroup, engine_hash: u64) -> Option<BlockId> {
        let first = group.block(0);
        let header = self.paths.header(first.frame());
        let hashes = self.engine_hashes.unit(PathTree::chunk(header, first.offset()));
        let named = get(&header[OWNER_WORD]) >> first.offset();
        let mut equal = 0;
        for (at, word) in hashes.iter().enumerate() {
            equal |= u64::from(get(word) == engine_hash) << at;
        }
        let equal = equal & named;
        (equal != 0).then(|| group.block(equal.trailing_zeros()))
    }

    /// Common engine hashes of a group's blocks.
    pub(super) fn engine_hashes_in(&self, group: BlockGroup) -> impl Iterator<Item = u64> {
        let first = group.block(0);
        let named = get(self.paths.owner_word(first.frame())) >> first.offset() & 0xFF;
        bits(named).map(move |at| self.engine_hash_of(group.block(at)))
    }

    /// Word of a block's common engine hash.
    #[inline]
    pub(super) fn engine_hash_word(&self, header: &Header, offset: u32) -> &AtomicU64 {
        &self.engine_hashes.unit(PathTree::chunk(header, offset))[(offset % CHUNK_BLOCKS) as usize]
    }

    /// Changes the counts of the lower tiers; a device block changes nothing.
    pub(super) fn count_lower(&self, slot: Slot, tier: Tier, change: impl Fn(u64) -> u64) {
        if tier != Tier::Device {
            let of = &self.lower_by_slot.unit(slot.0)[0];
            set(of, change(get(of)));
            self.lower_blocks
                .store(change(get(&self.lower_blocks)), Ordering::Release);
        }
    }
}
