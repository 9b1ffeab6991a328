//! The right to write [`Paths`](super::paths::Paths), and what only its writer needs.

use std::sync::atomic::AtomicU64;

use super::arena::{get, low, set};
use super::extents::{Extents, Spare};
use super::frame::{BlockId, CHUNK_BLOCKS, Header};
use super::tables::Map;

/// What only the writer of [`Paths`] needs, and the right to write.
#[derive(Debug, Default)]
pub struct Pen {
    pub(super) frames: Numbers,
    pub(super) chunks: Numbers,
    pub(super) spare: Spare,
    /// Children beyond the first of a block that has several.
    pub(super) siblings: Map<BlockId, u32>,
    pub(super) blocks: u64,
}

/// Numbers of places, of which those that are free make a list through a word of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// Ever used: all numbers are below.
    pub(super) ever: u32,
    /// Of those, how many are free.
    pub(super) free: u32,
    /// The number freed last + 1, or 0.
    last: u32,
}

impl Numbers {
    /// Numbers of places that live.
    pub(super) const fn used(self) -> u32 {
        self.ever - self.free
    }

    /// The number that was freed last. `next` is the word in which it has the one before it.
    pub(super) fn take<'a>(&mut self, next: impl FnOnce(u32) -> &'a AtomicU64) -> Option<u32> {
        let number = self.last.checked_sub(1)?;
        self.last = low(get(next(number)));
        self.free -= 1;
        Some(number)
    }

    /// Puts a number on the list; `next` as in [`Numbers::take`].
    pub(super) fn give(&mut self, number: u32, next: &AtomicU64) {
        set(next, u64::from(self.last));
        self.last = number + 1;
        self.free += 1;
    }
}

impl Pen {
    /// Blocks that live.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Frames that live.
    pub fn frames_len(&self) -> usize {
        self.frames.used() as usize
    }

    /// Bytes that another frame of so many blocks takes from the system, its names' room beside it included.
    pub fn growth_bytes(&self, blocks: usize) -> u64 {
        let chunks = blocks
            .div_ceil(CHUNK_BLOCKS as usize)
            .saturating_sub(self.chunks.free as usize);
        let frames = usize::from(self.frames.free == 0);
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
        self.chunks.ever
    }

    /// Chunks that ever lived at once, and those of them that are free.
    pub(super) fn chunks_ever_and_free(&self) -> (u64, u64) {
        (u64::from(self.chunks.ever), u64::from(self.chunks.free))
    }

    /// Bytes of the holders that do not fit into headers, free ones included.
    pub(super) fn holder_bytes(&self) -> u64 {
        self.spare.bytes()
    }

    /// Of [`Pen::holder_bytes`], those that are free.
    pub(super) fn holder_free_bytes(&self, extents: &Extents) -> u64 {
        self.spare.free_bytes(extents)
    }

    /// Bytes of the counts of siblings.
    pub(super) fn sibling_bytes(&self) -> u64 {
        self.siblings.allocation_size() as u64
    }

    /// Frames ever used: their numbers are below.
    pub(super) const fn frames_ever(&self) -> usize {
        self.frames.ever as usize
    }
}
