//! Configuration of shadow fleets: arms, ticks, trust, bounds and limits of goodput.

use serde::Deserialize;

use super::limit::Limit;
use crate::error::{SimError, out_of_range};
use crate::spec::{FleetSpec, RouterSpec};

/// One arm: a shadow fleet under its own routers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmSpec {
    /// Unique name, used in reports and metrics.
    pub name: String,
    /// One router per pool of the fleet.
    pub routers: Vec<RouterSpec>,
    /// The limit of the fleet that the arm relaxes. Its routers are then those of the first arm, except for the queue of
    /// [`Limit::queue`].
    #[serde(default)]
    pub limit: Option<Limit>,
}

/// Configuration of [`super::ShadowFleets`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowConfig {
    /// The production fleet: pools, engines, timing. Faults, a closed loop and samples are not allowed.
    pub fleet: FleetSpec,
    /// Arms: 1 to 16 without a limit, then up to 6 with a limit. The first arm runs what production runs.
    pub arms: Vec<ArmSpec>,
    /// Length of a tick, in seconds.
    pub tick_s: f64,
    /// Number of ticks that a comparison covers.
    pub window_ticks: usize,
    /// Number of neighbouring ticks whose sums form one batch. Neighbouring ticks are correlated, batches much less.
    pub batch_ticks: usize,
    /// Number of ticks after a start that do not count, because caches still fill.
    pub warm_ticks: usize,
    /// Age in seconds at which a tick is dropped if some arm has not ended all its requests.
    pub settle_s: f64,
    /// Seconds by which the simulation follows production. Most answer lengths are known by then.
    pub lag_s: f64,
    /// Share of one core that the simulation may use, in (0, 1].
    pub cpu_share: f64,
    /// Largest trusted ratio of simulated to measured TTFT of the first arm, and of its inverse; at least 1.
    pub clock_bound: f64,
    /// Number of measured requests that the clock check needs.
    pub clock_least: u64,
    /// Smallest gain that leads to a suggestion; 0.02 is 2 %.
    pub min_gain: f64,
    /// Largest number of requests in flight per arm.
    pub max_open: usize,
    /// Largest number of requests that wait to be simulated.
    pub max_waiting: usize,
    /// Largest number of prompt blocks of all waiting requests.
    pub max_waiting_blocks: usize,
    /// Time to first token of a request that counts as good, in seconds, at most.
    pub ttft_slo_s: f64,
    /// Mean time between tokens of a request that counts as good, in seconds, at most.
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

/// Largest number of arms without a limit: what is in force and 15 policies. Every arm costs a whole simulation.
const MAX_ARMS: usize = 16;
/// Largest number of arms with a limit: a fleet with two pools and without a queue has 6 limits.
const MAX_LIMITS: usize = 6;
/// Largest number of ticks in a window.
const MAX_TICKS: usize = 1_024;

impl ShadowConfig {
    pub(super) fn validate(&self) -> Result<(), SimError> {
        let limits = self.arms.iter().filter(|arm| arm.limit.is_some()).count();
        let others = self.arms.len() - limits;
        if others == 0 || others > MAX_ARMS {
            return Err(out_of_range("arms", others, "1 to 16 arms without a limit"));
        }
        if limits > MAX_LIMITS {
            return Err(out_of_range("arms", limits, "up to 6 arms with a limit"));
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
                    "one router per pool of the fleet",
                ));
            }
            let follows_limit = i > 0 && self.arms[i - 1].limit.is_some();
            if arm.limit.is_none() && follows_limit || arm.limit.is_some() && i == 0 {
                return Err(out_of_range(
                    "arm.limit",
                    &arm.name,
                    "no limit in the first arm, and arms with a limit after all others",
                ));
            }
            if arm.limit.is_some_and(|limit| !limit.fits(self.fleet.pools.len())) {
                return Err(out_of_range(
                    "arm.limit",
                    &arm.name,
                    "a limit that a fleet with these pools has",
                ));
            }
            if self.arms[..i].iter().any(|other| other.name == arm.name) {
                return Err(out_of_range(
                    "arm.name",
                    &arm.name,
                    "different from every other arm's name",
                ));
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
