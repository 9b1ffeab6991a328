//! Stored events: a chain of blocks below a parent, and copies of held blocks in another memory.
//!
//! A chain is stored run by run. A run is the part of the chain that lies in one frame, so most work is done
//! per frame and not per block:
//!
//! ```text
//! after ◀ parent's block, or the root
//! while blocks are left:
//!     run ◀ blocks that the tree has after `after`             PathTree::step
//!           else as many new blocks as a frame and the budget take  add
//!     make room for one more holder                                  evict_for_holder
//!     record the engine hashes, set the holder's bits, count         hold
//!     after ◀ last block of the run
//! ```
//!
//! Example. The tree has the frame A B C D, held by worker 1. Worker 2 stores A B X. The first run is A B:
//! worker 2 becomes a partial holder of the frame, with the mask 0b0011. X is not in the tree, and B is not
//! the frame's last block. So X starts a new frame, a child at B.
//!
//! Cost: O(blocks), plus a cache miss per engine hash that [`Writer::prefetch_blocks`] overlaps.

use super::super::arena::get;
use super::super::budget::Budget;
use super::super::frame::{BlockId, BlockRun, FRAME_BLOCKS, LEN_AND_FLAGS, mark_used};
use super::super::shared::Shared;
use super::super::slots::{bits, low_bits};
use super::super::{Refusal, Slot};
use super::{PREFETCH_MIN, Writer};
use crate::event::{StoredBlock, Tier};
use crate::hash::{EngineHash, LocalHash};

/// Highest number of other full holders of a frame that a store may extend.
///
/// Extending makes every full holder a partial one: it holds the first part only. With many holders that
/// costs an entry each, and a frame of its own is cheaper. With one holder, a conversation that grows turn by
/// turn stays in few frames.
const EXTEND_HOLDERS_MAX: u32 = 1;

impl Writer {
    /// Stores a chain of blocks below `parent`, run by run.
    ///
    /// Blocks before a refused run stay stored: the engine holds them, so the index is right to say so.
    ///
    /// # Errors
    /// [`Refusal::UnknownParent`] when the worker does not hold the parent. [`Refusal::Full`] when the budget
    /// has no room and nothing can be evicted. [`Refusal::ConflictingBlock`] when an engine hash means
    /// another block for this worker.
    pub(super) fn store(
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
    ///
    /// # Errors
    /// [`Refusal::Full`] when the budget has no room for the holder. [`Refusal::ConflictingBlock`] cannot
    /// come up: the block was found by this very hash.
    pub(in crate::index) fn copy(
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
    /// The blocks extend the frame of `after` when few workers hold it whole ([`EXTEND_HOLDERS_MAX`]).
    /// Otherwise they start a frame of their own. The caller must give the new run a holder at once: a frame
    /// ends with a live block.
    ///
    /// # Errors
    /// [`Refusal::Full`] when no block fits into the budget, or when no frame id is left (4 · 10⁹ blocks).
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
    ///
    /// A block that the worker did not hold gets its bit in the holder mask. For a block that it held,
    /// [`Copies`](super::super::copies::Copies) counts the copy, and the mask stays. Blocks before a
    /// conflicting hash are held; the others are not.
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
            // The worker now holds the whole frame, so a match by sequence hash pays off: make sure that the
            // frame's last hash is known.
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
}
