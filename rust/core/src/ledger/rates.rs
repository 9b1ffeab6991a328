//! Exponentially weighted rates of arriving work, and a running mean.
//!
//! All rates of a ledger share one forward-decay clock (Cormode et al., "Forward decay", ICDE 2009). An
//! amount w at time t is stored as `w·e^((t − base)/h)`. A query then needs one exponential for all workers
//! together, and not one per worker.

/// Horizon h of the rates, seconds.
const HORIZON_S: f64 = 10.0;
/// Shortest time that a rate is measured over, seconds.
const MIN_SPAN_S: f64 = 1.0;
/// Horizons after which a rate needs no start-up correction.
const SETTLED: f64 = 12.0;
/// Largest exponent of a stored amount. Amounts are rebased before a 64-bit float overflows.
///
/// At 200 horizons an amount of 1 is stored as e²⁰⁰, about 10⁸⁷, which leaves room for sums below 10³⁰⁸.
const MAX_EXPONENT: f64 = 200.0;

/// The clock that a set of rates shares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct DecayClock {
    /// Time at which an amount of 1 is stored as 1, seconds.
    base_s: f64,
    /// The latest time seen, seconds.
    newest_s: f64,
}

impl DecayClock {
    /// Advances to `now_s`. Returns the factor to rebase every rate by, when one is needed. Time never runs backwards.
    pub fn advance(&mut self, now_s: f64) -> Option<f64> {
        self.newest_s = self.newest_s.max(now_s);
        let exponent = (self.newest_s - self.base_s) / HORIZON_S;
        if exponent < MAX_EXPONENT {
            return None;
        }
        self.base_s = self.newest_s;
        Some((-exponent).exp())
    }

    /// What an amount of 1 at the newest time is stored as.
    pub fn weight(&self) -> f64 {
        ((self.newest_s - self.base_s) / HORIZON_S).exp()
    }
}

/// A rate per second over the last [`HORIZON_S`] or so, unbiased from the first event on.
///
/// `rate = Σ weight·e^(−age/h) / (h·(1 − e^(−t/h)))`, t = time since the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// Σ amount · e^((time − base) / h).
    stored: f64,
    /// When the first amount came. `None` before it.
    since_s: Option<f64>,
}

impl Rate {
    /// Counts `amount` at the newest time of the clock. `weight` is [`DecayClock::weight`]. Returns whether the
    /// amount was the first.
    pub fn add(&mut self, amount: f64, weight: f64, now_s: f64) -> bool {
        self.stored += amount * weight;
        self.since_s.replace(self.since_s.unwrap_or(now_s)).is_none()
    }

    /// The decayed sum. The rate is `stored ÷ (unit_per_s · seen)`.
    pub const fn stored(&self) -> f64 {
        self.stored
    }

    /// The decayed sum of a rate of 1 per second, once the whole horizon was seen. `weight` is [`DecayClock::weight`].
    pub fn unit_per_s(weight: f64) -> f64 {
        weight * HORIZON_S
    }

    /// Applies the factor of [`DecayClock::advance`].
    pub fn rebase(&mut self, factor: f64) {
        self.stored *= factor;
    }

    /// Amount per second at `now_s`. `weight` is [`DecayClock::weight`] of that time.
    pub fn per_s(&self, weight: f64, now_s: f64) -> f64 {
        self.stored / (Self::unit_per_s(weight) * self.seen(now_s))
    }

    /// Share of the horizon seen by `now_s`: 1 − e^(−t/h), and 1 before the first amount.
    pub fn seen(&self, now_s: f64) -> f64 {
        let Some(since_s) = self.since_s else {
            return 1.0;
        };
        let spans = (now_s - since_s).max(MIN_SPAN_S) / HORIZON_S;
        if spans > SETTLED {
            1.0
        } else {
            1.0 - (-spans).exp()
        }
    }
}

/// A running mean: plain at first, then over about the last 500 values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RunningMean {
    /// The mean so far.
    value: f64,
    /// Values counted, at most [`MEMORY`], with the first guess as several of them.
    seen: f64,
}

/// Memory of the mean, values.
const MEMORY: f64 = 500.0;
/// Weight of the first guess, in values.
const GUESS_WEIGHT: f64 = 5.0;

impl RunningMean {
    /// A mean that starts at a guess, which a few values displace.
    pub const fn new(guess: f64) -> Self {
        Self {
            value: guess,
            seen: GUESS_WEIGHT,
        }
    }

    /// Counts one value.
    pub fn add(&mut self, value: f64) {
        self.seen = (self.seen + 1.0).min(MEMORY);
        self.value += (value - self.value) / self.seen;
    }

    /// The mean.
    pub const fn value(&self) -> f64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_right_at_once_and_survives_rebasing() {
        let mut clock = DecayClock::default();
        let mut rate = Rate::default();
        for i in 0..100_000_u32 {
            let now_s = 1e6 + f64::from(i) * 0.1;
            if let Some(factor) = clock.advance(now_s) {
                rate.rebase(factor);
            }
            rate.add(1.0, clock.weight(), now_s);
            if i > 100 && i % 997 == 0 {
                let found = rate.per_s(clock.weight(), now_s);
                assert!((found - 10.0).abs() < 0.2, "{found} after {i}");
            }
        }
        let later_s = 1e6 + 10_000.0 + 20.0;
        if let Some(factor) = clock.advance(later_s) {
            rate.rebase(factor);
        }
        let found = rate.per_s(clock.weight(), later_s);
        assert!((found / 10.0 - (-2.0_f64).exp()).abs() < 0.02, "{found}");
    }
}
