//! How much work arrives: exponentially weighted rates.

/// A rate per second over the last `HORIZON_S` seconds or so, unbiased from the first event on.
///
/// `rate = Σ weight·e^(−age/h) / (h·(1 − e^(−t/h)))`, t = time since the first event. O(1).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    sum: f64,
    last_s: f64,
    since_s: Option<f64>,
}

/// Memory of the rates, seconds.
const HORIZON_S: f64 = 10.0;
/// A rate is not believed to be measured over less than this, seconds.
const MIN_SPAN_S: f64 = 1.0;

impl Rate {
    /// Counts `weight` at `now_s`; time that runs backwards counts as no time.
    pub fn add(&mut self, weight: f64, now_s: f64) {
        self.sum = self.sum * decay(now_s - self.last_s) + weight;
        self.last_s = self.last_s.max(now_s);
        self.since_s.get_or_insert(now_s);
    }

    /// Weight per second at `now_s`.
    pub fn per_s(&self, now_s: f64) -> f64 {
        let Some(since_s) = self.since_s else {
            return 0.0;
        };
        let span_s = (now_s - since_s).max(MIN_SPAN_S);
        self.sum * decay(now_s - self.last_s) / (HORIZON_S * (1.0 - decay(span_s)))
    }
}

fn decay(age_s: f64) -> f64 {
    (-age_s.max(0.0) / HORIZON_S).exp()
}

/// A running mean: plain at first, then over about `MEMORY` values.
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
