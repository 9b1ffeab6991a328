//! What the index takes, by structure: to see which of them grows.

use serde::Serialize;

use super::frame::Header;
use super::path_tree::PathTree;
use super::tree_allocator::TreeAllocator;

/// Bytes of each structure, and how full they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Distinct blocks, with those that nobody holds between others.
    pub blocks: u64,
    /// Frames that live.
    pub frames: u64,
    /// Headers: frames that ever lived at once.
    pub header_bytes: u64,
    /// Local hashes and common names: chunks of eight that were ever used at once.
    pub hash_bytes: u64,
    /// Of them those of chunks that are free.
    pub hash_free_bytes: u64,
    /// Holders that do not fit into a header.
    pub holder_bytes: u64,
    /// Of them what is free.
    pub holder_free_bytes: u64,
    /// The table of frames by what comes before them, and the counts of siblings.
    pub child_bytes: u64,
    /// The table of common names.
    pub engine_hash_bytes: u64,
    /// The tables of names of one worker's own.
    pub alias_bytes: u64,
    /// The counts of copies beyond the first.
    pub copy_bytes: u64,
    /// The sets of frames by worker.
    pub frame_set_bytes: u64,
}

impl Footprint {
    /// All of it: what the budget is about.
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
    /// What the paths take, with the common names beside their local hashes; the owner adds the rest.
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
