//! The part of the index that readers see.
//!
//! Everything here is in atomic words that never move, so a match reads it without a lock. Four rules say
//! what may change when:
//!
//! * Words of a frame change inside a write section of the frame's seqlock.
//! * A word of `engine_hashes` changes only for the writer's own use: matches do not read engine hashes.
//! * `lower_blocks` and `lower_by_slot` are hints. A match that reads an old value misses blocks of the lower
//!   tiers, which understates the overlap.
//! * `clears` is odd while a whole cache is being dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{Arena, get, set};
use super::engine_hashes::BlockGroup;
use super::frame::{BlockId, CHUNK_BLOCKS, Header, OWNER_WORD};
use super::path_tree::PathTree;
use super::slots::bits;
use crate::event::Tier;

/// Data that readers use without a lock while a writer changes it. The writer's own state is in
/// [`super::writer::Writer`].
#[derive(Debug)]
pub(super) struct Shared {
    /// The tree of prompts and the holders in it.
    pub(super) paths: PathTree,
    /// Common engine hashes of the blocks, in the chunks of their local hashes. A bit of the frame's owner
    /// word says which are valid.
    ///
    /// The chunks have the same ids as those of the local hashes, so no frame needs a second set of ids.
    pub(super) engine_hashes: Arena<8>,
    /// (worker, block) pairs in host memory and on disk, of all workers. While it is 0, a match skips both
    /// tiers.
    pub(super) lower_blocks: AtomicU64,
    /// (worker, block) pairs in host memory and on disk, by slot. A match skips the lower tiers of a worker
    /// at 0.
    pub(super) lower_by_slot: Arena<1>,
    /// Twice the number of whole caches dropped: one count before a drop and one after it.
    ///
    /// A match that sees another count than at its start may mix both states, and is made again.
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
    ///
    /// Eight comparisons without a branch: the group is one cache line, and the compiler compares it in
    /// vector registers.
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
    ///
    /// Release: a reader that sees the count above 0 also sees the reserved columns of
    /// [`Shared::lower_by_slot`].
    pub(super) fn count_lower(&self, slot: Slot, tier: Tier, change: impl Fn(u64) -> u64) {
        if tier != Tier::Device {
            let of = &self.lower_by_slot.unit(slot.0)[0];
            set(of, change(get(of)));
            self.lower_blocks
                .store(change(get(&self.lower_blocks)), Ordering::Release);
        }
    }
}
