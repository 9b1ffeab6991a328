//! What events do to the index: blocks that are stored, removed and named, and workers that leave.
//!
//! One at a time. Cost: O(blocks of the event), with a cache miss per name, for which they wait together; `remove_worker` O(blocks
//! that it held).

use std::hint::black_box;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::arena::{get, set};
use super::budget::Budget;
use super::copies::Copies;
use super::engine_hashes::{BlockGroup, EngineHashes};
use super::frame::{BlockId, BlockRun, FRAME_BLOCKS, FrameId, LEN_AND_FLAGS, OWNER_WORD, mark_used};
use super::path_tree::PathTree;
use super::shared::Shared;
use super::slots::bits;
use super::slots::low_bits;
use super::tree_allocator::TreeAllocator;
use super::worker_blocks::WorkerBlocks;
use super::{Refusal, Slot};
use crate::event::{KvEvent, StoredBlock, Tier};
use crate::hash::{EngineHash, LocalHash};
use crate::snapshot::Counters;
use crate::worker::WorkerId;

/// Frames with more full holders than this beside the storing worker are not extended: all of them would become partial.
const EXTEND_HOLDERS_MAX: u32 = 1;

/// So many names are looked up one after the other; more are touched first.
const PREFETCH_MIN: usize = 4;

/// Slots that there can be.
const SLOTS_MAX: u32 = 1 << 16;

/// What writers need, one at a time.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) allocator: TreeAllocator,
    pub(super) engine_hashes: EngineHashes,
    pub(super) copies: Copies,
    pub(super) workers: Vec<WorkerBlocks>,
    pub(super) slot_of: FxHashMap<WorkerId, Slot>,
    /// Bytes of the sets in `held`.
    pub(super) frame_set_bytes: usize,
    /// Where the eviction goes on.
    pub(super) clock_hand: u32,
    pub(super) counters: Counters,
}

/// What an event takes of one frame, not gone yet.
struct PendingRemoval {
    id: FrameId,
    /// What the worker holds of it in the event's tier.
    held: u64,
    gone: u64,
}

impl Writer {
    pub(super) fn ensure_slot(&mut self, shared: &Shared, slot: Slot) {
        if self.workers.len() <= slot.index() {
            assert!(slot.0 < SLOTS_MAX, "a slot must be below 65,536");
            self.workers.resize_with(slot.index() + 1, WorkerBlocks::default);
            // For all at once: readers ask for any slot.
            shared.lower_by_slot.reserve(SLOTS_MAX);
        }
    }

    pub(super) fn apply(
        &mut self,
        shared: &Shared,
        slot: Slot,
        event: &KvEvent,
        budget: Budget,
    ) -> Result<(), Refusal> {
        self.ensure_slot(shared, slot);
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
    pub(super) fn find_common(&self, shared: &Shared, name: u64) -> Option<BlockId> {
        self.engine_hashes
            .common
            .find(name, |group| shared.block_in(group, name))
    }

    /// Gives a block without one a common name, unless another block has it: then that.
    pub(super) fn insert_common_hash(
        &mut self,
        shared: &Shared,
        name: u64,
        block: BlockId,
    ) -> Option<BlockId> {
        let other = self.engine_hashes.common.insert(
            name,
            BlockGroup::of(block),
            |group| shared.block_in(group, name),
            |group| shared.engine_hashes_in(group),
        );
        if other.is_none() {
            let header = shared.paths.header(block.frame());
            set(shared.engine_hash_word(header, block.offset()), name);
            set(
                &header[OWNER_WORD],
                get(&header[OWNER_WORD]) | 1 << block.offset(),
            );
        }
        other
    }

    /// The block that this worker calls `name`, if it holds it.
    fn resolve(&self, shared: &Shared, slot: Slot, name: u64) -> Option<BlockId> {
        let aliases = self.engine_hashes.has_aliases();
        if aliases && let Some(block) = self.engine_hashes.aliased(slot, name) {
            return Some(block);
        }
        let block = self.find_common(shared, name)?;
        (!(aliases && self.engine_hashes.alias(slot, block).is_some())).then_some(block)
    }

    /// The block that this worker calls `name` and holds.
    fn find_held(&self, shared: &Shared, slot: Slot, name: EngineHash) -> Option<BlockId> {
        let block = self.resolve(shared, slot, name.0)?;
        let held = shared.paths.mask_any(block.frame(), slot) >> block.offset() & 1 == 1;
        held.then_some(block)
    }

    /// Reads what will be asked of these names, at most 64, and of the blocks that may have them.
    fn prefetch_blocks(&self, shared: &Shared, names: impl Iterator<Item = u64> + Clone) {
        self.engine_hashes.common.prefetch(&names);
        let mut chunks = [None; FRAME_BLOCKS as usize];
        for (chunk, name) in chunks.iter_mut().zip(names) {
            *chunk = self.engine_hashes.common.guess_group(name).map(|group| {
                let first = group.block(0);
                PathTree::chunk(shared.paths.header(first.frame()), first.offset())
            });
        }
        let names = chunks
            .iter()
            .flatten()
            .map(|&chunk| get(&shared.engine_hashes.unit(chunk)[0]));
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
        if blocks.len() < PREFETCH_MIN {
            // Few names: they wait for memory together with the parent's, not after it.
            let names = blocks.iter().map(|block| block.engine_hash.0);
            self.engine_hashes.common.prefetch(&names);
        }
        let mut after = match parent {
            Some(parent) => self
                .find_held(shared, slot, parent)
                .ok_or(Refusal::UnknownParent)?,
            None => BlockId::ROOT,
        };
        let locals: Vec<_> = blocks.iter().map(|block| block.local_hash).collect();
        let mut done = 0;
        while done < blocks.len() {
            let run = match shared.paths.step(after, &locals[done..]) {
                Some(found) => found,
                None => self.add(shared, slot, after, (&locals[done..], &blocks[done..]), budget)?,
            };
            let before = self.allocator.blocks();
            let stored = &blocks[done..done + run.len as usize];
            if !self.evict_for_holder(shared, (slot, tier), run.first, stored, budget) {
                if shared.paths.len(run.first.frame()) > 0 {
                    self.free_dead(shared, run.first.frame());
                }
                return Err(Refusal::Full);
            }
            if self.allocator.blocks() != before {
                // What went may have been all that kept these blocks: look again.
                continue;
            }
            let held = self.hold(shared, (slot, tier), run.first, stored);
            if held.is_err() {
                self.free_dead(shared, run.first.frame());
            }
            held?;
            done += run.len as usize;
            after = run.last();
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
    ) -> Result<BlockRun, Refusal> {
        let wanted = &blocks[..blocks.len().min(FRAME_BLOCKS as usize)];
        let room = self.evict_for_blocks(shared, (slot, after), wanted, budget);
        if room == 0 {
            return Err(Refusal::Full);
        }
        let paths = &shared.paths;
        let extend =
            after != BlockId::ROOT && !paths.has_full_beside(after.frame(), slot, EXTEND_HOLDERS_MAX);
        let added = paths
            .add(&mut self.allocator, after, &locals[..room], extend)
            .ok_or(Refusal::Full)?;
        shared.engine_hashes.reserve(self.allocator.chunks());
        Ok(added)
    }

    /// The worker holds one copy more of the blocks at a place and after, under these names.
    fn hold(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        first: BlockId,
        blocks: &[StoredBlock],
    ) -> Result<(), Refusal> {
        let (id, offset) = (first.frame(), first.offset());
        let named = self.record_engine_hashes(shared, slot, first, blocks);
        let count = named.unwrap_or_else(|(count, _)| count);
        if count > 0 {
            let paths = &shared.paths;
            let wanted = low_bits(count) << offset;
            let before = paths.mask(id, slot, tier);
            if before | wanted != before {
                paths.set_mask(&mut self.allocator, id, (slot, tier), before | wanted);
            }
            if before | wanted == low_bits(paths.len(id)) {
                paths.refresh_end(id);
            }
            for again in bits(before & wanted) {
                self.copies.add(BlockId::new(id, again), slot, tier);
            }
            self.add_frame(slot, id);
            let held = &mut self.workers[slot.index()];
            let added = u64::from((wanted & !before).count_ones());
            held.blocks[tier.index()] += added;
            shared.count_lower(slot, tier, |blocks| blocks + added);
            mark_used(paths.header(id), get(&paths.header(id)[LEN_AND_FLAGS]));
        }
        named
            .map(|_| ())
            .map_err(|(_, name)| Refusal::ConflictingBlock(name))
    }

    /// Record what the worker calls these blocks. `Err`: how many were named before one whose name has another meaning.
    fn record_engine_hashes(
        &mut self,
        shared: &Shared,
        slot: Slot,
        first: BlockId,
        blocks: &[StoredBlock],
    ) -> Result<u32, (u32, EngineHash)> {
        let (id, offset) = (first.frame(), first.offset());
        let range = low_bits(blocks.len() as u32) << offset;
        let all_common = || {
            let header = shared.paths.header(id);
            let name = |block: &StoredBlock| block.engine_hash.0;
            PathTree::equal(&shared.engine_hashes, header, offset, blocks, name) == blocks.len()
        };
        let all_named = get(shared.paths.owner_word(id)) & range == range;
        if all_named && !self.engine_hashes.has_aliases() && all_common() {
            return Ok(blocks.len() as u32);
        }
        if blocks.len() >= PREFETCH_MIN {
            let names = blocks.iter().map(|block| block.engine_hash.0);
            if self.engine_hashes.common.exceeds_caches() {
                self.prefetch_blocks(shared, names);
            } else {
                self.engine_hashes.common.prefetch(&names);
            }
        }
        let held = shared.paths.mask_any(id, slot);
        for (at, block) in (0..).zip(blocks) {
            let place = BlockId::new(id, offset + at);
            let name = block.engine_hash.0;
            let is_new = get(shared.paths.owner_word(id)) >> place.offset() & 1 == 0;
            let named = if is_new && !self.engine_hashes.has_aliases() {
                let Some(other) = self.insert_common_hash(shared, name, place) else {
                    continue;
                };
                Some(other)
            } else {
                self.find_common(shared, name)
            };
            let held = held >> place.offset() & 1 == 1;
            let of_this_event = |other: BlockId| {
                let before = other.frame() == id && (offset..offset + at).contains(&other.offset());
                before && self.engine_hashes.alias(slot, other).is_none()
            };
            let contradicts = named.is_some_and(of_this_event);
            if contradicts
                || !self.record_engine_hash(shared, slot, (place, held), (block.engine_hash, named))
            {
                return Err((at, block.engine_hash));
            }
        }
        Ok(blocks.len() as u32)
    }

    /// The worker calls `block` so; `false` when that contradicts what it said before.
    /// `common` is the block with that common name; `held` tells whether the worker holds `block`.
    fn record_engine_hash(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (block, held): (BlockId, bool),
        (name, common): (EngineHash, Option<BlockId>),
    ) -> bool {
        if self.engine_hashes.has_aliases()
            && let Some(aliased) = self.engine_hashes.aliased(slot, name.0)
        {
            return aliased == block;
        }
        if let Some(other) = common
            && other != block
            && self.find_held(shared, slot, name) == Some(other)
        {
            return false;
        }
        let alias = self.engine_hashes.alias(slot, block);
        let has_common = get(shared.paths.owner_word(block.frame())) >> block.offset() & 1 == 1;
        let is_common = common == Some(block);
        if held {
            // Held and not aliased so: it has a name already, the common one or another alias.
            return is_common && alias.is_none();
        }
        if is_common {
            return true;
        }
        if common.is_none() && !has_common {
            let other = self.insert_common_hash(shared, name.0, block);
            assert_eq!(other, None, "a name must be that of one block");
        } else {
            self.engine_hashes.insert_alias(slot, name.0, block);
        }
        true
    }

    /// Takes one copy of each block away; how many of them the worker did not hold. Blocks of one frame that follow each other
    /// go at once.
    fn remove(&mut self, shared: &Shared, (slot, tier): (Slot, Tier), names: &[EngineHash]) -> usize {
        let (mut unknown, mut pending) = (0, None::<PendingRemoval>);
        for (at, &name) in names.iter().enumerate() {
            if at % FRAME_BLOCKS as usize == 0 {
                let next = &names[at..names.len().min(at + FRAME_BLOCKS as usize)];
                if next.len() >= PREFETCH_MIN {
                    self.prefetch_blocks(shared, next.iter().map(|name| name.0));
                }
            }
            let mut block = self.resolve(shared, slot, name.0);
            if let Some(of) = &pending
                && block.is_none_or(|block| block.frame() != of.id || of.gone >> block.offset() & 1 == 1)
            {
                // Another frame, or a block that went just now: the name may mean nothing any more.
                self.apply_removal(shared, (slot, tier), pending.take());
                block = self.resolve(shared, slot, name.0);
            }
            let Some(block) = block else {
                unknown += 1;
                continue;
            };
            let of = pending.get_or_insert_with(|| PendingRemoval {
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
        self.apply_removal(shared, (slot, tier), pending);
        unknown
    }

    /// What goes of a frame goes.
    fn apply_removal(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        pending: Option<PendingRemoval>,
    ) {
        let Some(PendingRemoval { id, held, gone }) = pending.filter(|pending| pending.gone != 0) else {
            return;
        };
        shared
            .paths
            .set_mask(&mut self.allocator, id, (slot, tier), held & !gone);
        let left = shared.paths.mask_any(id, slot);
        let count = u64::from(gone.count_ones());
        self.workers[slot.index()].blocks[tier.index()] -= count;
        shared.count_lower(slot, tier, |blocks| blocks - count);
        if self.engine_hashes.has_aliases() {
            for offset in bits(gone & !left) {
                self.engine_hashes.remove_alias(slot, BlockId::new(id, offset));
            }
        }
        if left == 0 {
            self.workers[slot.index()].frames.remove(id);
        }
        self.free_dead(shared, id);
    }

    pub(super) fn remove_worker(&mut self, shared: &Shared, slot: Slot) {
        let Some(held) = self.workers.get_mut(slot.index()).map(std::mem::take) else {
            return;
        };
        self.frame_set_bytes -= held.frames.bytes();
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
                shared.paths.set_mask(&mut self.allocator, id, (slot, tier), 0);
                for offset in bits(mask) {
                    self.copies.forget(BlockId::new(id, offset), slot, tier);
                    if self.engine_hashes.has_aliases() {
                        self.engine_hashes.remove_alias(slot, BlockId::new(id, offset));
                    }
                }
            }
            self.free_dead(shared, id);
        }
        shared.clears.fetch_add(1, Ordering::Release);
    }

    pub(super) fn free_dead(&mut self, shared: &Shared, id: FrameId) {
        let Self {
            allocator,
            engine_hashes,
            ..
        } = self;
        shared.paths.free_dead(allocator, id, &mut |id, blocks| {
            let header = shared.paths.header(id);
            let named = get(&header[OWNER_WORD]) & blocks;
            set(&header[OWNER_WORD], get(&header[OWNER_WORD]) & !blocks);
            let name = |offset| get(shared.engine_hash_word(header, offset));
            if named.count_ones() as usize >= PREFETCH_MIN {
                engine_hashes.common.prefetch(&bits(named).map(name));
            }
            for offset in bits(named) {
                let was_in = engine_hashes
                    .common
                    .remove(name(offset), BlockGroup::of(BlockId::new(id, offset)));
                assert!(was_in, "a common name must be in the table");
            }
        });
    }

    /// The worker holds something of a frame.
    pub(super) fn add_frame(&mut self, slot: Slot, id: FrameId) {
        let frames = &mut self.workers[slot.index()].frames;
        let before = frames.bytes();
        frames.insert(id);
        self.frame_set_bytes = self.frame_set_bytes + frames.bytes() - before;
    }

    /// See [`Index::bytes`].
    pub(super) fn bytes(&self, shared: &Shared) -> u64 {
        let engines = u64::from(self.allocator.chunks()) * 64;
        let tables =
            self.engine_hashes.common.bytes() + self.engine_hashes.alias_bytes() + self.copies.bytes();
        shared.paths.bytes(&self.allocator) + engines + tables + self.frame_set_bytes as u64
    }

    pub(super) fn check(&self, shared: &Shared) {
        let paths = &shared.paths;
        paths.check(&self.allocator);
        let mut held = vec![WorkerBlocks::default(); self.workers.len()];
        let mut named = 0;
        for id in paths.iter(&self.allocator) {
            let own = get(paths.owner_word(id));
            assert!(
                own & !low_bits(paths.len(id)) == 0,
                "only living blocks have names"
            );
            for offset in bits(own) {
                named += 1;
                let block = BlockId::new(id, offset);
                let found = self.find_common(shared, shared.engine_hash_of(block));
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
            self.engine_hashes.common.len(),
            "the name table must hold the named blocks"
        );
        for (counted, found) in self.workers.iter().zip(&held) {
            assert_eq!(
                (&counted.frames, counted.blocks),
                (&found.frames, found.blocks),
                "what is held must be counted"
            );
        }
        let sets: usize = self.workers.iter().map(|held| held.frames.bytes()).sum();
        assert_eq!(self.frame_set_bytes, sets, "the frames' sets must be counted");
        let lower_of = |held: &WorkerBlocks| held.blocks[1] + held.blocks[2];
        let lower: u64 = held.iter().map(lower_of).sum();
        assert_eq!(get(&shared.lower_blocks), lower, "lower tiers must be counted");
        for (slot, held) in (0..).zip(&held) {
            assert_eq!(get(&shared.lower_by_slot.unit(slot)[0]), lower_of(held));
        }
        if self.allocator.blocks() == 0 {
            assert!(
                !self.engine_hashes.has_aliases() && self.copies.len() == 0,
                "nothing must be left of nothing"
            );
        }
    }
}
