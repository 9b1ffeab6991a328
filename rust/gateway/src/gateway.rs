//! The gateway as an object: a routing service with an HTTP door.
//!
//! Every method returns quickly, except [`Gateway::drain`]: requests, feeds and shadows run on threads of the gateway.
//!
//! The bindings hold one gateway per process. The order of a start is [`Gateway::new`], control
//! calls, [`Gateway::start`]; of a stop [`Gateway::drain`], [`Gateway::stop`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use wardrop_service::admission::{BodyBudget, InFlight};
use wardrop_service::{FeedReport, ModelReport, Service, hide_panic_texts, start_logging};

use crate::ServiceError;
use crate::config::GatewayConfig;
use crate::metrics::HttpMetrics;
use crate::proxy::{RetryBudget, Server, Shared};
use crate::resources::{Lowered, Resources};
use crate::upstream::{Tls, UpstreamDryRun, UpstreamSet, WorkerUpstream};

/// A routing service and its HTTP door, before and after the door opens.
pub struct Gateway {
    /// State of the service and the door, which serving threads share.
    shared: Arc<Shared>,
    /// The running server; `None` before the start and after the stop.
    server: Mutex<Option<Server>>,
}

/// The status report. Its keys are the names of the fields; models and feeds come from the service.
#[derive(Serialize)]
struct Status {
    /// Bound `host:port`; `None` before the start.
    address: Option<String>,
    /// The gateway takes no new requests.
    draining: bool,
    /// Requests in flight.
    in_flight: usize,
    /// Open client connections.
    connections: usize,
    /// Limits in force.
    limits: LimitStatus,
    /// Resources of the process, from which lowered limits follow.
    resources: Resources,
    /// A model has a worker, and the gateway does not drain.
    ready: bool,
    /// Every upstream, in the order of the list.
    upstreams: Vec<UpstreamStatus>,
    /// Every model with its workers.
    models: Vec<ModelReport>,
    /// Every feed.
    feeds: Vec<FeedReport>,
    peer_address: Option<String>,
}

/// Limits in force, which fit the resources of the process.
#[derive(Serialize)]
struct LimitStatus {
    connections: usize,
    concurrent_requests: usize,
    all_bodies_bytes: usize,
}

/// One upstream in the status report.
#[derive(Serialize)]
struct UpstreamStatus {
    /// `host:port`.
    authority: String,
    /// The upstream takes part in the round robin.
    up: bool,
    /// Connections that were refused or timed out.
    connect_failures: u64,
}

impl Gateway {
    /// A gateway that is configured but does not listen yet. Its feeds can be filled before it starts.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the setting that cannot work.
    pub fn new(mut config: GatewayConfig) -> Result<Self, ServiceError> {
        if let Some(filter) = &config.log {
            start_logging(filter)?;
        }
        // Before any thread of the gateway starts, so that no panic of it can print a prompt.
        hide_panic_texts();
        // A limit that does not fit is lowered here, where an operator can read it in the log,
        // instead of failing under load.
        let resources = Resources::raise_and_read();
        for lowered in resources.fit(&mut config) {
            let Lowered {
                setting,
                from,
                to,
                cause,
            } = lowered;
            tracing::warn!(
                setting,
                configured = from,
                in_force = to,
                cause,
                "a limit does not fit the process"
            );
        }
        let service = Service::new(config.service.clone())?;
        let metrics = HttpMetrics::new(service.metric_builder())
            .map_err(|error| ServiceError::Config(format!("metrics of the gateway: {error}")))?;
        let tls = Tls::new(config.upstream.ca_file.clone(), metrics.tls_failures.clone())?;
        let upstreams = Arc::new(UpstreamSet::with_tls(tls));
        upstreams.replace(&config.upstreams)?;
        let limits = &metrics.limits;
        for (gauge, value) in [
            (&limits.connections, config.limits.connections),
            (&limits.concurrent_requests, config.limits.concurrent_requests),
            (&limits.all_bodies_bytes, config.limits.all_bodies_bytes),
            (&limits.all_idle_connections, config.upstream.all_idle_connections),
            (&limits.worker_threads, config.worker_threads),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let since_1970 = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let in_flight = InFlight::new(config.limits.concurrent_requests);
        let shared = Arc::new(Shared {
            service,
            bodies: BodyBudget::new(config.limits.all_bodies_bytes),
            config,
            resources,
            metrics: Arc::new(metrics),
            upstreams,
            retries: RetryBudget::new(),
            // Two processes that start at the same nanosecond still differ by their ids.
            nonce: since_1970.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40),
            in_flight,
            connections: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        });
        Ok(Self {
            shared,
            server: Mutex::new(None),
        })
    }

    /// The routing service behind the door, for the control calls that every door shares.
    pub fn service(&self) -> &Service {
        &self.shared.service
    }

    /// Starts to serve; returns the bound port.
    ///
    /// Until then the gateway accepts no client, so its index can be filled first.
    ///
    /// # Errors
    /// The address is taken, or the gateway runs already.
    pub fn start(&self) -> Result<u16, ServiceError> {
        let mut server = self.server.lock();
        if server.is_some() {
            return Err(ServiceError::State("the gateway runs already".into()));
        }
        self.shared.service.start_peers()?;
        let started = Server::start(&self.shared)?;
        let address = started.address();
        tracing::info!(%address, "gateway serves");
        *server = Some(started);
        Ok(address.port())
    }

    /// Replaces the upstream frontends.
    ///
    /// Requests in flight keep their connections.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a URL that is neither `http://host[:port]` nor `https://host[:port]`.
    pub fn set_upstreams(&self, urls: &[String]) -> Result<(), ServiceError> {
        self.shared.upstreams.replace(urls)
    }

    /// Makes workers the upstreams, by a list of `{instance, url}`. A placed request then goes straight to its worker, without pin
    /// headers. A request without a known prompt is placed by load.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for text that is no list of workers, or a URL that is neither `http://host[:port]` nor `https://host[:port]`.
    pub fn set_workers(&self, workers_json: &str) -> Result<(), ServiceError> {
        let workers: Vec<WorkerUpstream> = serde_json::from_str(workers_json)
            .map_err(|e| ServiceError::Config(format!("not a list of workers: {e}")))?;
        self.shared.upstreams.replace_workers(&workers)
    }

    /// Registers a model or changes it, and has its template checked against Dynamo in the background.
    ///
    /// # Errors
    /// Those of [`Service::upsert_model`].
    pub fn upsert_model(&self, json: &str) -> Result<(), ServiceError> {
        let service = &self.shared.service;
        if let Some(model) = service.upsert_model(json)? {
            service.check_template(&model, self.dry_run());
        }
        Ok(())
    }

    /// Forgets a model with its workers and feeds; whether it was known.
    pub fn remove_model(&self, name: &str) -> bool {
        self.shared.service.remove_model(name)
    }

    /// Compares a model's token ids with Dynamo's again, for example after its template changed upstream.
    ///
    /// # Errors
    /// [`ServiceError::UnknownModel`] when the model is not registered.
    pub fn recheck_model(&self, name: &str) -> Result<(), ServiceError> {
        self.shared.service.recheck_template(name)
    }

    /// A source of Dynamo's token ids for one model's comparison.
    fn dry_run(&self) -> UpstreamDryRun {
        UpstreamDryRun::new(self.shared.upstreams.clone(), self.shared.config.upstream.clone())
    }

    /// The state of the gateway and of everything behind it, as JSON.
    ///
    /// O(workers + feeds).
    pub fn status(&self) -> String {
        let shared = &self.shared;
        let models = shared.service.model_reports();
        let draining = shared.draining.load(Ordering::Relaxed);
        let status = Status {
            address: self
                .server
                .lock()
                .as_ref()
                .map(|server| server.address().to_string()),
            draining,
            in_flight: shared.in_flight.requests(),
            connections: shared.connections.load(Ordering::Relaxed),
            limits: LimitStatus {
                connections: shared.config.limits.connections,
                concurrent_requests: shared.config.limits.concurrent_requests,
                all_bodies_bytes: shared.config.limits.all_bodies_bytes,
            },
            resources: shared.resources,
            // Ready means that a worker can be chosen; upstreams have a state of their own in the
            // report.
            ready: !draining && models.iter().any(ModelReport::is_routable),
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
            feeds: shared.service.feed_reports(),
            peer_address: shared.service.peer_address().map(|address| address.to_string()),
        };
        serde_json::to_string(&status).expect("a status of plain values must serialise")
    }

    /// The metrics page in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.shared.render_metrics()
    }

    /// Refuses new requests and waits until the requests in flight end. Returns whether all of them ended within `timeout`.
    ///
    /// Call it before [`Gateway::stop`]; open connections get `connection: close` with their
    /// current answer.
    pub fn drain(&self, timeout: Duration) -> bool {
        if let Some(server) = &*self.server.lock() {
            server.drain(&self.shared);
        }
        self.shared.in_flight.wait_for_none(timeout)
    }

    /// Stops all threads and cuts the requests in flight. A second call does nothing.
    pub fn stop(&self) {
        let server = self.server.lock().take();
        if let Some(server) = server {
            server.stop();
        }
        self.shared.service.stop();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}
