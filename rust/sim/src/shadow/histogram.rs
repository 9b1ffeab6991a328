//! The slow end: counts of times in bins of 2 %, added over ticks, and the 99 % point read off them.

/// Width of a bin, as a share.
const WIDTH: f64 = 0.02;
/// Times below this fall into the first bin, s.
const LEAST_S: f64 = 1e-4;
/// Above about 5,500 s everything falls into the last one.
const MOST_BINS: u16 = 900;
/// Fewer requests have no 99 % point worth the name.
const LEAST_COUNT: u64 = 100;

/// Bins with something in them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail(Vec<(u16, u32)>);

impl Tail {
    pub fn add(&mut self, seconds: f64) {
        let bin = (seconds.max(LEAST_S) / LEAST_S).ln() / WIDTH.ln_1p();
        let bin = (bin as u16).min(MOST_BINS);
        match self.0.binary_search_by_key(&bin, |(at, _)| *at) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (bin, 1)),
        }
    }

    /// The 99 % point of all of them together, s, to half a bin.
    pub fn p99_s<'a>(tails: impl Iterator<Item = &'a Self>) -> Option<f64> {
        let mut counts = [0u64; MOST_BINS as usize + 1];
        let mut total = 0;
        for (bin, count) in tails.flat_map(|tail| &tail.0) {
            counts[usize::from(*bin)] += u64::from(*count);
            total += u64::from(*count);
        }
        if total < LEAST_COUNT {
            return None;
        }
        let mut above = total - total.div_ceil(100);
        for (bin, count) in counts.iter().enumerate() {
            if *count > above {
                return Some(LEAST_S * (1.0 + WIDTH).powf(bin as f64 + 0.5));
            }
            above -= count;
        }
        None
    }
}

/// Standard error that the bins alone bring into the logarithm of a ratio of two 99 % points.
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
        let (mut tails, mut times) = (vec![Tail::default(); 7], Vec::new());
        for i in 0..5_000 {
            let seconds = 0.05 * (3.0 * rng.unit()).exp();
            tails[i % 7].add(seconds);
            times.push(seconds);
        }
        times.sort_by(f64::total_cmp);
        let p99 = Tail::p99_s(tails.iter()).expect("enough of them");
        assert!(
            (p99 / times[4_950] - 1.0).abs() < WIDTH,
            "{p99} against {}",
            times[4_950]
        );
        let few = (0..99).fold(Tail::default(), |mut tail, _| {
            tail.add(1.0);
            tail
        });
        assert_eq!(Tail::p99_s(std::iter::once(&few)), None);
    }

    #[test]
    fn nothing_falls_outside() {
        let mut tail = Tail::default();
        for seconds in [0.0, -1.0, f64::INFINITY, 1e9] {
            (0..50).for_each(|_| tail.add(seconds));
        }
        assert!(Tail::p99_s(std::iter::once(&tail)).is_some_and(f64::is_finite));
    }
}
