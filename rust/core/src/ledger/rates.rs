//! How much work arrives: exponentially weighted rates, and a running mean.
//!
//! All rates of a ledger share one forward-decay clock (Cormode et al., "Forward decay", ICDE 2009): a weight w at time t is
//! stored as `w·e^((t − base)/h)`, so a query needs one exponential for all workers together, not one per worker.

/// Memory of the rates, seconds.
const HORIZON_S: f64 = 10.0;
/// A rate is not believed to be measured over less than this, seconds.
const MIN_SPAN_S: f64 = 1.0;
/// Rates older than this many horizons need no start-up correction.
const SETTLED: f64 = 12.0;
/// Stored weights are rebased before they lose their range.
const MAX_EXPONENT: f64 = 200.0;

/// The shared clock of a set of rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecayClock {
    base_s: f64,
    newest_s: f64,
}

impl DecayClock {
    /// Advances to `now_s`; when the stored weights must be scaled, the factor to scale them by. Time never runs backwards.
    pub fn advance(&mut self, now_s: f64) -> Option<f64> {
        self.newest_s = self.newest_s.max(now_s);
        let exponent = (self.newest_s - self.base_s) / HORIZON_S;
        if exponent < MAX_EXPONENT {
            return None;
        }
        self.base_s = self.newest_s;
        Some((-exponent).exp())
    }

    /// What a weight of 1 at the newest time is stored as.
    pub fn weight(&self) -> f64 {
        ((self.newest_s - self.base_s) / HORIZON_S).exp()
    }
}

/// A rate per second over the last [`HORIZON_S`] or so, unbiased from the first event on.
///
/// `rate = Σ weight·e^(−age/h) / (h·(1 − e^(−t/h)))`, t = time since the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    stored: f64,
    since_s: Option<f64>,
}

impl Rate {
    /// Counts `amount` at the clock's newest time, `unit` being [`DecayClock::weight`]. Whether it was the first.
    pub fn add(&mut self, amount: f64, unit: f64, now_s: f64) -> bool {
        self.stored += amount * unit;
        self.since_s.replace(self.since_s.unwrap_or(now_s)).is_none()
    }

    /// The decayed sum: `stored ÷ (unit_per_s · seen)` is the rate.
    pub const fn stored(&self) -> f64 {
        self.stored
    }

    /// What a rate of 1 per second comes to as a decayed sum, once the horizon is seen. `unit` is [`DecayClock::weight`].
    pub fn unit_per_s(unit: f64) -> f64 {
        unit * HORIZON_S
    }

    /// Applies a factor of [`DecayClock::advance`].
    pub fn rebase(&mut self, factor: f64) {
        self.stored *= factor;
    }

    /// Amount per second at `now_s`, `unit` being [`DecayClock::weight`] of that time.
    pub fn per_s(&self, unit: f64, now_s: f64) -> f64 {
        self.stored / (Self::unit_per_s(unit) * self.seen(now_s))
    }

    /// How much of the horizon was seen by `now_s`: 1 − e^(−t/h), and 1 when nothing came yet.
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

/// A running mean: plain at first, then over about [`MEMORY`] values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunningMean {
    value: f64,
    seen: f64,
}

const MEMORY: f64 = 500.0;
/// Values that the starting guess is worth.
const GUESS_WEIGHT: f64 = 5.0;

impl RunningMean {
    /// Starts at a guess that a few values displace.
    pub const fn new(guess: f64) -> Self {
        Self {
            value: guess,
            seen: GUESS_WEIGHT,
        }
    }

    /// Takes in one value.
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
