//! How well a prediction fits what is observed, beside the prediction that needs no model: the recent mean.
//!
//! ```text
//! error     = decayed mean of |ln(observed / predicted)|,            each at most ln 8
//! reference = decayed mean of |ln(observed / geometric mean so far)|, each at most ln 8
//! ```
//!
//! Both are means over the same observations, and each prediction is judged before it learns. Logarithms make an error by a
//! factor of two the same for a short and for a long time. O(1) per observation, no allocation.
//!
//! Source of the comparison with a reference: the skill score against climatology of forecast verification
//! (Murphy 1988), with a bounded absolute error of logarithms for the squared error.

/// Most that one observation counts: ln 8. A stall of one request then says no more than that.
const LN_ERROR_MAX: f64 = 2.079_441_541_679_835_7;
/// Observations over which errors are averaged: an observation counts 127/128 of the observation after it.
const WINDOW: f64 = 128.0;
/// First observations that are no evidence: a router without samples has curves that are a guess, and they teach it.
const TEACHING: u32 = 64;

/// A time that came, beside the time that was predicted for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Observation {
    /// Seconds that were predicted; infinite on a worker without memory.
    pub predicted_s: f64,
    /// Seconds that were observed, finite.
    pub observed_s: f64,
}

/// Decayed errors over the recent observations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fit {
    /// Observations so far that are evidence, saturating.
    count: u32,
    /// Observations so far that only taught, at most [`TEACHING`].
    taught: u32,
    /// Observations since the last change of the guard, saturating.
    since_change: u32,
    /// Error of the prediction, 0 to ln 8.
    error: f64,
    /// Error of the recent geometric mean as a prediction, 0 to ln 8.
    reference: f64,
    /// Mean of ln(observed / predicted): above 0 where the prediction is too low.
    bias: f64,
    /// Mean of ln(observed).
    ln_mean: f64,
}

impl Fit {
    /// Adds an observation. A time of 0 has no logarithm and says nothing.
    pub fn observe(&mut self, seen: &Observation) {
        if seen.predicted_s.is_nan() || seen.predicted_s <= 0.0 || seen.observed_s <= 0.0 {
            return;
        }
        let observed = seen.observed_s.ln();
        let ratio = observed - seen.predicted_s.ln();
        let follow = |mean: &mut f64, value: f64, share: f64| *mean += (value - *mean) * share;
        if self.taught < TEACHING {
            self.taught += 1;
            follow(&mut self.ln_mean, observed, 1.0 / f64::from(self.taught));
            return;
        }
        self.count = self.count.saturating_add(1);
        self.since_change = self.since_change.saturating_add(1);
        let share = 1.0 / f64::from(self.count).min(WINDOW);
        follow(&mut self.error, ratio.abs().min(LN_ERROR_MAX), share);
        let from_mean = (observed - self.ln_mean).abs().min(LN_ERROR_MAX);
        follow(&mut self.reference, from_mean, share);
        follow(&mut self.bias, ratio.clamp(-LN_ERROR_MAX, LN_ERROR_MAX), share);
        follow(&mut self.ln_mean, observed, 1.0 / WINDOW);
    }

    /// Observations since the last change of the guard.
    pub const fn since_change(&self) -> u32 {
        self.since_change
    }

    /// The guard changed: evidence is counted from now on.
    pub const fn changed(&mut self) {
        self.since_change = 0;
    }

    /// Whether the prediction is far off, and worse than the recent mean: `error > least` and `error > factor · reference`.
    pub fn is_off(&self, least: f64, factor: f64) -> bool {
        self.error > least && self.error > factor * self.reference
    }

    /// The figures as factors between two times.
    pub fn report(&self) -> FitReport {
        FitReport {
            observations: self.count,
            error_factor: self.error.exp(),
            reference_factor: self.reference.exp(),
            bias_factor: self.bias.exp(),
        }
    }
}

/// How well one kind of time is predicted, as factors. Each factor is 1 without evidence.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct FitReport {
    /// Observations so far that are evidence: all but the first 64.
    pub observations: u32,
    /// Typical factor between the predicted and the observed time, 1 to 8.
    pub error_factor: f64,
    /// Typical factor between the recent geometric mean and the observed time, 1 to 8.
    pub reference_factor: f64,
    /// Geometric mean of observed over predicted time: above 1 where predictions are too low.
    pub bias_factor: f64,
}
