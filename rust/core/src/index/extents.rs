//! Stretches of words of any length, for the few frames whose holders do not fit into their header.

use std::sync::atomic::AtomicU64;

use super::arena::{Arena, get, high, low, pack, set};

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

/// What of [`Extents`] is free: the writer's. By halves (D. Knuth's buddy system): a stretch that comes back is joined with its
/// other half when that is free, so what was cut small serves as large again.
///
/// A free stretch says so itself: its first word links it with others of its class, its second one has the class, and a bit
/// of `starts` tells that both are to be believed. Readers that are there still are in sections that are not valid any more.
#[derive(Debug, Default)]
pub struct ExtentAllocator {
    /// By class: the first free stretch of 2^class units, or 0.
    first: [u32; CLASSES],
    /// By unit: a free stretch starts here.
    starts: Vec<u64>,
    /// Units ever taken, less the first.
    end: u32,
}

/// The class of the least stretch with so many words.
pub const fn class_of(words: usize) -> u32 {
    words.div_ceil(UNIT_WORDS).next_power_of_two().ilog2()
}

impl ExtentAllocator {
    /// Units ever taken, with number 0.
    const fn next(&self) -> u32 {
        self.end + 1
    }

    /// A stretch of 2^`class` units. Its words hold anything.
    pub fn allocate(&mut self, extents: &Extents, class: u32) -> u32 {
        if let Some(of) = (class..CLASSES as u32).find(|&of| self.first[of as usize] != 0) {
            let at = self.first[of as usize];
            self.unlink(extents, at, of);
            for half in class..of {
                self.link(extents, at + (1 << half), half);
            }
            return at;
        }
        // Aligned to its size, no stretch lies across two segments.
        let size = 1 << class;
        while !self.next().is_multiple_of(size) {
            let (gap, of) = (self.next(), self.next().trailing_zeros());
            self.grow(extents, 1 << of);
            self.free(extents, gap, of);
        }
        let at = self.next();
        self.grow(extents, size);
        at
    }

    fn grow(&mut self, extents: &Extents, units: u32) {
        self.end = self
            .end
            .checked_add(units)
            .expect("64 GiB of holders must be enough");
        extents.arena.reserve(self.next());
        self.starts.resize(self.next().div_ceil(64) as usize, 0);
    }

    /// Gives a stretch back. Inside a section of the frame that had it, or after one.
    pub fn free(&mut self, extents: &Extents, at: u32, class: u32) {
        let (mut at, mut class) = (at, class);
        while class + 1 < CLASSES as u32 {
            let half = at ^ 1 << class;
            if !self.is_free(extents, half, class) {
                break;
            }
            self.unlink(extents, half, class);
            at = at.min(half);
            class += 1;
        }
        self.link(extents, at, class);
    }

    fn is_free(&self, extents: &Extents, at: u32, class: u32) -> bool {
        let word = self.starts.get(at as usize / 64).copied().unwrap_or(0);
        word >> (at % 64) & 1 == 1 && get(&extents.words(at, 2)[1]) == u64::from(class)
    }

    fn link(&mut self, extents: &Extents, at: u32, class: u32) {
        let next = std::mem::replace(&mut self.first[class as usize], at);
        let words = extents.words(at, 2);
        set(&words[0], pack(0, next));
        set(&words[1], u64::from(class));
        if next != 0 {
            let word = &extents.words(next, 2)[0];
            set(word, pack(at, high(get(word))));
        }
        self.starts[at as usize / 64] |= 1 << (at % 64);
    }

    fn unlink(&mut self, extents: &Extents, at: u32, class: u32) {
        let word = get(&extents.words(at, 2)[0]);
        let (before, next) = (low(word), high(word));
        if before == 0 {
            self.first[class as usize] = next;
        } else {
            let word = &extents.words(before, 2)[0];
            set(word, pack(low(get(word)), next));
        }
        if next != 0 {
            let word = &extents.words(next, 2)[0];
            set(word, pack(before, high(get(word))));
        }
        self.starts[at as usize / 64] &= !(1 << (at % 64));
    }

    /// Bytes that a stretch of this class takes from the system.
    pub fn growth_bytes(&self, class: u32) -> u64 {
        if self.first[class as usize..].iter().any(|&at| at != 0) {
            return 0;
        }
        // Aligning it may waste as much as it has; the bits of where they start are a hundredth.
        (2 * UNIT_WORDS * 8 + 2) as u64 * (1 << class) + 2 * self.starts.capacity().max(8) as u64 * 8
    }

    /// Bytes ever taken, and of the bits.
    pub fn bytes(&self) -> u64 {
        u64::from(self.next()) * (UNIT_WORDS * 8) as u64 + self.starts.capacity() as u64 * 8
    }

    /// Bytes of what is free.
    pub fn free_bytes(&self, extents: &Extents) -> u64 {
        let mut units = 0;
        for (class, &first) in self.first.iter().enumerate() {
            let mut at = first;
            while at != 0 {
                units += 1u64 << class;
                at = high(get(&extents.words(at, 2)[0]));
            }
        }
        units * (UNIT_WORDS * 8) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stretches_do_not_overlap_and_come_together_again(
            steps in proptest::collection::vec((0u32..9, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let (extents, mut extent_allocator) = (Extents::default(), ExtentAllocator::default());
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (class, which, back) in steps {
                if back && !taken.is_empty() {
                    let (at, class) = taken.swap_remove(which.index(taken.len()));
                    extent_allocator.free(&extents, at, class);
                    continue;
                }
                let at = extent_allocator.allocate(&extents, class);
                prop_assert!(at > 0 && at.is_multiple_of(1 << class));
                for &(other, of) in &taken {
                    prop_assert!(at + (1 << class) <= other || other + (1 << of) <= at);
                }
                for word in extents.words(at, UNIT_WORDS << class) {
                    set(word, u64::MAX);
                }
                taken.push((at, class));
                let used: u64 = taken.iter().map(|&(_, class)| 1 << class).sum();
                prop_assert_eq!(extent_allocator.free_bytes(&extents) / 16 + used, u64::from(extent_allocator.end));
            }
            for (at, class) in taken {
                extent_allocator.free(&extents, at, class);
            }
            // Nothing is cut that has its other half: as many stretches as bits of what was taken from 1 on.
            let stretches: u32 = extent_allocator.starts.iter().map(|word| word.count_ones()).sum();
            prop_assert!(stretches <= 2 * u32::BITS);
            prop_assert_eq!(extent_allocator.free_bytes(&extents) / 16, u64::from(extent_allocator.end));
        }
    }
}
