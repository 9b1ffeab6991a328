//! Engine hashes: (slot, hash that the engine uses) → block.
//!
//! Removed events, and the parents of stored events, name blocks by engine hashes alone. This table is what
//! makes them blocks of the tree.
//!
//! Most fleets hash equal blocks equally. A block therefore has one common engine hash, stored beside its
//! local hash, and one table entry for all workers. A worker that uses another hash for the block (vLLM with
//! a random hash seed does) has an alias of its own. `writer/hash_lookup.rs` has the rules and an example.
//!
//! Memory: about five bytes per common hash, and 48 to 96 bytes per alias. `layout` has the bits of an entry,
//! `shard` one shard, `growth` how a shard grows, `table` the whole
//! (`docs/adr/0010-a-table-of-names-of-our-own.md`).

mod growth;
mod layout;
mod shard;
mod table;

pub(super) use layout::BlockGroup;
pub(super) use table::EngineHashTable;

use super::Slot;
use super::frame::{BlockId, FRAME_BLOCKS};
use super::hash_tables::{Map, make_room};

/// Blocks by the hashes that engines use; the module describes it.
///
/// Invariant: `by_alias` and `alias_of` are inverse to each other, and every alias is of a block that its
/// worker holds.
#[derive(Clone, Debug, Default)]
pub(super) struct EngineHashes {
    /// Common engine hashes, which all workers share.
    pub common: EngineHashTable,
    /// Blocks by slot and alias. Plain maps serve here, since few fleets have aliases at all.
    by_alias: Map<(Slot, u64), BlockId>,
    /// Aliases by slot and block: the inverse of `by_alias`.
    alias_of: Map<(Slot, BlockId), u64>,
}

impl EngineHashes {
    /// Whether any worker has an alias. Look-ups skip both maps while none has.
    pub(super) fn has_aliases(&self) -> bool {
        !self.by_alias.is_empty()
    }

    /// Block that this worker alone means by an engine hash.
    pub(super) fn aliased(&self, slot: Slot, engine_hash: u64) -> Option<BlockId> {
        self.by_alias.get(&(slot, engine_hash)).copied()
    }

    /// Engine hash that this worker alone uses for the block.
    pub(super) fn alias(&self, slot: Slot, block: BlockId) -> Option<u64> {
        self.alias_of.get(&(slot, block)).copied()
    }

    /// Records an engine hash that this worker alone uses for a block.
    pub(super) fn insert_alias(&mut self, slot: Slot, engine_hash: u64, block: BlockId) {
        make_room(&mut self.by_alias);
        make_room(&mut self.alias_of);
        self.by_alias.insert((slot, engine_hash), block);
        self.alias_of.insert((slot, block), engine_hash);
    }

    /// Forgets the alias of a block on this worker, if there is one.
    pub(super) fn remove_alias(&mut self, slot: Slot, block: BlockId) {
        if let Some(engine_hash) = self.alias_of.remove(&(slot, block)) {
            self.by_alias.remove(&(slot, engine_hash));
        }
    }

    /// Every alias, in no order.
    pub(super) fn aliases(&self) -> impl Iterator<Item = (Slot, BlockId, u64)> + '_ {
        self.alias_of
            .iter()
            .map(|(&(slot, block), &engine_hash)| (slot, block, engine_hash))
    }

    /// Bytes that one event's blocks in a frame may make the alias maps allocate: the grown maps beside the
    /// old ones.
    pub(super) fn alias_growth_bytes(&self) -> u64 {
        let is_full = |len: usize, capacity: usize| len + FRAME_BLOCKS as usize > capacity;
        let full = is_full(self.by_alias.len(), self.by_alias.capacity())
            || is_full(self.alias_of.len(), self.alias_of.capacity());
        if full { 2 * self.alias_bytes().max(8192) } else { 0 }
    }

    /// Bytes of the alias maps, from their capacities.
    pub(super) fn alias_bytes(&self) -> u64 {
        (self.by_alias.allocation_size() + self.alias_of.allocation_size()) as u64
    }
}
