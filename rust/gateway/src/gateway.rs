//! The gateway as an object: what a control plane calls. Every call is short; the work happens on the gateway's own threads.

mod control;
mod restart;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::GatewayError;
use crate::config::GatewayConfig;
use crate::feed::dynamo::decode_dump;
use crate::feed::{FeedReport, Feeds, Subscription};
use crate::fleet::{Model, ModelSpec, Registry, Role, WorkerReport, WorkerUpsert};
use crate::metrics::{Metrics, THREAD_PREFIX};
use crate::outcomes::Outcomes;
use crate::prompt::{HandoverReport, check_handover};
use crate::proxy::{Server, Shared, Tenants};
use crate::receipts::Receipts;
use crate::shadows::{ShadowThread, Shadows};
use crate::upstream::{ConnectionPool, UpstreamSet};

/// Threads of the background's slow work.
const BLOCKING_THREADS: usize = 2;
const SWEEP_EVERY: Duration = Duration::from_millis(200);
/// Pause between attempts of the template check while Dynamo can not answer it.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
const CHECK_ATTEMPTS: u32 = 600;

/// A gateway, started or not.
pub struct Gateway {
    shared: Arc<Shared>,
    feeds: Feeds,
    /// The event loop of feeds, sweeps and checks.
    background: Handle,
    stop_background: watch::Sender<bool>,
    background_thread: Mutex<Option<JoinHandle<()>>>,
    server: Mutex<Option<Server>>,
    shadow_thread: Mutex<Option<ShadowThread>>,
}

#[derive(Serialize)]
struct Status {
    address: Option<String>,
    draining: bool,
    in_flight: usize,
    connections: usize,
    ready: bool,
    upstreams: Vec<UpstreamStatus>,
    models: Vec<ModelStatus>,
    feeds: Vec<FeedReport>,
}

#[derive(Serialize)]
struct UpstreamStatus {
    authority: String,
    up: bool,
    connect_failures: u64,
}

#[derive(Serialize)]
struct ModelStatus {
    name: String,
    block_size: u32,
    context_length: Option<u64>,
    loras: Vec<String>,
    has_tokeniser: bool,
    has_template: bool,
    handover_enabled: bool,
    /// `None` until Dynamo answered the check.
    handover: Option<HandoverReport>,
    pools: Vec<PoolStatus>,
}

#[derive(Serialize)]
struct PoolStatus {
    role: Role,
    routable: usize,
    policy: String,
    bookings: usize,
    index_blocks: u64,
    workers: Vec<WorkerReport>,
}

impl Gateway {
    /// A gateway that is configured but does not listen yet. Its feeds can be filled before it starts.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: GatewayConfig) -> Result<Self, GatewayError> {
        if let Some(filter) = &config.log {
            init_logging(filter)?;
        }
        // Refused now, not with the first model.
        config.routing.policy.build()?;
        let upstreams = Arc::new(UpstreamSet::default());
        upstreams.replace(&config.upstreams)?;
        let metrics = Metrics::new(&config.router_id)
            .map_err(|e| GatewayError::Config(format!("router_id {:?}: {e}", config.router_id)))?;
        let epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let shadows = config.shadows.as_ref().map(Shadows::new).transpose()?;
        let shared = Arc::new(Shared {
            shadows,
            tenants: Tenants::new(&config.routing.tenant_weights),
            receipts: Receipts::new(config.routing.receipts),
            routing: Mutex::new(config.routing.start()),
            config,
            registry: Registry::default(),
            metrics,
            upstreams,
            outcomes: Outcomes::default(),
            clock: Instant::now(),
            nonce: epoch.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40),
            next_request: AtomicU64::new(1),
            in_flight: AtomicUsize::new(0),
            heavy: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        });
        let shadow_thread = ShadowThread::start(&shared)?;
        let (background, stop_background, thread) = start_background(shared.clone())?;
        Ok(Self {
            shared,
            feeds: Feeds::default(),
            background,
            stop_background,
            background_thread: Mutex::new(Some(thread)),
            server: Mutex::new(None),
            shadow_thread: Mutex::new(shadow_thread),
        })
    }

    /// Starts to serve; returns the bound port.
    ///
    /// # Errors
    /// The address is taken, or the gateway runs already.
    pub fn start(&self) -> Result<u16, GatewayError> {
        let mut server = self.server.lock();
        if server.is_some() {
            return Err(GatewayError::State("the gateway runs already".into()));
        }
        let started = Server::start(&self.shared)?;
        let address = started.address();
        tracing::info!(%address, "gateway serves");
        *server = Some(started);
        Ok(address.port())
    }

    /// Replaces the upstream frontends.
    pub fn set_upstreams(&self, urls: &[String]) -> Result<(), GatewayError> {
        self.shared.upstreams.replace(urls)
    }

    /// Registers a model or changes it, and has its template checked against Dynamo in the background.
    pub fn upsert_model(&self, json: &str) -> Result<(), GatewayError> {
        let spec: ModelSpec = parse("model", json)?;
        // Held until the model stands: a change meanwhile would miss it.
        let routing = self.shared.routing.lock();
        let (model, is_new) = self.shared.registry.upsert(spec, &self.shared.config, &routing)?;
        drop(routing);
        if is_new && self.shared.config.prompt.handover {
            self.background.spawn(check_model(self.shared.clone(), model));
        }
        Ok(())
    }

    /// Checks a model's template again, for example after its template changed upstream.
    pub fn recheck_model(&self, name: &str) -> Result<(), GatewayError> {
        let model = self.model(name)?;
        self.background.spawn(check_model(self.shared.clone(), model));
        Ok(())
    }

    /// Forgets a model with its workers and feeds; whether it was known.
    pub fn remove_model(&self, name: &str) -> bool {
        self.feeds.leave_model(name);
        self.shared.registry.remove(name)
    }

    /// Adds a worker instance or takes over its new figures.
    pub fn upsert_worker(&self, json: &str) -> Result<(), GatewayError> {
        let upsert: WorkerUpsert = parse("worker", json)?;
        self.model(&upsert.model)?.pool(upsert.role).upsert(&upsert)
    }

    /// Forgets a worker instance; whether it was known.
    pub fn remove_worker(&self, model: &str, role: &str, instance: u64) -> Result<bool, GatewayError> {
        self.model(model)?.pool(parse_role(role)?).remove(instance)
    }

    /// Follows a feed.
    pub fn subscribe(&self, json: &str) -> Result<(), GatewayError> {
        let subscription: Subscription = parse("subscription", json)?;
        self.feeds.subscribe(subscription, &self.shared, &self.background)
    }

    /// Leaves a feed; whether it was followed.
    pub fn unsubscribe(&self, publisher_id: u64) -> bool {
        self.feeds.unsubscribe(publisher_id)
    }

    /// Fills the index of workers whose events are not known from their start; returns how many workers that were.
    pub fn load_dump(&self, model: &str, role: &str, json: &str) -> Result<usize, GatewayError> {
        let pool = self.model(model)?.pool(parse_role(role)?).clone();
        let events = decode_dump(json).map_err(|e| {
            GatewayError::Config(format!("not a list of events as dump_events() returns: {e}"))
        })?;
        let (workers, counts) = pool.load_dump(events);
        self.shared
            .metrics
            .events
            .with_label_values(&["dumped"])
            .inc_by(counts.applied);
        Ok(workers)
    }

    /// Everything a person or a control plane may want to know, as JSON.
    pub fn status(&self) -> String {
        let shared = &self.shared;
        let now_s = shared.now_s();
        let models: Vec<ModelStatus> = shared
            .registry
            .all()
            .iter()
            .map(|model| self.model_status(model, now_s))
            .collect();
        let draining = shared.draining.load(Ordering::Relaxed);
        let status = Status {
            address: self
                .server
                .lock()
                .as_ref()
                .map(|server| server.address().to_string()),
            draining,
            in_flight: shared.in_flight.load(Ordering::Relaxed),
            connections: shared.connections.load(Ordering::Relaxed),
            ready: !draining
                && models
                    .iter()
                    .flat_map(|model| &model.pools)
                    .any(|pool| pool.routable > 0),
            upstreams: shared
                .upstreams
                .list()
                .iter()
                .map(|upstream| UpstreamStatus {
                    authority: upstream.authority(),
                    up: shared.upstreams.is_up(upstream),
                    connect_failures: upstream.failures(),
                })
                .collect(),
            models,
            feeds: self.feeds.report(now_s),
        };
        serde_json::to_string(&status).expect("a status of plain values must serialise")
    }

    fn model_status(&self, model: &Model, now_s: f64) -> ModelStatus {
        let pool_status = |role: Role| {
            let pool = model.pool(role);
            let workers = pool.report(now_s);
            if workers.is_empty() {
                return None;
            }
            let snapshot = pool.snapshot();
            Some(PoolStatus {
                role,
                routable: workers.iter().filter(|worker| worker.available).count(),
                policy: snapshot.policy,
                bookings: snapshot.bookings,
                index_blocks: snapshot.index.blocks,
                workers,
            })
        };
        ModelStatus {
            name: model.spec.name.clone(),
            block_size: model.spec.block_size,
            context_length: model.spec.context_length,
            loras: model.spec.loras.clone(),
            has_tokeniser: model.prompter.is_some(),
            has_template: model
                .prompter
                .as_ref()
                .is_some_and(|prompter| prompter.template().is_some()),
            handover_enabled: self.shared.config.prompt.handover,
            handover: model.handover.lock().clone(),
            pools: Role::ALL.into_iter().filter_map(pool_status).collect(),
        }
    }

    /// The text that Prometheus reads.
    pub fn metrics(&self) -> String {
        let in_flight = self.shared.in_flight.load(Ordering::Relaxed);
        self.shared.metrics.render(
            &self.shared.registry,
            self.shared.shadows.as_ref(),
            in_flight,
            self.shared.now_s(),
        )
    }

    /// Takes no new requests and waits for those in flight; whether all ended in time.
    pub fn drain(&self, timeout: Duration) -> bool {
        if let Some(server) = &*self.server.lock() {
            server.drain(&self.shared);
        }
        let end = Instant::now() + timeout;
        while self.shared.in_flight.load(Ordering::Relaxed) > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Stops at once. A second call does nothing.
    pub fn stop(&self) {
        let server = self.server.lock().take();
        if let Some(server) = server {
            server.stop();
        }
        drop(self.shadow_thread.lock().take());
        let _ = self.stop_background.send(true);
        if let Some(thread) = self.background_thread.lock().take() {
            let _ = thread.join();
        }
    }

    fn model(&self, name: &str) -> Result<Arc<Model>, GatewayError> {
        let found = self.shared.registry.find(name);
        found
            .map(|(model, _)| model)
            .ok_or_else(|| GatewayError::UnknownModel(name.into()))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(what: &str, json: &'a str) -> Result<T, GatewayError> {
    serde_json::from_str(json).map_err(|e| GatewayError::Config(format!("not a {what}: {e}")))
}

fn parse_role(role: &str) -> Result<Role, GatewayError> {
    Role::ALL
        .into_iter()
        .find(|known| known.name() == role)
        .ok_or_else(|| {
            GatewayError::Config(format!(
                "role must be aggregated, prefill or decode, got {role:?}"
            ))
        })
}

type Background = (Handle, watch::Sender<bool>, JoinHandle<()>);

fn start_background(shared: Arc<Shared>) -> Result<Background, GatewayError> {
    let io = |source| GatewayError::Io {
        what: "starting the background thread".into(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name(format!("{THREAD_PREFIX}solve"))
        .build()
        .map_err(io)?;
    let handle = runtime.handle().clone();
    let (stop, mut stopped) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name(format!("{THREAD_PREFIX}feeds"))
        .spawn(move || {
            runtime.block_on(async move {
                let mut sweep = tokio::time::interval(SWEEP_EVERY);
                // Solving takes longer than feeds may wait, and one window after another is enough.
                let mut solving = tokio::spawn(async {});
                loop {
                    tokio::select! {
                        _ = sweep.tick() => {
                            sweep_pools(&shared);
                            if solving.is_finished() {
                                let shared = shared.clone();
                                solving = tokio::task::spawn_blocking(move || solve_anarchy(&shared));
                            }
                        }
                        _ = stopped.changed() => return,
                    }
                }
            });
            runtime.shutdown_background();
        })
        .map_err(io)?;
    Ok((handle, stop, thread))
}

fn sweep_pools(shared: &Shared) {
    let now_s = shared.now_s();
    for model in shared.registry.all() {
        for pool in model.pools() {
            let expired = pool.sweep(now_s);
            shared.metrics.expired_bookings.inc_by(expired as u64);
        }
    }
}

fn solve_anarchy(shared: &Shared) {
    for model in shared.registry.all() {
        for pool in model.pools() {
            pool.solve_anarchy(shared.now_s());
        }
    }
}

/// Asks Dynamo until it answers or the model is gone.
async fn check_model(shared: Arc<Shared>, model: Arc<Model>) {
    let Some(prompter) = model.prompter.clone() else {
        return;
    };
    let pool = ConnectionPool::new(shared.upstreams.clone(), shared.config.upstream.clone(), 0);
    for attempt in 0..CHECK_ATTEMPTS {
        let current = shared.registry.find(&model.spec.name).map(|(current, _)| current);
        let Some(current) =
            current.filter(|c| c.prompter.as_ref().is_some_and(|p| Arc::ptr_eq(p, &prompter)))
        else {
            return;
        };
        match check_handover(&prompter, &model.spec.name, &pool).await {
            Ok(report) => {
                for shape in &report.shapes {
                    if shape.handed_over {
                        tracing::info!(model = %model.spec.name, shape = shape.shape, samples = shape.samples, "token ids equal Dynamo's: handed over");
                    } else {
                        tracing::warn!(model = %model.spec.name, shape = shape.shape, samples = shape.samples, equal = shape.equal, note = shape.note.as_deref(), "token ids differ from Dynamo's: used as a hint only");
                    }
                }
                *current.handover.lock() = Some(report);
                return;
            }
            Err(reason) => {
                if attempt == 0 {
                    tracing::info!(model = %model.spec.name, %reason, "template check waits for Dynamo");
                }
                tokio::time::sleep(CHECK_PAUSE).await;
            }
        }
    }
}

fn init_logging(filter: &str) -> Result<(), GatewayError> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|e| GatewayError::Config(format!("log filter {filter:?}: {e}")))?;
    // A second gateway in the same process shares the first one's log.
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
    Ok(())
}
