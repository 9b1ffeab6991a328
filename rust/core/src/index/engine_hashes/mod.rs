//! What engines call their blocks: (slot, engine hash) → block.
//!
//! Most fleets name equal blocks equally, so a block has one common name, kept beside its local hash, and one table entry for
//! all workers. A worker that names it otherwise (vLLM with a random hash seed does) has aliases of its own.

mod layout;
mod shard;
mod table;

pub use layout::BlockGroup;
pub use table::EngineHashTable;

use super::Slot;
use super::frame::{BlockId, FRAME_BLOCKS};
use super::hash_tables::{Map, make_room};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct EngineHashes {
    /// For all workers: the names that they share.
    pub common: EngineHashTable,
    by_alias: Map<(Slot, u64), BlockId>,
    alias_of: Map<(Slot, BlockId), u64>,
}

impl EngineHashes {
    /// Whether any worker has names of its own.
    pub fn has_aliases(&self) -> bool {
        !self.by_alias.is_empty()
    }

    /// What this worker alone calls so.
    pub fn aliased(&self, slot: Slot, engine_hash: u64) -> Option<BlockId> {
        self.by_alias.get(&(slot, engine_hash)).copied()
    }

    /// What this worker alone calls the block.
    pub fn alias(&self, slot: Slot, block: BlockId) -> Option<u64> {
        self.alias_of.get(&(slot, block)).copied()
    }

    /// Give a block a name that this worker alone uses.
    pub fn insert_alias(&mut self, slot: Slot, engine_hash: u64, block: BlockId) {
        make_room(&mut self.by_alias);
        make_room(&mut self.alias_of);
        self.by_alias.insert((slot, engine_hash), block);
        self.alias_of.insert((slot, block), engine_hash);
    }

    /// Forget what this worker alone calls the block, if anything.
    pub fn remove_alias(&mut self, slot: Slot, block: BlockId) {
        if let Some(engine_hash) = self.alias_of.remove(&(slot, block)) {
            self.by_alias.remove(&(slot, engine_hash));
        }
    }

    /// Every name that one worker alone uses, in no order.
    pub fn aliases(&self) -> impl Iterator<Item = (Slot, BlockId, u64)> + '_ {
        self.alias_of
            .iter()
            .map(|(&(slot, block), &engine_hash)| (slot, block, engine_hash))
    }

    /// Bytes by which a frame's blocks may make the own names' tables grow, old and new.
    pub fn alias_growth_bytes(&self) -> u64 {
        let is_full = |len: usize, capacity: usize| len + FRAME_BLOCKS as usize > capacity;
        let full = is_full(self.by_alias.len(), self.by_alias.capacity())
            || is_full(self.alias_of.len(), self.alias_of.capacity());
        if full { 2 * self.alias_bytes().max(8192) } else { 0 }
    }

    /// Bytes of the workers' own names, from the capacities.
    pub fn alias_bytes(&self) -> u64 {
        (self.by_alias.allocation_size() + self.alias_of.allocation_size()) as u64
    }
}
