//! Writing the path tree: frames come, grow, gain and lose holders, shrink and go.
//!
//! Every change that a reader could otherwise see half done happens inside a write section of the frame's
//! seqlock. A frame that loses blocks also changes its identity, so that a reader that went on from it
//! notices.
//!
//! The life of a frame:
//!
//! ```text
//! place ─▶ header written ─▶ attach ─▶ extend*, set_mask* ─▶ free_dead: shrink* ─▶ empty ─▶ detach ─▶ free list
//!          unreachable       reachable by readers            new identity                  reused for another path
//! ```
//!
//! Two orders carry the proof that a match is right. A frame becomes reachable only when its header is
//! complete. A frame gets its new identity before it leaves its parent, so a reader that reaches a reused
//! frame finds the change ([`super::walk`], rule 2).
//!
//! Cost: O(blocks) to add or extend, O(partial holders) to change a holder, O(frames that go) to free.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Slot;
use super::arena::{get, high, low, pack, set, set_high, set_low};
use super::frame::{
    BlockId, BlockRun, CHILD_BITS, CHUNK_BLOCKS, CHUNK_IDS, END_SEQUENCE, FIRST_LOCAL, FRAME_BLOCKS,
    FRAMES_MAX, FrameId, HAS_END_SEQUENCE, HAS_PARENT_SEQUENCE, Header, LEN_AND_FLAGS, LINKS, LOWER_CLASS,
    LOWER_HOLDERS, NEXT_FREE, NONE, OWNER_WORD, PARENT_SEQUENCE, RECENTLY_USED, VERSION, has_end, len_of,
};
use super::hash_tables::make_room;
use super::holder_changes::HoldersMut;
use super::path_tree::PathTree;
use super::seqlock;
use super::slots::low_bits;
use super::tree_allocator::TreeAllocator;
use crate::event::Tier;
use crate::hash::{LocalHash, SequenceHash, next_sequence_hash};

impl PathTree {
    /// Write access to the holders in `words`. Inside a write section.
    ///
    /// It borrows the allocator, so two edits cannot overlap.
    fn edit_holders<'a>(
        &'a self,
        allocator: &'a mut TreeAllocator,
        words: &'a [AtomicU64],
    ) -> HoldersMut<'a> {
        HoldersMut {
            words,
            extents: &self.extents,
            extent_allocator: &mut allocator.extent_allocator,
        }
    }

    /// Makes `slot` hold exactly `mask` of a frame in a tier. An empty mask removes the holder.
    ///
    /// The identity of the frame stays: its blocks are the same, so a match that went on from it remains
    /// true. O(partial holders of the tier).
    pub(crate) fn set_mask(
        &self,
        allocator: &mut TreeAllocator,
        id: FrameId,
        (slot, tier): (Slot, Tier),
        mask: u64,
    ) {
        let header = self.header(id);
        let len = self.len(id);
        seqlock::begin_write(&header[VERSION]);
        // The first holder in a lower tier: allocate empty holder words for both lower tiers.
        if tier != Tier::Device && get(&header[LOWER_HOLDERS]) == 0 && mask != 0 {
            let at = allocator.extent_allocator.allocate(&self.extents, LOWER_CLASS);
            for word in self.extents.words(at, 8) {
                set(word, 0);
            }
            set(&header[LOWER_HOLDERS], u64::from(at));
        }
        if let Some(words) = self.holder_words(id, tier) {
            self.edit_holders(allocator, words).set_mask(slot, mask, len);
        }
        if tier != Tier::Device && mask == 0 {
            self.drop_empty_lower(allocator, id);
        }
        seqlock::end_write(&header[VERSION], false);
    }

    /// Frees the extent of the lower tiers' holders when no worker holds a block there. Inside a write section.
    ///
    /// Fleets without offloading then pay nothing for the two lower tiers.
    fn drop_empty_lower(&self, allocator: &mut TreeAllocator, id: FrameId) {
        let lower = &self.header(id)[LOWER_HOLDERS];
        let empty = |tier| {
            self.holders(id, tier)
                .is_none_or(|holders| holders.is_empty(&self.extents))
        };
        if get(lower) != 0 && empty(Tier::Host) && empty(Tier::Disk) {
            for tier in [Tier::Host, Tier::Disk] {
                if let Some(words) = self.holder_words(id, tier) {
                    self.edit_holders(allocator, words).clear();
                }
            }
            allocator
                .extent_allocator
                .free(&self.extents, low(get(lower)), LOWER_CLASS);
            set(lower, 0);
        }
    }

    /// Adds blocks after `after`, where no equal block follows yet, all in one frame.
    ///
    /// The blocks extend the frame of `after` when they fit behind its end and `extend` allows it; otherwise
    /// they start a new frame. The caller must give the run a holder. `None`: no frame id is left.
    ///
    /// O(blocks), plus one insertion into the child table.
    pub(crate) fn add(
        &self,
        allocator: &mut TreeAllocator,
        after: BlockId,
        locals: &[LocalHash],
        extend: bool,
    ) -> Option<BlockRun> {
        if extend && after != BlockId::ROOT {
            let len = self.len(after.frame());
            if after.offset() + 1 == len && len < FRAME_BLOCKS {
                return Some(self.extend(allocator, after.frame(), locals));
            }
        }
        let count = locals.len().min(FRAME_BLOCKS as usize);
        let locals = &locals[..count];
        // At the root there is no parent's hash: the sequence hash of the first block is its local hash.
        let start = if after == BlockId::ROOT {
            None
        } else {
            self.sequence_at(after)
        };
        let end = locals
            .iter()
            .fold(start, |hash, &local| Some(next_sequence_hash(hash, local)));
        // No section is open yet: taking an id disturbs no reader.
        let id = self.place(allocator)?;
        let header = self.header(id);
        // A reader may still be at the former frame of this id, so even a new frame needs a write section.
        seqlock::begin_write(&header[VERSION]);
        set(&header[LINKS], pack(after.get(), NONE.0));
        set(&header[FIRST_LOCAL], locals[0].0);
        set(&header[PARENT_SEQUENCE], start.map_or(0, |hash| hash.0));
        set(&header[OWNER_WORD], 0);
        self.write_locals(allocator, header, 0, locals);
        let known = if start.is_some() { HAS_PARENT_SEQUENCE } else { 0 };
        set_low(&header[LEN_AND_FLAGS], known | RECENTLY_USED);
        Self::set_len(header, count as u32, end);
        seqlock::end_write(&header[VERSION], false);
        // The frame becomes reachable only here, when its header is complete.
        self.attach(allocator, id, after);
        allocator.blocks += count as u64;
        Some(BlockRun {
            first: BlockId::new(id, 0),
            len: count as u32,
        })
    }

    /// Takes a free frame, or a new one. `None` when no frame id is left.
    ///
    /// The id freed last comes first. Its arena unit is likely in a cache, and the arena does not grow.
    fn place(&self, allocator: &mut TreeAllocator) -> Option<FrameId> {
        if let Some(number) = allocator
            .frames
            .reuse(|number| &self.headers.unit(number)[NEXT_FREE])
        {
            return Some(FrameId(number));
        }
        if allocator.frames.end >= FRAMES_MAX {
            return None;
        }
        allocator.frames.end += 1;
        self.headers.reserve(allocator.frames.end);
        Some(FrameId(allocator.frames.end - 1))
    }

    /// Sets the length of a frame and the sequence hash of its last block. Inside a write section.
    ///
    /// `None` drops the hash, as a shrinking frame does. Matches then compare local hashes until
    /// [`PathTree::refresh_end`].
    fn set_len(header: &Header, len: u32, end: Option<SequenceHash>) {
        let start = get(&header[LEN_AND_FLAGS]) as u32 & (HAS_PARENT_SEQUENCE | RECENTLY_USED);
        let known = if end.is_some() { HAS_END_SEQUENCE } else { 0 };
        set(&header[END_SEQUENCE], end.map_or(0, |hash| hash.0));
        set_low(&header[LEN_AND_FLAGS], len | known | start);
    }

    /// Writes the local hashes of the blocks from `offset` on, into new chunks where the last one is full.
    /// Inside a write section.
    ///
    /// The first offset that is no multiple of eight continues in the chunk that the frame has already.
    fn write_locals(
        &self,
        allocator: &mut TreeAllocator,
        header: &Header,
        offset: u32,
        locals: &[LocalHash],
    ) {
        let mut chunk = None;
        for (at, local) in (offset..).zip(locals) {
            if at % CHUNK_BLOCKS == 0 {
                let free = allocator.chunks.reuse(|number| &self.locals.unit(number)[0]);
                let taken = free.unwrap_or_else(|| {
                    allocator.chunks.end += 1;
                    self.locals.reserve(allocator.chunks.end);
                    allocator.chunks.end - 1
                });
                let number = at / CHUNK_BLOCKS;
                let word = &header[CHUNK_IDS + (number / 2) as usize];
                let (even, now) = (number.is_multiple_of(2), get(word));
                let value = if even {
                    pack(taken, high(now))
                } else {
                    pack(low(now), taken)
                };
                // Release: a reader that sees the id also sees the memory of its chunk.
                word.store(value, Ordering::Release);
                chunk = Some(self.locals.unit(taken));
            }
            let words = *chunk.get_or_insert_with(|| self.locals.unit(Self::chunk(header, at)));
            set(&words[(at % CHUNK_BLOCKS) as usize], local.0);
        }
    }

    /// Frees the chunks that a frame of `new_len` blocks no longer needs. Inside a write section.
    ///
    /// The first word of a freed chunk becomes its link in the free list. A reader that still compares the
    /// chunk sees a wrong hash at most, and its section is invalid.
    fn give_chunks(&self, allocator: &mut TreeAllocator, header: &Header, new_len: u32, len: u32) {
        for chunk in new_len.div_ceil(CHUNK_BLOCKS)..len.div_ceil(CHUNK_BLOCKS) {
            let number = Self::chunk(header, chunk * CHUNK_BLOCKS);
            allocator.chunks.free(number, &self.locals.unit(number)[0]);
        }
    }

    /// Makes a frame a child of `parent`: child table, child bit, sibling count, and the direct link of the
    /// parent's frame.
    fn attach(&self, allocator: &mut TreeAllocator, id: FrameId, parent: BlockId) {
        // From here on readers find the frame.
        self.children.insert(&self.headers, id, allocator.frames_len());
        if parent == BlockId::ROOT {
            return;
        }
        let above = self.header(parent.frame());
        let (bit, branches) = (1 << parent.offset(), get(&above[CHILD_BITS]));
        // The bit says that a child is there. Only the children beyond the first are counted, and few blocks have any.
        if branches & bit != 0 {
            make_room(&mut allocator.siblings);
            *allocator.siblings.entry(parent).or_insert(0) += 1;
        }
        set(&above[CHILD_BITS], branches | bit);
        // The first child at the last block gets the direct link: most prompts have no other.
        let is_last = parent.offset() + 1 == self.len(parent.frame());
        if is_last && high(get(&above[LINKS])) == NONE.0 {
            Self::set_next(above, id);
        }
    }

    /// Sets the child that continues at a frame's last block.
    ///
    /// A write section, because readers copy the link together with the frame's holders.
    fn set_next(header: &Header, next: FrameId) {
        seqlock::begin_write(&header[VERSION]);
        set_high(&header[LINKS], next.0);
        seqlock::end_write(&header[VERSION], false);
    }

    /// Adds blocks behind the end of a frame. Its full holders become partial ones.
    ///
    /// The direct link is dropped: it belongs to the last block, and the new last block has no child yet.
    ///
    /// The caller decides by the number of full holders whether extending pays
    /// ([`PathTree::has_full_beside`]).
    fn extend(&self, allocator: &mut TreeAllocator, id: FrameId, locals: &[LocalHash]) -> BlockRun {
        let header = self.header(id);
        let old_len = self.len(id);
        let before = self.sequence_at(BlockId::new(id, old_len - 1));
        let count = locals.len().min((FRAME_BLOCKS - old_len) as usize);
        let locals = &locals[..count];
        let end = locals
            .iter()
            .fold(before, |hash, &local| Some(next_sequence_hash(hash, local)));
        seqlock::begin_write(&header[VERSION]);
        self.write_locals(allocator, header, old_len, locals);
        Self::set_len(header, old_len + count as u32, end);
        set_high(&header[LINKS], NONE.0);
        for tier in Tier::ALL {
            if let Some(words) = self.holder_words(id, tier) {
                self.edit_holders(allocator, words).grown(old_len);
            }
        }
        seqlock::end_write(&header[VERSION], false);
        allocator.blocks += count as u64;
        BlockRun {
            first: BlockId::new(id, old_len),
            len: count as u32,
        }
    }

    /// Computes the sequence hash of a shrunk frame's last block again.
    ///
    /// A shrinking frame drops this hash. Computing it pays off once a worker stores the whole frame again.
    pub(crate) fn refresh_end(&self, id: FrameId) {
        let header = self.header(id);
        let shape = get(&header[LEN_AND_FLAGS]);
        if !has_end(shape) {
            let end = self.sequence_in(header, len_of(shape) - 1);
            seqlock::begin_write(&header[VERSION]);
            Self::set_len(header, len_of(shape), end);
            seqlock::end_write(&header[VERSION], false);
        }
    }

    /// Frees the blocks behind the last live block of `id`, and the frame itself when no block is left. Then
    /// it does the same for the parent's frame, which may have lost its last child.
    ///
    /// A loop and not a recursion: a conversation may be thousands of frames deep.
    ///
    /// `dropped` receives each frame with the offsets of its blocks as bits, before they go. The index takes
    /// their engine hashes out of its table there.
    pub(crate) fn free_dead(
        &self,
        allocator: &mut TreeAllocator,
        id: FrameId,
        dropped: &mut impl FnMut(FrameId, u64),
    ) {
        let mut id = id;
        loop {
            let (header, len) = (self.header(id), self.len(id));
            // The frame ends after its last live block; a hole before it stays.
            let new_len = 64 - self.live_blocks(id).leading_zeros();
            if new_len == len {
                return;
            }
            // The owner forgets its data about the blocks while their chunks still belong to the frame.
            dropped(id, low_bits(len) & !low_bits(new_len));
            allocator.blocks -= u64::from(len - new_len);
            seqlock::begin_write(&header[VERSION]);
            self.give_chunks(allocator, header, new_len, len);
            Self::set_len(header, new_len, None);
            set_high(&header[LINKS], NONE.0);
            for tier in Tier::ALL {
                if let Some(words) = self.holder_words(id, tier) {
                    let mut edit_holders = self.edit_holders(allocator, words);
                    if new_len == 0 {
                        edit_holders.clear();
                    } else {
                        edit_holders.shrunk(new_len);
                    }
                }
            }
            if new_len == 0 {
                self.drop_empty_lower(allocator, id);
            }
            // The frame lost blocks: the new identity stops readers that went on from one of them.
            seqlock::end_write(&header[VERSION], true);
            if new_len > 0 {
                return;
            }
            let parent = self.parent(id);
            self.detach(allocator, id);
            if parent == BlockId::ROOT {
                return;
            }
            id = parent.frame();
        }
    }

    /// Takes an empty frame out of the child table and out of its parent.
    ///
    /// A reader may still hold its id. The identity that `free_dead` changed before shows it to the reader.
    ///
    /// The order matters. The child table forgets the frame first, so that no new reader finds it. Then the
    /// id is free.
    fn detach(&self, allocator: &mut TreeAllocator, id: FrameId) {
        let parent = self.parent(id);
        self.children.remove(&self.headers, id);
        allocator.frames.free(id.0, &self.header(id)[NEXT_FREE]);
        if parent == BlockId::ROOT {
            return;
        }
        let above = self.header(parent.frame());
        if high(get(&above[LINKS])) == id.0 {
            Self::set_next(above, NONE);
        }
        match allocator.siblings.get_mut(&parent) {
            None => set(
                &above[CHILD_BITS],
                get(&above[CHILD_BITS]) & !(1 << parent.offset()),
            ),
            Some(1) => drop(allocator.siblings.remove(&parent)),
            Some(more) => *more -= 1,
        }
    }
}
