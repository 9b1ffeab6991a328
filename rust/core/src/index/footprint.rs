//! Memory of the index by structure, to see which one grows.
//!
//! The soak benchmarks print it over hours of churn (`rust/core/benches/soak.rs`). The sum of the structures
//! is what the budget limits ([`super::budget::Budget::bytes`]).

use serde::Serialize;

use super::frame::Header;
use super::path_tree::PathTree;
use super::tree_allocator::TreeAllocator;

/// Bytes of each structure, and how many of them are free.
///
/// "Ever in use at once" means that the arenas keep freed units for later blocks. Their bytes never shrink,
/// and the free part says how much of them waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Distinct blocks, with blocks between held ones that no worker holds.
    pub blocks: u64,
    /// Frames in the tree.
    pub frames: u64,
    /// Headers of all frames ever in use at once.
    pub header_bytes: u64,
    /// Local hashes and common engine hashes, in all chunks ever in use at once.
    pub hash_bytes: u64,
    /// Part of `hash_bytes` in free chunks.
    pub hash_free_bytes: u64,
    /// Holders outside of headers.
    pub holder_bytes: u64,
    /// Part of `holder_bytes` that is free.
    pub holder_free_bytes: u64,
    /// Child table and sibling counts.
    pub child_bytes: u64,
    /// Table of common engine hashes.
    pub engine_hash_bytes: u64,
    /// Tables of engine hashes that one worker alone uses.
    pub alias_bytes: u64,
    /// Counts of copies beyond the first.
    pub copy_bytes: u64,
    /// Sets of frames by worker.
    pub frame_set_bytes: u64,
}

impl Footprint {
    /// Bytes of all structures: the bytes of the budget.
    pub const fn bytes(&self) -> u64 {
        self.header_bytes
            + self.hash_bytes
            + self.holder_bytes
            + self.child_bytes
            + self.engine_hash_bytes
            + self.alias_bytes
            + self.copy_bytes
            + self.frame_set_bytes
    }
}

impl PathTree {
    /// Footprint of the tree and of the common engine hashes beside it; the owner adds the rest.
    pub(super) fn footprint(&self, allocator: &TreeAllocator) -> Footprint {
        let (chunks, free) = allocator.chunks_ever_and_free();
        Footprint {
            blocks: allocator.blocks(),
            frames: allocator.frames_len() as u64,
            header_bytes: allocator.frames_ever() as u64 * size_of::<Header>() as u64,
            hash_bytes: chunks * 128,
            hash_free_bytes: free * 128,
            holder_bytes: allocator.holder_bytes(),
            holder_free_bytes: allocator.holder_free_bytes(&self.extents),
            child_bytes: self.children.bytes() + allocator.sibling_bytes(),
            ..Footprint::default()
        }
    }
}
