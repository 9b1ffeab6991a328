//! How the queue behaves: κ and how far it goes, bounds, and options that are off by default.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// See [`super::LateQueue`]. Validated by [`QueueConfig::validate`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// κ: a request is overtaken only by those that arrive within κ·(its prefill seconds − theirs). 0 is first come first
    /// served; higher favours short prompts.
    pub kappa: f64,
    /// How far κ goes: a request's length costs it less than so many times what requests took of late from their arrival to their
    /// first token by this queue's account (wait and own prefill, mean of about 64). 0: no bound.
    pub patience: f64,
    /// A worker has room while less than this many prefill seconds wait there.
    pub backlog_s: f64,
    /// Small prompts that one engine pass holds together may go to a worker at once: without it a fleet of short prompts computes
    /// one per pass (`docs/pricing.md`).
    pub share_passes: bool,
    /// Requests that are considered at a time, oldest first.
    pub window: usize,
    /// Requests that may wait.
    pub max_requests: usize,
    /// Bytes that waiting requests may hold, as the caller counts them.
    pub max_bytes: u64,
    /// Requests that one tenant may have waiting; equal to `max_requests` when off.
    pub max_requests_per_tenant: usize,
    /// Bytes that one tenant's waiting requests may hold; equal to `max_bytes` when off.
    pub max_bytes_per_tenant: u64,
    /// Tenants that are told apart at a time; those beyond share one place.
    pub max_tenants: usize,
    /// A request that waited this long is sent at once, whatever the room.
    pub max_wait_s: f64,
    /// Seconds of head start per level of priority; 0 ignores priorities.
    pub priority_s: f64,
    /// Share tenants by weight: a tenant's next request is dated behind the service of its last one.
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
    /// Errors: [`Error::Parameter`] for values out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        for (field, value) in [
            ("kappa", self.kappa),
            ("patience", self.patience),
            ("priority_s", self.priority_s),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(field, value.to_string(), "a finite number, 0 or above");
            }
        }
        for (field, value) in [("backlog_s", self.backlog_s), ("max_wait_s", self.max_wait_s)] {
            if !(value.is_finite() && value > 0.0) {
                return refuse(field, value.to_string(), "seconds above 0");
            }
        }
        let counts = [
            ("window", self.window, 1024),
            ("max_requests", self.max_requests, 1 << 24),
            ("max_requests_per_tenant", self.max_requests_per_tenant, 1 << 24),
            ("max_tenants", self.max_tenants, 1 << 24),
        ];
        for (field, value, most) in counts {
            if value == 0 || value > most {
                return refuse(
                    field,
                    value.to_string(),
                    "at least 1 and at most 1024 (window) or 2^24",
                );
            }
        }
        Ok(())
    }
}
