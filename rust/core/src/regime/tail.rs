//! The 99th percentile of a latency in bounded memory.
//!
//! A histogram with buckets of equal ratio: the error is relative, so one histogram serves models of 10 ms
//! and of 10 s. O(1) per value, O(buckets) per percentile. 448 counts take 1.8 kB.

/// Counts per 1/64 of a decade from 0.1 ms to 1,000 s. A percentile is right within 2 %.
#[derive(Clone, Debug)]
pub(super) struct TailHistogram {
    /// Values by bucket: bucket i holds values from `LOWEST_S`·10^(i/64) on.
    counts: Vec<u32>,
    /// Sum of the counts.
    total: u32,
}

impl Default for TailHistogram {
    fn default() -> Self {
        Self {
            counts: vec![0; Self::BUCKETS],
            total: 0,
        }
    }
}

impl TailHistogram {
    /// Lower bound of the first bucket, seconds. Shorter values count there.
    const LOWEST_S: f64 = 1e-4;
    /// Buckets per factor of 10: the width of a bucket is 3.7 %, so its middle is within 2 % of any value in it.
    const PER_DECADE: f64 = 64.0;
    /// Seven decades, up to 1,000 s. Longer values count in the last bucket.
    const BUCKETS: usize = 7 * 64;

    /// Counts one value, seconds.
    pub fn add(&mut self, value_s: f64) {
        let at = ((value_s.max(Self::LOWEST_S) / Self::LOWEST_S).log10() * Self::PER_DECADE) as usize;
        let at = at.min(Self::BUCKETS - 1);
        self.counts[at] = self.counts[at].saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// The 99th percentile, seconds, of the values since the last call. `None` without any.
    ///
    /// It is the middle of the bucket with the value of rank ⌈0.99 · n⌉. With fewer than 100 values that is
    /// the largest one.
    pub fn take_p99_s(&mut self) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = (f64::from(self.total) * 0.99).ceil();
        let mut passed = 0.0;
        let at = self.counts.iter().position(|&count| {
            passed += f64::from(count);
            passed >= rank
        });
        self.counts.fill(0);
        self.total = 0;
        let middle = at.unwrap_or(Self::BUCKETS - 1) as f64 + 0.5;
        Some(Self::LOWEST_S * 10_f64.powf(middle / Self::PER_DECADE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_the_tail_within_two_percent() {
        let mut seen = TailHistogram::default();
        for i in 1..=1000 {
            seen.add(f64::from(i) * 1e-3);
        }
        let p99_s = seen.take_p99_s().expect("values");
        assert!((p99_s / 0.99 - 1.0).abs() < 0.02, "{p99_s}");
        assert_eq!(seen.take_p99_s(), None);
    }
}
