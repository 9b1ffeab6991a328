//! What the writer of [`Paths`] does: frames come, grow, are held, shrink and go.
//!
//! Each change of a frame that readers could see half done is a section of its header's seqlock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{get, high, low, pack, set, set_high, set_low};
use super::frame::{
    BRANCHES, BlockId, CHUNK_BLOCKS, END, FIRST, FIRST_CHUNK, FRAME_BLOCKS, FRAMES_MAX, FrameId, HAS_END,
    HAS_START, Header, LINKS, LOWER, LOWER_CLASS, NEXT_FREE, NONE, OWN, SHAPE, START, USED, VERSION, has_end,
    len_of,
};
use super::holders::{Edit, low_bits};
use super::paths::Paths;
use super::pen::Pen;
use super::seqlock;
use super::tables::make_room;
use crate::event::Tier;
use crate::hash::{LocalHash, SequenceHash, next_sequence_hash};

impl Paths {
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
        set(&header[LINKS], pack(after.get(), NONE.0));
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
}
