//! Sets of worker slots as words of bits: bit i of word w stands for slot 64·w + i.
//!
//! The same words serve as masks of blocks in a frame: bit i stands for block i. For a fleet of up to 64
//! workers a set is one word, and every set operation is one instruction.
//!
//! Example: slots 0, 2 and 65 are `[0b101, 0b10]`.

/// Word with the lowest `len` bits set; all bits for `len` of 64 or more. A plain shift by 64 would overflow.
#[inline]
pub(crate) const fn low_bits(len: u32) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}

/// Positions of the set bits, lowest first. O(set bits): each step clears the lowest set bit.
#[inline]
pub(crate) fn bits(mut word: u64) -> impl Iterator<Item = u32> + Clone {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros();
            word &= word - 1;
            bit
        })
    })
}

/// Set of the first `slots` slots, at least one word long.
pub fn all_slots(slots: usize) -> Vec<u64> {
    let words = slots.div_ceil(64).max(1);
    (0..words)
        .map(|at| low_bits(slots.saturating_sub(at * 64).min(64) as u32))
        .collect()
}
