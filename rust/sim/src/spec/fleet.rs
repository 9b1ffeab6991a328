//! Specification of a fleet: pools, transfers between pools, feeds to the routers, load and faults.

use serde::{Deserialize, Serialize};
use wardrop_core::queue::QueueConfig;

use super::engine::EngineSpec;
use super::fault::Fault;
use super::lie::Lie;
use super::unseen::Unseen;
use crate::error::{SimError, out_of_range};

/// Which part of a request a worker computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Aggregated,
    /// Prefill only; the KV then travels to a decode worker.
    Prefill,
    /// Decode only, from KV that a prefill worker sends.
    Decode,
}

/// Transfer of KV from a prefill worker to a decode worker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferSpec {
    /// Bandwidth of each worker's link, in bytes per second, in either direction.
    pub bandwidth_bytes_per_s: f64,
    /// Set-up time of one transfer, in milliseconds.
    pub latency_ms: f64,
    /// Whether transfers that share a link queue for it. Otherwise each transfer has the link to itself.
    pub contention: bool,
}

impl Default for TransferSpec {
    fn default() -> Self {
        Self {
            bandwidth_bytes_per_s: 64e9,
            latency_ms: 0.0,
            contention: true,
        }
    }
}

/// Delay and loss of what workers report to their router.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedSpec {
    /// Milliseconds from a KV event at the worker to its arrival at the router.
    pub delay_ms: f64,
    /// Share of KV events that never arrive, in [0, 1].
    pub loss: f64,
    /// Whether workers report every iteration, as Dynamo's forward-pass metrics do, and the router learns from it.
    ///
    /// Iterations are then planned one by one, which slows the simulation down.
    pub metrics: bool,
    /// Milliseconds from an iteration's end to the arrival of its report at the router.
    pub metrics_delay_ms: f64,
    /// Share of iteration reports that never arrive, in [0, 1].
    pub metrics_loss: f64,
    /// Share of first tokens that are not reported to the router, in [0, 1].
    pub first_token_loss: f64,
}

/// A group of workers with the same engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Role of the workers.
    pub role: Role,
    /// Speed factor of each worker: 1 is the engine's timing, 0.5 is half as fast. Its length is the number of workers.
    pub speeds: Vec<f64>,
    /// Engine of the workers.
    pub engine: EngineSpec,
}

/// The whole fleet and its load.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetSpec {
    /// One aggregated pool, or a prefill pool followed by a decode pool.
    pub pools: Vec<PoolSpec>,
    /// Queue in front of each pool's router. A pool without an entry has no queue.
    #[serde(skip)]
    pub queues: Vec<Option<QueueConfig>>,
    /// Transfer of KV between the two pools.
    pub transfer: TransferSpec,
    /// Delay and loss of what workers report to their router.
    pub feed: FeedSpec,
    /// Whether every worker finds every prompt block that any worker has computed, at no cost. It exists on no real
    /// fleet, and says how much time a shared cache could save.
    pub shared_cache: bool,
    /// Crashes, hangs, changes of speed and joins.
    pub faults: Vec<Fault>,
    /// Spans of time in which KV events differ from the caches.
    pub lies: Vec<Lie>,
    /// Work and waits of the engines that the router cannot see.
    pub unseen: Unseen,
    /// Milliseconds until a request whose worker died is tried again.
    pub retry_ms: f64,
    /// Milliseconds between two samples of the workers' state; 0 takes no samples.
    pub sample_ms: f64,
    /// Load factor: every gap between arrivals and every pause of a session is divided by it.
    pub rate: f64,
    /// Requests in flight at the same time (closed loop); `None` keeps the arrival times of the workload.
    pub concurrency: Option<u32>,
    /// Seed of losses. Each router has a seed of its own.
    pub seed: u64,
    /// Decisions per window of the price of anarchy; 0 measures none.
    pub anarchy_window: u32,
}

impl Default for FleetSpec {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            queues: Vec::new(),
            transfer: TransferSpec::default(),
            feed: FeedSpec::default(),
            shared_cache: false,
            faults: Vec::new(),
            lies: Vec::new(),
            unseen: Unseen::default(),
            retry_ms: 100.0,
            sample_ms: 0.0,
            rate: 1.0,
            concurrency: None,
            seed: 0,
            anarchy_window: 0,
        }
    }
}

impl FleetSpec {
    /// A fleet of `workers` equal aggregated workers.
    pub fn aggregated(workers: usize, engine: EngineSpec) -> Self {
        let pool = PoolSpec {
            role: Role::Aggregated,
            speeds: vec![1.0; workers],
            engine,
        };
        Self {
            pools: vec![pool],
            ..Self::default()
        }
    }

    /// A fleet of `prefill` equal prefill workers and `decode` equal decode workers.
    pub fn split(prefill: usize, decode: usize, engine: &EngineSpec) -> Self {
        let pool = |role, count| PoolSpec {
            role,
            speeds: vec![1.0; count],
            engine: engine.clone(),
        };
        Self {
            pools: vec![pool(Role::Prefill, prefill), pool(Role::Decode, decode)],
            ..Self::default()
        }
    }

    /// Seconds that the KV of one token takes from the prefill pool to the decode pool over an idle link.
    pub fn handoff_s_per_token(&self) -> f64 {
        let bytes = self
            .pools
            .first()
            .map_or(0.0, |pool| pool.engine.kv_bytes_per_token);
        bytes / self.transfer.bandwidth_bytes_per_s
    }

    pub(crate) fn validate(&self) -> Result<(), SimError> {
        self.validate_pools()?;
        self.validate_numbers()?;
        let workers = self.pools.iter().map(|pool| pool.speeds.len()).sum();
        self.lies.iter().try_for_each(|lie| lie.validate(workers))?;
        self.unseen.validate(workers, self.pools.len())?;
        self.faults.iter().try_for_each(|fault| fault.validate(workers))
    }

    fn validate_pools(&self) -> Result<(), SimError> {
        let roles: Vec<Role> = self.pools.iter().map(|pool| pool.role).collect();
        if roles != [Role::Aggregated] && roles != [Role::Prefill, Role::Decode] {
            return Err(out_of_range(
                "pools",
                format!("{roles:?}"),
                "one aggregated pool, or a prefill and a decode pool",
            ));
        }
        for pool in &self.pools {
            pool.engine.validate()?;
            if pool.speeds.is_empty() {
                return Err(out_of_range(
                    "speeds",
                    "empty",
                    "one factor per worker, for at least one worker",
                ));
            }
            let is_positive = |speed: &f64| speed.is_finite() && *speed > 0.0;
            if !pool.speeds.iter().all(is_positive) {
                return Err(out_of_range(
                    "speeds",
                    format!("{:?}", pool.speeds),
                    "finite and above 0",
                ));
            }
            if pool.engine.block_size != self.pools[0].engine.block_size {
                return Err(out_of_range(
                    "block_size",
                    "different values",
                    "the same in both pools",
                ));
            }
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<(), SimError> {
        let shares = [
            ("feed.loss", self.feed.loss),
            ("feed.metrics_loss", self.feed.metrics_loss),
            ("feed.first_token_loss", self.feed.first_token_loss),
        ];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(out_of_range(field, value, "in [0, 1]"));
            }
        }
        let times = [
            ("feed.delay_ms", self.feed.delay_ms),
            ("feed.metrics_delay_ms", self.feed.metrics_delay_ms),
            ("retry_ms", self.retry_ms),
            ("sample_ms", self.sample_ms),
            ("transfer.latency_ms", self.transfer.latency_ms),
        ];
        for (field, value) in times {
            if !(value.is_finite() && value >= 0.0) {
                return Err(out_of_range(field, value, "finite and at least 0"));
            }
        }
        let bandwidth = self.transfer.bandwidth_bytes_per_s;
        if bandwidth.is_nan() || bandwidth <= 0.0 {
            return Err(out_of_range(
                "transfer.bandwidth_bytes_per_s",
                bandwidth,
                "above 0",
            ));
        }
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return Err(out_of_range("rate", self.rate, "finite and above 0"));
        }
        if self.concurrency == Some(0) {
            return Err(out_of_range("concurrency", 0, "at least 1"));
        }
        Ok(())
    }
}
