//! Applying KV events to the index: stored and removed blocks, engine hashes, and workers that leave.
//!
//! One writer at a time. Cost: O(blocks of the event). The table of engine hashes costs a cache miss per
//! hash; prefetching lets up to 64 misses overlap. `remove_worker` costs O(blocks that the worker held).

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

/// Highest number of other full holders of a frame that a store may extend. Extending makes all of them
/// partial holders.
const EXTEND_HOLDERS_MAX: u32 = 1;

/// Smallest number of engine hashes that is prefetched; below it, plain look-ups are cheaper.
const PREFETCH_MIN: usize = 4;

/// Number of slots: a slot has 16 bits.
const SLOTS_MAX: u32 = 1 << 16;

/// State that only the writer needs. A lock admits one writer at a time.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Allocators of the tree: the right to write it.
    pub(super) allocator: TreeAllocator,
    /// Blocks by the hashes that engines give them.
    pub(super) engine_hashes: EngineHashes,
    /// Copies of held blocks beyond the first.
    pub(super) copies: Copies,
    /// What each worker holds, by slot.
    pub(super) workers: Vec<WorkerBlocks>,
    /// Slots of the registered workers.
    pub(super) slot_of: FxHashMap<WorkerId, Slot>,
    /// Bytes of the frame sets in `workers`.
    pub(super) frame_set_bytes: usize,
    /// Frame at which the eviction clock stands.
    pub(super) clock_hand: u32,
    /// Counts of the events applied by worker id.
    pub(super) counters: Counters,
}

/// Blocks of one frame that a removed event takes, collected before the tree changes.
struct PendingRemoval {
    id: FrameId,
    /// Blocks that the worker holds in the event's tier before the removal, as bits.
    held: u64,
    /// Blocks to remove, as bits; a subset of `held`.
    gone: u64,
}

impl Writer {
    /// Makes room for `slot` in every per-worker structure.
    pub(super) fn ensure_slot(&mut self, shared: &Shared, slot: Slot) {
        if self.workers.len() <= slot.index() {
            assert!(slot.0 < SLOTS_MAX, "a slot must be below 65,536");
            self.workers.resize_with(slot.index() + 1, WorkerBlocks::default);
            // All slots at once, since a reader may ask for any slot.
            shared.lower_by_slot.reserve(SLOTS_MAX);
        }
    }

    /// Applies one event of the worker in `slot`. After a refusal the blocks before the refused one stay.
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

    /// Block with a common engine hash. O(1), one cache miss in a large table.
    pub(super) fn find_common(&self, shared: &Shared, engine_hash: u64) -> Option<BlockId> {
        self.engine_hashes
            .common
            .find(engine_hash, |group| shared.block_in(group, engine_hash))
    }

    /// Gives a block without a common engine hash this one. If another block has it already, returns that
    /// block and changes nothing.
    pub(super) fn insert_common_hash(
        &mut self,
        shared: &Shared,
        engine_hash: u64,
        block: BlockId,
    ) -> Option<BlockId> {
        let other = self.engine_hashes.common.insert(
            engine_hash,
            BlockGroup::of(block),
            |group| shared.block_in(group, engine_hash),
            |group| shared.engine_hashes_in(group),
        );
        if other.is_none() {
            let header = shared.paths.header(block.frame());
            set(shared.engine_hash_word(header, block.offset()), engine_hash);
            set(
                &header[OWNER_WORD],
                get(&header[OWNER_WORD]) | 1 << block.offset(),
            );
        }
        other
    }

    /// Block that this worker means by an engine hash, whether or not it still holds the block.
    fn resolve(&self, shared: &Shared, slot: Slot, engine_hash: u64) -> Option<BlockId> {
        let aliases = self.engine_hashes.has_aliases();
        // An alias comes first: for this worker the hash means that block, regardless of other workers.
        if aliases && let Some(block) = self.engine_hashes.aliased(slot, engine_hash) {
            return Some(block);
        }
        let block = self.find_common(shared, engine_hash)?;
        (!(aliases && self.engine_hashes.alias(slot, block).is_some())).then_some(block)
    }

    /// Block that this worker means by an engine hash and holds.
    ///
    /// A hash may outlive the holding: the block stays for other workers. For this worker it is then unknown.
    fn find_held(&self, shared: &Shared, slot: Slot, engine_hash: EngineHash) -> Option<BlockId> {
        let block = self.resolve(shared, slot, engine_hash.0)?;
        let held = shared.paths.mask_any(block.frame(), slot) >> block.offset() & 1 == 1;
        held.then_some(block)
    }

    /// Reads the memory that look-ups of these engine hashes will need, for at most 64 hashes.
    ///
    /// The reads do not depend on each other, so their cache misses overlap.
    fn prefetch_blocks(&self, shared: &Shared, hashes: impl Iterator<Item = u64> + Clone) {
        self.engine_hashes.common.prefetch(&hashes);
        let mut chunks = [None; FRAME_BLOCKS as usize];
        for (chunk, engine_hash) in chunks.iter_mut().zip(hashes) {
            *chunk = self.engine_hashes.common.guess_group(engine_hash).map(|group| {
                let first = group.block(0);
                PathTree::chunk(shared.paths.header(first.frame()), first.offset())
            });
        }
        let hashes = chunks
            .iter()
            .flatten()
            .map(|&chunk| get(&shared.engine_hashes.unit(chunk)[0]));
        black_box(hashes.fold(0, |read, engine_hash| read ^ engine_hash));
    }

    /// Stores a chain of blocks below `parent`, run by run. A run is the part of the chain that lies in one frame.
    ///
    /// Blocks before a refused run stay stored: the engine holds them, so the index is right to say so.
    fn store(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (parent, tier): (Option<EngineHash>, Tier),
        blocks: &[StoredBlock],
        budget: Budget,
    ) -> Result<(), Refusal> {
        if blocks.len() < PREFETCH_MIN {
            // With few hashes, one batch of cache misses covers them and the parent's hash.
            let hashes = blocks.iter().map(|block| block.engine_hash.0);
            self.engine_hashes.common.prefetch(&hashes);
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
                // The eviction may have freed these very blocks: look for them again.
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

    /// Counts one more copy, in `tier`, of each block that the worker holds in any tier. Returns the number of
    /// blocks that the worker does not hold.
    ///
    /// Engines announce copies in another memory by engine hash alone, without tokens.
    pub(super) fn copy(
        &mut self,
        shared: &Shared,
        (slot, tier): (Slot, Tier),
        hashes: &[EngineHash],
        budget: Budget,
    ) -> Result<usize, Refusal> {
        self.ensure_slot(shared, slot);
        let mut unknown = 0;
        for &engine_hash in hashes {
            // `hold` compares engine hashes only, so the block needs no content here.
            let stored = [StoredBlock {
                engine_hash,
                local_hash: LocalHash(0),
            }];
            let Some(block) = self.find_held(shared, slot, engine_hash) else {
                unknown += 1;
                continue;
            };
            if !self.evict_for_holder(shared, (slot, tier), block, &stored, budget) {
                return Err(Refusal::Full);
            }
            // The eviction may have freed this very block.
            match self.find_held(shared, slot, engine_hash) {
                Some(block) => self.hold(shared, (slot, tier), block, &stored)?,
                None => unknown += 1,
            }
        }
        Ok(unknown)
    }

    /// Adds the first blocks of a chain to the tree, as many as fit into one frame and into the budget.
    ///
    /// A frame with at most one other full holder is extended, since each of them becomes a partial holder. Otherwise
    /// the blocks start a frame of their own.
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

    /// Counts one more copy of each block from `first` on for the worker, under the engine hashes of
    /// `blocks`.
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
            // An engine may store a block that it has. It then removes the block as often as it stored it.
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
            .map_err(|(_, engine_hash)| Refusal::ConflictingBlock(engine_hash))
    }

    /// Records which engine hashes the worker uses for the blocks from `first` on.
    ///
    /// `Err`: how many were recorded before an engine hash that means another block, and that hash.
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
            let engine_hash = |block: &StoredBlock| block.engine_hash.0;
            PathTree::equal(&shared.engine_hashes, header, offset, blocks, engine_hash) == blocks.len()
        };
        let all_named = get(shared.paths.owner_word(id)) & range == range;
        // Usual case: another worker stored these blocks under the same hashes, so comparing suffices.
        if all_named && !self.engine_hashes.has_aliases() && all_common() {
            return Ok(blocks.len() as u32);
        }
        if blocks.len() >= PREFETCH_MIN {
            let hashes = blocks.iter().map(|block| block.engine_hash.0);
            // A large table has few key bits per entry, so the groups themselves must be read too.
            if self.engine_hashes.common.exceeds_caches() {
                self.prefetch_blocks(shared, hashes);
            } else {
                self.engine_hashes.common.prefetch(&hashes);
            }
        }
        let held = shared.paths.mask_any(id, slot);
        for (at, block) in (0..).zip(blocks) {
            let place = BlockId::new(id, offset + at);
            let engine_hash = block.engine_hash.0;
            let is_new = get(shared.paths.owner_word(id)) >> place.offset() & 1 == 0;
            let named = if is_new && !self.engine_hashes.has_aliases() {
                let Some(other) = self.insert_common_hash(shared, engine_hash, place) else {
                    continue;
                };
                Some(other)
            } else {
                self.find_common(shared, engine_hash)
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

    /// Records that the worker uses `engine_hash` for `block`; `false` when that contradicts an earlier event
    /// of the worker.
    ///
    /// `common` is the block with that common engine hash; `held` says whether the worker holds `block`.
    fn record_engine_hash(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (block, held): (BlockId, bool),
        (engine_hash, common): (EngineHash, Option<BlockId>),
    ) -> bool {
        if self.engine_hashes.has_aliases()
            && let Some(aliased) = self.engine_hashes.aliased(slot, engine_hash.0)
        {
            return aliased == block;
        }
        if let Some(other) = common
            && other != block
            && self.find_held(shared, slot, engine_hash) == Some(other)
        {
            return false;
        }
        let alias = self.engine_hashes.alias(slot, block);
        let has_common = get(shared.paths.owner_word(block.frame())) >> block.offset() & 1 == 1;
        let is_common = common == Some(block);
        if held {
            // The worker holds the block and has no such alias: its hash is the common one or another
            // alias.
            return is_common && alias.is_none();
        }
        if is_common {
            return true;
        }
        if common.is_none() && !has_common {
            let other = self.insert_common_hash(shared, engine_hash.0, block);
            assert_eq!(other, None, "an engine hash must belong to one block");
        } else {
            self.engine_hashes.insert_alias(slot, engine_hash.0, block);
        }
        true
    }

    /// Takes away one copy of each block; the number of blocks that the worker did not hold.
    ///
    /// Consecutive blocks of one frame are collected and removed in one change of the tree.
    fn remove(&mut self, shared: &Shared, (slot, tier): (Slot, Tier), hashes: &[EngineHash]) -> usize {
        let (mut unknown, mut pending) = (0, None::<PendingRemoval>);
        for (at, &engine_hash) in hashes.iter().enumerate() {
            if at % FRAME_BLOCKS as usize == 0 {
                let next = &hashes[at..hashes.len().min(at + FRAME_BLOCKS as usize)];
                if next.len() >= PREFETCH_MIN {
                    self.prefetch_blocks(shared, next.iter().map(|engine_hash| engine_hash.0));
                }
            }
            let mut block = self.resolve(shared, slot, engine_hash.0);
            if let Some(of) = &pending
                && block.is_none_or(|block| block.frame() != of.id || of.gone >> block.offset() & 1 == 1)
            {
                // Another frame, or a block removed a moment ago: apply the removal, which may change what
                // the hash means.
                self.apply_removal(shared, (slot, tier), pending.take());
                block = self.resolve(shared, slot, engine_hash.0);
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

    /// Removes the collected blocks of one frame, in one write section.
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

    /// Forgets everything that the worker in `slot` holds. O(frames of the worker).
    ///
    /// The count of clears is odd meanwhile. A match that sees another count than at its start is made again, since it
    /// may mix blocks from before and after.
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

    /// Frees the blocks of a frame that nobody holds, and their common engine hashes.
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
            let engine_hash = |offset| get(shared.engine_hash_word(header, offset));
            if named.count_ones() as usize >= PREFETCH_MIN {
                engine_hashes.common.prefetch(&bits(named).map(engine_hash));
            }
            for offset in bits(named) {
                let was_in = engine_hashes
                    .common
                    .remove(engine_hash(offset), BlockGroup::of(BlockId::new(id, offset)));
                assert!(was_in, "a common engine hash must be in the table");
            }
        });
    }

    /// Records that the worker holds a block of a frame.
    pub(super) fn add_frame(&mut self, slot: Slot, id: FrameId) {
        let frames = &mut self.workers[slot.index()].frames;
        let before = frames.bytes();
        frames.insert(id);
        self.frame_set_bytes = self.frame_set_bytes + frames.bytes() - before;
    }

    /// See [`Index::bytes`](super::Index::bytes).
    pub(super) fn bytes(&self, shared: &Shared) -> u64 {
        let engines = u64::from(self.allocator.chunks()) * 64;
        let tables =
            self.engine_hashes.common.bytes() + self.engine_hashes.alias_bytes() + self.copies.bytes();
        shared.paths.bytes(&self.allocator) + engines + tables + self.frame_set_bytes as u64
    }

    /// See [`Index::check`](super::Index::check).
    pub(super) fn check(&self, shared: &Shared) {
        let paths = &shared.paths;
        paths.check(&self.allocator);
        let mut held = vec![WorkerBlocks::default(); self.workers.len()];
        let mut named = 0;
        for id in paths.iter(&self.allocator) {
            let own = get(paths.owner_word(id));
            assert!(
                own & !low_bits(paths.len(id)) == 0,
                "only blocks in the tree may have engine hashes"
            );
            for offset in bits(own) {
                named += 1;
                let block = BlockId::new(id, offset);
                let found = self.find_common(shared, shared.engine_hash_of(block));
                assert_eq!(found, Some(block), "a common engine hash must lead to its block");
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
            "the table must hold every common engine hash"
        );
        for (counted, found) in self.workers.iter().zip(&held) {
            assert_eq!(
                (&counted.frames, counted.blocks),
                (&found.frames, found.blocks),
                "the counts of a worker must equal what it holds"
            );
        }
        let sets: usize = self.workers.iter().map(|held| held.frames.bytes()).sum();
        assert_eq!(
            self.frame_set_bytes, sets,
            "the bytes of the frame sets must be counted"
        );
        let lower_of = |held: &WorkerBlocks| held.blocks[1] + held.blocks[2];
        let lower: u64 = held.iter().map(lower_of).sum();
        assert_eq!(get(&shared.lower_blocks), lower, "lower tiers must be counted");
        for (slot, held) in (0..).zip(&held) {
            assert_eq!(get(&shared.lower_by_slot.unit(slot)[0]), lower_of(held));
        }
        if self.allocator.blocks() == 0 {
            assert!(
                !self.engine_hashes.has_aliases() && self.copies.len() == 0,
                "an empty index must have no aliases and no copies"
            );
        }
    }
}
