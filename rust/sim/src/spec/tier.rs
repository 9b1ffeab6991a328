//! Specification of one memory tier below device memory.

use serde::Deserialize;

use crate::error::{SimError, out_of_range};

/// One memory tier: host memory, local disk or network storage.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierSpec {
    /// Capacity in KV blocks, at least 1.
    pub num_blocks: u32,
    /// Bandwidth from this tier to the device, in bytes per second, above 0.
    pub read_bytes_per_s: f64,
    /// Time to the first byte of a read, in milliseconds.
    pub latency_ms: f64,
    /// Number of uses that a block needs before this tier keeps it. KVBM's value is 2.
    pub promote_at: u16,
}

impl TierSpec {
    pub(super) fn validate(&self) -> Result<(), SimError> {
        if self.num_blocks == 0 {
            return Err(out_of_range("tier.num_blocks", 0, "at least 1"));
        }
        if self.read_bytes_per_s.is_nan() || self.read_bytes_per_s <= 0.0 {
            return Err(out_of_range(
                "tier.read_bytes_per_s",
                self.read_bytes_per_s,
                "above 0",
            ));
        }
        if !(self.latency_ms.is_finite() && self.latency_ms >= 0.0) {
            return Err(out_of_range(
                "tier.latency_ms",
                self.latency_ms,
                "finite and at least 0",
            ));
        }
        Ok(())
    }
}
