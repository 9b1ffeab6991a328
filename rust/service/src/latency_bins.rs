//! Counts of latencies in narrow bins, from which the live page computes percentiles over any interval.
//!
//! An answer adds its times here beside the Prometheus histograms, whose wide buckets make coarse percentiles.
//! Each octave between 8 µs and 137 s has eight bins of one width, as in `HdrHistogram`. The middle of a bin differs from each
//! time in the bin by at most 6.25 %. Adding a time is O(1): a shift and one relaxed addition.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// The lowest octave begins at 2⁻¹⁷ s, which are 7.6 µs. Shorter times count in the first bin.
const LOWEST_OCTAVE: u64 = 17;
/// Octaves with bins. Times of 2⁷ s and more count in the last bin.
const OCTAVES: usize = 24;
/// Bits of the mantissa that choose a bin within an octave: 2³ bins.
const BIN_BITS: u32 = 3;
/// Number of bins.
const BINS: usize = OCTAVES << BIN_BITS;
/// Exponent bias of an `f64`.
const BIAS: u64 = 1023;

/// A bin with its count, serialised as a list of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "(f64, u64)")]
pub(crate) struct BinCount {
    /// Middle of the bin, in seconds.
    pub middle_s: f64,
    /// Times in the bin since the start, above 0.
    pub count: u64,
}

impl From<BinCount> for (f64, u64) {
    fn from(bin: BinCount) -> Self {
        (bin.middle_s, bin.count)
    }
}

/// Counts of times in seconds since the start.
pub(crate) struct LatencyBins([AtomicU64; BINS]);

impl Default for LatencyBins {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BINS])
    }
}

impl LatencyBins {
    /// Counts one time. A negative or undefined time counts in the first bin.
    pub fn observe(&self, seconds: f64) {
        self.0[bin_of(seconds)].fetch_add(1, Ordering::Relaxed);
    }

    /// The bins with a count, ascending; at most 192 bins.
    pub fn counts(&self) -> Vec<BinCount> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        let bins = counts.enumerate().filter(|&(_, count)| count > 0);
        bins.map(|(bin, count)| BinCount {
            middle_s: middle_s(bin),
            count,
        })
        .collect()
    }
}

/// TTFT and ITL of the streamed answers of one model.
#[derive(Default)]
pub(crate) struct StreamLatency {
    /// Time to first token.
    pub ttft: LatencyBins,
    /// Time between two pieces of an answer.
    pub itl: LatencyBins,
}

/// Exponent and leading mantissa bits of the lower edge of the first bin.
const LOWEST_PLACE: u64 = (BIAS - LOWEST_OCTAVE) << BIN_BITS;
/// Bits of an `f64` below the bits that choose a bin.
const LOW_BITS: u32 = f64::MANTISSA_DIGITS - 1 - BIN_BITS;

/// Bin of a time. The leading bits of an `f64` are its octave and its place in the octave, so a
/// shift finds the bin.
fn bin_of(seconds: f64) -> usize {
    if seconds.is_nan() || seconds <= 0.0 {
        return 0;
    }
    let place = (seconds.to_bits() >> LOW_BITS).saturating_sub(LOWEST_PLACE);
    usize::try_from(place).unwrap_or(BINS).min(BINS - 1)
}

/// Middle of a bin, in seconds.
fn middle_s(bin: usize) -> f64 {
    let edge_s = |bin: u64| f64::from_bits((LOWEST_PLACE + bin) << LOW_BITS);
    f64::midpoint(edge_s(bin as u64), edge_s(bin as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_bin_is_within_a_sixteenth_of_every_time_in_it() {
        for step in 0..20_000 {
            let seconds = 8e-6 * 1.000_8_f64.powi(step);
            if seconds < 128.0 {
                let middle = middle_s(bin_of(seconds));
                assert!(
                    (middle / seconds - 1.0).abs() <= 0.0625 + 1e-12,
                    "{seconds} in {middle}"
                );
            }
        }
    }

    #[test]
    fn times_outside_the_range_count_at_its_ends() {
        for (seconds, bin) in [
            (f64::NAN, 0),
            (-1.0, 0),
            (0.0, 0),
            (1e-300, 0),
            (1e9, BINS - 1),
            (f64::INFINITY, BINS - 1),
        ] {
            assert_eq!(bin_of(seconds), bin, "{seconds}");
        }
    }

    #[test]
    fn only_bins_with_a_count_are_listed_in_order() {
        let bins = LatencyBins::default();
        for seconds in [0.5, 0.01, 0.5] {
            bins.observe(seconds);
        }
        let counts = bins.counts();
        assert_eq!([counts[0].count, counts[1].count], [1, 2]);
        assert!(counts[0].middle_s < counts[1].middle_s);
        assert_eq!(counts.len(), 2);
    }
}
