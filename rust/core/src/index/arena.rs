//! Words at places that never move: what threads without a lock read while one of them writes.
//!
//! Segments double, so 32 of them hold any number of units, a place is two shifts, and growth moves nothing. Their memory comes
//! zeroed from the system and costs nothing until it is touched.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a cache line: segments start at one.
const LINE_WORDS: usize = 8;

#[derive(Debug)]
struct Segment {
    words: Box<[AtomicU64]>,
    /// The first word that starts a cache line.
    first: usize,
}

/// Units of `UNIT` words each, by number.
#[derive(Debug)]
pub struct Arena<const UNIT: usize> {
    /// Segment k has 2^(base + k) units.
    base: u32,
    segments: Box<[OnceLock<Segment>]>,
}

impl<const UNIT: usize> Arena<UNIT> {
    /// Nothing yet; the first segment has 2^`base` units.
    pub fn new(base: u32) -> Self {
        Self {
            base,
            segments: (0..=32 - base).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Makes sure that every unit below `end` has a place.
    pub fn reserve(&self, end: u32) {
        let Some(last) = end.checked_sub(1) else { return };
        for segment in (0..=self.place(last).0).rev() {
            if self.segments[segment].get().is_some() {
                return;
            }
            self.segments[segment].get_or_init(|| {
                let words = bytemuck::zeroed_slice_box::<AtomicU64>(
                    (UNIT << (self.base as usize + segment)) + LINE_WORDS - 1,
                );
                let past_line = words.as_ptr() as usize / size_of::<u64>() % LINE_WORDS;
                Segment {
                    words,
                    first: (LINE_WORDS - past_line) % LINE_WORDS,
                }
            });
        }
    }

    /// Segment, and unit in it. Nothing here can overflow: without checks, since a match asks for little else.
    #[inline(always)]
    const fn place(&self, unit: u32) -> (usize, usize) {
        let shifted = (unit as u64).wrapping_add(1_u64.wrapping_shl(self.base));
        let top = 63 ^ shifted.leading_zeros();
        (
            top.wrapping_sub(self.base) as usize,
            (shifted ^ 1_u64.wrapping_shl(top)) as usize,
        )
    }

    /// So many words from `unit` on, which must be reserved, all in one segment.
    #[inline]
    pub fn slice(&self, unit: u32, words: usize) -> &[AtomicU64] {
        let (segment, at) = self.place(unit);
        let segment = self.segments[segment]
            .get()
            .expect("a unit must be reserved before it is named");
        let from = segment.first + at * UNIT;
        &segment.words[from..from + words]
    }

    /// The words of `units` units from `unit` on, which must be reserved; `None` where they lie in two segments.
    #[inline]
    pub fn run(&self, unit: u32, units: usize) -> Option<&[AtomicU64]> {
        let (segment, at) = self.place(unit);
        let words = self.segments[segment].get()?;
        (at + units <= 1 << (self.base as usize + segment)).then(|| {
            let from = words.first + at * UNIT;
            &words.words[from..from + units * UNIT]
        })
    }

    /// The words of a unit, which must be reserved. What a match does most: one shift, two checks.
    #[inline(always)]
    pub fn unit(&self, unit: u32) -> &[AtomicU64; UNIT] {
        let (segment, at) = self.place(unit);
        let segment = self.segments[segment]
            .get()
            .expect("a unit must be reserved before it is named");
        &segment.words[segment.first..].as_chunks::<UNIT>().0[at]
    }
}

/// The low half of a word.
#[inline]
pub const fn low(word: u64) -> u32 {
    word as u32
}

/// The high half of a word.
#[inline]
pub const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// A word of two halves.
#[inline]
pub const fn pack(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The one writer's plain read, and a reader's where something else orders it.
#[inline]
pub fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// The one writer's plain write: inside a section of a [`super::seqlock`].
#[inline]
pub fn set(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

/// Replaces the low half. Only the one writer.
#[inline]
pub fn set_low(word: &AtomicU64, value: u32) {
    set(word, pack(value, high(get(word))));
}

/// Replaces the high half. Only the one writer.
#[inline]
pub fn set_high(word: &AtomicU64, value: u32) {
    set(word, pack(low(get(word)), value));
}
