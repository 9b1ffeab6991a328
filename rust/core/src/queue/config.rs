//! Parameters of the queue: order, room, bounds, and options that are off by default.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Largest κ, patience and head start. Their products with prefill seconds stay finite, so that every key is a number.
const FACTOR_MAX: f64 = 1e6;
/// Longest wait, and largest backlog, seconds: 11 days.
const WAIT_MAX_S: f64 = 1e6;

/// Parameters of [`super::LateQueue`]. [`QueueConfig::validate`] checks them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// κ, 0 to 10⁶. Only a request that arrives within κ·(own prefill seconds − its prefill seconds) overtakes
    /// another. 0 is first come, first served; higher values favour short prompts.
    pub kappa: f64,
    /// Bound on what its own length costs a request, as a multiple of the recent mean of wait and own prefill. 0 sets
    /// no bound.
    pub patience: f64,
    /// Prefill backlog of a worker, seconds, from which it takes no further prompt into an engine pass.
    pub backlog_s: f64,
    /// Whether small prompts may share an engine pass. Without it a fleet of short prompts computes one prompt per pass
    /// (`docs/reports/pricing.md`).
    pub share_passes: bool,
    /// Requests that are considered at a time, oldest first, 1 to 1024.
    pub window: usize,
    /// Requests that may wait.
    pub max_requests: usize,
    /// Bytes that waiting requests may hold, as the caller counts them.
    pub max_bytes: u64,
    /// Requests of one tenant that may wait. Equal to `max_requests` when off.
    pub max_requests_per_tenant: usize,
    /// Bytes that waiting requests of one tenant may hold. Equal to `max_bytes` when off.
    pub max_bytes_per_tenant: u64,
    /// Tenants with an account of their own. Further tenants share one account.
    pub max_tenants: usize,
    /// Longest wait, seconds above 0, at most 10⁶. A request that waited longer is placed at once, regardless of room.
    pub max_wait_s: f64,
    /// Head start per priority level, seconds. 0 ignores priorities.
    pub priority_s: f64,
    /// Whether tenants share the service by weight: a request starts only after its tenant's previous one would finish.
    pub fair: bool,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            kappa: 10.0,
            patience: 4.0,
            backlog_s: 1.0,
            share_passes: true,
            window: 64,
            max_requests: 4096,
            max_bytes: 1 << 30,
            max_requests_per_tenant: 4096,
            max_bytes_per_tenant: 1 << 30,
            max_tenants: 1024,
            max_wait_s: 120.0,
            priority_s: 0.0,
            fair: false,
        }
    }
}

impl QueueConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the first value that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        for (field, value) in [
            ("kappa", self.kappa),
            ("patience", self.patience),
            ("priority_s", self.priority_s),
        ] {
            if !(0.0..=FACTOR_MAX).contains(&value) {
                return refuse(field, value.to_string(), "a number from 0 to 1e6");
            }
        }
        for (field, value) in [("backlog_s", self.backlog_s), ("max_wait_s", self.max_wait_s)] {
            if !(value > 0.0 && value <= WAIT_MAX_S) {
                return refuse(field, value.to_string(), "seconds above 0, at most 1e6");
            }
        }
        let counts = [
            ("window", self.window, 1024, "1 to 1024"),
            ("max_requests", self.max_requests, 1 << 24, "1 to 2^24"),
            (
                "max_requests_per_tenant",
                self.max_requests_per_tenant,
                1 << 24,
                "1 to 2^24",
            ),
            ("max_tenants", self.max_tenants, 1 << 24, "1 to 2^24"),
        ];
        for (field, value, max, expected) in counts {
            if value == 0 || value > max {
                return refuse(field, value.to_string(), expected);
            }
        }
        Ok(())
    }
}
