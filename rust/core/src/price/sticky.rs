//! Prefix affinity: among the workers with nearly the best overlap, the worker with the least prefill in
//! flight.
//!
//! Affinity first, load second. Without a minimum share, any shared system prompt makes the first worker that
//! holds it the only candidate, and all traffic goes there.

use serde::{Deserialize, Serialize};

use super::config::share;
use super::{Policy, View};
use crate::error::Error;
use crate::rng::Rng;

/// Parameters of [`Sticky`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StickyConfig {
    /// Share of the best overlap that a worker needs to stay a candidate, 0 to 1.
    pub keep_share: f64,
    /// Share of the prompt that the best overlap must cover, 0 to 1. Below it every worker is a candidate.
    pub min_share: f64,
}

impl Default for StickyConfig {
    fn default() -> Self {
        Self {
            keep_share: 0.8,
            min_share: 0.3,
        }
    }
}

/// With `m` the best device overlap, candidates with overlap ≥ `keep_share · m` cost their uncached prompt tokens in
/// flight. The cost of other candidates is infinite. When `m · B < min_share · input`, every worker is a candidate.
///
/// Source: llm-d's affinity filter, followed by its scorer of fewest uncached tokens. It is published without a
/// minimum share (`min_share` 0), and herds in that form.
///
/// Example with the defaults. The prompt has 100 blocks. The best overlap is 50 blocks, above 0.3 of the
/// prompt, so workers with 40 blocks or more are candidates. With a best overlap of 20 blocks, every worker
/// is one.
#[derive(Clone, Debug)]
pub struct Sticky {
    config: StickyConfig,
}

impl Sticky {
    /// The policy.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: StickyConfig) -> Result<Self, Error> {
        share("keep_share", config.keep_share)?;
        share("min_share", config.min_share)?;
        Ok(Self { config })
    }
}

impl Policy for Sticky {
    fn name(&self) -> &'static str {
        "sticky"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        let best = view.best_device_blocks();
        let counts = view.device_share(best) >= self.config.min_share;
        let least = if counts {
            self.config.keep_share * f64::from(best)
        } else {
            0.0
        };
        for (i, cost) in costs.iter_mut().enumerate() {
            let stays = f64::from(view.device_blocks[i]) >= least;
            *cost = if stays {
                view.prefill_tokens[i] as f64
            } else {
                f64::INFINITY
            };
        }
    }
}
