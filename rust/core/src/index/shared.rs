//! Part of the index that readers see.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{Arena, get, set};
use super::engine_hashes::BlockGroup;
use super::frame::{BlockId, CHUNK_BLOCKS, Header, OWNER_WORD};
use super::path_tree::PathTree;
use super::slots::bits;
use crate::event::Tier;

/// What readers see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) paths: PathTree,
    /// Common names of the blocks, in the chunks of their local hashes; valid where the frame's own word has a bit.
    pub(super) engine_hashes: Arena<8>,
    /// (worker, block) pairs in host memory and on disk: all, and by slot.
    pub(super) lower_blocks: AtomicU64,
    pub(super) lower_by_slot: Arena<1>,
    /// Caches that were emptied at once: a clear or a worker that left.
    pub(super) clears: AtomicU64,
    /// Reads whose answer ended where the writer was.
    pub(super) reads_given_up: AtomicU64,
}

impl Shared {
    pub(super) fn engine_hash_of(&self, block: BlockId) -> u64 {
        get(self.engine_hash_word(self.paths.header(block.frame()), block.offset()))
    }

    /// The block of a group that has this common name.
    #[inline]
    pub(super) fn block_in(&self, group: BlockGroup, name: u64) -> Option<BlockId> {
        let first = group.block(0);
        let header = self.paths.header(first.frame());
        let names = self.engine_hashes.unit(PathTree::chunk(header, first.offset()));
        let named = get(&header[OWNER_WORD]) >> first.offset();
        let mut equal = 0;
        for (at, word) in names.iter().enumerate() {
            equal |= u64::from(get(word) == name) << at;
        }
        let equal = equal & named;
        (equal != 0).then(|| group.block(equal.trailing_zeros()))
    }

    /// The common names of a group's blocks.
    pub(super) fn engine_hashes_in(&self, group: BlockGroup) -> impl Iterator<Item = u64> {
        let first = group.block(0);
        let named = get(self.paths.owner_word(first.frame())) >> first.offset() & 0xFF;
        bits(named).map(move |at| self.engine_hash_of(group.block(at)))
    }

    #[inline]
    pub(super) fn engine_hash_word(&self, header: &Header, offset: u32) -> &AtomicU64 {
        &self.engine_hashes.unit(PathTree::chunk(header, offset))[(offset % CHUNK_BLOCKS) as usize]
    }

    pub(super) fn count_lower(&self, slot: Slot, tier: Tier, change: impl Fn(u64) -> u64) {
        if tier != Tier::Device {
            let of = &self.lower_by_slot.unit(slot.0)[0];
            set(of, change(get(of)));
            self.lower_blocks
                .store(change(get(&self.lower_blocks)), Ordering::Release);
        }
    }
}
