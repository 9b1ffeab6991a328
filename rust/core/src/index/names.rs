//! What engines call their blocks: (slot, engine hash) → block.
//!
//! Most fleets name equal blocks equally, so a block has one common name, kept beside its local hash, and one table entry for
//! all workers. A worker that names it otherwise (vLLM with a random hash seed does) has aliases of its own.

use hashbrown::HashTable;
use rustc_hash::FxHashMap;

use super::Slot;
use super::children::mix;
use super::paths::{BlockId, FRAME_BLOCKS};
use super::tables::growth_bytes;

/// Shards of the common table: each grows on its own, so that no insertion waits for a rehash of everything.
const SHARDS: usize = 64;

/// See the module.
#[derive(Clone, Debug)]
pub struct Names {
    common: Vec<HashTable<BlockId>>,
    common_bytes: usize,
    by_alias: FxHashMap<(Slot, u64), BlockId>,
    alias_of: FxHashMap<(Slot, BlockId), u64>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            common: vec![HashTable::new(); SHARDS],
            common_bytes: 0,
            by_alias: FxHashMap::default(),
            alias_of: FxHashMap::default(),
        }
    }
}

const fn hash(name: u64) -> u64 {
    mix(name, 0x517C_C1B7_2722_0A95)
}

const fn shard(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

impl Names {
    /// The block with this common name. `name_of` gives the common name of a block in the table.
    pub fn common(&self, name: u64, name_of: impl Fn(BlockId) -> u64) -> Option<BlockId> {
        let hash = hash(name);
        self.common[shard(hash)]
            .find(hash, |&block| name_of(block) == name)
            .copied()
    }

    /// Give a block a common name that no other has.
    pub fn insert_common(&mut self, name: u64, block: BlockId, name_of: impl Fn(BlockId) -> u64) {
        let of = hash(name);
        let shard = &mut self.common[shard(of)];
        let before = shard.allocation_size();
        shard.insert_unique(of, block, |&block| hash(name_of(block)));
        self.common_bytes = self.common_bytes + shard.allocation_size() - before;
    }

    /// Take a block's common name away.
    pub fn remove_common(&mut self, name: u64, block: BlockId) {
        let hash = hash(name);
        let shard = &mut self.common[shard(hash)];
        let entry = shard.find_entry(hash, |&named| named == block);
        entry.expect("a common name must be in the table").remove();
        if shard.is_empty() {
            self.common_bytes -= shard.allocation_size();
            // Gives the memory back, and the marks of removed entries, for which a table that is refilled would grow.
            *shard = HashTable::new();
        }
    }

    /// Whether any worker has names of its own.
    pub fn has_aliases(&self) -> bool {
        !self.by_alias.is_empty()
    }

    /// What this worker alone calls so.
    pub fn aliased(&self, slot: Slot, name: u64) -> Option<BlockId> {
        self.by_alias.get(&(slot, name)).copied()
    }

    /// What this worker alone calls the block.
    pub fn alias(&self, slot: Slot, block: BlockId) -> Option<u64> {
        self.alias_of.get(&(slot, block)).copied()
    }

    /// Give a block a name that this worker alone uses.
    pub fn insert_alias(&mut self, slot: Slot, name: u64, block: BlockId) {
        self.by_alias.insert((slot, name), block);
        self.alias_of.insert((slot, block), name);
    }

    /// Forget what this worker alone calls the block, if anything.
    pub fn remove_alias(&mut self, slot: Slot, block: BlockId) {
        if let Some(name) = self.alias_of.remove(&(slot, block)) {
            self.by_alias.remove(&(slot, name));
        }
    }

    /// Every name that one worker alone uses, in no order.
    pub fn aliases(&self) -> impl Iterator<Item = (Slot, BlockId, u64)> + '_ {
        self.alias_of
            .iter()
            .map(|(&(slot, block), &name)| (slot, block, name))
    }

    /// Bytes that these names more take from the system at most. See [`growth_bytes`].
    pub fn growth_bytes(
        &mut self,
        names: impl Iterator<Item = u64>,
        name_of: impl Fn(BlockId) -> u64,
    ) -> u64 {
        let mut shards: u64 = names.fold(0, |shards, name| shards | 1 << shard(hash(name)));
        let mut bytes = 0;
        while shards != 0 {
            let table = &mut self.common[shards.trailing_zeros() as usize];
            shards &= shards - 1;
            bytes += growth_bytes(table, |&block| hash(name_of(block)));
        }
        bytes
    }

    /// Bytes by which a frame's blocks may make the own names' tables grow, old and new.
    pub fn alias_growth_bytes(&self) -> u64 {
        let full = self.by_alias.len() + FRAME_BLOCKS as usize > self.by_alias.capacity();
        let capacity = self.by_alias.capacity().max(2 * FRAME_BLOCKS as usize);
        (if full { 2 * (25 + 17) * capacity } else { 0 }) as u64
    }

    /// Common names.
    pub fn common_len(&self) -> usize {
        self.common.iter().map(HashTable::len).sum()
    }

    /// Bytes, from the capacities.
    pub fn bytes(&self) -> u64 {
        (self.common_bytes + self.by_alias.capacity() * 25 + self.alias_of.capacity() * 17) as u64
    }
}
