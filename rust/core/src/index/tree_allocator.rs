//! What only the writer of a [`PathTree`](super::path_tree::PathTree) needs: allocators and counts.
//!
//! The tree itself is shared with readers, so it is never borrowed mutably. This state is the part of it that
//! no reader may touch. Two trees exist: that of the index, and that of the blocks in flight
//! ([`crate::load`]).

use super::extents::{ExtentAllocator, Extents};
use super::frame::{BlockId, CHUNK_BLOCKS, Header};
use super::hash_tables::Map;
use super::id_allocator::IdAllocator;

/// Allocation state of a path tree.
///
/// A mutable borrow of it is the right to write the tree: every writing function of
/// [`PathTree`](super::path_tree::PathTree) takes one, so the compiler admits one writer at a time.
#[derive(Debug, Default)]
pub(crate) struct TreeAllocator {
    /// Ids of frames.
    pub(super) frames: IdAllocator,
    /// Ids of chunks of hashes.
    pub(super) chunks: IdAllocator,
    /// Extents for holders that do not fit into a header.
    pub(super) extent_allocator: ExtentAllocator,
    /// Children beyond the first, for blocks that have several.
    ///
    /// The child bit of a block says whether it has a child at all. Few blocks have several, so a count per
    /// block would be wasted.
    pub(super) siblings: Map<BlockId, u32>,
    /// Distinct blocks in the tree, holes between held blocks included.
    pub(super) blocks: u64,
}

impl TreeAllocator {
    /// Distinct blocks in the tree.
    pub(crate) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Frames in the tree.
    pub(crate) fn frames_len(&self) -> usize {
        self.frames.live() as usize
    }

    /// Bytes that a new frame of `blocks` blocks may allocate, with the room for its engine hashes.
    ///
    /// A chunk takes 64 bytes for local hashes and 64 for engine hashes. A frame takes its header and a word
    /// of the child table.
    pub(crate) fn growth_bytes(&self, blocks: usize) -> u64 {
        let chunks = blocks
            .div_ceil(CHUNK_BLOCKS as usize)
            .saturating_sub(self.chunks.free_len as usize);
        let frames = usize::from(self.frames.free_len == 0);
        (chunks * 128 + frames * (size_of::<Header>() + 8)) as u64
    }

    /// Bytes that one more child may make the sibling counts allocate: the grown map beside the old one.
    pub(crate) fn sibling_growth_bytes(&self) -> u64 {
        let full = self.siblings.len() == self.siblings.capacity();
        if full {
            2 * self.siblings.allocation_size().max(64) as u64
        } else {
            0
        }
    }

    /// Chunks ever used. An arena beside the local hashes must reserve this many units.
    pub(crate) const fn chunks(&self) -> u32 {
        self.chunks.end
    }

    /// Chunks ever used, and how many of them are free.
    pub(super) fn chunks_ever_and_free(&self) -> (u64, u64) {
        (u64::from(self.chunks.end), u64::from(self.chunks.free_len))
    }

    /// Bytes of the holders outside of headers, free extents included.
    pub(super) fn holder_bytes(&self) -> u64 {
        self.extent_allocator.bytes()
    }

    /// Free bytes among [`TreeAllocator::holder_bytes`].
    pub(super) fn holder_free_bytes(&self, extents: &Extents) -> u64 {
        self.extent_allocator.free_bytes(extents)
    }

    /// Bytes of the sibling counts.
    pub(super) fn sibling_bytes(&self) -> u64 {
        self.siblings.allocation_size() as u64
    }

    /// Frames ever used; frame ids are below this number.
    pub(super) const fn frames_ever(&self) -> usize {
        self.frames.end as usize
    }
}
