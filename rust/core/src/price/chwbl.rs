//! Consistent hashing with bounded loads: a prefix has a home worker, until that worker is too busy.
//!
//! It knows no cache. Requests of one prefix family share their first block, so they meet on one worker and
//! make a cache there. It is a baseline for the question what the index is worth.

use serde::{Deserialize, Serialize};

use super::{Policy, View};
use crate::error::Error;
use crate::rng::Rng;

/// Parameters of [`Chwbl`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChwblConfig {
    /// Bound of a worker's load as a multiple of the mean, above 1.
    pub load_factor: f64,
}

impl Default for ChwblConfig {
    fn default() -> Self {
        Self { load_factor: 1.25 }
    }
}

/// With `h` a hash of (first block of the prompt, worker), uniform in [0, 1): cost = h for workers with fewer than
/// `⌈load_factor · (all requests in flight + 1) / n⌉` requests in flight, infinite for other workers. A prompt
/// without a full block goes to the least loaded worker.
///
/// Each prefix family has its own order of the workers and goes to the first worker below the bound. A worker that
/// joins or leaves moves only its own share. Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with
/// bounded loads" (SODA 2018), here over rendezvous hashing (Thaler and Ravishankar 1998) in place of a ring.
#[derive(Clone, Debug)]
pub struct Chwbl {
    config: ChwblConfig,
}

impl Chwbl {
    /// The policy.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: ChwblConfig) -> Result<Self, Error> {
        if !(config.load_factor > 1.0 && config.load_factor.is_finite()) {
            let (got, expected) = (config.load_factor.to_string(), "a finite number above 1");
            return Err(Error::Parameter {
                field: "load_factor",
                got,
                expected,
            });
        }
        Ok(Self { config })
    }
}

impl Policy for Chwbl {
    fn name(&self) -> &'static str {
        "chwbl"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        let in_flight: u64 = view
            .active_requests
            .iter()
            .map(|&requests| u64::from(requests))
            .sum();
        // The + 1 counts the request itself. A bound above the mean leaves at least one worker below it.
        let bound = (self.config.load_factor * (in_flight + 1) as f64 / view.len() as f64).ceil();
        for (i, cost) in costs.iter_mut().enumerate() {
            // Without a first block there is no family to keep together.
            let requests = f64::from(view.active_requests[i]);
            *cost = if view.request_blocks == 0 {
                requests
            } else if requests < bound {
                let worker = view.workers[i];
                // Golden-ratio multiplication spreads neighbouring instance ids over all bits before the generator mixes.
                let salt = worker.instance.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(worker.dp_rank);
                Rng::new(view.prefix_key ^ salt).unit()
            } else {
                f64::INFINITY
            };
        }
    }
}
