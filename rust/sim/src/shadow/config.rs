//! What shadow fleets are made of, and its bounds.

use serde::Deserialize;

use crate::{FleetSpec, RouterSpec, SimError};

/// One shadow.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmSpec {
    /// For reports and metrics.
    pub name: String,
    /// One router per pool of the fleet.
    pub routers: Vec<RouterSpec>,
}

/// See [`super::ShadowFleets`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowConfig {
    /// The fleet as it is: pools, engines, timing. No faults, closed loop or samples.
    pub fleet: FleetSpec,
    /// The first runs what production runs.
    pub arms: Vec<ArmSpec>,
    /// Length of a tick, s.
    pub tick_s: f64,
    /// Ticks that a comparison rests on.
    pub window_ticks: usize,
    /// Neighbouring ticks that form one batch: what is paired is their sums, since ticks next to each other are alike.
    pub batch_ticks: usize,
    /// Ticks after a start that do not count: caches have to fill.
    pub warm_ticks: usize,
    /// A request that some arm has not ended by then spoils its tick, s.
    pub settle_s: f64,
    /// The shadow fleets runs this much behind, s: by then most answers' lengths are known.
    pub lag_s: f64,
    /// Share of one core, in (0, 1].
    pub cpu_share: f64,
    /// Simulated ÷ measured TTFT of the first arm, and its inverse, at most.
    pub clock_bound: f64,
    /// Measured requests that the clock check needs.
    pub clock_least: u64,
    /// Gain below which nothing is suggested: 0.02 is 2 %.
    pub min_gain: f64,
    /// Requests in flight per arm.
    pub max_open: usize,
    /// Requests that wait for their time.
    pub max_waiting: usize,
    /// Blocks of theirs.
    pub max_waiting_blocks: usize,
    /// Goodput: time to first token at most, s.
    pub ttft_slo_s: f64,
    /// Goodput: mean time between a request's tokens at most, s.
    pub itl_slo_s: f64,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self {
            fleet: FleetSpec::default(),
            arms: Vec::new(),
            tick_s: 5.0,
            window_ticks: 20,
            batch_ticks: 2,
            warm_ticks: 12,
            settle_s: 120.0,
            lag_s: 20.0,
            cpu_share: 0.05,
            clock_bound: 1.25,
            clock_least: 50,
            min_gain: 0.02,
            max_open: 4_096,
            max_waiting: 16_384,
            max_waiting_blocks: 4_000_000,
            ttft_slo_s: 2.0,
            itl_slo_s: 0.05,
        }
    }
}

/// More arms than anyone can read.
const MAX_ARMS: usize = 16;
/// Ticks in a window.
const MAX_TICKS: usize = 1_024;

fn out_of_range(field: &'static str, got: impl std::fmt::Display, need: &'static str) -> SimError {
    SimError::Config {
        field,
        got: got.to_string(),
        need,
    }
}

impl ShadowConfig {
    pub(super) fn validate(&self) -> Result<(), SimError> {
        if self.arms.is_empty() || self.arms.len() > MAX_ARMS {
            return Err(out_of_range("arms", self.arms.len(), "1 to 16"));
        }
        if self.fleet.pools.is_empty() {
            return Err(out_of_range(
                "fleet.pools",
                0,
                "one aggregated pool, or a prefill and a decode pool",
            ));
        }
        for (i, arm) in self.arms.iter().enumerate() {
            if arm.routers.len() != self.fleet.pools.len() {
                return Err(out_of_range(
                    "arm.routers",
                    arm.routers.len(),
                    "one per pool of the fleet",
                ));
            }
            if self.arms[..i].iter().any(|other| other.name == arm.name) {
                return Err(out_of_range("arm.name", &arm.name, "a name of its own"));
            }
        }
        let above_zero = [
            ("tick_s", self.tick_s),
            ("settle_s", self.settle_s),
            ("ttft_slo_s", self.ttft_slo_s),
            ("itl_slo_s", self.itl_slo_s),
        ];
        for (field, value) in above_zero {
            if !(value.is_finite() && value > 0.0) {
                return Err(out_of_range(field, value, "finite and above 0"));
            }
        }
        for (field, value) in [("lag_s", self.lag_s), ("min_gain", self.min_gain)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(out_of_range(field, value, "finite and at least 0"));
            }
        }
        if !(self.cpu_share > 0.0 && self.cpu_share <= 1.0) {
            return Err(out_of_range("cpu_share", self.cpu_share, "in (0, 1]"));
        }
        if !(self.clock_bound.is_finite() && self.clock_bound >= 1.0) {
            return Err(out_of_range("clock_bound", self.clock_bound, "at least 1"));
        }
        if self.batch_ticks == 0 || self.window_ticks > MAX_TICKS || self.window_ticks / self.batch_ticks < 4
        {
            return Err(out_of_range(
                "window_ticks",
                format!("{} in batches of {}", self.window_ticks, self.batch_ticks),
                "at least four batches, at most 1024 ticks",
            ));
        }
        let counts = [
            ("max_open", self.max_open),
            ("max_waiting", self.max_waiting),
            ("max_waiting_blocks", self.max_waiting_blocks),
        ];
        for (field, value) in counts {
            if value == 0 {
                return Err(out_of_range(field, value, "at least 1"));
            }
        }
        Ok(())
    }
}
