//! Frames: how a block and a frame are named, and what each word of a frame's header is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of a frame.
pub const FRAME_BLOCKS: u32 = 64;
/// Blocks of a chunk: a cache line of hashes.
pub const CHUNK_BLOCKS: u32 = 8;
/// Chunks of a frame.
pub const CHUNKS: usize = (FRAME_BLOCKS / CHUNK_BLOCKS) as usize;

/// A block's place: frame and offset. Stable while the block lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

impl BlockId {
    /// Before the first block of every prompt.
    pub const ROOT: Self = Self(u32::MAX);

    /// The block at `offset` of `frame`.
    pub const fn new(frame: FrameId, offset: u32) -> Self {
        Self(frame.0 * FRAME_BLOCKS + offset)
    }

    /// As [`BlockId::get`] gave it.
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Its frame; meaningless for the root.
    pub const fn frame(self) -> FrameId {
        FrameId(self.0 / FRAME_BLOCKS)
    }

    /// Its offset in the frame.
    pub const fn offset(self) -> u32 {
        self.0 % FRAME_BLOCKS
    }

    /// As a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Consecutive blocks of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// First block of the run.
    pub first: BlockId,
    /// Blocks of the run: 1 to 64.
    pub len: u32,
}

impl BlockRun {
    /// Last block of the run.
    pub const fn last(self) -> BlockId {
        BlockId(self.first.0 + self.len - 1)
    }
}

/// A frame's place in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub u32);

/// No frame.
pub const NONE: FrameId = FrameId(u32::MAX);
/// Block ids are 32 bits and the highest is the root.
pub const FRAMES_MAX: u32 = u32::MAX / FRAME_BLOCKS;

/// A frame's header: two cache lines, of which a match reads the first.
pub type Header = [AtomicU64; 16];

/// The seqlock's version and the frame's identity: blocks of it were cut off so many times.
pub const VERSION: usize = 0;
/// The block before the first one; a child at the last block or none, the way on for most prompts without the child table.
pub const LINKS: usize = 1;
/// Local hash of the first block.
pub const FIRST_LOCAL: usize = 2;
/// Sequence hash of the last block.
pub const END_SEQUENCE: usize = 3;
/// Holders in device memory: four words, of which the frame uses the low half of the third (length and flags) and the high
/// half of the fourth (the child table's chain).
pub const DEVICE_HOLDERS: usize = 4;
/// Length, `HAS_END_SEQUENCE`, `HAS_PARENT_SEQUENCE`, `RECENTLY_USED`.
pub const LEN_AND_FLAGS: usize = DEVICE_HOLDERS + 2;
/// High half: see [`ChildTable`].
pub const NEXT_IN_BUCKET: usize = DEVICE_HOLDERS + 3;
/// Eight chunks, two to a word.
pub const CHUNK_IDS: usize = 8;
/// Bit i: a child hangs at block i.
pub const CHILD_BITS: usize = 12;
/// Sequence hash of the parent.
pub const PARENT_SEQUENCE: usize = 13;
/// Of a frame that is free, the one freed before it: readers never read this word.
pub const NEXT_FREE: usize = PARENT_SEQUENCE;
/// The holders in host memory and on disk: a stretch of twice four words, or 0.
pub const LOWER_HOLDERS: usize = 14;
/// For the owner of the paths.
pub const OWNER_WORD: usize = 15;

pub const HAS_END_SEQUENCE: u32 = 1 << 8;
pub const HAS_PARENT_SEQUENCE: u32 = 1 << 9;
/// Stored or matched since the hand of the eviction came by. The one bit that readers write, and only when it is not set.
pub const RECENTLY_USED: u32 = 1 << 10;

pub const LOWER_CLASS: u32 = 2;

/// Blocks of the frame, as its shape says. 0: it is free.
#[inline]
pub const fn len_of(shape: u64) -> u32 {
    shape as u32 & 0xFF
}

/// Whether the shape says that the end hash is known.
#[inline]
pub const fn has_end(shape: u64) -> bool {
    shape as u32 & HAS_END_SEQUENCE != 0
}

/// Remembers that a frame was used, for the eviction. For readers, too: a mark that gets lost costs a cache hit at most.
#[inline]
pub fn mark_used(header: &Header, shape: u64) {
    if shape as u32 & RECENTLY_USED == 0 {
        header[LEN_AND_FLAGS].fetch_or(u64::from(RECENTLY_USED), Ordering::Relaxed);
    }
}
