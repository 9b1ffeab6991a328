//! Settings of the service, grouped by stage, checked when the service is built and swapped as a whole.
//!
//! The control plane sends the settings as JSON when it creates a service, and
//! [`ServiceConfig::check`] refuses a wrong value before any thread starts. Only the policy and its
//! queue ([`Routing`]) may change afterwards; every other value holds for the life of the service.
//! Reading costs nothing on the path of a request: each stage copies its options when it is built.

mod door;
mod peers;
mod records;
mod shadows;
mod tracing;

use std::collections::BTreeMap;

use serde::Deserialize;
use wardrop_core::control::Routing;
use wardrop_core::latency::{PrefillPoint, Prior, StepPoint};
use wardrop_core::predicted::PredictedConfig;
use wardrop_core::queue::QueueConfig;
use wardrop_core::{PolicyConfig, Router, RouterConfig};

pub use self::peers::PeerOptions;
pub use self::records::RecordOptions;
pub(crate) use self::shadows::{IN_FORCE, routers};
pub use self::shadows::{ShadowOptions, ShadowPolicy};
pub use self::tracing::{SamplerName, TracingOptions};
use crate::ServiceError;

/// Maximum number of tenants with a configured weight.
const MAX_TENANT_WEIGHTS: usize = 1024;
/// Maximum number of points of each kind in a timing table.
const MAX_TIMING_POINTS: usize = 50_000;
/// Maximum number of receipts; each takes up to 5 kB.
const MAX_RECEIPTS: usize = 65_536;

/// Settings of one service. Its keys stand beside a door's own keys in one JSON object: [`ServiceConfig::take_from`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Label `router_id` of all metrics; it separates the series of several routers of one fleet.
    pub router_id: String,
    /// How a decision is made.
    pub routing: RoutingOptions,
    /// How prompts become tokens.
    pub prompt: PromptOptions,
    /// How feeds are read and when silence counts as a fault.
    pub feed: FeedOptions,
    /// Shadow fleets under other policies; `None` runs none.
    pub shadows: Option<ShadowOptions>,
    /// Files of decision records; `None` writes none.
    pub records: Option<RecordOptions>,
    /// Spans for an OpenTelemetry collector; `None` makes none.
    pub tracing: Option<TracingOptions>,
    /// Routers that share this router's fleet; `None` shares nothing.
    pub peers: Option<PeerOptions>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            router_id: "wardrop-0".into(),
            routing: RoutingOptions::default(),
            prompt: PromptOptions::default(),
            feed: FeedOptions::default(),
            shadows: None,
            records: None,
            tracing: None,
            peers: None,
        }
    }
}

/// How a decision is made.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct RoutingOptions {
    /// Price of a worker; the policy of every pool.
    pub policy: PolicyConfig,
    /// Seed of the tie breaker. Each pool adds its role to the seed, so that pools of one model
    /// draw different sequences.
    pub seed: u64,
    /// Maximum age of a booking whose request never ends, in seconds; positive. An older booking is
    /// released and counted, so that a lost request does not count as load without end.
    pub booking_ttl_s: f64,
    /// Queue in front of the policy; `None` places every request at once.
    pub queue: Option<QueueConfig>,
    /// Whether a static rule decides while the predictions of the price do not fit the fleet.
    pub price_guard: bool,
    /// Prediction of caches from recent placements, in pools that prefill.
    pub predicted: PredictedConfig,
    /// Transfer time of the KV of one prompt token from prefill to decode worker, in seconds; 0
    /// when unknown. A policy adds it for every prompt token that the decode worker does not hold.
    pub handoff_s_per_token: f64,
    /// Points of a timing table from which the latency curves of every pool start; empty uses the default curves.
    pub timing: TimingPoints,
    /// Weights of tenants in a fair queue, 0.001 to 1000; an unlisted tenant has weight 1.
    pub tenant_weights: BTreeMap<String, f64>,
    /// Number of recent receipts that the service keeps; 0 turns receipts off.
    pub receipts: usize,
    /// Length of a window of the price of anarchy against the lower bound, in seconds, 1 to 3600; 0 turns it off.
    pub bound_window_s: f64,
    /// Whether to take `x-wardrop-priority` and `x-wardrop-deadline-ms` from clients. A client that
    /// sets them passes other clients, so a deployment turns them on for trusted clients alone.
    pub queue_hints: bool,
    /// Whether to place no request. Dynamo then chooses every worker, and the service measures what the choices cost.
    pub observe: bool,
    /// Whether to forward worker pins from clients. Otherwise the gateway refuses a request with a pin with status 400.
    pub allow_client_pins: bool,
    /// Whether to add `x-wardrop-worker` and `x-wardrop-overlap-blocks` to answers.
    pub explain_headers: bool,
}

/// Points of a timing table.
///
/// The control plane reads them from the table of `--timing-table`. A fit of all points gives the
/// curves of every worker before its own reports arrive. At most 50,000 points of each kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimingPoints {
    /// Prefill points: new tokens, cached tokens, seconds.
    pub prefill: Vec<PrefillPoint>,
    /// Decode points: sequences, active KV tokens, seconds.
    pub step: Vec<StepPoint>,
}

impl TimingPoints {
    /// Initial latency curves: a fit of the points, or the defaults without points.
    pub(crate) fn prior(&self) -> Prior {
        if self.prefill.is_empty() && self.step.is_empty() {
            return Prior::default();
        }
        Prior::fit(&self.prefill, &self.step)
    }

    /// Refuses too many points, and points that no latency can follow: a negative count, seconds of
    /// 0 or below, or a value that is not finite.
    fn check(&self) -> Result<(), ServiceError> {
        let prefill = self.prefill.iter().find(|point| !point.is_usable());
        let step = self.step.iter().find(|point| !point.is_usable());
        let all = [
            (
                "prefill",
                self.prefill.len(),
                prefill.map(|&point| <(f64, f64, f64)>::from(point)),
            ),
            (
                "step",
                self.step.len(),
                step.map(|&point| <(f64, f64, f64)>::from(point)),
            ),
        ];
        for (name, points, wrong) in all {
            if points > MAX_TIMING_POINTS {
                return Err(ServiceError::Config(format!(
                    "routing.timing.{name}: got {points} points, at most {MAX_TIMING_POINTS}"
                )));
            }
            if let Some(point) = wrong {
                return Err(ServiceError::Config(format!(
                    "routing.timing.{name}: got the point {point:?}, expected two numbers of 0 or above and seconds above 0"
                )));
            }
        }
        Ok(())
    }
}

impl RoutingOptions {
    /// Initial values of the settings that may change while the service runs.
    ///
    /// Weights of tenants and the seed are no part of it, because they hold for the life of the
    /// service.
    pub fn start(&self) -> Routing {
        Routing {
            policy: self.policy.clone(),
            queue: self.queue,
        }
    }
}

/// How prompts become tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptOptions {
    /// Whether to hand token ids over to Dynamo (`nvext.token_data`) while dry runs show the same ids.
    pub handover: bool,
    /// Prompts with more bytes than this are tokenised off the serving threads, so that a long
    /// prompt does not delay the requests of its thread.
    pub inline_bytes: usize,
    /// Memory for the token ids of prefixes, for all models together, in bytes; 0 turns the cache off.
    pub segment_cache_bytes: usize,
    /// A text with more bytes than this for each token of the model's context is refused; 0 refuses none.
    pub refuse_bytes_per_token: u64,
    /// Threads that tokenise long prompts, 1 to 64. Large prompts leave one of them to smaller prompts.
    pub tokenise_threads: usize,
    /// Maximum wait for a tokeniser thread, in milliseconds; then the request is routed without its prompt.
    pub tokenise_timeout_ms: u64,
}

/// How feeds are read and when silence counts as a fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedOptions {
    /// Maximum size of a feed frame, in bytes; at least 1.
    pub frame_bytes: usize,
    /// Time without heartbeats after which a worker is not chosen, in milliseconds.
    pub silence_ms: u64,
    /// Time until a failed worker without heartbeats is tried again, in milliseconds.
    pub quarantine_ms: u64,
    /// Maximum number of open feeds; at least 1.
    pub max_feeds: usize,
    /// Time without a byte after which a feed is reconnected, in milliseconds; at least 1. The service sends a PING after
    /// a third of this time.
    pub deadline_ms: u64,
    /// Time after which suspect blocks of a worker are forgotten when no dump replaces them, in milliseconds.
    pub distrust_ms: u64,
    /// Longest wait for a replay of an engine's events, in milliseconds; at least 1. Live events of the worker wait meanwhile.
    pub replay_timeout_ms: u64,
    /// Silence of an engine's feed after which a replay looks for a lost end of the stream, in milliseconds; at least 1. While
    /// nothing is found, the time doubles, up to a minute.
    pub tail_check_ms: u64,
}

/// The defaults of a service that a test or a library creates; the command line sends every value.
impl Default for RoutingOptions {
    fn default() -> Self {
        Self {
            policy: PolicyConfig::default(),
            seed: 0,
            booking_ttl_s: 900.0,
            queue: None,
            price_guard: true,
            predicted: PredictedConfig::default(),
            handoff_s_per_token: 0.0,
            timing: TimingPoints::default(),
            tenant_weights: BTreeMap::new(),
            receipts: 0,
            bound_window_s: 60.0,
            queue_hints: false,
            observe: false,
            allow_client_pins: false,
            explain_headers: false,
        }
    }
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self {
            handover: true,
            inline_bytes: 16 << 10,
            segment_cache_bytes: 64 << 20,
            refuse_bytes_per_token: 64,
            tokenise_threads: 2,
            tokenise_timeout_ms: 5_000,
        }
    }
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self {
            frame_bytes: 8 << 20,
            silence_ms: 2_000,
            quarantine_ms: 5_000,
            max_feeds: 16_384,
            deadline_ms: 3_000,
            distrust_ms: 30_000,
            replay_timeout_ms: 2_000,
            tail_check_ms: 2_000,
        }
    }
}

impl ServiceConfig {
    /// Checks every value except the shadows' options, which the service checks when it starts them.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the value received and the values expected.
    pub fn check(&self) -> Result<(), ServiceError> {
        for (name, value) in [
            ("feed.frame_bytes", self.feed.frame_bytes),
            ("feed.max_feeds", self.feed.max_feeds),
            ("feed.deadline_ms", positive_ms(self.feed.deadline_ms)),
            ("feed.replay_timeout_ms", positive_ms(self.feed.replay_timeout_ms)),
            ("feed.tail_check_ms", positive_ms(self.feed.tail_check_ms)),
        ] {
            if value == 0 {
                return Err(ServiceError::Config(format!("{name} must be at least 1, got 0")));
            }
        }
        if !(1..=64).contains(&self.prompt.tokenise_threads) {
            return Err(ServiceError::Config(format!(
                "prompt.tokenise_threads must be 1 to 64, got {}",
                self.prompt.tokenise_threads
            )));
        }
        if !(self.routing.booking_ttl_s.is_finite() && self.routing.booking_ttl_s > 0.0) {
            return Err(ServiceError::Config(format!(
                "routing.booking_ttl_s must be a positive number of seconds, got {}",
                self.routing.booking_ttl_s
            )));
        }
        if let Some(queue) = &self.routing.queue {
            let refused = |error| ServiceError::Config(format!("routing.queue: {error}"));
            queue.validate().map_err(refused)?;
        }
        if self.routing.tenant_weights.len() > MAX_TENANT_WEIGHTS {
            return Err(ServiceError::Config(format!(
                "routing.tenant_weights: got {} tenants, at most {MAX_TENANT_WEIGHTS}",
                self.routing.tenant_weights.len()
            )));
        }
        for (tenant, weight) in &self.routing.tenant_weights {
            if !(1e-3..=1e3).contains(weight) {
                return Err(ServiceError::Config(format!(
                    "routing.tenant_weights: got {weight} for {tenant:?}, expected 0.001 to 1000"
                )));
            }
        }
        if self.routing.receipts > MAX_RECEIPTS {
            return Err(ServiceError::Config(format!(
                "routing.receipts must be at most {MAX_RECEIPTS}, got {}",
                self.routing.receipts
            )));
        }
        let window_s = self.routing.bound_window_s;
        if window_s != 0.0 && !(1.0..=3600.0).contains(&window_s) {
            return Err(ServiceError::Config(format!(
                "routing.bound_window_s must be 0, or 1 to 3600 seconds, got {window_s}"
            )));
        }
        self.routing.timing.check()?;
        if let Some(records) = &self.records {
            records.check()?;
        }
        if let Some(tracing) = &self.tracing {
            tracing.check()?;
        }
        if let Some(peers) = &self.peers {
            peers.check()?;
        }
        // A trial router reports an invalid value at the start instead of with the first model.
        let router = RouterConfig::new(1).with_handoff_s_per_token(self.routing.handoff_s_per_token);
        Router::new(router).map_err(|error| ServiceError::Config(format!("routing: {error}")))?;
        Router::new(RouterConfig::new(1).with_predicted(self.routing.predicted))
            .map_err(|error| ServiceError::Config(format!("routing.predicted: {error}")))?;
        Ok(())
    }
}

/// A time in the type of the other checked counts. A time beyond `usize` counts as the largest `usize`.
fn positive_ms(ms: u64) -> usize {
    usize::try_from(ms).unwrap_or(usize::MAX)
}
