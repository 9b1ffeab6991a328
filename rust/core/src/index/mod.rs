//! The index: which worker holds which blocks of which prompts.
//!
//! It stands between KV events and decisions: [`Index::apply`] changes it, and a decision asks it for the
//! overlap of a prompt on every worker. Workers are dense slots here; the router maps worker ids to slots.
//!
//! Read the files in this order:
//!
//! * `frame`, `path_tree`, `holders`: the data. Prompts share a tree of frames of at most 64 blocks, and each
//!   frame has a set of holders.
//! * `arena`, `seqlock`, `walk`: how threads match prompts without a lock while one thread writes.
//! * `writer`, `path_changes`, `holder_changes`: how KV events change the tree.
//! * `engine_hashes`, `copies`: which block an engine means by a hash of its own, and how often it stored the
//!   block.
//! * `evict`, `image`, `check`, `reference`: the memory budget, saving, the rules of the structure, and the
//!   slow index that tests compare with.
//! * `extents`, `id_allocator`, `child_table`, `hash_tables`: allocators and tables below the tree.
//!
//! One prompt of 100 blocks that two workers hold, the second one only in part, looks like this:
//!
//! ```text
//! root ─▶ frame 0: blocks 0..64    holders: worker 0 full, worker 1 full
//!           └▶ frame 1: 36 blocks  holders: worker 0 full, worker 1 the mask 0b1111
//! ```
//!
//! The overlap of the prompt is then 100 blocks on worker 0 and 68 on worker 1. Two frame headers and two
//! comparisons of a sequence hash answer it.
//!
//! Two other structures lost. A radix tree with a node per block costs a cache miss per block. In a
//! prototype, a flat table of sequence hashes took 0.18 µs for one holder and 3.3 µs for 64 holders of
//! different depth. Frames cost a few misses per 64 blocks, for any number of holders.
//!
//! Costs stand in `concurrent`. `docs/explanation/prefix-index.md` says why the index has this form.

pub(crate) mod arena;
mod budget;
mod check;
mod child_table;
mod concurrent;
mod copies;
mod engine_hashes;
mod evict;
mod extents;
mod footprint;
pub(crate) mod frame;
pub(crate) mod hash_tables;
mod holder_changes;
pub(crate) mod holders;
mod id_allocator;
mod image;
#[cfg(test)]
mod models;
mod parents_first;
mod path_changes;
pub(crate) mod path_tree;
mod reference;
pub(crate) mod seqlock;
mod shared;
pub(crate) mod slots;
mod stores;
pub(crate) mod tree_allocator;
mod walk;
mod worker_blocks;
mod writer;

pub use budget::Budget;
pub use concurrent::Index;
pub use footprint::Footprint;
pub use image::{ImageError, RestoredWorker};
pub use path_tree::Prompt;
pub use reference::ReferenceIndex;
pub use slots::all_slots;
pub use walk::Scratch;

use serde::Serialize;

use crate::worker::WorkerId;

/// Position of a worker in every per-worker column. A later worker reuses the slot of a worker that left.
///
/// Slots are dense and below 65,536, so holder sets are bitsets and columns are plain vectors. A slot means a
/// worker only together with a generation of the fleet ([`crate::roster`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index into a column.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The slot in 16 bits, as holder sets store it. Slots are below 65,536.
    pub const fn as_u16(self) -> u16 {
        debug_assert!(self.0 <= u16::MAX as u32, "a slot must be below 65,536");
        self.0 as u16
    }
}

/// Blocks of a request that one worker holds, per tier.
///
/// The tiers follow each other: `device` counts from the start of the prompt, `host` from the end of
/// `device`, and `disk` from the end of `host`.
///
/// Example. A worker holds blocks 0 to 9 in device memory, 5 to 14 in host memory, and 12 to 19 on disk. Then
/// `device` is 10, `host` is 5 (blocks 10 to 14), and `disk` is 5 (blocks 15 to 19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkerOverlap {
    /// The worker that holds the blocks.
    pub worker: WorkerId,
    /// Leading blocks of the prompt in device memory.
    pub device: u32,
    /// Blocks after the device blocks, in host memory.
    pub host: u32,
    /// Blocks after the host blocks, on disk.
    pub disk: u32,
}

/// Blocks of a request that one worker holds: device, host, disk, as in [`WorkerOverlap`].
pub type TierOverlap = [u32; 3];

/// Reason for refusing a KV event, in whole or in part. The router turns it into an [`Error`](crate::Error)
/// with the worker.
///
/// A refusal is expected trouble: events get lost, and an index that evicts forgets parents. It is counted,
/// and the feed continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The worker does not hold the parent of a stored chain.
    UnknownParent,
    /// The worker did not hold this many of the removed blocks; the index removed the others.
    UnknownBlocks(usize),
    /// The worker already uses this engine hash for another block.
    ConflictingBlock(crate::hash::EngineHash),
    /// The index is at its memory budget and can evict nothing.
    Full,
    /// No registered worker has this id.
    UnknownWorker,
}
