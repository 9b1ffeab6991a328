//! The index: which worker holds which prefix.
//!
//! Workers are dense slots here; the router maps ids to slots.

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

/// Position of a worker in every per-worker column. Reused after a worker left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// As an index into a column.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// As the 16 bits in which sets keep it: slots are below 65,536.
    pub const fn as_u16(self) -> u16 {
        debug_assert!(self.0 <= u16::MAX as u32, "a slot must be below 65,536");
        self.0 as u16
    }
}

/// How much of a request one worker holds, blocks per tier.
///
/// `device` counts from the start of the prompt; `host` goes on where `device` ends, `disk` where `host` ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkerOverlap {
    /// Whose.
    pub worker: WorkerId,
    /// Leading blocks in device memory.
    pub device: u32,
    /// Further blocks in host memory.
    pub host: u32,
    /// Further blocks on disk.
    pub disk: u32,
}

/// What one worker holds of a request, blocks per tier, by slot.
pub type TierOverlap = [u32; 3];

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The parent of a stored chain is not known of this worker.
    UnknownParent,
    /// So many removed blocks were not held; the others were removed.
    UnknownBlocks(usize),
    /// An engine hash would get a second meaning.
    ConflictingBlock(crate::hash::EngineHash),
    /// The limit of blocks is reached.
    Full,
    /// Nobody has this id.
    UnknownWorker,
}
