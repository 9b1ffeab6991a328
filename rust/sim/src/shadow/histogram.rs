//! Histogram of times to first token in bins of 2 %, one per tick, from which the 99 % quantile is read.

/// Relative width of a bin.
const WIDTH: f64 = 0.02;
/// Lower end of the first bin, in seconds. Shorter times fall into the first bin.
const MIN_S: f64 = 1e-4;
/// Index of the last bin. Times above about 5,500 s fall into it.
const LAST_BIN: u16 = 900;
/// Fewer requests give no usable 99 % quantile.
const MIN_COUNT: u64 = 100;

/// Number of times in one bin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BinCount {
    bin: u16,
    count: u32,
}

/// Bins that are not empty, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram(Vec<BinCount>);

impl Histogram {
    /// Counts one time. O(log bins) for a bin that is not empty.
    pub fn add(&mut self, seconds: f64) {
        let bin = (seconds.max(MIN_S) / MIN_S).ln() / WIDTH.ln_1p();
        let bin = (bin as u16).min(LAST_BIN);
        match self.0.binary_search_by_key(&bin, |entry| entry.bin) {
            Ok(at) => self.0[at].count += 1,
            Err(at) => self.0.insert(at, BinCount { bin, count: 1 }),
        }
    }

    /// The 99 % quantile over several histograms, in seconds, exact to half a bin.
    pub fn p99_s<'a>(histograms: impl Iterator<Item = &'a Self>) -> Option<f64> {
        let mut counts = [0u64; LAST_BIN as usize + 1];
        let mut total = 0;
        for entry in histograms.flat_map(|histogram| &histogram.0) {
            counts[usize::from(entry.bin)] += u64::from(entry.count);
            total += u64::from(entry.count);
        }
        if total < MIN_COUNT {
            return None;
        }
        let mut above = total - total.div_ceil(100);
        for (bin, count) in counts.iter().enumerate() {
            if *count > above {
                return Some(MIN_S * (1.0 + WIDTH).powf(bin as f64 + 0.5));
            }
            above -= count;
        }
        None
    }
}

/// Standard error that the width of the bins adds to the logarithm of a ratio of two quantiles.
pub(super) fn bin_error() -> f64 {
    WIDTH.ln_1p() * (2.0f64 / 12.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardrop_core::rng::Rng;

    #[test]
    fn p99_is_that_of_the_sorted_times_within_a_bin() {
        let mut rng = Rng::new(3);
        let (mut histograms, mut times) = (vec![Histogram::default(); 7], Vec::new());
        for i in 0..5_000 {
            let seconds = 0.05 * (3.0 * rng.unit()).exp();
            histograms[i % 7].add(seconds);
            times.push(seconds);
        }
        times.sort_by(f64::total_cmp);
        let p99 = Histogram::p99_s(histograms.iter()).expect("enough of them");
        assert!(
            (p99 / times[4_950] - 1.0).abs() < WIDTH,
            "{p99} against {}",
            times[4_950]
        );
        let few = (0..99).fold(Histogram::default(), |mut histogram, _| {
            histogram.add(1.0);
            histogram
        });
        assert_eq!(Histogram::p99_s(std::iter::once(&few)), None);
    }

    #[test]
    fn every_value_falls_into_a_bin() {
        let mut histogram = Histogram::default();
        for seconds in [0.0, -1.0, f64::INFINITY, 1e9] {
            (0..50).for_each(|_| histogram.add(seconds));
        }
        assert!(Histogram::p99_s(std::iter::once(&histogram)).is_some_and(f64::is_finite));
    }
}
