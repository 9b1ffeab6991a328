//! Specification of a pool's router by names and numbers.

use serde::Deserialize;
use wardrop_core::queue::QueueConfig;
use wardrop_core::{Error, PolicyConfig, PredictedConfig, RouterConfig};

use super::fleet::Role;

/// Age at which a booking expires, in seconds. Simulated requests can wait for hours beyond saturation, so bookings end
/// with their requests and never by age.
const BOOKING_TTL_S: f64 = 1e9;

/// Policy, queue and cache prediction of one pool's router, in the form of configuration files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSpec {
    /// Name of the policy, as in [`PolicyConfig::from_name`].
    pub policy: String,
    /// Parameters of the policy, by name.
    #[serde(default)]
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Queue in front of the router; `None` places every request at once.
    #[serde(default)]
    pub queue: Option<QueueConfig>,
    /// Prediction of caches from placements; `None` relies on KV events alone.
    #[serde(default)]
    pub predicted: Option<PredictedConfig>,
    /// Whether the price guard is on. It is on by default.
    #[serde(default = "guards_price")]
    pub price_guard: bool,
    /// Seed of ties and samples.
    #[serde(default)]
    pub seed: u64,
}

/// The default of [`RouterSpec::price_guard`].
const fn guards_price() -> bool {
    true
}

impl Default for RouterSpec {
    fn default() -> Self {
        Self {
            policy: String::new(),
            parameters: serde_json::Map::new(),
            queue: None,
            predicted: None,
            price_guard: true,
            seed: 0,
        }
    }
}

impl RouterSpec {
    /// The policy with its parameters.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an unknown policy or a parameter out of range.
    pub fn policy(&self) -> Result<PolicyConfig, Error> {
        PolicyConfig::from_name(&self.policy, &self.parameters)
    }

    /// The router configuration for a pool with role `role`.
    ///
    /// A prefill pool and a decode pool each do one half of the work, so each tracks one half of the load.
    ///
    /// # Errors
    /// As for [`RouterSpec::policy`].
    pub fn config(&self, role: Role, block_size: u32) -> Result<RouterConfig, Error> {
        Ok(RouterConfig::new(block_size)
            .with_policy(self.policy()?)
            .with_seed(self.seed)
            .with_price_guard(self.price_guard)
            .with_predicted(self.predicted.unwrap_or_default())
            .with_booking_ttl_s(BOOKING_TTL_S)
            .with_max_bookings(1 << 24)
            .with_prefill_tracking(role != Role::Decode)
            .with_decode_tracking(role != Role::Prefill))
    }
}
