//! Frames: ids of blocks and frames, and the layout of a frame's header.
//!
//! A frame is a run of 1 to 64 consecutive blocks of one path of the tree. 64 is the number of bits in a
//! word, so one word says which blocks of a frame a worker holds. Its header is two cache lines of words:
//!
//! ```text
//! word   0  version of the frame's seqlock
//!        1  parent block (low), child that continues at the last block (high)
//!        2  local hash of the first block
//!        3  sequence hash of the last block
//!     4- 7  holders in device memory; spare halves: length and flags (6), next frame in the bucket (7)
//!     8-11  ids of the eight chunks of hashes, two per word
//!       12  blocks that have children, as bits
//!       13  sequence hash of the parent block; in a free frame: the next free frame
//!       14  extent with the holders in host memory and on disk, or 0
//!       15  word of the tree's owner
//! ```
//!
//! A match reads only the first cache line of most frames: it has the key, the hash that proves the whole
//! frame, and the holders. The second line is for matches without sequence hashes, for the lower tiers and
//! for the writer.
//!
//! Block ids are dense: block i of frame f has the number 64·f + i. An id stays the same while its block
//! lives, so maps outside the tree may key on it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Highest number of blocks in a frame: the bits of a holder mask.
pub(crate) const FRAME_BLOCKS: u32 = 64;
/// Blocks of a chunk: eight hashes fill one cache line.
pub(crate) const CHUNK_BLOCKS: u32 = 8;
/// Chunks of a full frame.
pub(crate) const CHUNKS: usize = (FRAME_BLOCKS / CHUNK_BLOCKS) as usize;

/// Place of a block: its frame and its offset there. It stays the same while the block lives.
///
/// Example: the third block of frame 5 has the number 64 · 5 + 2 = 322.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockId(u32);

impl BlockId {
    /// Virtual block before the first block of every prompt. No frame has this number, because ids end below
    /// it.
    pub(crate) const ROOT: Self = Self(u32::MAX);

    /// The block at `offset` of `frame`.
    pub(crate) const fn new(frame: FrameId, offset: u32) -> Self {
        Self(frame.0 * FRAME_BLOCKS + offset)
    }

    /// The block whose [`BlockId::get`] is `number`.
    pub(crate) const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Frame of the block; meaningless for [`BlockId::ROOT`].
    pub(crate) const fn frame(self) -> FrameId {
        FrameId(self.0 / FRAME_BLOCKS)
    }

    /// Offset of the block in its frame; meaningless for [`BlockId::ROOT`].
    pub(crate) const fn offset(self) -> u32 {
        self.0 % FRAME_BLOCKS
    }

    /// The id as a number.
    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

/// Consecutive blocks of one frame. A prompt is stored as a list of runs, one per frame that it crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRun {
    /// First block of the run.
    pub first: BlockId,
    /// Blocks of the run: 1 to 64.
    pub len: u32,
}

impl BlockRun {
    /// Last block of the run.
    pub(crate) const fn last(self) -> BlockId {
        BlockId(self.first.0 + self.len - 1)
    }
}

/// Consecutive blocks of a prompt that match one frame from its first block on.
///
/// A walk makes one range per frame, and the ranges of a walk follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PromptRange {
    /// Position of the first block in the prompt.
    pub start: u32,
    /// Blocks of the range: 1 to 64.
    pub len: u32,
}

impl PromptRange {
    /// Position in the prompt after the last block.
    pub(crate) const fn end(self) -> u32 {
        self.start + self.len
    }
}

/// Number of a frame's header in its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FrameId(pub u32);

/// Marks the absence of a frame.
pub(crate) const NONE: FrameId = FrameId(u32::MAX);
/// Highest number of frames. Block ids have 32 bits, and the highest id is the root's.
pub(crate) const FRAMES_MAX: u32 = u32::MAX / FRAME_BLOCKS;

/// Header of a frame; the module describes its words. An array of words and not a struct: readers copy single
/// words, and halves of words share a purpose.
pub(crate) type Header = [AtomicU64; 16];

/// Seqlock version. The identity half counts how often the frame lost blocks ([`super::seqlock`]).
pub(crate) const VERSION: usize = 0;
/// Low half: parent block. High half: a child at the last block, or [`NONE`].
///
/// Most prompts go on through this child, without a look-up in the child table.
pub(crate) const LINKS: usize = 1;
/// Local hash of the first block: together with the parent, the key of the child table.
pub(crate) const FIRST_LOCAL: usize = 2;
/// Sequence hash of the last block, valid with [`HAS_END_SEQUENCE`].
pub(crate) const END_SEQUENCE: usize = 3;
/// First of the four words of the device holders. [`LEN_AND_FLAGS`] and [`NEXT_IN_BUCKET`] use their two
/// spare halves.
pub(crate) const DEVICE_HOLDERS: usize = 4;
/// Low half: number of blocks in the lowest eight bits, then the flags below. High half: part of the holders.
pub(crate) const LEN_AND_FLAGS: usize = DEVICE_HOLDERS + 2;
/// High half: number of the next frame in the bucket of the child table, plus 1, or 0.
pub(crate) const NEXT_IN_BUCKET: usize = DEVICE_HOLDERS + 3;
/// First of the four words with the ids of the frame's chunks. Only the ids of the chunks that the length
/// needs are valid.
pub(crate) const CHUNK_IDS: usize = 8;
/// Bit i is set while block i has a child. A block with a child stays in the tree, held or not.
pub(crate) const CHILD_BITS: usize = 12;
/// Sequence hash of the parent block, valid with [`HAS_PARENT_SEQUENCE`].
pub(crate) const PARENT_SEQUENCE: usize = 13;
/// In a free frame: the id of the frame freed before it. No reader looks at this word.
pub(crate) const NEXT_FREE: usize = PARENT_SEQUENCE;
/// Extent with the holders in host memory (four words) and on disk (four words), or 0 where there are none.
pub(crate) const LOWER_HOLDERS: usize = 14;
/// Word for the owner of the tree. The index keeps here which blocks have a common engine hash.
pub(crate) const OWNER_WORD: usize = 15;

/// The sequence hash of the last block is known.
pub(crate) const HAS_END_SEQUENCE: u32 = 1 << 8;
/// The sequence hash of the parent block is known; false for frames at the root.
pub(crate) const HAS_PARENT_SEQUENCE: u32 = 1 << 9;
/// A worker stored the frame or a prompt matched it since the eviction clock last passed.
///
/// Readers write no other bit, and write this one only while it is clear. A shared system prompt is thus read
/// by every match and written by nearly none.
pub(crate) const RECENTLY_USED: u32 = 1 << 10;

/// Size class of the extent behind [`LOWER_HOLDERS`]: eight words.
pub(crate) const LOWER_CLASS: u32 = 2;

/// Blocks of a frame, from its word [`LEN_AND_FLAGS`]. 0 means that the frame is free.
#[inline]
pub(crate) const fn len_of(shape: u64) -> u32 {
    shape as u32 & 0xFF
}

/// Whether the sequence hash of the last block is known.
#[inline]
pub(crate) const fn has_end(shape: u64) -> bool {
    shape as u32 & HAS_END_SEQUENCE != 0
}

/// Marks a frame as recently used. Readers call it too: a lost mark costs at most a premature eviction.
///
/// Relaxed: the mark orders nothing. The bit shares its word with the length, so it is set by an atomic `or`.
#[inline]
pub(crate) fn mark_used(header: &Header, shape: u64) {
    if shape as u32 & RECENTLY_USED == 0 {
        header[LEN_AND_FLAGS].fetch_or(u64::from(RECENTLY_USED), Ordering::Relaxed);
    }
}
