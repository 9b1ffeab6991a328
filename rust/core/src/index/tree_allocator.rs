//! The right to write [`PathTree`](super::path_tree::PathTree), and what only its writer needs.

use super::extents::{ExtentAllocator, Extents};
use super::frame::{BlockId, CHUNK_BLOCKS, Header};
use super::hash_tables::Map;
use super::id_allocator::IdAllocator;

/// What only the writer of [`PathTree`] needs, and the right to write.
#[derive(Debug, Default)]
pub struct TreeAllocator {
    pub(super) frames: IdAllocator,
    pub(super) chunks: IdAllocator,
    pub(super) extent_allocator: ExtentAllocator,
    /// Children beyond the first of a block that has several.
    pub(super) siblings: Map<BlockId, u32>,
    pub(super) blocks: u64,
}

impl TreeAllocator {
    /// Blocks that live.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Frames that live.
    pub fn frames_len(&self) -> usize {
        self.frames.live() as usize
    }

    /// Bytes that another frame of so many blocks takes from the system, its names' room beside it included.
    pub fn growth_bytes(&self, blocks: usize) -> u64 {
        let chunks = blocks
            .div_ceil(CHUNK_BLOCKS as usize)
            .saturating_sub(self.chunks.free_len as usize);
        let frames = usize::from(self.frames.free_len == 0);
        (chunks * 128 + frames * (size_of::<Header>() + 8)) as u64
    }

    /// Bytes by which a child more may make the counts of siblings grow, old and new.
    pub fn sibling_growth_bytes(&self) -> u64 {
        let full = self.siblings.len() == self.siblings.capacity();
        if full {
            2 * self.siblings.allocation_size().max(64) as u64
        } else {
            0
        }
    }

    /// Chunks ever used: what goes beside the local hashes needs room for so many.
    pub const fn chunks(&self) -> u32 {
        self.chunks.end
    }

    /// Chunks that ever lived at once, and those of them that are free.
    pub(super) fn chunks_ever_and_free(&self) -> (u64, u64) {
        (u64::from(self.chunks.end), u64::from(self.chunks.free_len))
    }

    /// Bytes of the holders that do not fit into headers, free ones included.
    pub(super) fn holder_bytes(&self) -> u64 {
        self.extent_allocator.bytes()
    }

    /// Of [`TreeAllocator::holder_bytes`], those that are free.
    pub(super) fn holder_free_bytes(&self, extents: &Extents) -> u64 {
        self.extent_allocator.free_bytes(extents)
    }

    /// Bytes of the counts of siblings.
    pub(super) fn sibling_bytes(&self) -> u64 {
        self.siblings.allocation_size() as u64
    }

    /// Frames ever used: their numbers are below.
    pub(super) const fn frames_ever(&self) -> usize {
        self.frames.end as usize
    }
}
