//! Lies of a fleet: spans of time in which the router's index differs from what the engines hold, and no gap shows it.

use serde::Deserialize;

use crate::error::{SimError, out_of_range};

/// How the KV events of a worker differ from its cache.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum LieKind {
    /// A share of the events is lost, in [0, 1].
    LostEvents {
        /// Share of the events.
        share: f64,
    },
    /// Removed blocks are not reported, so that the index lists blocks that the engine no longer holds.
    Ghosts,
    /// Events carry hashes that no prompt has, as with another block size, another tokeniser, or a salt that only the
    /// engine knows.
    OtherHashes,
    /// The events of each lying worker reach the router as those of the next one, as with crossed addresses of feeds.
    CrossedFeeds,
    /// The router ignores a salt that keeps the prompts of tenants apart in the engines. The block ids of a tenant are a
    /// run of `tenant_blocks` ids, and equal positions in two runs are equal tokens. It concerns every worker, from the start to the end.
    IgnoredSalt {
        /// Block ids of one tenant, above 0.
        tenant_blocks: u32,
    },
}

/// One entry of the plan of lies.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Lie {
    /// Simulated time of the first event with the lie, in milliseconds.
    pub from_ms: f64,
    /// Simulated time of the first event without the lie, in milliseconds.
    pub until_ms: f64,
    /// Number of workers with the lie: the first ones.
    pub workers: usize,
    /// How their events differ from their caches.
    #[serde(flatten)]
    pub kind: LieKind,
}

impl Lie {
    /// Whether the events of `worker` carry the lie at `now_ms`.
    pub(crate) fn holds(&self, worker: usize, now_ms: f64) -> bool {
        worker < self.workers && (self.from_ms..self.until_ms).contains(&now_ms)
    }

    pub(super) fn validate(&self, workers: usize) -> Result<(), SimError> {
        if !(self.from_ms >= 0.0 && self.until_ms >= self.from_ms) {
            let got = format!("{} to {}", self.from_ms, self.until_ms);
            return Err(out_of_range(
                "lie.from_ms to lie.until_ms",
                got,
                "0 or above, in order",
            ));
        }
        if !(1..=workers).contains(&self.workers) {
            return Err(out_of_range(
                "lie.workers",
                self.workers,
                "1 to the workers of the fleet",
            ));
        }
        match self.kind {
            LieKind::LostEvents { share } if !(0.0..=1.0).contains(&share) => {
                Err(out_of_range("lie.share", share, "in [0, 1]"))
            }
            LieKind::IgnoredSalt { tenant_blocks: 0 } => {
                Err(out_of_range("lie.tenant_blocks", 0, "at least 1"))
            }
            _ => Ok(()),
        }
    }
}
