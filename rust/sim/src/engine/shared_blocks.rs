//! Names of the blocks that every worker finds when all workers share their caches.
//!
//! A batch run keeps every name. A fleet without an end has a bound: two generations of names, where a name that is
//! used again moves to the young one. When the young generation is full, it becomes the old one, and the names of the
//! former old one are forgotten. The `room` names that were used last are therefore always known. All operations are
//! O(1).

use rustc_hash::FxHashSet;

/// The names, at least the last `room` of them and at most twice as many.
#[derive(Debug)]
pub(crate) struct SharedBlocks {
    young: FxHashSet<u32>,
    old: FxHashSet<u32>,
    /// Number of names in a generation.
    room: usize,
}

impl SharedBlocks {
    /// No name yet, and no bound.
    pub fn unbounded() -> Self {
        Self {
            young: FxHashSet::default(),
            old: FxHashSet::default(),
            room: usize::MAX,
        }
    }

    /// Changes the bound, from the next name on. A bound of 0 counts as 1.
    pub fn set_room(&mut self, room: usize) {
        self.room = room.max(1);
    }

    /// Adds a name, or notes that it is used again.
    pub fn insert(&mut self, block: u32) {
        if self.young.len() >= self.room && !self.young.contains(&block) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(block);
    }

    /// Notes that a name is used again, if it is known. Without a bound nothing is forgotten, so this does nothing.
    pub fn refresh(&mut self, block: u32) {
        if self.room != usize::MAX && !self.young.contains(&block) && self.old.contains(&block) {
            self.insert(block);
        }
    }

    /// Whether a worker has computed the block, as far as the bound reaches.
    pub fn contains(&self, block: u32) -> bool {
        self.young.contains(&block) || self.old.contains(&block)
    }

    /// Number of stored names.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_used_last_are_known_and_the_others_are_forgotten() {
        let mut shared = SharedBlocks::unbounded();
        shared.set_room(10);
        for block in 0..1_000 {
            shared.insert(block);
            // A name that is used all the time stays, although it is the oldest.
            shared.refresh(0);
            assert!(shared.contains(0) && shared.contains(block));
            assert!((block.saturating_sub(9)..=block).all(|recent| shared.contains(recent)));
            assert!(shared.len() <= 20, "{} names", shared.len());
        }
        assert!(!shared.contains(970));
    }

    #[test]
    fn without_a_bound_every_name_is_kept() {
        let mut shared = SharedBlocks::unbounded();
        (0..10_000).for_each(|block| shared.insert(block));
        assert!((0..10_000).all(|block| shared.contains(block)));
        assert!(!shared.contains(10_000));
    }
}
