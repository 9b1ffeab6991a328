//! Every rule of the path tree as an assertion, for tests.
//!
//! The random streams in `tests/index` call it after every few events. A broken rule is then found near its
//! cause, and not by a wrong match much later. The rules:
//!
//! * A frame has 1 to 64 blocks, ends with a live block, and is found by its parent and its first local hash.
//! * Stored sequence hashes equal the hashes computed from the local hashes.
//! * A holder is full or partial, never both. A partial mask is neither empty nor whole, and the list is sorted.
//! * A child bit is set exactly where a child is, and the siblings beyond the first child are counted.
//! * Every frame and every chunk is either used or in its free list, and no write section stays open.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use super::arena::get;
use super::frame::{
    BlockId, CHILD_BITS, CHUNK_BLOCKS, END_SEQUENCE, FIRST_LOCAL, FRAME_BLOCKS, LEN_AND_FLAGS, NEXT_FREE,
    PARENT_SEQUENCE, VERSION, has_end,
};
use super::id_allocator::IdAllocator;
use super::path_tree::PathTree;
use super::slots::low_bits;
use super::tree_allocator::TreeAllocator;
use crate::event::Tier;
use crate::hash::SequenceHash;

impl PathTree {
    /// Length of a free list. It follows the links, so a list that runs in a circle does not end, and a
    /// broken link panics.
    fn free_ids<'a>(mut ids: IdAllocator, next: impl Fn(u32) -> &'a AtomicU64) -> usize {
        std::iter::from_fn(|| ids.reuse(&next)).count()
    }

    /// Panics unless every rule of the tree holds. For tests: O(whole tree).
    pub(crate) fn check(&self, allocator: &TreeAllocator) {
        let mut blocks = 0;
        let mut branches: HashMap<BlockId, u32> = HashMap::new();
        for id in self.iter(allocator) {
            let (header, len, parent) = (self.header(id), self.len(id), self.parent(id));
            blocks += u64::from(len);
            assert!(
                len <= FRAME_BLOCKS && get(&header[FIRST_LOCAL]) == self.local(header, 0),
                "a frame must have at most 64 blocks and its first hash in the header"
            );
            assert!(get(&header[VERSION]) & 1 == 0, "no write section may be open");
            // Otherwise `free_dead` would have shortened the frame, and its blocks would leak.
            assert_eq!(
                64 - self.live_blocks(id).leading_zeros(),
                len,
                "a frame must end with a held block or a parent of a child"
            );
            assert_eq!(
                self.child(parent, get(&header[FIRST_LOCAL])),
                Some(id),
                "the child table must find a frame by its key"
            );
            assert!(
                !has_end(get(&header[LEN_AND_FLAGS]))
                    || Some(SequenceHash(get(&header[END_SEQUENCE]))) == self.sequence_in(header, len - 1),
                "the sequence hash of the last block must be true"
            );
            // A whole mask in the partial list would hide the holder from the set operations of a match.
            for tier in Tier::ALL {
                let Some(holders) = self.holders(id, tier) else {
                    continue;
                };
                let partials: Vec<_> = holders.partials(&self.extents).collect();
                for &(slot, mask) in &partials {
                    assert!(mask != 0 && mask & !low_bits(len) == 0 && mask != low_bits(len));
                    assert!(!holders.is_full(&self.extents, slot));
                }
                assert!(
                    partials.is_sorted_by(|a, b| a.0 < b.0),
                    "partial holders must be sorted"
                );
            }
            if parent != BlockId::ROOT {
                *branches.entry(parent).or_insert(0) += 1;
                let start = self.sequence_in(self.header(parent.frame()), parent.offset());
                assert_eq!(
                    Some(SequenceHash(get(&header[PARENT_SEQUENCE]))),
                    start,
                    "a frame must start where its parent ends"
                );
            }
        }
        assert_eq!(allocator.blocks, blocks, "blocks must be counted");
        assert_eq!(
            self.children.count(&self.headers),
            allocator.frames_len(),
            "the child table must hold the frames of the tree"
        );
        assert_eq!(
            (self.iter(allocator).count(), allocator.frames.free_len as usize),
            (
                allocator.frames_len(),
                Self::free_ids(allocator.frames, |number| &self.headers.unit(number)[NEXT_FREE])
            )
        );
        // A chunk in both lists would let two frames write the same hashes.
        let chunks: u32 = self
            .iter(allocator)
            .map(|id| self.len(id).div_ceil(CHUNK_BLOCKS))
            .sum();
        assert_eq!(
            (chunks, allocator.chunks.free_len as usize),
            (
                allocator.chunks.live(),
                Self::free_ids(allocator.chunks, |number| &self.locals.unit(number)[0])
            ),
            "a chunk must be used or free"
        );
        for id in self.iter(allocator) {
            for offset in 0..self.len(id) {
                let block = BlockId::new(id, offset);
                let children = branches.remove(&block).unwrap_or(0);
                assert_eq!(
                    get(&self.header(id)[CHILD_BITS]) >> offset & 1 == 1,
                    children > 0,
                    "a child bit must be set exactly where a child is"
                );
                assert_eq!(
                    allocator.siblings.get(&block).copied().unwrap_or(0),
                    children.saturating_sub(1)
                );
            }
        }
        assert!(branches.is_empty(), "a parent block must be in the tree");
    }
}
