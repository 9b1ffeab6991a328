//! The paged KV cache of one simulated worker: a fixed number of blocks, shared by prefix, evicted when space is short.
//!
//! A slot is one physical block. It is active while a sequence holds it, inactive while it only waits to be reused, and
//! free otherwise. Inactive slots form intrusive lists, one per level of use, and a single list under LRU. The next
//! slot to be evicted is the head of the lowest list. Memory grows with use and not with the capacity. All operations
//! are O(1).

use rustc_hash::FxHashMap;

use crate::spec::Eviction;

/// Marks the absence of a slot or block.
pub(crate) const NONE: u32 = u32::MAX;
/// Name of every full block of generated tokens. The block takes space and ages, but no prompt can find it.
pub(crate) const GENERATED: u32 = u32::MAX - 1;

/// Levels of use under [`Eviction::Frequency`]: level k holds use counts from 2^k.
const LEVELS: usize = 4;

/// One physical block.
#[derive(Clone, Copy, Debug)]
struct Slot {
    block: u32,
    /// Name of the block before it in its prompt, or [`NONE`].
    parent: u32,
    /// Number of sequences that hold the slot.
    refs: u32,
    previous: u32,
    next: u32,
    /// KVBM's use counter: it starts at 1, doubles on a hit and halves with every epoch.
    uses: u16,
    epoch: u16,
    level: u8,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

/// The KV cache of one worker.
///
/// Invariant: every slot is active, inactive (in the list of its level) or in `free`, and `by_block` names
/// one slot per block.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// Blocks of the memory.
    capacity: u32,
    /// Slots ever used, at most `capacity`.
    slots: Vec<Slot>,
    /// Slots without a block.
    free: Vec<u32>,
    /// Slot of the first copy of each block that a prompt can find.
    by_block: FxHashMap<u32, u32>,
    /// Inactive slots by level, coldest first.
    lists: [List; LEVELS],
    /// Number of inactive slots.
    inactive: u32,
    /// Rule of eviction.
    eviction: Eviction,
    /// The present epoch of the use counters.
    epoch: u16,
}

/// A block whose only copy in device memory was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub block: u32,
    /// Name of the block before it in its prompt, or [`NONE`].
    pub parent: u32,
    /// KVBM's use counter at the eviction.
    pub uses: u16,
}

impl BlockPool {
    /// An empty pool. Slots are made when they are first needed.
    pub fn new(capacity: u32, eviction: Eviction) -> Self {
        Self {
            capacity,
            slots: Vec::new(),
            free: Vec::new(),
            by_block: FxHashMap::default(),
            lists: [List {
                head: NONE,
                tail: NONE,
            }; LEVELS],
            inactive: 0,
            eviction,
            epoch: 0,
        }
    }

    /// Number of blocks of the memory.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Number of blocks held by sequences.
    pub fn active(&self) -> u32 {
        self.slots.len() as u32 - self.free.len() as u32 - self.inactive
    }

    /// Number of blocks that can be taken without an eviction.
    pub fn unused(&self) -> u32 {
        self.capacity - (self.slots.len() as u32 - self.free.len() as u32)
    }

    /// Number of blocks that can be taken, with evictions.
    pub fn available(&self) -> u32 {
        self.capacity - self.active()
    }

    /// Slot with the first copy of a named block.
    pub fn find(&self, block: u32) -> Option<u32> {
        self.by_block.get(&block).copied()
    }

    /// Whether a sequence holds the slot.
    pub fn is_active(&self, slot: u32) -> bool {
        self.slots[slot as usize].refs > 0
    }

    /// Ages the use counters by one epoch. Only [`Eviction::Frequency`] uses them.
    pub fn age(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Adds one hold to a cached block.
    pub fn hold(&mut self, slot: u32) {
        if self.slots[slot as usize].refs == 0 {
            self.unlink(slot);
            self.inactive -= 1;
        }
        let uses = self.decayed_uses(slot);
        let entry = &mut self.slots[slot as usize];
        entry.refs += 1;
        entry.uses = uses.saturating_mul(2);
        entry.epoch = self.epoch;
    }

    /// Takes a block without a name, and evicts one if none is free. `None` if every block is held.
    pub fn take(&mut self, evicted: &mut Vec<Evicted>) -> Option<u32> {
        let slot = if let Some(slot) = self.free.pop() {
            slot
        } else if (self.slots.len() as u32) < self.capacity {
            self.slots.push(Slot {
                block: NONE,
                parent: NONE,
                refs: 0,
                previous: NONE,
                next: NONE,
                uses: 1,
                epoch: 0,
                level: 0,
            });
            self.slots.len() as u32 - 1
        } else {
            self.evict(evicted)?
        };
        let epoch = self.epoch;
        let entry = &mut self.slots[slot as usize];
        entry.block = NONE;
        entry.refs = 1;
        entry.uses = 1;
        entry.epoch = epoch;
        Some(slot)
    }

    /// Names a block. Returns true if it is the first copy, so that routers have to learn of it.
    pub fn publish(&mut self, slot: u32, block: u32, parent: u32) -> bool {
        self.slots[slot as usize].block = block;
        self.slots[slot as usize].parent = parent;
        if block == GENERATED || self.by_block.contains_key(&block) {
            return false;
        }
        self.by_block.insert(block, slot);
        true
    }

    /// Removes one hold. Without holds, an unnamed block becomes free and a named block stays cached.
    pub fn release(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        if entry.block == NONE {
            self.free.push(slot);
        } else {
            self.inactive += 1;
            self.link(slot);
        }
    }

    /// Number of blocks that a prompt can find.
    #[cfg(test)]
    pub fn named(&self) -> usize {
        self.by_block.len()
    }

    /// Use counter of a slot as of the present epoch: halved per epoch since its last use, at least 1.
    fn decayed_uses(&self, slot: u32) -> u16 {
        let entry = &self.slots[slot as usize];
        let age = self.epoch.wrapping_sub(entry.epoch).min(15);
        (entry.uses >> age).max(1)
    }

    /// List that a slot without holds belongs to. With LRU there is one list; else the binary logarithm of
    /// its uses.
    fn level_of(&self, slot: u32) -> u8 {
        match self.eviction {
            Eviction::Lru => 0,
            Eviction::Frequency => (self.decayed_uses(slot).ilog2() as u8).min(LEVELS as u8 - 1),
        }
    }

    /// Evicts the coldest cached block and returns its slot. Only the first copy of a block is reported as
    /// evicted.
    fn evict(&mut self, evicted: &mut Vec<Evicted>) -> Option<u32> {
        let slot = self.coldest()?;
        self.unlink(slot);
        self.inactive -= 1;
        let entry = self.slots[slot as usize];
        if entry.block != GENERATED && self.by_block.get(&entry.block) == Some(&slot) {
            self.by_block.remove(&entry.block);
            evicted.push(Evicted {
                block: entry.block,
                parent: entry.parent,
                uses: entry.uses,
            });
        }
        Some(slot)
    }

    /// The next slot to be evicted. Heads whose aged counter belongs to a lower list move there first.
    fn coldest(&mut self) -> Option<u32> {
        loop {
            let slot = self
                .lists
                .iter()
                .map(|list| list.head)
                .find(|head| *head != NONE)?;
            if self.level_of(slot) >= self.slots[slot as usize].level {
                return Some(slot);
            }
            self.unlink(slot);
            self.link(slot);
        }
    }

    /// Appends a slot to the list of its level: the list is in order of release.
    fn link(&mut self, slot: u32) {
        let level = self.level_of(slot);
        let list = &mut self.lists[level as usize];
        let tail = list.tail;
        list.tail = slot;
        if tail == NONE {
            list.head = slot;
        } else {
            self.slots[tail as usize].next = slot;
        }
        let entry = &mut self.slots[slot as usize];
        entry.previous = tail;
        entry.next = NONE;
        entry.level = level;
    }

    /// Takes a slot out of its list.
    fn unlink(&mut self, slot: u32) {
        let Slot {
            previous,
            next,
            level,
            ..
        } = self.slots[slot as usize];
        let list = &mut self.lists[level as usize];
        if previous == NONE {
            list.head = next;
        } else {
            self.slots[previous as usize].next = next;
        }
        let list = &mut self.lists[level as usize];
        if next == NONE {
            list.tail = previous;
        } else {
            self.slots[next as usize].previous = previous;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pool: &mut BlockPool, blocks: &[u32]) -> Vec<u32> {
        let mut evicted = Vec::new();
        blocks
            .iter()
            .map(|block| {
                let slot = pool.take(&mut evicted).expect("room");
                pool.publish(slot, *block, NONE);
                slot
            })
            .collect()
    }

    #[test]
    fn the_oldest_inactive_block_goes_first_and_held_blocks_never() {
        let mut pool = BlockPool::new(3, Eviction::Lru);
        let slots = fill(&mut pool, &[7, 8, 9]);
        let mut evicted = Vec::new();
        assert!(pool.take(&mut evicted).is_none());
        pool.release(slots[1]);
        pool.release(slots[0]);
        assert_eq!(pool.take(&mut evicted), Some(slots[1]));
        assert_eq!(evicted[0].block, 8);
        assert_eq!(pool.find(8), None);
        assert_eq!(pool.find(7), Some(slots[0]));
        assert_eq!((pool.active(), pool.available(), pool.unused()), (2, 1, 0));
    }

    #[test]
    fn frequency_keeps_a_block_that_was_hit_over_a_newer_one() {
        let mut pool = BlockPool::new(2, Eviction::Frequency);
        let slots = fill(&mut pool, &[1, 2]);
        pool.release(slots[0]);
        pool.hold(slots[0]);
        pool.release(slots[0]);
        pool.release(slots[1]);
        let mut evicted = Vec::new();
        pool.take(&mut evicted);
        assert_eq!(evicted[0].block, 2);
    }

    #[test]
    fn an_aged_counter_loses_its_privilege() {
        let mut pool = BlockPool::new(2, Eviction::Frequency);
        let slots = fill(&mut pool, &[1, 2]);
        pool.release(slots[0]);
        pool.hold(slots[0]);
        pool.release(slots[0]);
        for _ in 0..4 {
            pool.age();
        }
        pool.hold(slots[1]);
        pool.release(slots[1]);
        pool.release(slots[1]);
        let mut evicted = Vec::new();
        // Block 1 is in a higher list than its aged counter allows; block 2 was just hit.
        pool.take(&mut evicted);
        pool.take(&mut evicted);
        assert_eq!(
            evicted.iter().map(|gone| gone.block).collect::<Vec<_>>(),
            vec![1, 2]
        );
    }

    #[test]
    fn an_unnamed_block_is_free_again_at_once() {
        let mut pool = BlockPool::new(1, Eviction::Lru);
        let mut evicted = Vec::new();
        let slot = pool.take(&mut evicted).expect("room");
        pool.release(slot);
        assert_eq!(pool.unused(), 1);
        assert!(evicted.is_empty());
    }

    #[test]
    fn a_second_copy_is_not_announced() {
        let mut pool = BlockPool::new(2, Eviction::Lru);
        let mut evicted = Vec::new();
        let first = pool.take(&mut evicted).expect("room");
        let second = pool.take(&mut evicted).expect("room");
        assert!(pool.publish(first, 5, NONE));
        assert!(!pool.publish(second, 5, NONE));
        assert_eq!(pool.named(), 1);
    }
}
