//! Applying KV events to the index: the writing side of the flow `KV event ─▶ index ─▶ match`.
//!
//! One writer at a time, behind the mutex of [`Index`](super::Index). Matches take no part in that lock: they
//! read [`Shared`] under the versions that the writer leaves behind (`seqlock`, `walk`). The parts of the
//! writer:
//!
//! ```text
//! Index::apply ─▶ Writer::apply ─┬─ stored   stored.rs    find or add the blocks, then hold them
//!                                ├─ removed  removed.rs   take copies away, then drop dead blocks
//!                                └─ cleared  removed.rs   drop all that one worker holds
//! engine hash ─▶ block           hash_lookup.rs           which block an event speaks of
//! room for a store               ../evict.rs              the memory budget
//! ```
//!
//! The order of a store is fixed: evict, change the tree, record engine hashes, change the holders, count.
//! Each step leaves a tree that a concurrent match may read, and a refusal between two steps leaves all
//! counts right.
//!
//! Cost: O(blocks of the event). The table of engine hashes costs a cache miss per hash; prefetching lets up
//! to 64 misses overlap. [`Writer::remove_worker`] costs O(blocks that the worker held).

mod check;
mod hash_lookup;
mod removed;
mod stored;

use rustc_hash::FxHashMap;

use super::budget::Budget;
use super::copies::Copies;
use super::engine_hashes::EngineHashes;
use super::frame::FrameId;
use super::shared::Shared;
use super::tree_allocator::TreeAllocator;
use super::worker_blocks::WorkerBlocks;
use super::{Refusal, Slot};
use crate::event::KvEvent;
use crate::snapshot::Counters;
use crate::worker::WorkerId;

/// Smallest number of engine hashes that is prefetched. Below it, plain look-ups are cheaper: prefetching
/// reads each line once more, and few misses have little to overlap with.
const PREFETCH_MIN: usize = 4;

/// Number of slots: a slot has 16 bits.
const SLOTS_MAX: u32 = 1 << 16;

/// State that only the writer needs. A lock admits one writer at a time.
///
/// Invariant between two events: `workers`, `copies`, the aliases and the counts in [`Shared`] describe
/// exactly what the holders of the tree say. [`Writer::check`] compares them.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Allocators of the tree. A mutable borrow of it is the right to write the tree.
    pub(super) allocator: TreeAllocator,
    /// Blocks by the hashes that engines give them. A common engine hash lives as long as its block is in the
    /// tree; an alias lives as long as its worker holds the block.
    pub(super) engine_hashes: EngineHashes,
    /// Copies of held blocks beyond the first. A block without an entry is held once.
    pub(super) copies: Copies,
    /// What each worker holds, by slot. A slot without a worker has the empty default.
    pub(super) workers: Vec<WorkerBlocks>,
    /// Slots of the registered workers. Events of other workers are refused and counted.
    pub(super) slot_of: FxHashMap<WorkerId, Slot>,
    /// Bytes of the frame sets in `workers`, kept as a sum so that the budget costs O(1) per store.
    pub(super) frame_set_bytes: usize,
    /// Frame at which the eviction clock stands. It may exceed the frames of a tree that shrank: the next
    /// step starts anew.
    pub(super) clock_hand: u32,
    /// Counts of the events applied by worker id, by outcome. The router adds them to its own counters.
    pub(super) counters: Counters,
}

impl Writer {
    /// Makes room for `slot` in every per-worker structure. O(1) unless the slot is new.
    ///
    /// Panics for a slot of 65,536 or above. The configuration of a router bounds its workers, so no outside
    /// data reaches this.
    pub(super) fn ensure_slot(&mut self, shared: &Shared, slot: Slot) {
        if self.workers.len() <= slot.index() {
            assert!(slot.0 < SLOTS_MAX, "a slot must be below 65,536");
            self.workers.resize_with(slot.index() + 1, WorkerBlocks::default);
            // All slots at once, since a reader may ask for any slot.
            shared.lower_by_slot.reserve(SLOTS_MAX);
        }
    }

    /// Applies one event of the worker in `slot`. O(blocks of the event).
    ///
    /// A refusal of a stored event leaves the blocks before the refused one stored: the engine holds them. A
    /// removed event removes all blocks that it can, and then reports how many the worker did not hold.
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

    /// Records that the worker holds a block of a frame.
    ///
    /// The set of a worker is what makes its removal cost O(its frames) and not O(all frames).
    pub(super) fn add_frame(&mut self, slot: Slot, id: FrameId) {
        let frames = &mut self.workers[slot.index()].frames;
        let before = frames.bytes();
        frames.insert(id);
        self.frame_set_bytes = self.frame_set_bytes + frames.bytes() - before;
    }

    /// Bytes of all structures, as the budget counts them. See [`Index::bytes`](super::Index::bytes). O(1):
    /// every part keeps its own sum.
    pub(super) fn bytes(&self, shared: &Shared) -> u64 {
        let engines = u64::from(self.allocator.chunks()) * 64;
        let tables =
            self.engine_hashes.common.bytes() + self.engine_hashes.alias_bytes() + self.copies.bytes();
        shared.paths.bytes(&self.allocator) + engines + tables + self.frame_set_bytes as u64
    }
}
