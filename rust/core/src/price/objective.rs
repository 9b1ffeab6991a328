//! The user's goals, as weights of the toll's terms.
//!
//! The terms are delays of requests, and the weights say which delays matter more. Two weights trade metrics against
//! each other (`docs/reports/pricing.md` has the measurements). The busy-period weight improves the tail of TTFT and
//! costs E2E and goodput. The stall weight improves ITL. An objective is a mixture of four goals, and its weights are
//! the same mixture of the weights of the goals.

use serde::{Deserialize, Serialize};

use super::config::non_negative;
use crate::error::Error;

/// How much each goal counts. Only the ratios matter, and at least one goal must be above 0. The default
/// serves TTFT, mean and tail.
///
/// ```
/// use wardrop_core::price::Objective;
///
/// let mixed = Objective { ttft: 1.0, e2e: 1.0, ..Objective::default() };
/// let weights = mixed.weights()?;
/// assert_eq!(weights.busy, 0.5); // halfway between 1 for TTFT and 0 for E2E
/// # Ok::<(), wardrop_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// Time to first token, mean and tail.
    pub ttft: f64,
    /// Time between tokens.
    pub itl: f64,
    /// Time to the last token.
    pub e2e: f64,
    /// Goodput: share of requests within both limits below.
    pub goodput: f64,
    /// Longest TTFT that counts as good, seconds above 0.
    pub ttft_slo_s: f64,
    /// Longest ITL that counts as good, seconds above 0.
    pub itl_slo_s: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            ttft: 1.0,
            itl: 0.0,
            e2e: 0.0,
            goodput: 0.0,
            ttft_slo_s: 2.0,
            itl_slo_s: 0.05,
        }
    }
}

/// Weights of the toll's terms. [`super::toll`] has the formula. All are 0 or above, and a weight of 0 leaves
/// its term out.
///
/// They are not parameters of their own: users set goals, and a study chose the weights per goal
/// (`docs/reports/pricing.md`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TollWeights {
    /// Own first token.
    pub own: f64,
    /// Own decode.
    pub decode: f64,
    /// Stall of the requests in flight.
    pub stall: f64,
    /// Requests that arrive during the busy period.
    pub busy: f64,
    /// KV memory.
    pub memory: f64,
    /// Evicted tokens.
    pub eviction: f64,
}

/// TTFT, mean and tail. A stall delays tokens, not first tokens. At a weight of 1 it gathers long prompts
/// where few requests run, until the KV memory there is short. It therefore has half of that weight.
const TTFT: TollWeights = TollWeights {
    own: 1.0,
    decode: 1.0,
    stall: 0.5,
    busy: 1.0,
    memory: 3.0,
    eviction: 1.0,
};
/// Steady ITL: stalling a batch, or filling it, weighs more.
const ITL: TollWeights = TollWeights {
    own: 1.0,
    decode: 2.0,
    stall: 3.0,
    busy: 1.0,
    memory: 3.0,
    eviction: 1.0,
};
/// E2E: the sum of all times, without requests that have yet to arrive. Without the busy-period term, E2E and
/// goodput improve and the p99 of TTFT gets worse.
const E2E: TollWeights = TollWeights {
    own: 1.0,
    decode: 1.0,
    stall: 1.0,
    busy: 0.0,
    memory: 1.0,
    eviction: 0.1,
};
/// Goodput: as many requests as possible within the limits.
const GOODPUT: TollWeights = TollWeights {
    own: 1.0,
    decode: 1.0,
    stall: 1.0,
    busy: 0.5,
    memory: 3.0,
    eviction: 1.0,
};

impl Objective {
    /// The mixture of the weights of the goals.
    ///
    /// Goodput is itself a mixture with ITL, by the tighter limit: half of `ttft_slo / (ttft_slo + 100·itl_slo)` of
    /// it is ITL. An ITL limit of 20 ms binds like a TTFT limit of 2 s, hence the factor 100.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a negative or undefined weight, a limit that is not above 0, or no goal at all.
    pub fn weights(&self) -> Result<TollWeights, Error> {
        let shares = [
            non_negative("ttft", self.ttft)?,
            non_negative("itl", self.itl)?,
            non_negative("e2e", self.e2e)?,
            non_negative("goodput", self.goodput)?,
        ];
        for (field, limit_s) in [("ttft_slo_s", self.ttft_slo_s), ("itl_slo_s", self.itl_slo_s)] {
            if !(limit_s > 0.0 && limit_s.is_finite()) {
                return Err(Error::Parameter {
                    field,
                    got: limit_s.to_string(),
                    expected: "seconds above 0",
                });
            }
        }
        let total: f64 = shares.iter().sum();
        if total <= 0.0 {
            let (field, expected) = ("objective", "at least one goal above 0");
            return Err(Error::Parameter {
                field,
                got: "all 0".to_owned(),
                expected,
            });
        }
        let tight = self.ttft_slo_s / (self.ttft_slo_s + 100.0 * self.itl_slo_s);
        let goodput = GOODPUT.mixed(&ITL, 0.5 * tight);
        let goals = [TTFT, ITL, E2E, goodput];
        Ok(TollWeights::mixture(&goals, &shares.map(|share| share / total)))
    }
}

impl TollWeights {
    /// The mixture with a share of another goal's weights.
    fn mixed(&self, other: &Self, share: f64) -> Self {
        Self::mixture(&[*self, *other], &[1.0 - share, share])
    }

    /// The sum of the weights of the goals, each times its share. The shares add up to 1.
    fn mixture(goals: &[Self], shares: &[f64]) -> Self {
        let sum = |part: fn(&Self) -> f64| {
            goals
                .iter()
                .zip(shares)
                .map(|(goal, share)| share * part(goal))
                .sum()
        };
        Self {
            own: sum(|w| w.own),
            decode: sum(|w| w.decode),
            stall: sum(|w| w.stall),
            busy: sum(|w| w.busy),
            memory: sum(|w| w.memory),
            eviction: sum(|w| w.eviction),
        }
    }
}
