//! What a simulated fleet is made of. Everything is validated once, when the fleet is built.

use serde::Deserialize;

use crate::fault::Fault;
use crate::tier::TierSpec;
use crate::timing::Timing;
use wardrop_core::queue::QueueConfig;
use wardrop_core::{Error, PolicyConfig, PredictedConfig, RouterConfig};

/// Why a simulation could not be built or finished.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// A timing file or curve is not usable.
    #[error("timing array {name} is not usable: it needs {need}")]
    Timing {
        /// The array.
        name: &'static str,
        /// What it must be.
        need: &'static str,
    },
    /// A field of the fleet or workload is out of range.
    #[error("{field} is {got}: it must be {need}")]
    Config {
        /// The field.
        field: &'static str,
        /// What was given.
        got: String,
        /// What it must be.
        need: &'static str,
    },
    /// The router refused something that a fleet must be able to do.
    #[error("the router refused {action}: {reason}")]
    Router {
        /// What was asked.
        action: &'static str,
        /// What it said.
        reason: String,
    },
}

pub(crate) fn bad(field: &'static str, got: impl std::fmt::Display, need: &'static str) -> SimError {
    SimError::Config {
        field,
        got: format!("{got}"),
        need,
    }
}

/// Which inactive block goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// Least recently released (vLLM).
    #[default]
    Lru,
    /// Least often used, then least recently: KVBM's counter starts at 1, doubles on a hit and halves with each epoch.
    Frequency,
}

/// Who gives way when running sequences need more blocks than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preemption {
    /// The one admitted last.
    #[default]
    Lifo,
    /// The one admitted first.
    Fifo,
}

/// What a worker does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Aggregated,
    /// Prompt only; its KV then travels.
    Prefill,
    /// Output only, from KV that arrives.
    Decode,
}

/// One engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSpec {
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks of device memory.
    pub num_blocks: u32,
    /// Sequences that may run at once.
    pub max_num_seqs: u32,
    /// Tokens that one iteration may compute.
    pub max_num_batched_tokens: u32,
    /// Split prompts over iterations.
    pub chunked_prefill: bool,
    /// Reuse blocks between requests.
    pub prefix_caching: bool,
    /// Share of blocks that admission leaves free.
    pub watermark: f64,
    /// See [`Preemption`].
    pub preemption: Preemption,
    /// See [`Eviction`].
    pub eviction: Eviction,
    /// Milliseconds after which use counters halve (frequency eviction).
    pub frequency_epoch_ms: f64,
    /// Iteration times.
    pub timing: Timing,
    /// Bytes of KV per token: sizes transfers.
    pub kv_bytes_per_token: f64,
    /// A prefill worker keeps a prompt until it has generated the whole answer too, one token per iteration at no cost:
    /// what `dynamo.replay` 1.4.2 does. Real engines stop at the first token.
    pub prefill_answers: bool,
    /// Lower tiers, nearest first.
    pub tiers: Vec<TierSpec>,
    /// Decode iterations that may be planned at once. It changes the cost of a simulation, never its result.
    pub longest_run: u32,
}

impl Default for EngineSpec {
    fn default() -> Self {
        Self {
            block_size: 64,
            num_blocks: 16_384,
            max_num_seqs: 256,
            max_num_batched_tokens: 8_192,
            chunked_prefill: true,
            prefix_caching: true,
            watermark: 0.0,
            preemption: Preemption::Lifo,
            eviction: Eviction::Lru,
            frequency_epoch_ms: 10_000.0,
            timing: Timing::Polynomial,
            kv_bytes_per_token: 131_072.0,
            prefill_answers: false,
            tiers: Vec::new(),
            longest_run: 512,
        }
    }
}

impl EngineSpec {
    pub(crate) fn validate(&self) -> Result<(), SimError> {
        let positive = [
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("longest_run", self.longest_run),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(bad(field, value, "at least 1"));
            }
        }
        if self.num_blocks >= u32::MAX / 2 {
            return Err(bad("num_blocks", self.num_blocks, "below 2^31"));
        }
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(bad("watermark", self.watermark, "in [0, 1)"));
        }
        if self.kv_bytes_per_token.is_nan() || self.kv_bytes_per_token < 0.0 {
            return Err(bad("kv_bytes_per_token", self.kv_bytes_per_token, "at least 0"));
        }
        if self.frequency_epoch_ms.is_nan() || self.frequency_epoch_ms <= 0.0 {
            return Err(bad("frequency_epoch_ms", self.frequency_epoch_ms, "above 0"));
        }
        self.tiers.iter().try_for_each(TierSpec::validate)
    }
}

/// Where KV goes from a prefill to a decode worker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferSpec {
    /// Bytes per second of each worker's link, out and in.
    pub bandwidth_bytes_per_s: f64,
    /// Set-up time of one transfer, ms.
    pub latency_ms: f64,
    /// Transfers that share a link queue for it; otherwise each has the link to itself.
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

/// How well the router hears the fleet.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedSpec {
    /// Age of a KV event on arrival, ms.
    pub delay_ms: f64,
    /// Share of KV events that never arrive.
    pub loss: f64,
    /// Workers report every iteration (Dynamo's forward-pass metrics) and the router learns from it, as behind the gateway.
    /// Iterations are then planned one by one, which costs time.
    pub metrics: bool,
    /// Age of such a report on arrival, ms.
    pub metrics_delay_ms: f64,
    /// Share of reports that never arrive.
    pub metrics_loss: f64,
}

/// A group of equal workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// What they do.
    pub role: Role,
    /// One factor per worker: 1 is the timing as given, 0.5 half as fast.
    pub speeds: Vec<f64>,
    /// Their engine.
    pub engine: EngineSpec,
}

/// A pool's router and what stands before it, by name: the form of configuration files.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSpec {
    /// Policy, as in [`PolicyConfig::from_name`].
    pub policy: String,
    /// Its parameters.
    #[serde(default)]
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Late binding, when asked for.
    #[serde(default)]
    pub queue: Option<QueueConfig>,
    /// Caches predicted from placements, when asked for.
    #[serde(default)]
    pub predicted: Option<PredictedConfig>,
    /// Of ties and samples.
    #[serde(default)]
    pub seed: u64,
}

impl RouterSpec {
    /// The policy by its name and parameters.
    pub fn policy(&self) -> Result<PolicyConfig, Error> {
        PolicyConfig::from_name(&self.policy, &self.parameters)
    }

    /// The configuration for a pool of this role.
    ///
    /// Simulated requests may wait for hours past saturation: their bookings end with them, never by age. A split's pools
    /// each do half of the work, and their prices must know which.
    pub fn config(&self, role: Role, block_size: u32) -> Result<RouterConfig, Error> {
        Ok(RouterConfig::new(block_size)
            .with_policy(self.policy()?)
            .with_seed(self.seed)
            .with_predicted(self.predicted.unwrap_or_default())
            .with_booking_ttl_s(1e12)
            .with_max_bookings(usize::MAX >> 1)
            .with_prefill_tracking(role != Role::Decode)
            .with_decode_tracking(role != Role::Prefill))
    }
}

/// The whole fleet.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetSpec {
    /// One aggregated pool, or a prefill pool followed by a decode pool.
    pub pools: Vec<PoolSpec>,
    /// Late binding in front of each pool's router; none where the list is too short or says so.
    #[serde(skip)]
    pub queues: Vec<Option<QueueConfig>>,
    /// KV movement between the two pools.
    pub transfer: TransferSpec,
    /// The router's view.
    pub feed: FeedSpec,
    /// Crashes, hangs, slow-downs and joins.
    pub faults: Vec<Fault>,
    /// Milliseconds until a request whose worker died is tried again.
    pub retry_ms: f64,
    /// Milliseconds between samples of the workers' state; 0 takes none.
    pub sample_ms: f64,
    /// Load: every gap (between arrivals, and every pause of a session) is divided by this.
    pub rate: f64,
    /// Requests in flight at once (closed loop); `None` keeps the workload's own arrivals.
    pub concurrency: Option<u32>,
    /// Seeds losses; the routers carry their own seed.
    pub seed: u64,
    /// Decisions per window of the price of anarchy; 0 measures none.
    pub anarchy_window: u32,
}

impl FleetSpec {
    /// Seconds that a token's KV takes on an idle link from the prefill to the decode pool: what its routers are told.
    pub fn handoff_s_per_token(&self) -> f64 {
        let bytes = self
            .pools
            .first()
            .map_or(0.0, |pool| pool.engine.kv_bytes_per_token);
        bytes / self.transfer.bandwidth_bytes_per_s
    }
}

impl Default for FleetSpec {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            queues: Vec::new(),
            transfer: TransferSpec::default(),
            feed: FeedSpec::default(),
            faults: Vec::new(),
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

    /// A prefill pool and a decode pool of equal workers.
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

    pub(crate) fn validate(&self) -> Result<(), SimError> {
        let roles: Vec<Role> = self.pools.iter().map(|pool| pool.role).collect();
        if roles != [Role::Aggregated] && roles != [Role::Prefill, Role::Decode] {
            return Err(bad(
                "pools",
                format!("{roles:?}"),
                "one aggregated pool, or a prefill and a decode pool",
            ));
        }
        for pool in &self.pools {
            pool.engine.validate()?;
            if pool.speeds.is_empty() {
                return Err(bad("speeds", 0, "one factor per worker, at least one worker"));
            }
            if pool
                .speeds
                .iter()
                .any(|speed| !(speed.is_finite() && *speed > 0.0))
            {
                return Err(bad("speeds", format!("{:?}", pool.speeds), "finite and above 0"));
            }
        }
        if self
            .pools
            .iter()
            .any(|pool| pool.engine.block_size != self.pools[0].engine.block_size)
        {
            return Err(bad("block_size", "different values", "the same in both pools"));
        }
        let shares = [
            ("feed.loss", self.feed.loss),
            ("feed.metrics_loss", self.feed.metrics_loss),
        ];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(bad(field, value, "in [0, 1]"));
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
                return Err(bad(field, value, "finite and at least 0"));
            }
        }
        if self.transfer.bandwidth_bytes_per_s.is_nan() || self.transfer.bandwidth_bytes_per_s <= 0.0 {
            return Err(bad(
                "transfer.bandwidth_bytes_per_s",
                self.transfer.bandwidth_bytes_per_s,
                "above 0",
            ));
        }
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return Err(bad("rate", self.rate, "finite and above 0"));
        }
        if self.concurrency == Some(0) {
            return Err(bad("concurrency", 0, "at least 1"));
        }
        let workers = self.pools.iter().map(|pool| pool.speeds.len()).sum();
        self.faults.iter().try_for_each(|fault| fault.validate(workers))
    }
}
