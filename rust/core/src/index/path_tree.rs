//! Prompts as a tree of frames: the structure under the index and under the load.
//!
//! The tree cuts a path of blocks into frames of at most 64 blocks. A frame is a piece of one path, not a
//! node of a branching trie: where a prompt diverges inside a frame, its remainder becomes a child at that
//! block, and the frame stays whole. Holders are a mask per (frame, slot) ([`Holders`]), so a hole splits
//! nothing and equal neighbours need no merging.
//!
//! Example. The prompts A B C D and A B X Y, with frames of four blocks to keep it short:
//!
//! ```text
//! frame 0: A B C D      parent root,         children: at block 1 (B)
//! frame 1: X Y          parent block 1 of frame 0
//! ```
//!
//! A radix tree would split frame 0 at B, and join the halves again when X Y goes. Here the split is a bit in
//! frame 0 and an entry in the child table.
//!
//! A frame ends with the last block that some worker holds or that has a child. The writer frees all blocks
//! behind it at once.
//!
//! Matches read only atomic words that never move ([`super::arena`]). Any number of threads read while one
//! writes; the writer has the [`TreeAllocator`]. [`super::walk`] describes reading, `path_changes` writing.
//!
//! Cost: the writer's [`PathTree::step`] is O(blocks compared). The tree takes 128 bytes per frame, 8 bytes
//! per block for local hashes, and a word of the child table per frame.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{Arena, get, high, low, pack};
use super::child_table::{ChildTable, Find, Headers};
use super::extents::{Extents, class_of};
use super::frame::{
    BlockId, BlockRun, CHILD_BITS, CHUNK_BLOCKS, CHUNK_IDS, CHUNKS, DEVICE_HOLDERS, END_SEQUENCE,
    FIRST_LOCAL, FrameId, HAS_PARENT_SEQUENCE, Header, LEN_AND_FLAGS, LINKS, LOWER_CLASS, LOWER_HOLDERS,
    NONE, OWNER_WORD, PARENT_SEQUENCE, RECENTLY_USED, has_end, len_of,
};
use super::holders::Holders;
use super::slots::low_bits;
use super::tree_allocator::TreeAllocator;
use crate::event::Tier;
use crate::hash::{LocalHash, SequenceHash, next_sequence_hash};

/// A prompt as hashes of its full blocks. A partial last block has no hash and never matches.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Local hashes of the blocks, in prompt order.
    pub locals: &'a [LocalHash],
    /// Sequence hashes of the same blocks, or empty. With them a long match is a few comparisons: one per
    /// frame instead of one per block.
    pub sequence: &'a [SequenceHash],
}

/// The tree as readers see it; the module describes it.
#[derive(Debug)]
pub(crate) struct PathTree {
    /// Headers of the frames, two cache lines each.
    pub(super) headers: Headers,
    /// Local hashes in chunks of eight; the frames' headers hold the ids of their chunks.
    pub(super) locals: Arena<8>,
    /// Holders that do not fit into a header. Most frames have none there.
    pub(super) extents: Extents,
    /// Frames by parent block and first local hash. Two frames never have the same key: a path is in the tree
    /// once.
    pub(super) children: ChildTable,
}

impl Default for PathTree {
    fn default() -> Self {
        Self {
            headers: Arena::new(4),
            locals: Arena::new(5),
            extents: Extents::default(),
            children: ChildTable::default(),
        }
    }
}

impl PathTree {
    /// Header of a frame.
    #[inline]
    pub(crate) fn header(&self, id: FrameId) -> &Header {
        self.headers.unit(id.0)
    }

    /// Id of the chunk with the block at `offset`.
    #[inline]
    pub(crate) fn chunk(header: &Header, offset: u32) -> u32 {
        let chunk = offset / CHUNK_BLOCKS;
        // Acquire: a reader follows this id before it knows that its section is valid.
        let word = header[CHUNK_IDS + (chunk / 2) as usize].load(Ordering::Acquire);
        if chunk.is_multiple_of(2) {
            low(word)
        } else {
            high(word)
        }
    }

    /// Blocks of a frame: 1 to 64 while the frame is in the tree, 0 while it is free.
    pub(crate) fn len(&self, id: FrameId) -> u32 {
        len_of(get(&self.header(id)[LEN_AND_FLAGS]))
    }

    /// Block before the first block of a frame; [`BlockId::ROOT`] where a prompt starts.
    pub(crate) fn parent(&self, id: FrameId) -> BlockId {
        BlockId::from_number(low(get(&self.header(id)[LINKS])))
    }

    /// Word of a frame that the owner of the tree may use; 0 in a new frame.
    pub(crate) fn owner_word(&self, id: FrameId) -> &AtomicU64 {
        &self.header(id)[OWNER_WORD]
    }

    /// Bytes that the structures of the tree use.
    pub(crate) fn bytes(&self, allocator: &TreeAllocator) -> u64 {
        u64::from(allocator.frames.end) * size_of::<Header>() as u64
            + u64::from(allocator.chunks.end) * 64
            + allocator.extent_allocator.bytes()
            + self.children.bytes()
            + allocator.sibling_bytes()
    }

    /// Local hash of the block at `offset`.
    pub(super) fn local(&self, header: &Header, offset: u32) -> u64 {
        get(&self.locals.unit(Self::chunk(header, offset))[(offset % CHUNK_BLOCKS) as usize])
    }

    /// Number of leading `wanted` entries that equal the words of a column from block `offset` on.
    ///
    /// A column is an arena in the chunks of the local hashes. Whole cache lines are compared without a loop
    /// and without bounds checks, which is most of the work of a match.
    ///
    /// The chunks of a frame that was written at once are adjacent and are looked up once. That took 43 % off
    /// the instructions of a match by local hashes.
    #[inline]
    pub(crate) fn equal<T>(
        column: &Arena<8>,
        header: &Header,
        offset: u32,
        wanted: &[T],
        word: impl Fn(&T) -> u64,
    ) -> usize {
        const LINE: usize = CHUNK_BLOCKS as usize;
        let has_same_identity = |held: &[AtomicU64; LINE], wanted: &[T; LINE]| {
            let differs = |i: usize| get(&held[i]) ^ word(&wanted[i]);
            let low = (differs(0) | differs(1)) | (differs(2) | differs(3));
            let high = (differs(4) | differs(5)) | (differs(6) | differs(7));
            low | high == 0
        };
        // Fast path: the eight chunks are adjacent, so the whole frame is one slice.
        let mut done = 0;
        if offset == 0
            && let Some(run) = Self::side_by_side(header).and_then(|first| column.run(first, CHUNKS))
        {
            let lines = run.as_chunks::<LINE>().0.iter().zip(wanted.as_chunks::<LINE>().0);
            done = LINE
                * lines
                    .take_while(|(held, wanted)| has_same_identity(held, wanted))
                    .count();
        }
        while done < wanted.len() {
            let at = offset + done as u32;
            let from = (at % CHUNK_BLOCKS) as usize;
            let held = column.unit(Self::chunk(header, at));
            let left = &wanted[done..];
            // A line that starts inside a chunk, or that `wanted` does not fill, is compared word by word.
            let whole = (from == 0).then(|| left.first_chunk::<LINE>());
            if whole
                .flatten()
                .is_some_and(|wanted| has_same_identity(held, wanted))
            {
                done += LINE;
                continue;
            }
            let pairs = held[from..].iter().zip(left);
            let same = pairs
                .take_while(|(held, wanted)| get(held) == word(wanted))
                .count();
            done += same;
            if same < left.len().min(LINE - from) {
                break;
            }
        }
        done
    }

    /// First chunk of a frame whose eight chunks are adjacent. A frame that grew block by block, or into
    /// freed chunks, has scattered ones.
    #[inline]
    fn side_by_side(header: &Header) -> Option<u32> {
        // Acquire, as in [`PathTree::chunk`].
        let pair = |at: usize| header[CHUNK_IDS + at].load(Ordering::Acquire);
        let first = low(pair(0));
        let follows =
            |at: u32| pair(at as usize) == pack(first.wrapping_add(2 * at), first.wrapping_add(2 * at + 1));
        (0..4).all(follows).then_some(first)
    }

    /// Local hash of a block in the tree.
    pub(super) fn local_of(&self, block: BlockId) -> u64 {
        self.local(self.header(block.frame()), block.offset())
    }

    /// All holders of a frame in a tier, each with the mask of its blocks.
    ///
    /// O(holders of the frame). Eviction and saving use it; a match never lists holders.
    pub(super) fn holding(&self, id: FrameId, tier: Tier) -> Vec<(Slot, u64)> {
        let Some(holders) = self.holders(id, tier) else {
            return Vec::new();
        };
        let whole = low_bits(self.len(id));
        let full = holders.full_slots(&self.extents).into_iter();
        let full = full.map(|slot| (slot, whole));
        full.chain(holders.partials(&self.extents)).collect()
    }

    /// Sequence hash of the block at `offset`, computed from the start of the frame.
    ///
    /// Every block has one, so the answer is always `Some`. O(blocks before `offset`).
    pub(super) fn sequence_in(&self, header: &Header, offset: u32) -> Option<SequenceHash> {
        let known = get(&header[LEN_AND_FLAGS]) as u32 & HAS_PARENT_SEQUENCE != 0;
        let start = known.then(|| SequenceHash(get(&header[PARENT_SEQUENCE])));
        (0..=offset).fold(start, |hash, at| {
            Some(next_sequence_hash(hash, LocalHash(self.local(header, at))))
        })
    }

    /// Sequence hash of a block: stored for the last block of a frame, else computed.
    pub(super) fn sequence_at(&self, block: BlockId) -> Option<SequenceHash> {
        let header = self.header(block.frame());
        let shape = get(&header[LEN_AND_FLAGS]);
        if block.offset() + 1 == len_of(shape) && has_end(shape) {
            return Some(SequenceHash(get(&header[END_SEQUENCE])));
        }
        self.sequence_in(header, block.offset())
    }

    /// The four words of a tier's holders; `None` for a lower tier without holders.
    pub(super) fn holder_words(&self, id: FrameId, tier: Tier) -> Option<&[AtomicU64]> {
        let header = self.header(id);
        match tier {
            Tier::Device => Some(&header[DEVICE_HOLDERS..DEVICE_HOLDERS + 4]),
            Tier::Host | Tier::Disk => self.lower_holder_words(get(&header[LOWER_HOLDERS]), tier),
        }
    }

    /// The four words of a lower tier's holders, from the word [`LOWER_HOLDERS`]: host memory first, then
    /// disk.
    fn lower_holder_words(&self, lower: u64, tier: Tier) -> Option<&[AtomicU64]> {
        let at = 4 * (tier.index() - 1);
        (lower != 0).then(|| &self.extents.words(low(lower), 8)[at..at + 4])
    }

    /// Holders of a frame in a tier; `None` for a lower tier without holders.
    pub(crate) fn holders(&self, id: FrameId, tier: Tier) -> Option<Holders> {
        self.holder_words(id, tier).map(Holders::of)
    }

    /// As [`PathTree::holders`], from the word [`LOWER_HOLDERS`] that a reader took inside its section.
    ///
    /// The reader must check its section first: the extent may have been freed, and serve another frame by
    /// now.
    #[inline]
    pub(super) fn lower_holders(&self, lower: u64, tier: Tier) -> Option<Holders> {
        self.lower_holder_words(lower, tier).map(Holders::of)
    }

    /// Word of the lower tiers' holders; 0 where there are none.
    #[inline]
    pub(super) fn lower_word(header: &Header) -> u64 {
        get(&header[LOWER_HOLDERS])
    }

    /// Blocks of a frame that a slot holds in a tier, as bits.
    pub(crate) fn mask(&self, id: FrameId, slot: Slot, tier: Tier) -> u64 {
        let holders = self.holders(id, tier);
        holders.map_or(0, |holders| holders.mask(&self.extents, slot, self.len(id)))
    }

    /// Whether any tier of a frame has more than `limit` full holders besides `slot`.
    ///
    /// Extending the frame would make all of them partial holders.
    pub(crate) fn has_full_beside(&self, id: FrameId, slot: Slot, limit: u32) -> bool {
        Tier::ALL.into_iter().any(|tier| {
            let holders = self.holders(id, tier);
            holders.is_some_and(|holders| holders.exceeds_beside(&self.extents, slot, limit))
        })
    }

    /// Blocks of a frame that a slot holds in any tier, as bits.
    pub(crate) fn mask_any(&self, id: FrameId, slot: Slot) -> u64 {
        let device = self.mask(id, slot, Tier::Device);
        if Self::lower_word(self.header(id)) == 0 {
            return device;
        }
        device | self.mask(id, slot, Tier::Host) | self.mask(id, slot, Tier::Disk)
    }

    /// Blocks of a frame that must stay: held in some tier, or with children.
    ///
    /// O(partial holders); a single full holder settles a tier.
    pub(super) fn live_blocks(&self, id: FrameId) -> u64 {
        let len = self.len(id);
        let held = |tier| {
            let holders = self.holders(id, tier);
            holders.map_or(0, |holders| holders.union(&self.extents, len))
        };
        get(&self.header(id)[CHILD_BITS]) | Tier::ALL.into_iter().fold(0, |union, tier| union | held(tier))
    }

    /// Highest number of bytes that one more holder of a frame may allocate.
    ///
    /// It assumes the worst of both forms: a list of partial holders that doubles, and full holders that
    /// become a bitset.
    pub(crate) fn holder_growth_bytes(
        &self,
        allocator: &TreeAllocator,
        id: FrameId,
        tier: Tier,
        slot: Slot,
    ) -> u64 {
        let lower = if tier == Tier::Device {
            0
        } else {
            allocator.extent_allocator.growth_bytes(LOWER_CLASS)
        };
        let holders = self.holders(id, tier);
        let partial = holders.map_or(0, |holders| holders.partial_len()) + 1;
        let full = slot.index() / 64 + 2;
        lower
            + allocator.extent_allocator.growth_bytes(class_of(2 * partial))
            + allocator.extent_allocator.growth_bytes(class_of(full))
    }

    /// The frame that continues from `parent` with `local`. Only for the writer, since the look-up may race
    /// with a write.
    ///
    /// The direct link in the header answers most calls. The bit of `parent` says at once where there is no
    /// child at all.
    pub(crate) fn child(&self, parent: BlockId, local: u64) -> Option<FrameId> {
        if parent != BlockId::ROOT {
            let header = self.header(parent.frame());
            if get(&header[CHILD_BITS]) >> parent.offset() & 1 == 0 {
                return None;
            }
            let next = high(get(&header[LINKS]));
            if next != NONE.0
                && parent.offset() + 1 == len_of(get(&header[LEN_AND_FLAGS]))
                && get(&self.headers.unit(next)[FIRST_LOCAL]) == local
            {
                return Some(FrameId(next));
            }
        }
        match self.children.find(&self.headers, parent, local) {
            Find::Found(id) => Some(id),
            Find::Missing => None,
            Find::Raced => unreachable!("the writer cannot race with itself"),
        }
    }

    /// The longest run of blocks after `after` that equals the start of `locals` and lies in one frame. Only
    /// for the writer.
    ///
    /// A step never crosses a frame, so the caller takes several for a long prompt. `None` means that the
    /// first block is not in the tree.
    pub(crate) fn step(&self, after: BlockId, locals: &[LocalHash]) -> Option<BlockRun> {
        let first = locals.first()?.0;
        let goes_on = after != BlockId::ROOT && after.offset() + 1 < self.len(after.frame()) && {
            let header = self.header(after.frame());
            self.local(header, after.offset() + 1) == first
        };
        let (id, offset) = if goes_on {
            (after.frame(), after.offset() + 1)
        } else {
            (self.child(after, first)?, 0)
        };
        let header = self.header(id);
        let len = (self.len(id) - offset) as usize;
        let wanted = &locals[..len.min(locals.len())];
        let count = Self::equal(&self.locals, header, offset, wanted, |local| local.0);
        Some(BlockRun {
            first: BlockId::new(id, offset),
            len: count as u32,
        })
    }

    /// Whether the eviction may take a frame: it is in the tree, has no children, and was not used since the
    /// last question.
    ///
    /// A used frame loses its mark, so the next question can succeed.
    pub(crate) fn is_cold_leaf(&self, id: FrameId) -> bool {
        let header = self.header(id);
        let shape = get(&header[LEN_AND_FLAGS]);
        if len_of(shape) == 0 || get(&header[CHILD_BITS]) != 0 {
            return false;
        }
        if shape as u32 & RECENTLY_USED == 0 {
            return true;
        }
        header[LEN_AND_FLAGS].fetch_and(!u64::from(RECENTLY_USED), Ordering::Relaxed);
        false
    }

    /// Every frame in the tree, by id. Only for the writer.
    pub(crate) fn iter(&self, allocator: &TreeAllocator) -> impl Iterator<Item = FrameId> {
        (0..allocator.frames.end)
            .map(FrameId)
            .filter(|&id| self.len(id) > 0)
    }
}
