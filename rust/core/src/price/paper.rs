//! The paper's policy (its Table 2): Dynamo's cost with parameters by regime.
//!
//! A price is pure, so one [`Paper`] prices in one regime. The router owns the [`RegimeController`] that
//! reads first tokens, and builds the [`Paper`] of the new regime on a change.
//!
//! It is here to be judged beside the others. On the workloads of this repository the switch does not win:
//! its temperature spreads requests regardless of the gap in cost (`docs/reports/paper`).

use serde::{Deserialize, Serialize};

use super::{Dynamo, DynamoConfig, Policy, View};
use crate::error::Error;
use crate::regime::{Regime, RegimeController, RegimeSettings};
use crate::rng::Rng;

/// Parameters of [`Paper`] and of its controller. The defaults are the paper's, where it gives them:
/// [`crate::regime`] has the meaning of (A) and (O).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaperConfig {
    /// Temperature τ below the knee, in transition, and saturated (A).
    pub temperatures: [f64; 3],
    /// Overlap weight ω in each regime (A). Dynamo maps the paper's `overlap_score_weight` onto `prefill_load_scale`.
    pub overlap_weights: [f64; 3],
    /// Multiples of the baseline p99 TTFT at which transition and saturated begin: 1.0 s and 10.0 s over 74
    /// ms (O). Ascending and above 1.
    pub enter: [f64; 2],
    /// Seconds between polls (A).
    pub poll_s: f64,
    /// Weight of a new poll in the smoothed p99 (O).
    pub smoothing: f64,
    /// Share of its threshold below which a regime is left (O).
    pub leave_share: f64,
    /// Polls in a row that a change needs (A: the count, O: its meaning).
    pub in_a_row: u32,
    /// Shortest stay in a regime, seconds (O).
    pub dwell_s: f64,
    /// The model's baseline p99 TTFT, seconds. Learned when absent (O).
    pub baseline_s: Option<f64>,
}

impl Default for PaperConfig {
    fn default() -> Self {
        Self {
            temperatures: [0.0, 0.7, 0.8],
            overlap_weights: [1.0, 1.0, 0.1],
            enter: [13.5, 135.0],
            poll_s: 5.0,
            smoothing: 0.3,
            leave_share: 0.8,
            in_a_row: 3,
            dwell_s: 30.0,
            baseline_s: None,
        }
    }
}

/// [`Dynamo`] with (τ, ω) of one regime: (0, 1) below, (0.7, 1) in transition, (0.8, 0.1) saturated.
///
/// A higher temperature spreads requests over more workers. A lower overlap weight lets the load decide
/// instead of the cache.
///
/// On the decode leg of a split ω has no effect, since a decode worker computes no prompt. With one prefill
/// worker it has none on the prefill leg either. Only τ acts there.
#[derive(Clone, Debug)]
pub struct Paper {
    rule: Dynamo,
}

impl Paper {
    /// The policy in one regime.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: &PaperConfig, regime: Regime) -> Result<Self, Error> {
        config.check()?;
        let rule = |at: usize| {
            Dynamo::new(DynamoConfig {
                router_temperature: config.temperatures[at],
                prefill_load_scale: config.overlap_weights[at],
                ..DynamoConfig::default()
            })
        };
        // All three are built, so that a value of another regime is refused at the start and not at a change.
        let [below, transition, saturated] = [rule(0)?, rule(1)?, rule(2)?];
        Ok(Self {
            rule: match regime {
                Regime::Below => below,
                Regime::Transition => transition,
                Regime::Saturated => saturated,
            },
        })
    }
}

impl PaperConfig {
    /// The controller that chooses the regime.
    pub fn controller(&self) -> RegimeController {
        RegimeController::new(RegimeSettings {
            poll_s: self.poll_s,
            smoothing: self.smoothing,
            enter: self.enter,
            leave_share: self.leave_share,
            in_a_row: self.in_a_row,
            dwell_s: self.dwell_s,
            baseline_s: self.baseline_s,
        })
    }

    /// Checks the parameters of the controller. [`Dynamo::new`] checks the others.
    fn check(&self) -> Result<(), Error> {
        let bad = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        let [transition, saturated] = self.enter;
        if !(1.0 < transition && transition < saturated && saturated.is_finite()) {
            let got = format!("{:?}", self.enter);
            return bad(
                "enter",
                got,
                "two multiples of the baseline, 1 < transition < saturated",
            );
        }
        for (field, value) in [("poll_s", Some(self.poll_s)), ("baseline_s", self.baseline_s)] {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return bad(field, value.to_string(), "finite seconds above 0");
            }
        }
        for (field, value) in [("smoothing", self.smoothing), ("leave_share", self.leave_share)] {
            if !(value > 0.0 && value <= 1.0) {
                return bad(field, value.to_string(), "a share above 0, at most 1");
            }
        }
        if !(self.dwell_s.is_finite() && self.dwell_s >= 0.0) {
            return bad("dwell_s", self.dwell_s.to_string(), "finite seconds, 0 or above");
        }
        if self.in_a_row == 0 {
            return bad("in_a_row", "0".to_owned(), "at least 1 poll");
        }
        Ok(())
    }
}

impl Policy for Paper {
    fn name(&self) -> &'static str {
        "paper"
    }

    fn price(&self, view: &View<'_>, rng: &mut Rng, costs: &mut [f64]) {
        self.rule.price(view, rng, costs);
    }

    fn reuse_weights(&self) -> Option<[f64; 2]> {
        self.rule.reuse_weights()
    }

    fn temperature(&self) -> f64 {
        self.rule.temperature()
    }
}
