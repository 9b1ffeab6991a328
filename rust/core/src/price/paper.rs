//! The paper's controller (its Table 2) over Dynamo's cost.

use serde::{Deserialize, Serialize};

use super::polls::{PaperRegime, PollSettings, Polls, RegimeChange};
use super::{Dynamo, DynamoConfig, Policy, View};
use crate::error::Error;
use crate::rng::Rng;

/// Parameters of [`Paper`]; the defaults are the paper's, where it gives them. See [`super::polls`] for whose each one is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaperConfig {
    /// Temperature τ below, in transition, and saturated [A].
    pub temperatures: [f64; 3],
    /// Overlap weight ω in each [A]. Today's Dynamo maps the paper's `overlap_score_weight` onto `prefill_load_scale`.
    pub overlap_weights: [f64; 3],
    /// Multiples of the baseline p99 TTFT at which transition and saturated begin: 1.0 s and 10.0 s over 74 ms [O].
    pub enter: [f64; 2],
    /// Seconds between polls [A].
    pub poll_s: f64,
    /// EWMA factor of the polled p99 [O].
    pub smoothing: f64,
    /// Share of its threshold below which a regime is left [O].
    pub leave_share: f64,
    /// Polls in a row that a change needs [A for the count, O for its meaning].
    pub in_a_row: u32,
    /// Shortest stay in a regime, seconds [O].
    pub dwell_s: f64,
    /// The model's baseline p99 TTFT, seconds; learned when absent [O].
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

/// [`Dynamo`] with (τ, ω) by regime: (0, 1) below, (0.7, 1) in transition, (0.8, 0.1) saturated.
///
/// The regime comes from first tokens ([`Policy::first_token`]), as [`Polls`] has it. In a split ω is inert on the decode leg,
/// which computes no prompt, and with one prefill worker on the other leg too: there only τ acts.
#[derive(Clone, Debug)]
pub struct Paper {
    polls: Polls,
    rules: [Dynamo; 3],
}

impl Paper {
    /// Refuses parameters out of range.
    pub fn new(config: &PaperConfig) -> Result<Self, Error> {
        config.check()?;
        let rule = |regime: usize| {
            Dynamo::new(DynamoConfig {
                router_temperature: config.temperatures[regime],
                prefill_load_scale: config.overlap_weights[regime],
                ..DynamoConfig::default()
            })
        };
        Ok(Self {
            polls: Polls::new(PollSettings {
                poll_s: config.poll_s,
                smoothing: config.smoothing,
                enter: config.enter,
                leave_share: config.leave_share,
                in_a_row: config.in_a_row,
                dwell_s: config.dwell_s,
                baseline_s: config.baseline_s,
            }),
            rules: [rule(0)?, rule(1)?, rule(2)?],
        })
    }

    fn rule(&self) -> &Dynamo {
        &self.rules[match self.polls.regime() {
            PaperRegime::Below => 0,
            PaperRegime::Transition => 1,
            PaperRegime::Saturated => 2,
        }]
    }
}

impl PaperConfig {
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
        self.rule().price(view, rng, costs);
    }

    fn reuse_weights(&self) -> Option<[f64; 2]> {
        self.rule().reuse_weights()
    }

    fn temperature(&self) -> f64 {
        self.rule().temperature()
    }

    fn first_token(&mut self, ttft_s: f64, now_s: f64) {
        self.polls.first_token(ttft_s, now_s);
    }

    fn advance(&mut self, now_s: f64) {
        self.polls.advance(now_s);
    }

    fn regime_changes(&self) -> Vec<RegimeChange> {
        self.polls.changes().collect()
    }
}
