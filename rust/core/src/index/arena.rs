//! Words that never move, so that readers need no lock while one thread writes.
//!
//! A growing `Vec` moves its elements, and a reader on another thread would follow a freed pointer. An arena
//! grows by segments instead. Segment k has 2^(base + k) units. At most 32 segments hold any number of units,
//! locating a unit takes two shifts, and growth moves nothing. The system hands out zeroed memory that costs
//! nothing until the first access.
//!
//! Example with base 2. Segment 0 has the units 0 to 3, segment 1 the units 4 to 11, segment 2 the units 12
//! to 27. Unit 9 is found by adding 2^2: 13 = 0b1101. The highest bit (3) minus the base is segment 1, and
//! the remaining bits 0b101 are position 5 in it.
//!
//! Segments stand behind a `OnceLock`. Its `get` is an acquire load, so a reader that sees a segment sees its
//! zeroed words. Memory that was once used is kept for later units and never given back.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a cache line. Every segment starts at a cache line.
const LINE_WORDS: usize = 8;

/// One allocation of the arena. Its address stays the same until the arena is dropped.
#[derive(Debug)]
struct Segment {
    /// The words, with up to seven unused ones before `first`.
    ///
    /// The allocator aligns to 8 or 16 bytes. The unused words shift each unit of eight words to the start of
    /// a cache line, so that reading one unit costs one cache miss.
    words: Box<[AtomicU64]>,
    /// Index of the first word that starts a cache line.
    first: usize,
}

/// Units of `UNIT` words each, addressed by number.
#[derive(Debug)]
pub(crate) struct Arena<const UNIT: usize> {
    /// Binary logarithm of the units in the first segment.
    base: u32,
    /// The segments; a reader sees a segment once it is complete. Invariant: where a segment exists, all
    /// before it exist.
    segments: Box<[OnceLock<Segment>]>,
}

impl<const UNIT: usize> Arena<UNIT> {
    /// An empty arena whose first segment will have 2^`base` units.
    pub(crate) fn new(base: u32) -> Self {
        Self {
            base,
            segments: (0..=32 - base).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Allocates every segment that a unit below `end` needs.
    pub(crate) fn reserve(&self, end: u32) {
        let Some(last) = end.checked_sub(1) else { return };
        // Last segment first: where a segment exists, all segments before it exist.
        for segment in (0..=self.place(last).0).rev() {
            if self.segments[segment].get().is_some() {
                return;
            }
            self.segments[segment].get_or_init(|| {
                let words = bytemuck::zeroed_slice_box::<AtomicU64>(
                    (UNIT << (self.base as usize + segment)) + LINE_WORDS - 1,
                );
                // The address matters only for its position in a cache line: nothing is computed from it
                // later.
                let past_line = words.as_ptr() as usize / size_of::<u64>() % LINE_WORDS;
                Segment {
                    words,
                    first: (LINE_WORDS - past_line) % LINE_WORDS,
                }
            });
        }
    }

    /// Segment of a unit, and the unit's position inside it.
    ///
    /// The arithmetic cannot overflow, since the sum of two 32-bit numbers fits into 64 bits. It is free of
    /// checks because a match does little else.
    #[inline(always)]
    const fn place(&self, unit: u32) -> (usize, usize) {
        let shifted = (unit as u64).wrapping_add(1_u64.wrapping_shl(self.base));
        let top = 63 ^ shifted.leading_zeros();
        (
            top.wrapping_sub(self.base) as usize,
            (shifted ^ 1_u64.wrapping_shl(top)) as usize,
        )
    }

    /// `words` words from unit `unit` on. The units must be reserved and lie in one segment.
    ///
    /// Panics for a unit that was never reserved. Ids come from the allocators of this module, which reserve
    /// first.
    #[inline]
    pub(crate) fn slice(&self, unit: u32, words: usize) -> &[AtomicU64] {
        let (segment, at) = self.place(unit);
        let segment = self.segments[segment]
            .get()
            .expect("a unit must be reserved before its use");
        let from = segment.first + at * UNIT;
        &segment.words[from..from + words]
    }

    /// The words of `units` units from unit `unit` on, or `None` where they cross a segment. The units must
    /// be reserved.
    #[inline]
    pub(crate) fn run(&self, unit: u32, units: usize) -> Option<&[AtomicU64]> {
        let (segment, at) = self.place(unit);
        let words = self.segments[segment].get()?;
        (at + units <= 1 << (self.base as usize + segment)).then(|| {
            let from = words.first + at * UNIT;
            &words.words[from..from + units * UNIT]
        })
    }

    /// The words of a reserved unit. The hottest function of a match: one shift and two bounds checks.
    #[inline(always)]
    pub(crate) fn unit(&self, unit: u32) -> &[AtomicU64; UNIT] {
        let (segment, at) = self.place(unit);
        let segment = self.segments[segment]
            .get()
            .expect("a unit must be reserved before its use");
        &segment.words[segment.first..].as_chunks::<UNIT>().0[at]
    }
}

/// Low half of a word.
#[inline]
pub(crate) const fn low(word: u64) -> u32 {
    word as u32
}

/// High half of a word.
#[inline]
pub(crate) const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Word of two halves.
#[inline]
pub(crate) const fn pack(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Relaxed read, for the only writer, and for readers whose order a seqlock guarantees.
///
/// On x86 it is a plain load. The compiler may not combine two such loads into a vector load, which is the
/// price of having no `unsafe`.
#[inline]
pub(crate) fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// Relaxed write by the only writer, inside a write section of a [`super::seqlock`].
#[inline]
pub(crate) fn set(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

/// Replaces the low half of a word. Only for the only writer.
#[inline]
pub(crate) fn set_low(word: &AtomicU64, value: u32) {
    set(word, pack(value, high(get(word))));
}

/// Replaces the high half of a word. Only for the only writer.
#[inline]
pub(crate) fn set_high(word: &AtomicU64, value: u32) {
    set(word, pack(low(get(word)), value));
}
