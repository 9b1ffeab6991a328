//! What events do to the index: blocks that are stored, removed and named, and workers that leave.
//!
//! One at a time. Cost: O(blocks of the event), with a cache miss per name, for which they wait together; `remove_worker` O(blocks
//! that it held).

use std::hint::black_box;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::arena::{get, set};
use super::evict::Budget;
use super::frame::{BlockId, FRAME_BLOCKS, FrameId, OWN, SHAPE, mark_used};
use super::held::{Copies, Held};
use super::holders::low_bits;
use super::names::{Group, Names};
use super::paths::Paths;
use super::pen::Pen;
use super::slots::bits;
use super::tree::Shared;
use super::{Refusal, Slot};
use crate::event::{KvEvent, StoredBlock, Tier};
use crate::hash::{EngineHash, LocalHash};
use crate::snapshot::Counters;
use crate::worker::WorkerId;

/// Frames with more full holders than this beside the storing worker are not extended: all of them would become partial.
const EXTEND_HOLDERS_MAX: u32 = 1;

/// So many names are looked up one after the other; more are touched first.
const TOUCH_MIN: usize = 4;

/// Slots that there can be.
const SLOTS_MAX: u32 = 1 << 16;

/// What writers need, one at a time.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) pen: Pen,
    pub(super) names: Names,
    pub(super) copies: Copies,
    pub(super) held: Vec<Held>,
    pub(super) slot_of: FxHashMap<WorkerId, Slot>,
    /// Bytes of the sets in `held`.
    pub(super) held_bytes: usize,
    /// Where the eviction goes on.
    pub(super) hand: u32,
    pub(super) counters: Counters,
}

/// What an event takes of one frame, not gone yet.
struct Going {
    id: FrameId,
    /// What the worker holds of it in the event's tier.
    held: u64,
    gone: u64,
}

impl Writer {
    pub(super) fn make_room_for(&mut self, shared: &Shared, slot: Slot) {
        if self.held.len() <= slot.index() {
            assert!(slot.0 < SLOTS_MAX, "a slot must be below 65,536");
            self.held.resize_with(slot.index() + 1, Held::default);
            // For all at once: readers ask for any slot.
            shared.lower_of.reserve(SLOTS_MAX);
        }
    }

    pub(super) fn apply(
        &mut self,
        shared: &Shared,
        slot: Slot,
        event: &KvEvent,
        budget: Budget,
    ) -> Result<(), Refusal> {
        self.make_room_for(shared, slot);
        match event {
            KvEvent::Stored { parent, blocks, tier } => {
                self.store(shared, slot, (*parent, *tier), blocks, budget)
            }
            KvEvent::Removed { blocks, tier } => match self.remove(shared, (slot, *tier), blocks) {
                0 => Ok(()),
                unknown => Err(Refusal::UnknownBlocks(unknown)),
            },
            KvEvent::Cleared => {
                self.remove_worker(shared, slot);
                Ok(())
            }
        }
    }

    /// The block with a common name.
    pub(super) fn common(&self, shared: &Shared, name: u64) -> Option<BlockId> {
        self.names.common.find(name, |group| shared.block_in(group, name))
    }

    /// Gives a block without one a common name, unless another block has it: then that.
    pub(super) fn insert_common(&mut self, shared: &Shared, name: u64, block: BlockId) -> Option<BlockId> {
        let other = self.names.common.insert(
            name,
            Group::of(block),
            |group| shared.block_in(group, name),
            |group| shared.names_in(group),
        );
        if other.is_none() {
            let header = shared.paths.header(block.frame());
            set(shared.name_word(header, block.offset()), name);
            set(&header[OWN], get(&header[OWN]) | 1 << block.offset());
        }
        other
    }

    /// The block that this worker calls `name`, if it holds it.
    fn called(&self, shared: &Shared, slot: Slot, name: u64) -> Option<BlockId> {
        let aliases = self.names.has_aliases();
        if aliases && let Some(block) = self.names.aliased(slot, name) {
            return Some(block);
        }
        let block = self.common(shared, name)?;
        (!(aliases && self.names.alias(slot, block).is_some())).then_some(block)
    }

    /// The block that this worker calls `name` and holds.
    fn find(&self, shared: &Shared, slot: Slot, name: EngineHash) -> Option<BlockId> {
        let block = self.called(shared, slot, name.0)?;
        let held = shared.paths.mask_any(block.frame(), slot) >> block.offset() & 1 == 1;
        held.then_some(block)
    }

    /// Reads what will be asked of these names, at most 64, and of the blocks that may have them.
    fn touch_blocks(&self, shared: &Shared, names: impl Iterator<Item = u64> + Clone) {
        self.names.common.touch(&names);
        let mut chunks = [None; FRAME_BLOCKS as usize];
        for (chunk, name) in chunks.iter_mut().zip(names) {
            *chunk = self.names.common.guess(name).map(|group| {
                let first = group.block(0);
                Paths::chunk(shared.paths.header(first.frame()), first.offset())
            });
        }
        let names = chunks
            .iter()
            .flatten()
            .map(|&chunk| get(&shared.engines.unit(chunk)[0]));
        black_box(names.fold(0, |read, name| read ^ name));
    }

    fn store(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (parent, tier): (Option<EngineHash>, Tier),
        blocks: &[StoredBlock],
        budget: Budget,
    ) -> Result<(), Refusal> {
        if blocks.len() < TOUCH_MIN {
            // Few names: they wait for memory together with the parent's, not after it.
            let names = blocks.iter().map(|block| block.engine_hash.0);
            self.names.common.touch(&names);
        }
        let mut after = match parent {
            Some(parent) => self.find(shared, slot, parent).ok_or(Refusal::UnknownParent)?,
            None => BlockId::ROOT,
        };
        let locals: Vec<_> = blocks.iter().map(|block| block.local_hash).collect();
        let mut done = 0;
        while done < blocks.len() {
            let (frame, offset, count) = match shared.paths.step(after, &locals[done..]) {
                Some(found) => found,
                None => self.add(shared, slot, after, (&locals[done..], &blocks[done..]), budget)?,
            };
            let before = self.pen.blocks();
            let names = &blocks[done..done + count as usize];
            if !self.has_room_for_holder(shared, (slot, tier), (frame, offset), names, budget) {
                if shared.paths.len(frame) > 0 {
                    self.free_dead(shared, frame);
                }
                return Err(Refusal::Full);
            }
            if self.pen.blocks() != before {
                // What went may have been all that kept these blocks: look again.
                continue;
            }
            let held = self.hold(shared, (slot, tier), (frame, offset), names);
            if held.is_err() {
                self.free_dead(shared, frame);
            }
            held?;
            done += count as usize;
            after = BlockId::new(frame, offset + count - 1);
        }
        Ok(())
    }

    fn add(
        &mut self,
        shared: &Shared,
        slot: Slot,
        after: BlockId,
        (locals, blocks): (&[LocalHash], &[StoredBlock]),
        budget: Budget,
    ) -> Result<(FrameId, u32, u32), Refusal> {
        let wanted = &blocks[..blocks.len().min(FRAME_BLOCKS as usize)];
        let room = self.make_room(shared, (slot, after), wanted, budget);
        if room == 0 {
            return Err(Refusal::Full);
        }
        let paths = &shared.paths;
        let extend =
            after != BlockId::ROOT && !paths.has_full_beside(after.frame(), slot, EXTEND_HOLDERS_MAX);
        let added = paths
            .add(&mut self.pen, after, &locals[..room], extend)
            .ok_or(Refusal::Full)?;
        shared.engines.reserve(self.pen.chunks());
        Ok(added)
    }

    /// The worker holds one copy more of the blocks at a place and after, under these names.
    fn hold(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        (id, offset): (FrameId, u32),
        blocks: &[StoredBlock],
    ) -> Result<(), Refusal> {
        let named = self.name_all(shared, slot, (id, offset), blocks);
        let count = named.unwrap_or_else(|(count, _)| count);
        if count > 0 {
            let paths = &shared.paths;
            let wanted = low_bits(count) << offset;
            let before = paths.mask(id, slot, tier);
            if before | wanted != before {
                paths.set_mask(&mut self.pen, id, (slot, tier), before | wanted);
            }
            if before | wanted == low_bits(paths.len(id)) {
                paths.refresh_end(id);
            }
            for again in bits(before & wanted) {
                self.copies.add(BlockId::new(id, again), slot, tier);
            }
            self.add_frame(slot, id);
            let held = &mut self.held[slot.index()];
            let added = u64::from((wanted & !before).count_ones());
            held.blocks[tier.index()] += added;
            shared.count_lower(slot, tier, |blocks| blocks + added);
            mark_used(paths.header(id), get(&paths.header(id)[SHAPE]));
        }
        named
            .map(|_| ())
            .map_err(|(_, name)| Refusal::ConflictingBlock(name))
    }

    /// Record what the worker calls these blocks. `Err`: how many were named before one whose name has another meaning.
    fn name_all(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (id, offset): (FrameId, u32),
        blocks: &[StoredBlock],
    ) -> Result<u32, (u32, EngineHash)> {
        let range = low_bits(blocks.len() as u32) << offset;
        let all_common = || {
            let header = shared.paths.header(id);
            let name = |block: &StoredBlock| block.engine_hash.0;
            Paths::equal(&shared.engines, header, offset, blocks, name) == blocks.len()
        };
        let all_named = get(shared.paths.own(id)) & range == range;
        if all_named && !self.names.has_aliases() && all_common() {
            return Ok(blocks.len() as u32);
        }
        if blocks.len() >= TOUCH_MIN {
            let names = blocks.iter().map(|block| block.engine_hash.0);
            if self.names.common.is_large() {
                self.touch_blocks(shared, names);
            } else {
                self.names.common.touch(&names);
            }
        }
        let held = shared.paths.mask_any(id, slot);
        for (at, block) in (0..).zip(blocks) {
            let place = BlockId::new(id, offset + at);
            let name = block.engine_hash.0;
            let is_new = get(shared.paths.own(id)) >> place.offset() & 1 == 0;
            let named = if is_new && !self.names.has_aliases() {
                let Some(other) = self.insert_common(shared, name, place) else {
                    continue;
                };
                Some(other)
            } else {
                self.common(shared, name)
            };
            let held = held >> place.offset() & 1 == 1;
            let of_this_event = |other: BlockId| {
                let before = other.frame() == id && (offset..offset + at).contains(&other.offset());
                before && self.names.alias(slot, other).is_none()
            };
            let contradicts = named.is_some_and(of_this_event);
            if contradicts || !self.name(shared, slot, (place, held), (block.engine_hash, named)) {
                return Err((at, block.engine_hash));
            }
        }
        Ok(blocks.len() as u32)
    }

    /// The worker calls `block` so; `false` when that contradicts what it said before.
    /// `common` is the block with that common name; `held` tells whether the worker holds `block`.
    fn name(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (block, held): (BlockId, bool),
        (name, common): (EngineHash, Option<BlockId>),
    ) -> bool {
        if self.names.has_aliases()
            && let Some(aliased) = self.names.aliased(slot, name.0)
        {
            return aliased == block;
        }
        if let Some(other) = common
            && other != block
            && self.find(shared, slot, name) == Some(other)
        {
            return false;
        }
        let alias = self.names.alias(slot, block);
        let has_common = get(shared.paths.own(block.frame())) >> block.offset() & 1 == 1;
        let is_common = common == Some(block);
        if held {
            // Held and not aliased so: it has a name already, the common one or another alias.
            return is_common && alias.is_none();
        }
        if is_common {
            return true;
        }
        if common.is_none() && !has_common {
            let other = self.insert_common(shared, name.0, block);
            assert_eq!(other, None, "a name must be that of one block");
        } else {
            self.names.insert_alias(slot, name.0, block);
        }
        true
    }

    /// Takes one copy of each block away; how many of them the worker did not hold. Blocks of one frame that follow each other
    /// go at once.
    fn remove(&mut self, shared: &Shared, (slot, tier): (Slot, Tier), names: &[EngineHash]) -> usize {
        let (mut unknown, mut going) = (0, None::<Going>);
        for (at, &name) in names.iter().enumerate() {
            if at % FRAME_BLOCKS as usize == 0 {
                let next = &names[at..names.len().min(at + FRAME_BLOCKS as usize)];
                if next.len() >= TOUCH_MIN {
                    self.touch_blocks(shared, next.iter().map(|name| name.0));
                }
            }
            let mut block = self.called(shared, slot, name.0);
            if let Some(of) = &going
                && block.is_none_or(|block| block.frame() != of.id || of.gone >> block.offset() & 1 == 1)
            {
                // Another frame, or a block that went just now: the name may mean nothing any more.
                self.go(shared, (slot, tier), going.take());
                block = self.called(shared, slot, name.0);
            }
            let Some(block) = block else {
                unknown += 1;
                continue;
            };
            let of = going.get_or_insert_with(|| Going {
                id: block.frame(),
                held: shared.paths.mask(block.frame(), slot, tier),
                gone: 0,
            });
            if of.held >> block.offset() & 1 == 0 {
                unknown += 1;
            } else if !self.copies.take(block, slot, tier) {
                of.gone |= 1 << block.offset();
            }
        }
        self.go(shared, (slot, tier), going);
        unknown
    }

    /// What goes of a frame goes.
    fn go(&mut self, shared: &Shared, (slot, tier): (Slot, Tier), going: Option<Going>) {
        let Some(Going { id, held, gone }) = going.filter(|going| going.gone != 0) else {
            return;
        };
        shared
            .paths
            .set_mask(&mut self.pen, id, (slot, tier), held & !gone);
        let left = shared.paths.mask_any(id, slot);
        let count = u64::from(gone.count_ones());
        self.held[slot.index()].blocks[tier.index()] -= count;
        shared.count_lower(slot, tier, |blocks| blocks - count);
        if self.names.has_aliases() {
            for offset in bits(gone & !left) {
                self.names.remove_alias(slot, BlockId::new(id, offset));
            }
        }
        if left == 0 {
            self.held[slot.index()].frames.remove(id);
        }
        self.free_dead(shared, id);
    }

    pub(super) fn remove_worker(&mut self, shared: &Shared, slot: Slot) {
        let Some(held) = self.held.get_mut(slot.index()).map(std::mem::take) else {
            return;
        };
        self.held_bytes -= held.frames.bytes();
        if held.frames.is_empty() {
            return;
        }
        shared.clears.fetch_add(1, Ordering::Release);
        shared.count_lower(slot, Tier::Host, |blocks| blocks - held.blocks[1]);
        shared.count_lower(slot, Tier::Disk, |blocks| blocks - held.blocks[2]);
        for id in held.frames.iter() {
            for tier in Tier::ALL {
                let mask = shared.paths.mask(id, slot, tier);
                if mask == 0 {
                    continue;
                }
                shared.paths.set_mask(&mut self.pen, id, (slot, tier), 0);
                for offset in bits(mask) {
                    self.copies.forget(BlockId::new(id, offset), slot, tier);
                    if self.names.has_aliases() {
                        self.names.remove_alias(slot, BlockId::new(id, offset));
                    }
                }
            }
            self.free_dead(shared, id);
        }
        shared.clears.fetch_add(1, Ordering::Release);
    }

    pub(super) fn free_dead(&mut self, shared: &Shared, id: FrameId) {
        let Self { pen, names, .. } = self;
        shared.paths.free_dead(pen, id, &mut |id, blocks| {
            let header = shared.paths.header(id);
            let named = get(&header[OWN]) & blocks;
            set(&header[OWN], get(&header[OWN]) & !blocks);
            let name = |offset| get(shared.name_word(header, offset));
            if named.count_ones() as usize >= TOUCH_MIN {
                names.common.touch(&bits(named).map(name));
            }
            for offset in bits(named) {
                let was_in = names
                    .common
                    .remove(name(offset), Group::of(BlockId::new(id, offset)));
                assert!(was_in, "a common name must be in the table");
            }
        });
    }

    /// The worker holds something of a frame.
    pub(super) fn add_frame(&mut self, slot: Slot, id: FrameId) {
        let frames = &mut self.held[slot.index()].frames;
        let before = frames.bytes();
        frames.insert(id);
        self.held_bytes = self.held_bytes + frames.bytes() - before;
    }

    /// See [`Index::bytes`].
    pub(super) fn bytes(&self, shared: &Shared) -> u64 {
        let engines = u64::from(self.pen.chunks()) * 64;
        let tables = self.names.common.bytes() + self.names.alias_bytes() + self.copies.bytes();
        shared.paths.bytes(&self.pen) + engines + tables + self.held_bytes as u64
    }

    pub(super) fn check(&self, shared: &Shared) {
        let paths = &shared.paths;
        paths.check(&self.pen);
        let mut held = vec![Held::default(); self.held.len()];
        let mut named = 0;
        for id in paths.iter(&self.pen) {
            let own = get(paths.own(id));
            assert!(
                own & !low_bits(paths.len(id)) == 0,
                "only living blocks have names"
            );
            for offset in bits(own) {
                named += 1;
                let block = BlockId::new(id, offset);
                let found = self.common(shared, shared.name_of(block));
                assert_eq!(found, Some(block), "a common name must lead to its block");
            }
            for (slot, held) in (0..).map(Slot).zip(&mut held) {
                for tier in Tier::ALL {
                    held.blocks[tier.index()] += u64::from(paths.mask(id, slot, tier).count_ones());
                }
                if paths.mask_any(id, slot) != 0 {
                    held.frames.insert(id);
                }
            }
        }
        assert_eq!(
            named,
            self.names.common.len(),
            "the name table must hold the named blocks"
        );
        for (counted, found) in self.held.iter().zip(&held) {
            assert_eq!(
                (&counted.frames, counted.blocks),
                (&found.frames, found.blocks),
                "what is held must be counted"
            );
        }
        let sets: usize = self.held.iter().map(|held| held.frames.bytes()).sum();
        assert_eq!(self.held_bytes, sets, "the frames' sets must be counted");
        let lower_of = |held: &Held| held.blocks[1] + held.blocks[2];
        let lower: u64 = held.iter().map(lower_of).sum();
        assert_eq!(get(&shared.lower_blocks), lower, "lower tiers must be counted");
        for (slot, held) in (0..).zip(&held) {
            assert_eq!(get(&shared.lower_of.unit(slot)[0]), lower_of(held));
        }
        if self.pen.blocks() == 0 {
            assert!(
                !self.names.has_aliases() && self.copies.len() == 0,
                "nothing must be left of nothing"
            );
        }
    }
}
