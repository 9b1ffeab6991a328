//! The longest match when it covers enough of the prompt, else the least loaded worker.
//!
//! Cache or load, never a mixture. At the threshold the choice jumps, so two prompts of nearly equal overlap
//! may be placed by different rules.

use serde::{Deserialize, Serialize};

use super::config::share;
use super::{Policy, View};
use crate::error::Error;
use crate::rng::Rng;

/// Parameters of [`TwoTier`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwoTierConfig {
    /// Share of the prompt that the best match must cover, 0 to 1.
    pub match_share: f64,
}

impl Default for TwoTierConfig {
    fn default() -> Self {
        Self { match_share: 0.5 }
    }
}

/// With `m` the best device overlap: cost = request blocks − device overlap if `m > 0` and `m · B ≥ match_share ·
/// input`. Otherwise cost = requests in flight.
///
/// Source: the cache-aware mode of `SGLang`'s router (its cache threshold), without its switch on imbalance.
#[derive(Clone, Debug)]
pub struct TwoTier {
    config: TwoTierConfig,
}

impl TwoTier {
    /// The policy.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: TwoTierConfig) -> Result<Self, Error> {
        share("match_share", config.match_share)?;
        Ok(Self { config })
    }
}

impl Policy for TwoTier {
    fn name(&self) -> &'static str {
        "two_tier"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        let best = view.best_device_blocks();
        if best > 0 && view.device_share(best) >= self.config.match_share {
            for (cost, &held) in costs.iter_mut().zip(view.device_blocks) {
                *cost = f64::from(view.request_blocks - held);
            }
        } else {
            for (cost, &requests) in costs.iter_mut().zip(view.active_requests) {
                *cost = f64::from(requests);
            }
        }
    }
}
