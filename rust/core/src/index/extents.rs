//! Extents: runs of words for the few frames whose holders do not fit into their header.
//!
//! A buddy allocator hands them out (D. Knuth, The Art of Computer Programming, vol. 1, 2.5). Sizes are
//! powers of two; a freed extent joins its buddy when that is free too, so memory cut for small extents can
//! serve large ones again. `make soak` has a run with holes that would show a loss.
//!
//! Example with units as the smallest size. A request for one unit from a free extent of eight takes the
//! first unit and leaves free extents of one, two and four units. When the unit comes back, it joins the one
//! beside it, then the two, then the four.
//!
//! The buddy of the extent at unit a with 2^c units is at a XOR 2^c, because an extent is aligned to its
//! size. So no table of neighbours is needed.
//!
//! Cost: O(17 size classes) per call.

use std::sync::atomic::AtomicU64;

use super::arena::{Arena, get, high, low, pack, set};

/// Words of a unit, the smallest extent: one entry of a list of partial holders.
pub(super) const UNIT_WORDS: usize = 2;
/// Binary logarithm of the units in the arena's first segment.
///
/// No extent is larger than this segment, since a list has at most 65,536 partial holders. So an extent never
/// crosses two segments of the arena.
const BASE: u32 = 16;
/// Size classes: class c has 2^c units.
const CLASSES: usize = BASE as usize + 1;

/// Words of all extents. Unit 0 belongs to no extent and means "none".
#[derive(Debug)]
pub(crate) struct Extents {
    /// The words, in units of two.
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
    /// `words` words from unit `at` on.
    #[inline]
    pub(crate) fn words(&self, at: u32, words: usize) -> &[AtomicU64] {
        self.arena.slice(at, words)
    }
}

/// The free extents of [`Extents`], which only the writer needs.
///
/// A free extent describes itself. Its first word links it with the free extents of its class, and its second
/// word is its class. A bit of `starts` says that both words are valid. A reader may still look at a freed
/// extent, but its section is no longer valid then.
///
/// Invariant: two buddies of one class are never both free.
#[derive(Debug, Default)]
pub(crate) struct ExtentAllocator {
    /// First free extent of each class, or 0.
    first: [u32; CLASSES],
    /// Bit per unit: a free extent starts there. Without it, the words of a used extent could be taken for a
    /// link.
    starts: Vec<u64>,
    /// Units ever used, without unit 0.
    end: u32,
}

/// Size class of the smallest extent with at least `words` words. Five words need three units, so their class
/// is 2.
pub(super) const fn class_of(words: usize) -> u32 {
    words.div_ceil(UNIT_WORDS).next_power_of_two().ilog2()
}

impl ExtentAllocator {
    /// The first unit never used.
    const fn next(&self) -> u32 {
        self.end + 1
    }

    /// Allocates an extent of 2^`class` units. Its words hold arbitrary values. O(size classes).
    ///
    /// The smallest free extent that is large enough is cut. Only when there is none does the arena grow.
    ///
    /// Panics beyond 64 GiB of holders, far above any budget.
    pub(crate) fn allocate(&mut self, extents: &Extents, class: u32) -> u32 {
        if let Some(of) = (class..CLASSES as u32).find(|&of| self.first[of as usize] != 0) {
            let at = self.first[of as usize];
            // A larger extent serves: its unused halves become free extents of the smaller classes.
            self.unlink(extents, at, of);
            for half in class..of {
                self.link(extents, at + (1 << half), half);
            }
            return at;
        }
        // An extent is aligned to its size, so it never crosses two segments of the arena.
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

    /// Extends the arena by `units` units.
    fn grow(&mut self, extents: &Extents, units: u32) {
        self.end = self
            .end
            .checked_add(units)
            .expect("holders outside of headers must fit into 64 GiB");
        extents.arena.reserve(self.next());
        self.starts.resize(self.next().div_ceil(64) as usize, 0);
    }

    /// Frees an extent: inside a write section of the frame that had it, or after one. O(size classes).
    ///
    /// It joins its buddy as long as that is free and whole, which makes one larger free extent of two.
    pub(crate) fn free(&mut self, extents: &Extents, at: u32, class: u32) {
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

    /// Whether a free extent of this class starts at unit `at`. A free extent of another class is no buddy.
    fn is_free(&self, extents: &Extents, at: u32, class: u32) -> bool {
        let word = self.starts.get(at as usize / 64).copied().unwrap_or(0);
        word >> (at % 64) & 1 == 1 && get(&extents.words(at, 2)[1]) == u64::from(class)
    }

    /// Puts a free extent at the head of its class's list.
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

    /// Takes a free extent out of its class's list.
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

    /// Bytes that an extent of this class may allocate from the system.
    pub(crate) fn growth_bytes(&self, class: u32) -> u64 {
        if self.first[class as usize..].iter().any(|&at| at != 0) {
            return 0;
        }
        // Alignment may waste as much as the extent has; the bits of `starts` add one hundredth.
        (2 * UNIT_WORDS * 8 + 2) as u64 * (1 << class) + 2 * self.starts.capacity().max(8) as u64 * 8
    }

    /// Bytes ever used for extents, and of `starts`.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.next()) * (UNIT_WORDS * 8) as u64 + self.starts.capacity() as u64 * 8
    }

    /// Bytes of the free extents. O(free extents): it follows every list, so only reports call it.
    pub(crate) fn free_bytes(&self, extents: &Extents) -> u64 {
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
        fn extents_do_not_overlap_and_freed_buddies_join(
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
            // Every possible join was made: at most two free extents per bit of the number of units
            // remain.
            let free_extents: u32 = extent_allocator.starts.iter().map(|word| word.count_ones()).sum();
            prop_assert!(free_extents <= 2 * u32::BITS);
            prop_assert_eq!(extent_allocator.free_bytes(&extents) / 16, u64::from(extent_allocator.end));
        }
    }
}
