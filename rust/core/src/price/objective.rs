//! What the user wants, mapped onto the weights of the toll's terms.
//!
//! The terms are physics; what to trade for what is not. Two knobs of the toll trade metrics against each other (see the
//! measurements in `docs/pricing.md`): the weight of the busy period buys tail TTFT with E2E and goodput, and the weight of
//! stalling buys ITL. An objective is a mixture of four goals, and its weights are the same mixture of theirs.

use serde::{Deserialize, Serialize};

use super::config::non_negative;
use crate::error::Error;

/// How much each goal counts. Only the ratios matter; all 0 is refused. The default serves the first token, its tail
/// included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// Time to first token, mean and tail.
    pub ttft: f64,
    /// Time between tokens.
    pub itl: f64,
    /// Time to the last token.
    pub e2e: f64,
    /// Share of requests within both limits below.
    pub goodput: f64,
    /// Limit of the time to first token that counts as good, seconds.
    pub ttft_slo_s: f64,
    /// Limit of the time between tokens that counts as good, seconds.
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

/// Weights of the toll's terms; see [`super::toll`]'s formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TollWeights {
    /// Own first token.
    pub own: f64,
    /// Own decode.
    pub decode: f64,
    /// Stall of those in flight.
    pub stall: f64,
    /// Arrivals of the busy period.
    pub busy: f64,
    /// KV memory.
    pub memory: f64,
    /// Evicted tokens.
    pub eviction: f64,
}

/// Tail TTFT. A stall delays tokens, not first tokens, and at its full price it gathers long prompts where few requests run
/// until the KV memory there is short: half of it.
const TTFT: TollWeights = TollWeights {
    own: 1.0,
    decode: 1.0,
    stall: 0.5,
    busy: 1.0,
    memory: 3.0,
    eviction: 1.0,
};
/// Steady tokens: what stalls a batch or fills it weighs more.
const ITL: TollWeights = TollWeights {
    own: 1.0,
    decode: 2.0,
    stall: 3.0,
    busy: 1.0,
    memory: 3.0,
    eviction: 1.0,
};
/// The sum of all times: no future arrivals.
const E2E: TollWeights = TollWeights {
    own: 1.0,
    decode: 1.0,
    stall: 1.0,
    busy: 0.0,
    memory: 1.0,
    eviction: 0.1,
};
/// As many as possible inside the limits.
const GOODPUT: TollWeights = TollWeights {
    own: 1.0,
    decode: 1.0,
    stall: 1.0,
    busy: 0.5,
    memory: 3.0,
    eviction: 1.0,
};

impl Objective {
    /// The mixture of the goals' weights.
    ///
    /// Under goodput the tighter limit decides the mixture with ITL: a share `ttft_slo / (ttft_slo + 100·itl_slo)` of
    /// the goal, since a limit of 20 ms between tokens binds like one of 2 s to the first.
    ///
    /// Errors: [`Error::Parameter`] for a negative or undefined weight, a limit that is not above 0, or no goal at all.
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
    fn mixed(&self, other: &Self, share: f64) -> Self {
        Self::mixture(&[*self, *other], &[1.0 - share, share])
    }

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
