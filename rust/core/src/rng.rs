//! The only source of randomness: a seeded generator, so that equal calls give equal answers.
//!
//! `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014): 64 bits of state, equidistributed, more than enough for
//! the ties and samples of a router.

/// Seeded generator of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    /// State of the generator.
    state: u64,
}

impl Rng {
    /// Generator that gives the same numbers for the same seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Next 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform number in `0..n`, for `n` above 0. The bias is below n / 2⁶⁴.
    pub fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0, "n must be above 0");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform number in [0, 1).
    pub const fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}
