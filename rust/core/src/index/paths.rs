//! Prompts as a tree of frames: the skeleton that the index and the load share.
//!
//! A path of blocks is cut into frames of at most 64. A frame is a piece of one path, not a node of a branching trie: a
//! prompt that parts from it in its middle hangs a child at that block, and the frame stays whole. Who holds which block is a
//! mask per (frame, slot) ([`Holders`]), so a hole splits nothing and equal neighbours need no merging.
//!
//! A frame ends with the last block that is held or has a child; what lies behind is freed at once.
//!
//! Everything that a match reads is in atomic words that never move ([`super::arena`]). Any number of threads read, one writes
//! ([`Pen`]): see [`super::walk`] for reading and `docs/core.md` for what a read during a write may see.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{Arena, get, high, low, pack, set, set_high, set_low};
use super::children::{Children, Find, Headers};
use super::extents::{Extents, Spare, class_of};
use super::holders::{Edit, Holders, low_bits};
use super::seqlock;
use super::tables::{Map, make_room};
use crate::event::Tier;
use crate::hash::{LocalHash, SequenceHash, next_sequence_hash};

/// Blocks of a frame.
pub const FRAME_BLOCKS: u32 = 64;
/// Blocks of a chunk: a cache line of hashes.
pub const CHUNK_BLOCKS: u32 = 8;
/// Chunks of a frame.
const CHUNKS: usize = (FRAME_BLOCKS / CHUNK_BLOCKS) as usize;

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

/// A frame's place in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub u32);

/// No frame.
pub const NONE: FrameId = FrameId(u32::MAX);
/// Block ids are 32 bits and the highest is the root.
const FRAMES_MAX: u32 = u32::MAX / FRAME_BLOCKS;

/// A frame's header: two cache lines, of which a match reads the first.
pub type Header = [AtomicU64; 16];

/// The seqlock's version and the frame's identity: blocks of it were cut off so many times.
pub const VERSION: usize = 0;
/// The block before the first one; a child at the last block or none, the way on for most prompts without the child table.
pub const LINKS: usize = 1;
/// Local hash of the first block.
pub const FIRST: usize = 2;
/// Sequence hash of the last block.
pub const END: usize = 3;
/// Holders in device memory: four words, of which the frame uses the low half of the third (length and flags) and the high
/// half of the fourth (the child table's chain).
pub const HOLDERS: usize = 4;
/// Length, `HAS_END`, `HAS_START`, `USED`.
pub const SHAPE: usize = HOLDERS + 2;
/// High half: see [`Children`].
pub const REFS: usize = HOLDERS + 3;
/// Eight chunks, two to a word.
const FIRST_CHUNK: usize = 8;
/// Bit i: a child hangs at block i.
const BRANCHES: usize = 12;
/// Sequence hash of the parent.
const START: usize = 13;
/// Of a frame that is free, the one freed before it: readers never read this word.
const NEXT_FREE: usize = START;
/// The holders in host memory and on disk: a stretch of twice four words, or 0.
const LOWER: usize = 14;
/// For the owner of the paths.
pub const OWN: usize = 15;

const HAS_END: u32 = 1 << 8;
const HAS_START: u32 = 1 << 9;
/// Stored or matched since the hand of the eviction came by. The one bit that readers write, and only when it is not set.
const USED: u32 = 1 << 10;

const LOWER_CLASS: u32 = 2;

/// Blocks of the frame, as its shape says. 0: it is free.
#[inline]
pub const fn len_of(shape: u64) -> u32 {
    shape as u32 & 0xFF
}

/// Whether the shape says that the end hash is known.
#[inline]
pub const fn has_end(shape: u64) -> bool {
    shape as u32 & HAS_END != 0
}

/// Remembers that a frame was used, for the eviction. For readers, too: a mark that gets lost costs a cache hit at most.
#[inline]
pub fn mark_used(header: &Header, shape: u64) {
    if shape as u32 & USED == 0 {
        header[SHAPE].fetch_or(u64::from(USED), Ordering::Relaxed);
    }
}

/// A prompt as hashes. `sequence` may be empty.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Local hashes of its blocks.
    pub locals: &'a [LocalHash],
    /// Their sequence hashes, or nothing.
    pub sequence: &'a [SequenceHash],
}

/// The tree, as readers see it. See the module.
#[derive(Debug)]
pub struct Paths {
    pub(super) headers: Headers,
    pub(super) locals: Arena<8>,
    pub(super) extents: Extents,
    pub(super) children: Children,
}

/// What only the writer of [`Paths`] needs, and the right to write.
#[derive(Debug, Default)]
pub struct Pen {
    frames: Numbers,
    chunks: Numbers,
    spare: Spare,
    /// Children beyond the first of a block that has several.
    siblings: Map<BlockId, u32>,
    blocks: u64,
}

/// Numbers of places, of which those that are free make a list through a word of their own.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    /// Ever used: all numbers are below.
    ever: u32,
    free: u32,
    /// The number freed last + 1, or 0.
    last: u32,
}

impl Numbers {
    const fn used(self) -> u32 {
        self.ever - self.free
    }

    /// The number that was freed last. `next` is the word in which it has the one before it.
    fn take<'a>(&mut self, next: impl FnOnce(u32) -> &'a AtomicU64) -> Option<u32> {
        let number = self.last.checked_sub(1)?;
        self.last = low(get(next(number)));
        self.free -= 1;
        Some(number)
    }

    fn give(&mut self, number: u32, next: &AtomicU64) {
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

impl Default for Paths {
    fn default() -> Self {
        Self {
            headers: Arena::new(4),
            locals: Arena::new(5),
            extents: Extents::default(),
            children: Children::default(),
        }
    }
}

impl Paths {
    /// The header of a frame.
    #[inline]
    pub fn header(&self, id: FrameId) -> &Header {
        self.headers.unit(id.0)
    }

    /// The chunk of the block at `offset`.
    #[inline]
    pub fn chunk(header: &Header, offset: u32) -> u32 {
        let chunk = offset / CHUNK_BLOCKS;
        // Acquired, because a reader goes there before it knows that its section is valid.
        let word = header[FIRST_CHUNK + (chunk / 2) as usize].load(Ordering::Acquire);
        if chunk.is_multiple_of(2) {
            low(word)
        } else {
            high(word)
        }
    }

    /// Blocks of a frame: 1 to 64 while it lives.
    pub fn len(&self, id: FrameId) -> u32 {
        len_of(get(&self.header(id)[SHAPE]))
    }

    /// The block before its first.
    pub fn parent(&self, id: FrameId) -> BlockId {
        BlockId(low(get(&self.header(id)[LINKS])))
    }

    /// The word of a frame that is the owner's; 0 at first.
    pub fn own(&self, id: FrameId) -> &AtomicU64 {
        &self.header(id)[OWN]
    }

    /// Bytes in use by the structures here.
    pub fn bytes(&self, pen: &Pen) -> u64 {
        u64::from(pen.frames.ever) * size_of::<Header>() as u64
            + u64::from(pen.chunks.ever) * 64
            + pen.spare.bytes()
            + self.children.bytes()
            + pen.sibling_bytes()
    }

    /// Local hash of a block.
    fn local(&self, header: &Header, offset: u32) -> u64 {
        get(&self.locals.unit(Self::chunk(header, offset))[(offset % CHUNK_BLOCKS) as usize])
    }

    /// How many words of a column, from block `offset` on, are as `wanted` has them. A cache line at a time: a whole one is
    /// compared without a loop and without bounds, which is most of what a match does. The chunks of a frame that was written
    /// in one go lie side by side, and are then looked up once.
    #[inline]
    pub fn equal<T>(
        column: &Arena<8>,
        header: &Header,
        offset: u32,
        wanted: &[T],
        word: impl Fn(&T) -> u64,
    ) -> usize {
        const LINE: usize = CHUNK_BLOCKS as usize;
        let is_same = |held: &[AtomicU64; LINE], wanted: &[T; LINE]| {
            let differs = |i: usize| get(&held[i]) ^ word(&wanted[i]);
            let low = (differs(0) | differs(1)) | (differs(2) | differs(3));
            let high = (differs(4) | differs(5)) | (differs(6) | differs(7));
            low | high == 0
        };
        let mut done = 0;
        if offset == 0
            && let Some(run) = Self::side_by_side(header).and_then(|first| column.run(first, CHUNKS))
        {
            let lines = run.as_chunks::<LINE>().0.iter().zip(wanted.as_chunks::<LINE>().0);
            done = LINE * lines.take_while(|(held, wanted)| is_same(held, wanted)).count();
        }
        while done < wanted.len() {
            let at = offset + done as u32;
            let from = (at % CHUNK_BLOCKS) as usize;
            let held = column.unit(Self::chunk(header, at));
            let left = &wanted[done..];
            let whole = (from == 0).then(|| left.first_chunk::<LINE>());
            if whole.flatten().is_some_and(|wanted| is_same(held, wanted)) {
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

    /// The first chunk of a frame whose eight follow one another.
    #[inline]
    fn side_by_side(header: &Header) -> Option<u32> {
        // Acquired as in [`Paths::chunk`].
        let pair = |at: usize| header[FIRST_CHUNK + at].load(Ordering::Acquire);
        let first = low(pair(0));
        let follows =
            |at: u32| pair(at as usize) == pack(first.wrapping_add(2 * at), first.wrapping_add(2 * at + 1));
        (0..4).all(follows).then_some(first)
    }

    /// Local hash of a block that lives.
    pub(super) fn local_of(&self, block: BlockId) -> u64 {
        self.local(self.header(block.frame()), block.offset())
    }

    /// Everybody that holds something of a frame in a tier, with a mask of it.
    pub(super) fn holding(&self, id: FrameId, tier: Tier) -> Vec<(Slot, u64)> {
        let Some(holders) = self.holders(id, tier) else {
            return Vec::new();
        };
        let whole = low_bits(self.len(id));
        let full = holders.full_slots(&self.extents).into_iter();
        let full = full.map(|slot| (slot, whole));
        full.chain(holders.partials(&self.extents)).collect()
    }

    fn sequence_in(&self, header: &Header, offset: u32) -> Option<SequenceHash> {
        let known = get(&header[SHAPE]) as u32 & HAS_START != 0;
        let start = known.then(|| SequenceHash(get(&header[START])));
        (0..=offset).fold(start, |hash, at| {
            Some(next_sequence_hash(hash, LocalHash(self.local(header, at))))
        })
    }

    fn sequence_at(&self, block: BlockId) -> Option<SequenceHash> {
        let header = self.header(block.frame());
        let shape = get(&header[SHAPE]);
        if block.offset() + 1 == len_of(shape) && has_end(shape) {
            return Some(SequenceHash(get(&header[END])));
        }
        self.sequence_in(header, block.offset())
    }

    /// The words of a tier's holders.
    fn cell(&self, id: FrameId, tier: Tier) -> Option<&[AtomicU64]> {
        let header = self.header(id);
        match tier {
            Tier::Device => Some(&header[HOLDERS..HOLDERS + 4]),
            Tier::Host | Tier::Disk => self.lower_cell(get(&header[LOWER]), tier),
        }
    }

    fn lower_cell(&self, lower: u64, tier: Tier) -> Option<&[AtomicU64]> {
        let at = 4 * (tier.index() - 1);
        (lower != 0).then(|| &self.extents.words(low(lower), 8)[at..at + 4])
    }

    /// Who holds what of a frame in a tier.
    pub fn holders(&self, id: FrameId, tier: Tier) -> Option<Holders> {
        self.cell(id, tier).map(Holders::of)
    }

    /// As [`Paths::holders`], for a reader inside of a section, from a header that it knows to be true.
    #[inline]
    pub(super) fn lower_holders(&self, lower: u64, tier: Tier) -> Option<Holders> {
        self.lower_cell(lower, tier).map(Holders::of)
    }

    #[inline]
    pub(super) fn lower_of(header: &Header) -> u64 {
        get(&header[LOWER])
    }

    /// Blocks of a frame that a slot holds in a tier.
    pub fn mask(&self, id: FrameId, slot: Slot, tier: Tier) -> u64 {
        let holders = self.holders(id, tier);
        holders.map_or(0, |holders| holders.mask(&self.extents, slot, self.len(id)))
    }

    /// Whether any tier of a frame has more than `limit` full holders beside `slot`: to extend it would make all of them partial.
    pub fn has_full_beside(&self, id: FrameId, slot: Slot, limit: u32) -> bool {
        Tier::ALL.into_iter().any(|tier| {
            let holders = self.holders(id, tier);
            holders.is_some_and(|holders| holders.exceeds_beside(&self.extents, slot, limit))
        })
    }

    /// Blocks of a frame that a slot holds anywhere.
    pub fn mask_any(&self, id: FrameId, slot: Slot) -> u64 {
        let device = self.mask(id, slot, Tier::Device);
        if Self::lower_of(self.header(id)) == 0 {
            return device;
        }
        device | self.mask(id, slot, Tier::Host) | self.mask(id, slot, Tier::Disk)
    }

    /// Blocks of a frame that must stay.
    fn live(&self, id: FrameId) -> u64 {
        let len = self.len(id);
        let held = |tier| {
            let holders = self.holders(id, tier);
            holders.map_or(0, |holders| holders.union(&self.extents, len))
        };
        get(&self.header(id)[BRANCHES]) | Tier::ALL.into_iter().fold(0, |union, tier| union | held(tier))
    }

    /// Bytes that one more holder of a frame takes from the system at most.
    pub fn holder_growth_bytes(&self, pen: &Pen, id: FrameId, tier: Tier, slot: Slot) -> u64 {
        let lower = if tier == Tier::Device {
            0
        } else {
            pen.spare.growth_bytes(LOWER_CLASS)
        };
        let holders = self.holders(id, tier);
        let partial = holders.map_or(0, |holders| holders.partial_len()) + 1;
        let full = slot.index() / 64 + 2;
        lower + pen.spare.growth_bytes(class_of(2 * partial)) + pen.spare.growth_bytes(class_of(full))
    }

    fn edit<'a>(&'a self, pen: &'a mut Pen, cell: &'a [AtomicU64]) -> Edit<'a> {
        Edit {
            cell,
            extents: &self.extents,
            spare: &mut pen.spare,
        }
    }

    /// Make `slot` hold exactly `mask` of a frame in a tier.
    pub fn set_mask(&self, pen: &mut Pen, id: FrameId, (slot, tier): (Slot, Tier), mask: u64) {
        let header = self.header(id);
        let len = self.len(id);
        seqlock::begin_write(&header[VERSION]);
        if tier != Tier::Device && get(&header[LOWER]) == 0 && mask != 0 {
            let at = pen.spare.take(&self.extents, LOWER_CLASS);
            for word in self.extents.words(at, 8) {
                set(word, 0);
            }
            set(&header[LOWER], u64::from(at));
        }
        if let Some(cell) = self.cell(id, tier) {
            self.edit(pen, cell).set_mask(slot, mask, len);
        }
        if tier != Tier::Device && mask == 0 {
            self.drop_empty_lower(pen, id);
        }
        seqlock::end_write(&header[VERSION], false);
    }

    fn drop_empty_lower(&self, pen: &mut Pen, id: FrameId) {
        let lower = &self.header(id)[LOWER];
        let empty = |tier| {
            self.holders(id, tier)
                .is_none_or(|holders| holders.is_empty(&self.extents))
        };
        if get(lower) != 0 && empty(Tier::Host) && empty(Tier::Disk) {
            for tier in [Tier::Host, Tier::Disk] {
                if let Some(cell) = self.cell(id, tier) {
                    self.edit(pen, cell).clear();
                }
            }
            pen.spare.give(&self.extents, low(get(lower)), LOWER_CLASS);
            set(lower, 0);
        }
    }

    /// The frame that goes on from `parent` with `local`. Only the writer: a reader may find that it was in the way.
    pub fn child(&self, parent: BlockId, local: u64) -> Option<FrameId> {
        if parent != BlockId::ROOT {
            let header = self.header(parent.frame());
            if get(&header[BRANCHES]) >> parent.offset() & 1 == 0 {
                return None;
            }
            let next = high(get(&header[LINKS]));
            if next != NONE.0
                && parent.offset() + 1 == len_of(get(&header[SHAPE]))
                && get(&self.headers.unit(next)[FIRST]) == local
            {
                return Some(FrameId(next));
            }
        }
        match self.children.find(&self.headers, parent, local) {
            Find::Found(id) => Some(id),
            Find::Missing => None,
            Find::Raced => unreachable!("the writer must not race itself"),
        }
    }

    /// The blocks after `after` that equal the start of `locals`, all in one frame: (frame, first offset, count). Only the
    /// writer.
    pub fn step(&self, after: BlockId, locals: &[LocalHash]) -> Option<(FrameId, u32, u32)> {
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
        Some((id, offset, count as u32))
    }

    /// Add blocks after `after`, where nothing equal follows yet, all in one frame: (frame, first offset, count).
    ///
    /// They go into the frame of `after` when they fit behind its end and `extend` allows it, else into a new frame.
    /// The caller has to make someone hold them. `None`: no frame id is left.
    pub fn add(
        &self,
        pen: &mut Pen,
        after: BlockId,
        locals: &[LocalHash],
        extend: bool,
    ) -> Option<(FrameId, u32, u32)> {
        if extend && after != BlockId::ROOT {
            let len = self.len(after.frame());
            if after.offset() + 1 == len && len < FRAME_BLOCKS {
                return Some(self.extend(pen, after.frame(), locals));
            }
        }
        let count = locals.len().min(FRAME_BLOCKS as usize);
        let locals = &locals[..count];
        let start = if after == BlockId::ROOT {
            None
        } else {
            self.sequence_at(after)
        };
        let end = locals
            .iter()
            .fold(start, |hash, &local| Some(next_sequence_hash(hash, local)));
        let id = self.place(pen)?;
        let header = self.header(id);
        seqlock::begin_write(&header[VERSION]);
        set(&header[LINKS], pack(after.0, NONE.0));
        set(&header[FIRST], locals[0].0);
        set(&header[START], start.map_or(0, |hash| hash.0));
        set(&header[OWN], 0);
        self.write_locals(pen, header, 0, locals);
        let known = if start.is_some() { HAS_START } else { 0 };
        set_low(&header[SHAPE], known | USED);
        Self::set_len(header, count as u32, end);
        seqlock::end_write(&header[VERSION], false);
        self.attach(pen, id, after);
        pen.blocks += count as u64;
        Some((id, 0, count as u32))
    }

    fn place(&self, pen: &mut Pen) -> Option<FrameId> {
        if let Some(number) = pen.frames.take(|number| &self.headers.unit(number)[NEXT_FREE]) {
            return Some(FrameId(number));
        }
        if pen.frames.ever >= FRAMES_MAX {
            return None;
        }
        pen.frames.ever += 1;
        self.headers.reserve(pen.frames.ever);
        Some(FrameId(pen.frames.ever - 1))
    }

    fn set_len(header: &Header, len: u32, end: Option<SequenceHash>) {
        let start = get(&header[SHAPE]) as u32 & (HAS_START | USED);
        let known = if end.is_some() { HAS_END } else { 0 };
        set(&header[END], end.map_or(0, |hash| hash.0));
        set_low(&header[SHAPE], len | known | start);
    }

    /// Writes the hashes of the blocks from `offset` on, in new chunks where the old ones do not suffice.
    fn write_locals(&self, pen: &mut Pen, header: &Header, offset: u32, locals: &[LocalHash]) {
        let mut chunk = None;
        for (at, local) in (offset..).zip(locals) {
            if at % CHUNK_BLOCKS == 0 {
                let free = pen.chunks.take(|number| &self.locals.unit(number)[0]);
                let taken = free.unwrap_or_else(|| {
                    pen.chunks.ever += 1;
                    self.locals.reserve(pen.chunks.ever);
                    pen.chunks.ever - 1
                });
                let number = at / CHUNK_BLOCKS;
                let word = &header[FIRST_CHUNK + (number / 2) as usize];
                let (even, now) = (number.is_multiple_of(2), get(word));
                let value = if even {
                    pack(taken, high(now))
                } else {
                    pack(low(now), taken)
                };
                word.store(value, Ordering::Release);
                chunk = Some(self.locals.unit(taken));
            }
            let words = *chunk.get_or_insert_with(|| self.locals.unit(Self::chunk(header, at)));
            set(&words[(at % CHUNK_BLOCKS) as usize], local.0);
        }
    }

    fn give_chunks(&self, pen: &mut Pen, header: &Header, new_len: u32, len: u32) {
        for chunk in new_len.div_ceil(CHUNK_BLOCKS)..len.div_ceil(CHUNK_BLOCKS) {
            let number = Self::chunk(header, chunk * CHUNK_BLOCKS);
            pen.chunks.give(number, &self.locals.unit(number)[0]);
        }
    }

    fn attach(&self, pen: &mut Pen, id: FrameId, parent: BlockId) {
        self.children.insert(&self.headers, id, pen.frames_len());
        if parent == BlockId::ROOT {
            return;
        }
        let above = self.header(parent.frame());
        let (bit, branches) = (1 << parent.offset(), get(&above[BRANCHES]));
        if branches & bit != 0 {
            make_room(&mut pen.siblings);
            *pen.siblings.entry(parent).or_insert(0) += 1;
        }
        set(&above[BRANCHES], branches | bit);
        let is_last = parent.offset() + 1 == self.len(parent.frame());
        if is_last && high(get(&above[LINKS])) == NONE.0 {
            Self::set_next(above, id);
        }
    }

    fn set_next(header: &Header, next: FrameId) {
        seqlock::begin_write(&header[VERSION]);
        set_high(&header[LINKS], next.0);
        seqlock::end_write(&header[VERSION], false);
    }

    fn extend(&self, pen: &mut Pen, id: FrameId, locals: &[LocalHash]) -> (FrameId, u32, u32) {
        let header = self.header(id);
        let old_len = self.len(id);
        let before = self.sequence_at(BlockId::new(id, old_len - 1));
        let count = locals.len().min((FRAME_BLOCKS - old_len) as usize);
        let locals = &locals[..count];
        let end = locals
            .iter()
            .fold(before, |hash, &local| Some(next_sequence_hash(hash, local)));
        seqlock::begin_write(&header[VERSION]);
        self.write_locals(pen, header, old_len, locals);
        Self::set_len(header, old_len + count as u32, end);
        set_high(&header[LINKS], NONE.0);
        for tier in Tier::ALL {
            if let Some(cell) = self.cell(id, tier) {
                self.edit(pen, cell).grown(old_len);
            }
        }
        seqlock::end_write(&header[VERSION], false);
        pen.blocks += count as u64;
        (id, old_len, count as u32)
    }

    /// The prefix hash of a frame that shrank is computed again: worth it once the frame is used as a whole.
    pub fn refresh_end(&self, id: FrameId) {
        let header = self.header(id);
        let shape = get(&header[SHAPE]);
        if !has_end(shape) {
            let end = self.sequence_in(header, len_of(shape) - 1);
            seqlock::begin_write(&header[VERSION]);
            Self::set_len(header, len_of(shape), end);
            seqlock::end_write(&header[VERSION], false);
        }
    }

    /// Cut off what nobody holds behind the last living block of `id`, and the frame itself when nothing is left; then look at
    /// its parent. `dropped` hears of the blocks before they go: the frame, and their offsets as bits.
    pub fn free_dead(&self, pen: &mut Pen, id: FrameId, dropped: &mut impl FnMut(FrameId, u64)) {
        let mut id = id;
        loop {
            let (header, len) = (self.header(id), self.len(id));
            let new_len = 64 - self.live(id).leading_zeros();
            if new_len == len {
                return;
            }
            dropped(id, low_bits(len) & !low_bits(new_len));
            pen.blocks -= u64::from(len - new_len);
            seqlock::begin_write(&header[VERSION]);
            self.give_chunks(pen, header, new_len, len);
            Self::set_len(header, new_len, None);
            set_high(&header[LINKS], NONE.0);
            for tier in Tier::ALL {
                if let Some(cell) = self.cell(id, tier) {
                    let mut edit = self.edit(pen, cell);
                    if new_len == 0 {
                        edit.clear();
                    } else {
                        edit.shrunk(new_len);
                    }
                }
            }
            if new_len == 0 {
                self.drop_empty_lower(pen, id);
            }
            seqlock::end_write(&header[VERSION], true);
            if new_len > 0 {
                return;
            }
            let parent = self.parent(id);
            self.detach(pen, id);
            if parent == BlockId::ROOT {
                return;
            }
            id = parent.frame();
        }
    }

    fn detach(&self, pen: &mut Pen, id: FrameId) {
        let parent = self.parent(id);
        self.children.remove(&self.headers, id);
        pen.frames.give(id.0, &self.header(id)[NEXT_FREE]);
        if parent == BlockId::ROOT {
            return;
        }
        let above = self.header(parent.frame());
        if high(get(&above[LINKS])) == id.0 {
            Self::set_next(above, NONE);
        }
        match pen.siblings.get_mut(&parent) {
            None => set(&above[BRANCHES], get(&above[BRANCHES]) & !(1 << parent.offset())),
            Some(1) => drop(pen.siblings.remove(&parent)),
            Some(more) => *more -= 1,
        }
    }

    /// Whether the eviction may take a frame: it lives, nothing hangs on it, and it was not used since this was asked last.
    pub fn is_cold_leaf(&self, id: FrameId) -> bool {
        let header = self.header(id);
        let shape = get(&header[SHAPE]);
        if len_of(shape) == 0 || get(&header[BRANCHES]) != 0 {
            return false;
        }
        if shape as u32 & USED == 0 {
            return true;
        }
        header[SHAPE].fetch_and(!u64::from(USED), Ordering::Relaxed);
        false
    }

    /// Every living frame, in arena order. Only the writer.
    pub fn iter(&self, pen: &Pen) -> impl Iterator<Item = FrameId> {
        (0..pen.frames.ever).map(FrameId).filter(|&id| self.len(id) > 0)
    }

    /// How many numbers the list of what is free has; panics when it has more than were counted.
    fn free_numbers<'a>(mut numbers: Numbers, next: impl Fn(u32) -> &'a AtomicU64) -> usize {
        std::iter::from_fn(|| numbers.take(&next)).count()
    }

    /// Panics unless every rule of the structure holds. For tests: O(everything).
    pub fn check(&self, pen: &Pen) {
        let mut blocks = 0;
        let mut branches: std::collections::HashMap<BlockId, u32> = std::collections::HashMap::new();
        for id in self.iter(pen) {
            let (header, len, parent) = (self.header(id), self.len(id), self.parent(id));
            blocks += u64::from(len);
            assert!(
                len <= FRAME_BLOCKS && get(&header[FIRST]) == self.local(header, 0),
                "a frame must be well formed"
            );
            assert!(get(&header[VERSION]) & 1 == 0, "a write must have ended");
            assert_eq!(
                64 - self.live(id).leading_zeros(),
                len,
                "a frame must end with a living block"
            );
            assert_eq!(
                self.child(parent, get(&header[FIRST])),
                Some(id),
                "a frame must be found"
            );
            assert!(
                !has_end(get(&header[SHAPE]))
                    || Some(SequenceHash(get(&header[END]))) == self.sequence_in(header, len - 1),
                "the end hash must be true"
            );
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
                    Some(SequenceHash(get(&header[START]))),
                    start,
                    "a frame must start where its parent ends"
                );
            }
        }
        assert_eq!(pen.blocks, blocks, "blocks must be counted");
        assert_eq!(
            self.children.count(&self.headers),
            pen.frames_len(),
            "the child table must hold the living frames"
        );
        assert_eq!(
            (self.iter(pen).count(), pen.frames.free as usize),
            (
                pen.frames_len(),
                Self::free_numbers(pen.frames, |number| &self.headers.unit(number)[NEXT_FREE])
            )
        );
        let chunks: u32 = self.iter(pen).map(|id| self.len(id).div_ceil(CHUNK_BLOCKS)).sum();
        assert_eq!(
            (chunks, pen.chunks.free as usize),
            (
                pen.chunks.used(),
                Self::free_numbers(pen.chunks, |number| &self.locals.unit(number)[0])
            ),
            "a chunk must be used or free"
        );
        for id in self.iter(pen) {
            for offset in 0..self.len(id) {
                let block = BlockId::new(id, offset);
                let children = branches.remove(&block).unwrap_or(0);
                assert_eq!(
                    get(&self.header(id)[BRANCHES]) >> offset & 1 == 1,
                    children > 0,
                    "branches must be true"
                );
                assert_eq!(
                    pen.siblings.get(&block).copied().unwrap_or(0),
                    children.saturating_sub(1)
                );
            }
        }
        assert!(branches.is_empty(), "a child must hang at a living block");
    }
}
