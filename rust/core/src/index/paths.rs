//! Prompts as a tree of frames: the skeleton that the index and the load share.
//!
//! A path of blocks is cut into frames of at most 64. A frame is a piece of one path, not a node of a branching trie: a
//! prompt that parts from it in its middle hangs a child at that block, and the frame stays whole. Who holds which block is a
//! mask per (frame, slot) ([`Holders`]), so a hole splits nothing and equal neighbours need no merging.
//!
//! A frame ends with the last block that is held or has a child; what lies behind is freed at once.
//!
//! Matching a prompt of D blocks: per frame one header, one compare of the prefix hash (or of up to 64 local hashes) and one
//! intersection of sets: O(D / 64 + slots).

use hashbrown::HashTable;
use rustc_hash::FxHashMap;

use super::holders::{Holders, low_bits};
use super::slots::bits;
use crate::hash::{LocalHash, SequenceHash, next_sequence_hash};

/// Blocks of a frame.
pub const FRAME_BLOCKS: u32 = 64;

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
const NONE: FrameId = FrameId(u32::MAX);
/// The last frame id is `NONE`'s neighbourhood: block ids are 32 bits and the highest is the root.
const FRAMES_MAX: usize = (u32::MAX / FRAME_BLOCKS) as usize;

/// What else hangs on a frame.
pub trait Extra: Default {
    /// Blocks that must stay though no holder of the frame has them.
    fn live(&self, len: u32) -> u64;
    /// The frame grew from `old_len`.
    fn grown(&mut self, old_len: u32);
    /// The frame shrank to `new_len`.
    fn shrunk(&mut self, new_len: u32);
}

impl Extra for () {
    fn live(&self, _len: u32) -> u64 {
        0
    }
    fn grown(&mut self, _old_len: u32) {}
    fn shrunk(&mut self, _new_len: u32) {}
}

/// A piece of a path. What a match reads comes first, in two cache lines.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Frame<X> {
    /// The block before the first one.
    parent: BlockId,
    /// A child at the last block, or none: the way on for most prompts, found without the child table.
    next: FrameId,
    /// `locals[0]`, beside the rest of the header.
    first_local: u64,
    /// Sequence hash of the last block; `None` after the frame shrank.
    end: Option<SequenceHash>,
    /// Who holds what.
    pub holders: Holders,
    locals: Vec<u64>,
    /// What the owner of the paths adds.
    pub extra: X,
    /// Sequence hash of the parent.
    start: Option<SequenceHash>,
    /// Bit i: a child hangs at block i.
    branches: u64,
}

impl<X> Frame<X> {
    /// Blocks: 1 to 64 while the frame lives.
    #[allow(clippy::len_without_is_empty)] // a living frame is never empty
    pub fn len(&self) -> u32 {
        self.locals.len() as u32
    }

    /// Local hashes of its blocks.
    pub fn locals(&self) -> &[u64] {
        &self.locals
    }

    /// The block before its first.
    pub const fn parent(&self) -> BlockId {
        self.parent
    }

    fn sequence_at(&self, offset: u32) -> Option<SequenceHash> {
        let walked = &self.locals[..=offset as usize];
        walked.iter().fold(self.start, |hash, &local| {
            Some(next_sequence_hash(hash, LocalHash(local)))
        })
    }

    /// How many blocks from the start of the frame equal the prompt from block `at` on.
    #[inline]
    fn common(&self, prompt: &Prompt<'_>, at: usize) -> u32 {
        let len = self.locals.len();
        let last = at + len - 1;
        if let (Some(end), Some(sequence)) = (self.end, prompt.sequence.get(last))
            && end == *sequence
        {
            return len as u32;
        }
        self.locals
            .iter()
            .zip(&prompt.locals[at..])
            .take_while(|(held, wanted)| **held == wanted.0)
            .count() as u32
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

/// Scratch of [`Paths::overlap`], kept between calls.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    active: Vec<u64>,
    keep: Vec<u64>,
}

/// The tree. See the module.
#[derive(Clone, Debug, Default)]
pub struct Paths<X> {
    frames: Vec<Frame<X>>,
    free: Vec<FrameId>,
    /// Frames by (parent block, first local hash).
    children: HashTable<FrameId>,
    /// Children beyond the first of a block that has several.
    siblings: FxHashMap<BlockId, u32>,
    blocks: u64,
}

/// Mixes a pair to a hash whose high bits are good: what the tables here use.
#[inline]
pub const fn mix(a: u64, b: u64) -> u64 {
    let product = ((a ^ 0x9E37_79B9_7F4A_7C15) as u128) * ((b ^ 0xD6E8_FEB8_6659_FD93) as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl<X: Extra> Paths<X> {
    /// The frame `id`, which must live.
    #[inline]
    pub fn frame(&self, id: FrameId) -> &Frame<X> {
        &self.frames[id.0 as usize]
    }

    /// The frame `id`, which must live.
    pub fn frame_mut(&mut self, id: FrameId) -> &mut Frame<X> {
        &mut self.frames[id.0 as usize]
    }

    /// Blocks that live.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Frames that live.
    pub fn frames_len(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    /// Bytes of the structures here, from their capacities. O(1): frames' hashes are counted as full.
    pub fn bytes(&self) -> u64 {
        (self.frames.capacity() * size_of::<Frame<X>>()
            + self.free.capacity() * size_of::<FrameId>()
            + self.children.capacity() * (size_of::<FrameId>() + 1)
            + self.siblings.capacity() * 9) as u64
            + self.blocks * size_of::<u64>() as u64
    }

    /// The frame that goes on from `parent` with `local`.
    #[inline]
    pub fn child(&self, parent: BlockId, local: u64) -> Option<FrameId> {
        if parent != BlockId::ROOT {
            let frame = self.frame(parent.frame());
            if frame.next != NONE
                && parent.offset() + 1 == frame.len()
                && self.frame(frame.next).first_local == local
            {
                return Some(frame.next);
            }
        }
        let is = |id: &FrameId| {
            let frame = self.frame(*id);
            frame.first_local == local && frame.parent == parent
        };
        self.children.find(mix(u64::from(parent.0), local), is).copied()
    }

    /// Overlap of a prompt per slot: `depth[slot]` = leading blocks that the slot holds without a hole.
    ///
    /// `slots` are the slots of interest, as words of bits; `depth` must be zero there and cover them all.
    pub fn overlap(&self, prompt: &Prompt<'_>, slots: &[u64], depth: &mut [u32], scratch: &mut Scratch) {
        let Scratch { active, keep } = scratch;
        active.clear();
        active.extend_from_slice(slots);
        keep.clear();
        keep.resize(slots.len(), 0);
        if slots.is_empty() {
            return;
        }
        let mut at = BlockId::ROOT;
        let mut matched = 0;
        while matched < prompt.locals.len() {
            let Some(id) = self.child(at, prompt.locals[matched].0) else {
                break;
            };
            let frame = self.frame(id);
            let common = frame.common(prompt, matched);
            frame.holders.retain(active, keep, matched as u32, common, depth);
            if active.iter().all(|&word| word == 0) {
                return;
            }
            matched += common as usize;
            at = BlockId::new(id, common - 1);
        }
        if matched > 0 {
            write_depth(active, matched as u32, depth);
        }
    }

    /// The frames that a prompt runs through, from its start: (frame, first block of the prompt there, blocks in common).
    pub fn walk<'a>(&'a self, prompt: Prompt<'a>) -> impl Iterator<Item = (FrameId, u32, u32)> + 'a {
        let mut at = BlockId::ROOT;
        let mut matched = 0;
        std::iter::from_fn(move || {
            let local = prompt.locals.get(matched)?;
            let id = self.child(at, local.0)?;
            let common = self.frame(id).common(&prompt, matched);
            let start = matched as u32;
            matched += common as usize;
            at = BlockId::new(id, common - 1);
            Some((id, start, common))
        })
    }

    /// The blocks after `after` that equal the start of `locals`, all in one frame: (frame, first offset, count).
    pub fn step(&self, after: BlockId, locals: &[LocalHash]) -> Option<(FrameId, u32, u32)> {
        let (id, offset) = if after != BlockId::ROOT && self.continues(after, locals.first()?.0) {
            (after.frame(), after.offset() + 1)
        } else {
            (self.child(after, locals.first()?.0)?, 0)
        };
        let held = &self.frame(id).locals[offset as usize..];
        let count = held
            .iter()
            .zip(locals)
            .take_while(|(held, wanted)| **held == wanted.0)
            .count();
        Some((id, offset, count as u32))
    }

    fn continues(&self, after: BlockId, local: u64) -> bool {
        self.frame(after.frame()).locals.get(after.offset() as usize + 1) == Some(&local)
    }

    /// Add blocks after `after`, where nothing equal follows yet, all in one frame: (frame, first offset, count).
    ///
    /// They go into the frame of `after` when they fit behind its end and `extend` allows it, else into a new frame.
    /// The caller has to make someone hold them. `None`: no frame id is left.
    pub fn add(&mut self, after: BlockId, locals: &[LocalHash], extend: bool) -> Option<(FrameId, u32, u32)> {
        let fits = |frame: &Frame<X>| after.offset() + 1 == frame.len() && frame.len() < FRAME_BLOCKS;
        if extend && after != BlockId::ROOT && fits(self.frame(after.frame())) {
            return Some(self.extend(after.frame(), locals));
        }
        let count = locals.len().min(FRAME_BLOCKS as usize);
        let start = if after == BlockId::ROOT {
            None
        } else {
            self.sequence_at(after)
        };
        let locals: Vec<u64> = locals[..count].iter().map(|local| local.0).collect();
        let end = locals.iter().fold(start, |hash, &local| {
            Some(next_sequence_hash(hash, LocalHash(local)))
        });
        let frame = Frame {
            parent: after,
            next: NONE,
            first_local: locals[0],
            end,
            holders: Holders::default(),
            extra: X::default(),
            locals,
            start,
            branches: 0,
        };
        let id = self.place(frame)?;
        self.attach(id, after);
        self.blocks += count as u64;
        Some((id, 0, count as u32))
    }

    fn place(&mut self, frame: Frame<X>) -> Option<FrameId> {
        if let Some(id) = self.free.pop() {
            self.frames[id.0 as usize] = frame;
            return Some(id);
        }
        if self.frames.len() >= FRAMES_MAX {
            return None;
        }
        self.frames.push(frame);
        Some(FrameId(self.frames.len() as u32 - 1))
    }

    fn attach(&mut self, id: FrameId, parent: BlockId) {
        let key = |frame: &Frame<X>| mix(u64::from(frame.parent.0), frame.first_local);
        let Self { frames, children, .. } = self;
        let hash = key(&frames[id.0 as usize]);
        children.insert_unique(hash, id, |id| key(&frames[id.0 as usize]));
        if parent == BlockId::ROOT {
            return;
        }
        let above = &mut frames[parent.frame().0 as usize];
        let bit = 1 << parent.offset();
        if above.branches & bit != 0 {
            *self.siblings.entry(parent).or_insert(0) += 1;
        }
        above.branches |= bit;
        if parent.offset() + 1 == above.len() && above.next == NONE {
            above.next = id;
        }
    }

    fn extend(&mut self, id: FrameId, locals: &[LocalHash]) -> (FrameId, u32, u32) {
        let frame = self.frame_mut(id);
        let old_len = frame.len();
        let before = frame.end.or_else(|| frame.sequence_at(old_len - 1));
        let count = locals.len().min((FRAME_BLOCKS - old_len) as usize);
        frame.locals.extend(locals[..count].iter().map(|local| local.0));
        frame.end = locals[..count]
            .iter()
            .fold(before, |hash, &local| Some(next_sequence_hash(hash, local)));
        frame.next = NONE;
        frame.holders.grown(old_len);
        frame.extra.grown(old_len);
        self.blocks += count as u64;
        (id, old_len, count as u32)
    }

    fn sequence_at(&self, block: BlockId) -> Option<SequenceHash> {
        let frame = self.frame(block.frame());
        if block.offset() + 1 == frame.len() && frame.end.is_some() {
            return frame.end;
        }
        frame.sequence_at(block.offset())
    }

    /// The prefix hash of a frame that shrank is computed again: worth it once the frame is used as a whole.
    pub fn refresh_end(&mut self, id: FrameId) {
        let frame = self.frame_mut(id);
        if frame.end.is_none() {
            frame.end = frame.sequence_at(frame.len() - 1);
        }
    }

    /// Cut off what nobody holds behind the last living block of `id`, and the frame itself when nothing is left; then look at
    /// its parent. `dropped` hears of every block before it goes.
    pub fn free_dead(&mut self, id: FrameId, dropped: &mut impl FnMut(BlockId, &mut Frame<X>)) {
        let mut id = id;
        loop {
            let frame = &mut self.frames[id.0 as usize];
            let len = frame.len();
            let live = frame.branches | frame.holders.union(len) | frame.extra.live(len);
            let new_len = 64 - live.leading_zeros();
            if new_len == len {
                return;
            }
            for offset in new_len..len {
                dropped(BlockId::new(id, offset), frame);
            }
            self.blocks -= u64::from(len - new_len);
            if new_len > 0 {
                cut(&mut frame.locals, new_len as usize);
                frame.end = None;
                frame.next = NONE;
                frame.holders.shrunk(new_len);
                frame.extra.shrunk(new_len);
                return;
            }
            let parent = frame.parent;
            self.detach(id);
            if parent == BlockId::ROOT {
                return;
            }
            id = parent.frame();
        }
    }

    fn detach(&mut self, id: FrameId) {
        let frame = &mut self.frames[id.0 as usize];
        let (parent, first_local) = (frame.parent, frame.first_local);
        *frame = Frame {
            parent: BlockId::ROOT,
            next: NONE,
            first_local: 0,
            end: None,
            holders: Holders::default(),
            extra: X::default(),
            locals: Vec::new(),
            start: None,
            branches: 0,
        };
        self.free.push(id);
        let entry = self
            .children
            .find_entry(mix(u64::from(parent.0), first_local), |&child| child == id);
        entry.expect("a frame must be in the child table").remove();
        if parent == BlockId::ROOT {
            return;
        }
        let above = &mut self.frames[parent.frame().0 as usize];
        if above.next == id {
            above.next = NONE;
        }
        match self.siblings.get_mut(&parent) {
            None => above.branches &= !(1 << parent.offset()),
            Some(1) => drop(self.siblings.remove(&parent)),
            Some(more) => *more -= 1,
        }
    }

    /// Every living frame, in arena order.
    pub fn iter(&self) -> impl Iterator<Item = (FrameId, &Frame<X>)> {
        let ids = (0..).map(FrameId);
        ids.zip(&self.frames)
            .filter(|(_, frame)| !frame.locals.is_empty())
    }

    /// Panics unless every rule of the structure holds. For tests: O(everything).
    pub fn check(&self) {
        let mut blocks = 0;
        let mut branches: FxHashMap<BlockId, u32> = FxHashMap::default();
        for (id, frame) in self.iter() {
            let len = frame.len();
            blocks += u64::from(len);
            assert!(
                len <= FRAME_BLOCKS && frame.first_local == frame.locals[0],
                "a frame must be well formed"
            );
            let live = frame.branches | frame.holders.union(len) | frame.extra.live(len);
            assert_eq!(
                64 - live.leading_zeros(),
                len,
                "a frame must end with a living block"
            );
            assert_eq!(
                self.child(frame.parent, frame.first_local),
                Some(id),
                "a frame must be found"
            );
            assert!(
                frame.end.is_none() || frame.end == frame.sequence_at(len - 1),
                "the end hash must be true"
            );
            for partial in &frame.holders.partial {
                assert!(
                    partial.mask != 0 && partial.mask & !low_bits(len) == 0 && partial.mask != low_bits(len)
                );
            }
            assert!(
                frame.holders.partial.is_sorted_by(|a, b| a.slot < b.slot),
                "partial holders must be sorted"
            );
            if frame.parent != BlockId::ROOT {
                *branches.entry(frame.parent).or_insert(0) += 1;
                let start = self
                    .frame(frame.parent.frame())
                    .sequence_at(frame.parent.offset());
                assert_eq!(frame.start, start, "a frame must start where its parent ends");
            }
        }
        assert_eq!(self.blocks, blocks, "blocks must be counted");
        assert_eq!(
            self.children.len(),
            self.frames_len(),
            "the child table must hold the living frames"
        );
        for (id, frame) in self.iter() {
            for offset in 0..frame.len() {
                let block = BlockId::new(id, offset);
                let children = branches.remove(&block).unwrap_or(0);
                assert_eq!(
                    frame.branches >> offset & 1 == 1,
                    children > 0,
                    "branches must be true"
                );
                assert_eq!(
                    self.siblings.get(&block).copied().unwrap_or(0),
                    children.saturating_sub(1)
                );
            }
        }
        assert!(branches.is_empty(), "a child must hang at a living block");
    }
}

/// Truncate, and give memory back once half of it is unused.
pub fn cut(column: &mut Vec<u64>, len: usize) {
    column.truncate(len);
    if column.capacity() >= 2 * len {
        column.shrink_to_fit();
    }
}

/// `depth[slot] = value` for every slot in `active`.
#[inline]
fn write_depth(active: &[u64], value: u32, depth: &mut [u32]) {
    for (at, &word) in active.iter().enumerate() {
        if word == u64::MAX {
            depth[at * 64..at * 64 + 64].fill(value);
        } else {
            for bit in bits(word) {
                depth[at * 64 + bit as usize] = value;
            }
        }
    }
}
