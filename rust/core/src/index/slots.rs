//! Sets of worker slots as words of bits: bit i of word w stands for slot 64·w + i.

/// Word with the lowest `len` bits set; all bits for `len` of 64 or more.
#[inline]
pub(crate) const fn low_bits(len: u32) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}

/// Positions of the set bits, lowest first.
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
