//! The index that threads share: any number match without a lock, writers take turns.
//!
//! Cost: `apply` O(blocks of the event); `remove_worker` O(blocks that the worker held); matching as in
//! [`super::walk`]. Memory per block: 16 B of hashes, about 5 B in the table of engine hashes, and a share of
//! its frame's header. A header takes 128 B for up to 64 blocks and all their holders.
//!
//! Locks: one mutex around the writer, and nothing else. No function here takes another lock while it holds
//! the writer, so the router may call any of them under its own lock. A thread that panics inside the writer
//! does not stop the others: the poison of the mutex is ignored.
//!
//! An event waits for the events before it, and for an image that is being saved. A match waits for nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::arena::{Arena, get};
use super::budget::Budget;
use super::footprint::Footprint;
use super::image::{self, ImageError, RestoredWorker};
use super::path_tree::{PathTree, Prompt};
use super::shared::Shared;
use super::slots::all_slots;
use super::stores::stores;
use super::walk::{Raced, Scratch};
use super::writer::Writer;
use super::{Refusal, Slot, TierOverlap};
use crate::event::{KvEvent, Tier};
use crate::hash::EngineHash;
use crate::snapshot::Counters;
use crate::worker::WorkerId;

/// Which worker holds which blocks; the module describes it.
///
/// ```
/// use wardrop_core::index::{Index, Prompt, Slot};
/// use wardrop_core::{EngineHash, HashScope, KvEvent, StoredBlock, Tier, local_hashes};
///
/// let index = Index::new(1_000);
/// let tokens: Vec<u32> = (0..64).collect();
/// let locals = local_hashes(&tokens, 16, &HashScope::default()); // four blocks
/// let stored = |count: usize| KvEvent::Stored {
///     parent: None,
///     blocks: (1..)
///         .zip(&locals[..count])
///         .map(|(name, &local_hash)| StoredBlock { engine_hash: EngineHash(name), local_hash })
///         .collect(),
///     tier: Tier::Device,
/// };
/// index.apply(Slot(0), &stored(4)).unwrap();
/// index.apply(Slot(1), &stored(2)).unwrap();
/// let prompt = Prompt { locals: &locals, sequence: &[] };
/// assert_eq!(index.find_matches(&prompt, 2), [[4, 0, 0], [2, 0, 0]]);
/// assert_eq!(index.blocks(), 4); // shared blocks count once
/// ```
#[derive(Debug)]
pub struct Index {
    /// What matches read. Only the holder of `writer` changes it.
    shared: Shared,
    /// What only the writer needs. The mutex admits one writer at a time.
    writer: Mutex<Writer>,
    /// Limits that every store keeps. They never change.
    budget: Budget,
}

impl Index {
    /// An empty index of at most `blocks_max` distinct blocks.
    pub fn new(blocks_max: u64) -> Self {
        Self::with_budget(Budget {
            blocks: blocks_max,
            bytes: u64::MAX,
        })
    }

    /// An empty index that keeps within a budget.
    pub fn with_budget(budget: Budget) -> Self {
        Self {
            shared: Shared {
                paths: PathTree::default(),
                engine_hashes: Arena::new(5),
                lower_blocks: AtomicU64::new(0),
                lower_by_slot: Arena::new(6),
                clears: AtomicU64::new(0),
                reads_given_up: AtomicU64::new(0),
            },
            writer: Mutex::default(),
            budget,
        }
    }

    /// The writer, once no other thread has it. A panic of another thread does not poison the index.
    fn write(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Distinct blocks in the index.
    pub fn blocks(&self) -> u64 {
        self.write().allocator.blocks()
    }

    /// The budget of the index.
    pub const fn budget(&self) -> Budget {
        self.budget
    }

    /// Blocks that each worker holds per tier, by slot.
    pub fn held(&self) -> Vec<[u64; 3]> {
        self.write().workers.iter().map(|held| held.blocks).collect()
    }

    /// Blocks that the worker in `slot` holds, per tier.
    pub fn held_blocks(&self, slot: Slot) -> [u64; 3] {
        let writer = self.write();
        writer
            .workers
            .get(slot.index())
            .map_or([0; 3], |held| held.blocks)
    }

    /// Bytes that the structures allocated and keep: the bytes of the budget.
    pub fn bytes(&self) -> u64 {
        self.write().bytes(&self.shared)
    }

    /// Bytes of each structure. O(free extents).
    pub fn footprint(&self) -> Footprint {
        let writer = &*self.write();
        Footprint {
            engine_hash_bytes: writer.engine_hashes.common.bytes(),
            alias_bytes: writer.engine_hashes.alias_bytes(),
            copy_bytes: writer.copies.bytes(),
            frame_set_bytes: writer.frame_set_bytes as u64,
            ..self.shared.paths.footprint(&writer.allocator)
        }
    }

    /// Reads that ended early because the writer interfered in every attempt. Their overlaps are true, but
    /// may be short.
    pub fn reads_given_up(&self) -> u64 {
        self.shared.reads_given_up.load(Ordering::Relaxed)
    }

    /// Registers `worker` in `slot`, in which nothing is held. From now on its events are applied.
    pub fn register(&self, worker: WorkerId, slot: Slot) {
        self.write().slot_of.insert(worker, slot);
    }

    /// Forgets a worker and everything that it holds. Another worker may take the slot afterwards. O(blocks
    /// of the worker).
    ///
    /// The worker is forgotten first and its blocks second, under one lock, so no event of it arrives in
    /// between.
    pub fn retire(&self, worker: WorkerId, slot: Slot) {
        let writer = &mut *self.write();
        if writer.slot_of.get(&worker) == Some(&slot) {
            writer.slot_of.remove(&worker);
        }
        writer.remove_worker(&self.shared, slot);
    }

    /// Applies and counts one event of a registered worker. O(blocks of the event).
    ///
    /// # Errors
    /// [`Refusal`] says what was refused. Blocks before a refused block stay.
    pub fn apply_from(&self, worker: WorkerId, event: &KvEvent) -> Result<(), Refusal> {
        let writer = &mut *self.write();
        let Some(&slot) = writer.slot_of.get(&worker) else {
            writer.counters.unknown_worker += 1;
            return Err(Refusal::UnknownWorker);
        };
        let outcome = writer.apply(&self.shared, slot, event, self.budget);
        writer.counters.count_event(event, outcome);
        outcome
    }

    /// Adds and counts copies, in `tier`, of blocks that a registered worker holds. Unknown blocks are
    /// skipped.
    ///
    /// # Errors
    /// [`Refusal::UnknownBlocks`] with the number of skipped blocks, [`Refusal::UnknownWorker`], or
    /// [`Refusal::Full`].
    pub fn copy_from(&self, worker: WorkerId, blocks: &[EngineHash], tier: Tier) -> Result<(), Refusal> {
        let writer = &mut *self.write();
        let Some(&slot) = writer.slot_of.get(&worker) else {
            writer.counters.unknown_worker += 1;
            return Err(Refusal::UnknownWorker);
        };
        let copied = writer.copy(&self.shared, (slot, tier), blocks, self.budget);
        let outcome = match copied {
            Ok(0) => Ok(()),
            Ok(unknown) => Err(Refusal::UnknownBlocks(unknown)),
            Err(refusal) => Err(refusal),
        };
        writer.counters.count_outcome(outcome);
        if let Ok(unknown) = copied {
            writer.counters.blocks_stored += (blocks.len() - unknown) as u64;
        }
        outcome
    }

    /// Counts of the events by outcome; the other counters are 0.
    pub fn counters(&self) -> Counters {
        self.write().counters
    }

    /// Twice the number of whole caches dropped so far. A match during which the count changes must not be
    /// used.
    ///
    /// Acquire, with the release of the writer: a match that reads the new count also sees the blocks gone.
    pub fn clears(&self) -> u64 {
        self.shared.clears.load(Ordering::Acquire)
    }

    /// Applies one event of the worker in `slot`, without counting it. For benches and tests, which have no
    /// worker ids.
    ///
    /// # Errors
    /// As [`Index::apply_from`].
    pub fn apply(&self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        self.write().apply(&self.shared, slot, event, self.budget)
    }

    /// Forgets everything that the worker in `slot` holds.
    pub fn remove_worker(&self, slot: Slot) {
        self.write().remove_worker(&self.shared, slot);
    }

    /// Leading blocks in device memory, per slot, as [`PathTree::overlap`]. Counts a read that ended early.
    pub(crate) fn device_overlap(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        depth: &mut [u32],
        scratch: &mut Scratch,
    ) {
        if self.shared.paths.overlap(prompt, slots, depth, scratch) == Err(Raced) {
            self.shared.reads_given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether any worker holds a block in host memory or on disk.
    pub(crate) fn any_lower(&self) -> bool {
        self.shared.lower_blocks.load(Ordering::Acquire) > 0
    }

    /// Whether a worker holds a block in host memory or on disk. The index must have seen an event before.
    pub(crate) fn has_lower(&self, slot: Slot) -> bool {
        self.any_lower() && get(&self.shared.lower_by_slot.unit(slot.0)[0]) > 0
    }

    /// Records the path of a prompt, for [`Index::lower_overlap`]. O(frames of the prompt).
    pub fn follow(&self, prompt: &Prompt<'_>, scratch: &mut Scratch) {
        if self.shared.paths.follow(prompt, scratch) == Err(Raced) {
            self.shared.reads_given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Blocks that the worker holds after the first `device` blocks of the prompt followed last: in host
    /// memory, then on disk.
    ///
    /// O(frames of the prompt).
    pub(crate) fn lower_overlap(&self, scratch: &Scratch, slot: Slot, device: u32) -> [u32; 2] {
        if !self.has_lower(slot) {
            return [0; 2];
        }
        let paths = &self.shared.paths;
        let host = paths.tier_run(scratch, slot, Tier::Host, device);
        [host, paths.tier_run(scratch, slot, Tier::Disk, device + host)]
    }

    /// Overlap in every tier, for each slot in `0..slots`.
    ///
    /// It allocates its answer. A decision reads [`Index::device_overlap`] into buffers of its own instead.
    pub fn find_matches(&self, prompt: &Prompt<'_>, slots: usize) -> Vec<TierOverlap> {
        let mut depth = vec![0; slots];
        let mut scratch = Scratch::default();
        self.device_overlap(prompt, &all_slots(slots), &mut depth, &mut scratch);
        if !self.any_lower() {
            return depth.into_iter().map(|device| [device, 0, 0]).collect();
        }
        self.follow(prompt, &mut scratch);
        let overlap = |(slot, device): (u32, u32)| {
            let [host, disk] = self.lower_overlap(&scratch, Slot(slot), device);
            [device, host, disk]
        };
        (0..).zip(depth).map(overlap).collect()
    }

    /// The index as bytes, with the position of each worker's feed. Events wait meanwhile; matches do not.
    ///
    /// `hashing` identifies the way in which the blocks are hashed; [`super::image`] describes the format.
    ///
    /// It takes the writer's lock for the whole time: 25 ms for a million blocks on 8 workers.
    pub fn image(&self, hashing: u64, position: impl Fn(WorkerId) -> Option<u64>) -> Vec<u8> {
        image::write(&self.shared, &self.write(), hashing, position)
    }

    /// The stores that give another index the same blocks, each parent before its children; `stores.rs` says what
    /// is left out. Events wait meanwhile; matches do not. O(blocks · holders).
    pub fn stores(&self) -> Vec<(WorkerId, KvEvent)> {
        stores(&self.shared, &self.write())
    }

    /// Takes over the registered workers of an image. The index must be empty, and is empty after an error.
    ///
    /// # Errors
    /// [`ImageError`] names what is wrong with the bytes, or that the index has blocks already.
    pub fn restore(&self, image: &[u8], hashing: u64) -> Result<Vec<RestoredWorker>, ImageError> {
        image::read(
            &self.shared,
            &mut self.write(),
            image,
            hashing,
            self.budget.blocks,
        )
    }

    /// Panics unless every rule of the structure holds. For tests: O(whole index).
    pub fn check(&self) {
        self.write().check(&self.shared);
    }
}
