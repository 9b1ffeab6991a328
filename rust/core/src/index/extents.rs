//! Stretches of words of any length, for the few frames whose holders do not fit into their header.

use std::sync::atomic::AtomicU64;

use super::arena::Arena;

/// Words of a unit.
pub const UNIT_WORDS: usize = 2;
/// The first segment is longer than any stretch: a list of 65,536 partial holders.
const BASE: u32 = 16;
const CLASSES: usize = BASE as usize + 1;

/// Where the stretches are. Number 0 is never given away: it means none.
#[derive(Debug)]
pub struct Extents {
    arena: Arena<UNIT_WORDS>,
}

impl Default for Extents {
    fn default() -> Self {
        Self {
            arena: Arena::new(BASE),
        }
    }
}

impl Extents {
    /// So many words from `at` on.
    #[inline]
    pub fn words(&self, at: u32, words: usize) -> &[AtomicU64] {
        self.arena.slice(at, words)
    }
}

/// What of [`Extents`] is free: the writer's.
#[derive(Debug)]
pub struct Spare {
    /// By class: stretches of 2^class units.
    free: [Vec<u32>; CLASSES],
    next: u32,
}

impl Default for Spare {
    fn default() -> Self {
        Self {
            free: Default::default(),
            next: 1,
        }
    }
}

/// The class of the least stretch with so many words.
pub const fn class_of(words: usize) -> u32 {
    words.div_ceil(UNIT_WORDS).next_power_of_two().ilog2()
}

impl Spare {
    /// A stretch of 2^`class` units. Its words hold anything.
    pub fn take(&mut self, extents: &Extents, class: u32) -> u32 {
        if let Some(at) = self.free[class as usize].pop() {
            return at;
        }
        if let Some(larger) = (class as usize + 1..CLASSES).find(|&larger| !self.free[larger].is_empty()) {
            let at = self.free[larger].pop().expect("checked above");
            for half in class as usize..larger {
                self.free[half].push(at + (1 << half));
            }
            return at;
        }
        // Aligned to its size, no stretch lies across two segments.
        let size = 1 << class;
        while !self.next.is_multiple_of(size) {
            let gap = self.next.trailing_zeros();
            self.free[gap as usize].push(self.next);
            self.next += 1 << gap;
        }
        let at = self.next;
        self.next = at.checked_add(size).expect("64 GiB of holders must be enough");
        extents.arena.reserve(self.next);
        at
    }

    /// Gives a stretch back.
    pub fn give(&mut self, at: u32, class: u32) {
        self.free[class as usize].push(at);
    }

    /// Bytes that a stretch of this class takes from the system.
    pub fn growth_bytes(&self, class: u32) -> u64 {
        let has = |class: usize| !self.free[class].is_empty();
        if (class as usize..CLASSES).any(has) {
            return 0;
        }
        // Aligning it may waste as much as it has.
        (2 * UNIT_WORDS * 8) as u64 * (1 << class)
    }

    /// Bytes ever taken, and of the lists.
    pub fn bytes(&self) -> u64 {
        let lists: usize = self.free.iter().map(|list| list.capacity() * 4).sum();
        u64::from(self.next) * (UNIT_WORDS * 8) as u64 + lists as u64
    }
}
