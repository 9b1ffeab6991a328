//! The index: which worker holds which blocks of which prompts.
//!
//! It stands between KV events and decisions: [`Index::apply`] changes it, and a decision asks it for the
//! overlap of a prompt on every worker. Workers are dense slots here; the router maps worker ids to slots.
//!
//! Read the files in this order:
//!
//! * `frame`, `path_tree`, `holders`: the data. Prompts share a tree of frames of at most 64 blocks, and each
//!   frame has a set of holders.
//! * `seqlock`, `walk`: how threads match prompts without a lock while one thread writes.
//! * `writer`, `path_changes`, `holder_changes`: how KV events change the tree.
//! * `engine_hashes`: which block an engine means by a hash of its own.
//! * `evict`, `image`, `check`, `reference`: the memory budget, saving, the rules of the structure, and the
//!   slow index that tests compare with.
//!
//! Costs stand in `concurrent`; `docs/explanation/prefix-index.md` tells why the index has this form.

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
mod path_changes;
pub(crate) mod path_tree;
mod reference;
pub(crate) mod seqlock;
mod shared;
pub(crate) mod slots;
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

/// Reason for refusing a KV event, in whole or in part.
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
