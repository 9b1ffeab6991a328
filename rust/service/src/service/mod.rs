//! The service as an object: the state that all threads share, above the parts of the service.
//!
//! A control plane calls [`Service`] to register models and workers and to follow feeds; a door calls it for every request. Control calls
//! are short: slow work happens on the service's own threads.
//!
//! Threads: two of [`background`], those of the prompt pool, and one each for shadows, records and
//! spans where they are on. All of them end with [`Service::stop`], which dropping the service
//! calls.

mod background;
mod control;
mod door_feed;
mod observation;
mod saved_state;
mod status;
mod stores;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use wardrop_core::RequestId;
use wardrop_core::control::Routing;

use self::background::Background;
use crate::config::ServiceConfig;
use crate::feed::{FeedContext, Feeds, Subscription};
use crate::metrics::{MetricBuilder, Metrics};
use crate::models::{Model, ModelSpec, Models};
use crate::outcomes::Outcomes;
use crate::peers::Peers;
use crate::pool::{Role, WorkerUpsert};
use crate::prompt::Abstention;
use crate::prompt_pool::PromptPool;
use crate::receipts::Receipts;
use crate::records::Recorder;
use crate::shadows::{ShadowSources, ShadowThread, Shadows};
use crate::spans::{RequestTrace, TraceStart, Tracing};
use crate::tenants::Tenants;
use crate::{Clock, ServiceError};

pub use self::control::PartState;
pub use self::door_feed::DoorFeed;
pub use self::saved_state::PoolName;
pub use self::status::{FeedReport, ModelReport};

/// The routing service of one process.
pub struct Service {
    /// Settings, fixed for the life of the service.
    pub(crate) config: ServiceConfig,
    /// Policy and queue in force, which may change while the service runs.
    pub(crate) routing: Arc<Mutex<Routing>>,
    /// Models and their workers.
    pub(crate) models: Arc<Models>,
    /// Metrics of the service; a door adds its own.
    pub(crate) metrics: Arc<Metrics>,
    /// Outcomes of requests since a controller asked last.
    pub(crate) outcomes: Outcomes,
    /// Shadow fleets, when they are on.
    pub(crate) shadows: Option<Arc<Shadows>>,
    /// Tenants of the fair queue.
    pub(crate) tenants: Tenants,
    /// Receipts of the last decisions.
    pub(crate) receipts: Receipts,
    /// Writer of decision records; `None` when records are off.
    pub(crate) records: Option<Arc<Recorder>>,
    /// Maker of spans; `None` when tracing is off.
    pub(crate) tracing: Option<Arc<Tracing>>,
    /// Whether a door has spans of its own.
    pub(crate) has_door_traces: AtomicBool,
    /// Routers that share the fleet; `None` when nothing is shared.
    pub(crate) peers: Option<Peers>,
    /// Time base of all routers.
    pub(crate) clock: Clock,
    /// Threads that turn long prompts into tokens.
    pub(crate) prompts: PromptPool,
    /// Next number of a request, from 1; unique over the life of the service.
    next_request: AtomicU64,
    /// Parts of the control plane by name, as it reported them last.
    parts: Mutex<BTreeMap<String, PartState>>,
    /// Feeds that are followed.
    feeds: Feeds,
    /// Background thread.
    background: Background,
    /// Thread of the shadows, until a stop ends it.
    shadow_thread: Mutex<Option<ShadowThread>>,
}

impl Service {
    /// Starts a service without models. Its background threads run until [`Service::stop`].
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a setting that cannot work, [`ServiceError::Io`] when the operating system gives no thread.
    pub fn new(config: ServiceConfig) -> Result<Arc<Self>, ServiceError> {
        config.check()?;
        // A policy that cannot be built is refused here, before the first model.
        config.routing.policy.build()?;
        let metrics = Metrics::new(&config.router_id)
            .map_err(|error| ServiceError::Config(format!("router_id {:?}: {error}", config.router_id)))?;
        let metrics = Arc::new(metrics);
        let clock = Clock::start();
        let models = Arc::new(Models::default());
        let routing = Arc::new(Mutex::new(config.routing.start()));
        let shadows = config.shadows.as_ref();
        let shadows = shadows.map(|options| Shadows::new(options, metrics.builder()));
        let shadows = shadows.transpose()?.map(Arc::new);
        let shadow_thread = shadows.clone().map(|shadows| {
            ShadowThread::start(ShadowSources {
                shadows,
                models: models.clone(),
                routing: routing.clone(),
                clock,
            })
        });
        let shadow_thread = shadow_thread.transpose()?;
        let records = config.records.as_ref().map(|options| {
            let start = config.routing.start();
            Recorder::start(options, &config.router_id, start, metrics.builder(), clock)
        });
        let records = records.transpose()?.map(Arc::new);
        let background = Background::start(models.clone(), metrics.clone(), records.clone(), clock)?;
        let feeds = FeedContext {
            models: models.clone(),
            metrics: metrics.clone(),
            clock,
            options: config.feed.clone(),
        };
        let tracing = config.tracing.as_ref();
        let tracing = tracing.map(|options| Tracing::start(options, metrics.builder()));
        let tracing = tracing.transpose()?.map(Arc::new);
        let peers = config.peers.as_ref().map(|options| {
            let sources = (models.clone(), clock);
            Peers::new(options, &config.router_id, sources, metrics.builder())
        });
        let peers = peers.transpose()?;
        let prompts = PromptPool::start(config.prompt.tokenise_threads, metrics.builder())?;
        Ok(Arc::new(Self {
            feeds: Feeds::new(feeds, background.runtime()),
            tenants: Tenants::new(&config.routing.tenant_weights),
            receipts: Receipts::new(config.routing.receipts),
            records,
            tracing,
            has_door_traces: AtomicBool::new(false),
            peers,
            routing,
            models,
            metrics,
            outcomes: Outcomes::default(),
            shadows,
            clock,
            prompts,
            next_request: AtomicU64::new(1),
            parts: Mutex::default(),
            background,
            shadow_thread: Mutex::new(shadow_thread),
            config,
        }))
    }

    /// Begins to share what is in flight with the peers of the configuration. Returns the address on which peers follow this router.
    /// A second call changes nothing. A door calls it when it opens.
    ///
    /// # Errors
    /// The address for peers cannot be bound.
    pub fn start_peers(&self) -> Result<Option<SocketAddr>, ServiceError> {
        self.peers.as_ref().map_or(Ok(None), Peers::start)
    }

    /// Address on which peers follow this router; `None` before [`Service::start_peers`] and where none may follow.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peers.as_ref()?.address()
    }

    /// Registers a model, or changes a registered one. Returns the model when its template is new and has to be checked against the
    /// engine's frontend, see [`Service::check_template`].
    ///
    /// It reads files and may take seconds, so the control plane calls it on a thread that may
    /// block.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for JSON that is no model. A tokeniser or template that cannot be read is no error: the model is
    /// registered, its prompts are routed by load, and its report names the problem. [`ServiceError::Limit`] for one model too many.
    pub fn upsert_model(&self, json: &str) -> Result<Option<Arc<Model>>, ServiceError> {
        let spec: ModelSpec = parse("model", json)?;
        self.admit_model(&spec)?;
        let prompter = self.models.load_prompter(&spec, &self.config);
        // The lock is held until the model is registered: a change of the routing meanwhile would miss the model.
        let routing = self.routing.lock();
        let (model, is_new) = self.models.upsert(spec, prompter, &self.config, &routing)?;
        drop(routing);
        Ok(Some(model).filter(|_| is_new && self.config.prompt.handover))
    }

    /// Checks the limits on models, and counts a refusal.
    fn admit_model(&self, spec: &ModelSpec) -> Result<(), ServiceError> {
        let admitted = self.models.admit(spec);
        if admitted.is_err() {
            self.metrics.models_refused.inc();
        }
        admitted
    }

    /// Forgets a model with its workers and feeds; whether it was known.
    pub fn remove_model(&self, name: &str) -> bool {
        self.feeds.leave_model(name);
        let found = self.models.remove(name);
        self.metrics.forget_model(name);
        found
    }

    /// Adds a worker instance, or takes over new figures of a registered one.
    ///
    /// A known instance keeps its blocks, load and health.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for JSON that is no worker, [`ServiceError::UnknownModel`] when the model is not registered.
    pub fn upsert_worker(&self, json: &str) -> Result<(), ServiceError> {
        let upsert: WorkerUpsert = parse("worker", json)?;
        self.model(&upsert.model)?.pool(upsert.role).upsert(&upsert)
    }

    /// Forgets a worker instance; whether it was known.
    ///
    /// Its feeds stay followed until the control plane unsubscribes them.
    ///
    /// # Errors
    /// [`ServiceError::UnknownModel`] when the model is not registered, [`ServiceError::Config`] for an unknown role.
    pub fn remove_worker(&self, model: &str, role: &str, instance: u64) -> Result<bool, ServiceError> {
        self.model(model)?.pool(parse_role(role)?).remove(instance)
    }

    /// Follows a feed.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for JSON that is no subscription, and the errors of a feed that cannot be followed.
    pub fn subscribe(&self, json: &str) -> Result<(), ServiceError> {
        let subscription: Subscription = parse("subscription", json)?;
        self.feeds.subscribe(subscription)
    }

    /// Leaves a feed; whether it was followed.
    pub fn unsubscribe(&self, publisher_id: u64) -> bool {
        self.feeds.unsubscribe(publisher_id)
    }

    /// Workers of all models that may be chosen now. O(workers).
    pub fn routable_workers(&self) -> usize {
        let models = self.models.all();
        let pools = models.iter().flat_map(|model| model.pools());
        pools.map(|pool| pool.routable()).sum()
    }

    /// Registers a door's own metrics beside those of the service.
    pub fn metric_builder(&self) -> &MetricBuilder {
        self.metrics.builder()
    }

    /// The metrics page in Prometheus' text format, with the workers' state of this moment.
    ///
    /// O(models × workers).
    pub fn render_metrics(&self) -> String {
        if let Some(shadows) = &self.shadows {
            shadows.update_metrics();
        }
        if let Some(peers) = &self.peers {
            peers.update_metrics();
        }
        self.metrics.render(&self.models, self.clock.now_s())
    }

    /// Begins the trace of a request; `None` when tracing is off. The door keeps the trace until the last byte of the answer.
    pub fn begin_trace(&self, start: &TraceStart<'_>) -> Option<Arc<RequestTrace>> {
        self.tracing.as_ref().map(|tracing| tracing.begin(start))
    }

    /// Lets decisions keep their reasons for spans of the door's own. A door calls it once, before its first request.
    pub fn expect_door_traces(&self) {
        self.has_door_traces.store(true, Ordering::Relaxed);
    }

    /// Name of the policy in force.
    pub(crate) fn policy_name(&self) -> &'static str {
        self.routing.lock().policy.name()
    }

    /// Counts a request whose worker the engine's own router chooses.
    pub fn count_abstention(&self, reason: Abstention) {
        let abstentions = &self.metrics.abstentions;
        abstentions.with_label_values(&[reason.name()]).inc();
    }

    /// Records the time from a whole request to its pin, without the time in the queue.
    pub fn observe_decision_time(&self, started: Instant, waited_s: Option<f64>) {
        let decided_s = started.elapsed().as_secs_f64() - waited_s.unwrap_or(0.0);
        self.metrics.stages.total.observe(decided_s);
    }

    /// A number that no other request of this service has.
    pub fn next_request_number(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// A booking id that no other request of this service has.
    pub(crate) fn next_request_id(&self) -> RequestId {
        RequestId(self.next_request_number())
    }

    /// Settings of the service.
    pub fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// Ends the background threads. A second call does nothing.
    ///
    /// Records and spans of requests that end after this call are dropped and counted.
    pub fn stop(&self) {
        drop(self.shadow_thread.lock().take());
        if let Some(peers) = &self.peers {
            peers.stop();
        }
        self.background.stop();
        if let Some(records) = &self.records {
            records.stop();
        }
        if let Some(tracing) = &self.tracing {
            tracing.stop();
        }
    }

    /// The registered model of a name.
    ///
    /// # Errors
    /// [`ServiceError::UnknownModel`].
    fn model(&self, name: &str) -> Result<Arc<Model>, ServiceError> {
        let found = self.models.find(name);
        found
            .map(|(model, _)| model)
            .ok_or_else(|| ServiceError::UnknownModel(name.into()))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads JSON of a control call.
///
/// # Errors
/// [`ServiceError::Config`] with what was expected and where the text differs.
fn parse<'a, T: serde::Deserialize<'a>>(what: &str, json: &'a str) -> Result<T, ServiceError> {
    serde_json::from_str(json).map_err(|e| ServiceError::Config(format!("not a {what}: {e}")))
}

/// Reads the name of a role.
///
/// # Errors
/// [`ServiceError::Config`] with the accepted names.
fn parse_role(role: &str) -> Result<Role, ServiceError> {
    let known = Role::ALL.into_iter().find(|known| known.name() == role);
    known.ok_or_else(|| {
        ServiceError::Config(format!(
            "role must be aggregated, prefill or decode, got {role:?}"
        ))
    })
}
