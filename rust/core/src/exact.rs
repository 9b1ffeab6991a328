//! Exact conversions of counts to floats that vectorise well, and floats as ordered keys.
//!
//! Prices are floats and loads are counts, so a decision converts a dozen counts per candidate. The
//! conversion of an unsigned integer is slow on most processors. Bounds that hold by configuration make two
//! cheaper ones exact: [`crate::request::MAX_INPUT_TOKENS`] and the limit of bookings keep every sum of
//! tokens below 2⁵².
//!
//! A conversion without a branch also lets the compiler convert several candidates at a time.

/// Converts a count below 2³¹. As a signed number it takes one instruction; an unsigned number takes five.
#[inline(always)]
pub(crate) fn small_f64(count: u32) -> f64 {
    debug_assert!(count < 1 << 31, "a count of blocks or requests must be below 2³¹");
    f64::from(count.cast_signed())
}

/// Converts a count below 2⁵². The bits of 2⁵² + count contain the count, so no conversion instruction is
/// needed.
#[inline(always)]
pub(crate) fn large_f64(count: u64) -> f64 {
    const TWO_52: f64 = 4_503_599_627_370_496.0;
    debug_assert!(
        count < 1 << 52,
        "a count of tokens or blocks in flight must be below 2⁵²"
    );
    f64::from_bits(count | TWO_52.to_bits()) - TWO_52
}

/// Maps a number that is not NaN to an integer of the same order.
///
/// Positive floats order like their bits; negative ones order backwards, so their bits are inverted. It makes
/// times usable as keys of sorted sets.
pub(crate) fn ordered(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_up_to_their_bounds() {
        for count in [0, 1, 7, (1 << 31) - 1] {
            assert_eq!(small_f64(count), f64::from(count));
        }
        for count in [0, 1, 12_345_678_901, (1 << 52) - 1] {
            assert_eq!(large_f64(count), count as f64);
        }
    }
}
