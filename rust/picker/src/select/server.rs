//! The selection service as an object: settings, servers, and the thread that ends reservations over their time.
//!
//! Threads: `worker_threads` of one event loop, which also ends reservations over their time, up to
//! once a second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::middleware::from_fn_with_state;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use wardrop_service::admission::BodyBudget;
use wardrop_service::config::ServiceConfig;
use wardrop_service::metrics::THREAD_PREFIX;
use wardrop_service::{Service, ServiceError, hide_panic_texts, start_logging};

use super::bodies::{BodyLimits, Protocol, limit_bodies};
use super::dump::Dumps;
use super::grpc::SelectGrpc;
use super::http::{SelectHttp, routes};
use super::reservations::SelectLimits;
use super::selector::Selector;
use super::workers::WorkerRecord;
use crate::proto::select::selection_server::SelectionServer;
use crate::server::{KEEP_ALIVE, bind, io};

/// Name of the gRPC service, for health checks.
const SELECTION: &str = "wardrop.v1.Selection";
/// Largest message, bytes.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// Most streams of one connection.
const MAX_STREAMS: u32 = 16_384;

/// The whole configuration. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectConfig {
    /// `host:port` of the gRPC service; port 0 takes a free one, `None` serves no gRPC.
    pub grpc_listen: Option<String>,
    /// `host:port` of the HTTP service; port 0 takes a free one, `None` serves no HTTP.
    pub http_listen: Option<String>,
    /// Threads that serve calls.
    pub worker_threads: usize,
    /// Open reservations.
    pub max_reservations: usize,
    /// Life of a reservation that its caller does not free or renew, in milliseconds.
    pub reservation_ttl_ms: u64,
    /// Selections that wait for a reservation.
    pub max_selections: usize,
    /// Bytes of the selections that wait for a reservation.
    pub max_selection_bytes: usize,
    /// Life of a selection without a reservation, in milliseconds.
    pub selection_ttl_ms: u64,
    /// Bytes of the bodies of all calls that are served at one time.
    pub all_bodies_bytes: usize,
    /// Longest time for the bytes of one HTTP call, in milliseconds.
    pub read_timeout_ms: u64,
    /// Settings of the routing service. In JSON its keys `router_id`, `routing`, `feed`, `records`,
    /// `tracing` and `peers` stand beside those of the selection service.
    #[serde(skip)]
    pub service: ServiceConfig,
    /// Log filter in `tracing` directives, for example `info`; `None` leaves logging as it is.
    pub log: Option<String>,
}

impl Default for SelectConfig {
    fn default() -> Self {
        Self {
            grpc_listen: Some("127.0.0.1:8093".into()),
            http_listen: Some("127.0.0.1:8092".into()),
            worker_threads: 2,
            max_reservations: 1 << 20,
            reservation_ttl_ms: 300_000,
            max_selections: 4096,
            max_selection_bytes: 256 << 20,
            selection_ttl_ms: 120_000,
            all_bodies_bytes: 256 << 20,
            read_timeout_ms: 30_000,
            service: ServiceConfig::default(),
            log: None,
        }
    }
}

impl SelectConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the value received and the values expected.
    pub fn from_json(text: &str) -> Result<Self, ServiceError> {
        let (service, mut config): (_, Self) = ServiceConfig::take_from(
            text,
            &["router_id", "routing", "feed", "records", "tracing", "peers"],
        )?;
        config.service = service;
        let whole = [
            ("worker_threads", config.worker_threads as u64, 256),
            ("max_reservations", config.max_reservations as u64, 1 << 24),
            ("reservation_ttl_ms", config.reservation_ttl_ms, 86_400_000),
            ("max_selections", config.max_selections as u64, 1 << 24),
            ("max_selection_bytes", config.max_selection_bytes as u64, 1 << 40),
            ("selection_ttl_ms", config.selection_ttl_ms, 86_400_000),
            ("all_bodies_bytes", config.all_bodies_bytes as u64, 1 << 40),
            ("read_timeout_ms", config.read_timeout_ms, 86_400_000),
        ];
        for (name, value, most) in whole {
            if !(1..=most).contains(&value) {
                return Err(ServiceError::Config(format!(
                    "{name} must be 1 to {most}, got {value}"
                )));
            }
        }
        if config.grpc_listen.is_none() && config.http_listen.is_none() {
            return Err(ServiceError::Config(
                "grpc_listen and http_listen are both off; name at least one address".into(),
            ));
        }
        config.service.check()?;
        Ok(config)
    }
}

/// Metrics beside those of the routing service.
struct SelectMetrics {
    /// Reservations that ended by themselves.
    expired: IntCounter,
    /// Open reservations.
    open: IntGauge,
    /// Selections that wait for a reservation.
    pending: IntGauge,
    /// Bytes of bodies in memory.
    body_bytes: IntGauge,
}

/// The servers while they run.
struct Running {
    /// Event loop of both protocols.
    runtime: Runtime,
    /// Bound address of gRPC.
    grpc: Option<SocketAddr>,
    /// Bound address of HTTP.
    http: Option<SocketAddr>,
}

/// A selection service, before and after it serves.
pub struct SelectServer {
    /// Configuration, fixed for the life of the service.
    config: SelectConfig,
    /// The routing service.
    service: Arc<Service>,
    /// Workers, selections and reservations.
    selector: Arc<Selector>,
    /// Metrics of the selection service.
    metrics: Arc<SelectMetrics>,
    /// Limits on the bodies of all calls.
    bodies: BodyLimits,
    /// The service stops, so health checks fail.
    draining: Arc<AtomicBool>,
    /// The servers; `None` before the start and after the stop.
    running: Mutex<Option<Running>>,
}

impl SelectServer {
    /// A service that is configured but does not listen yet.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the setting that cannot work.
    pub fn new(config: SelectConfig) -> Result<Self, ServiceError> {
        if let Some(filter) = &config.log {
            start_logging(filter)?;
        }
        hide_panic_texts();
        let service = Service::new(config.service.clone())?;
        let builder = service.metric_builder();
        let failed = |error| ServiceError::Config(format!("metrics of the selection service: {error}"));
        let metrics = SelectMetrics {
            expired: builder
                .counter(
                    "select_expired_total",
                    "Reservations that ended because their callers did not free them",
                )
                .map_err(failed)?,
            open: builder
                .gauge("select_reservations", "Open reservations")
                .map_err(failed)?,
            pending: builder
                .gauge("select_selections", "Selections that wait for a reservation")
                .map_err(failed)?,
            body_bytes: builder
                .gauge("request_body_bytes", "Bytes of request bodies in memory")
                .map_err(failed)?,
        };
        let bodies = BodyLimits {
            budget: BodyBudget::new(config.all_bodies_bytes),
            read_timeout: Duration::from_millis(config.read_timeout_ms),
            refused: builder
                .counter(
                    "select_bodies_refused_total",
                    "Calls that were refused because their body did not fit beside the others, or came too slowly",
                )
                .map_err(failed)?,
        };
        let limits = SelectLimits {
            reservations: config.max_reservations,
            reservation_ttl: Duration::from_millis(config.reservation_ttl_ms),
            selections: config.max_selections,
            selection_bytes: config.max_selection_bytes,
            selection_ttl: Duration::from_millis(config.selection_ttl_ms),
        };
        Ok(Self {
            selector: Arc::new(Selector::new(service.clone(), limits)),
            metrics: Arc::new(metrics),
            bodies,
            draining: Arc::default(),
            running: Mutex::new(None),
            service,
            config,
        })
    }

    /// Registers a worker, with the field names of Dynamo's selection service.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the field that is wrong.
    pub fn upsert_worker(&self, text: &str) -> Result<(), ServiceError> {
        let refused = |text: String| ServiceError::Config(text);
        let value = serde_json::from_str(text).map_err(|error| refused(format!("not a worker: {error}")))?;
        let record = WorkerRecord::from_json(value).map_err(|error| refused(error.to_string()))?;
        let shown = self.selector.fleet.upsert(record);
        shown.map(|_| ()).map_err(|error| refused(error.to_string()))
    }

    /// Starts to serve.
    ///
    /// # Errors
    /// An address is taken, or the service runs already.
    pub fn start(&self) -> Result<(), ServiceError> {
        let mut running = self.running.lock();
        if running.is_some() {
            return Err(ServiceError::State("the selection service runs already".into()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.config.worker_threads)
            .thread_name(format!("{THREAD_PREFIX}select"))
            .enable_all()
            .build()
            .map_err(|source| io("starting threads", source))?;
        self.service.start_peers()?;
        let (grpc, http) = runtime.block_on(self.serve())?;
        tracing::info!(?grpc, ?http, "selection service serves");
        *running = Some(Running { runtime, grpc, http });
        Ok(())
    }

    /// Binds both addresses and starts their tasks, and the task that sweeps.
    ///
    /// # Errors
    /// An address that cannot be bound.
    async fn serve(&self) -> Result<(Option<SocketAddr>, Option<SocketAddr>), ServiceError> {
        let mut bound = (None, None);
        if let Some(listen) = &self.config.grpc_listen {
            let listener = bind(listen).await?;
            bound.0 = Some(address(&listener)?);
            self.serve_grpc(listener)?;
        }
        if let Some(listen) = &self.config.http_listen {
            let listener = bind(listen).await?;
            bound.1 = Some(address(&listener)?);
            let shared = SelectHttp {
                selector: self.selector.clone(),
                service: self.service.clone(),
                receipts: self.config.service.routing.receipts,
                dumps: Dumps::new(self.service.clone()),
            };
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                let _ = stream.set_nodelay(true);
            });
            let limits = (self.bodies.clone(), Protocol::Http);
            let routes = routes(shared).layer(from_fn_with_state(limits, limit_bodies));
            tokio::spawn(axum::serve(listener, routes).into_future());
        }
        let (selector, metrics) = (self.selector.clone(), self.metrics.clone());
        let bodies = self.bodies.budget.clone();
        let every =
            Duration::from_millis(self.config.reservation_ttl_ms.min(self.config.selection_ttl_ms) / 4)
                .clamp(Duration::from_millis(10), Duration::from_secs(1));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                metrics
                    .expired
                    .inc_by(selector.reservations.sweep(Instant::now()) as u64);
                let (open, pending) = selector.reservations.sizes();
                metrics.open.set(i64::try_from(open).unwrap_or(i64::MAX));
                metrics.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
                let body_bytes = bodies.used_bytes();
                metrics
                    .body_bytes
                    .set(i64::try_from(body_bytes).unwrap_or(i64::MAX));
            }
        });
        Ok(bound)
    }

    /// Starts gRPC with health checks and reflection on one socket.
    fn serve_grpc(&self, listener: TcpListener) -> Result<(), ServiceError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let (service, draining) = (self.service.clone(), self.draining.clone());
        tokio::spawn(async move {
            loop {
                let draining = draining.load(Ordering::Relaxed);
                for (name, is_up) in [
                    ("", !draining),
                    (SELECTION, !draining),
                    ("liveness", true),
                    ("readiness", !draining && service.routable_workers() > 0),
                ] {
                    let status = if is_up {
                        ServingStatus::Serving
                    } else {
                        ServingStatus::NotServing
                    };
                    reporter.set_service_status(name, status).await;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(SELECTION)
            .with_service_name("grpc.health.v1.Health")
            .build_v1()
            .map_err(|error| ServiceError::Config(format!("reflection: {error}")))?;
        let selection = SelectionServer::new(SelectGrpc {
            selector: self.selector.clone(),
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let limits = (self.bodies.clone(), Protocol::Grpc);
        let routes = Routes::new(health)
            .add_service(reflection)
            .add_service(selection)
            .into_axum_router()
            .layer(from_fn_with_state(limits, limit_bodies));
        let server = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            // A dead caller frees its streams, and the bytes of its calls.
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_routes(Routes::from(routes));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(server.serve_with_incoming(incoming));
        Ok(())
    }

    /// The state of the service and of everything behind it, as JSON.
    pub fn status(&self) -> String {
        let running = self.running.lock();
        let bound = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let (reservations, selections) = self.selector.reservations.sizes();
        json!({
            "grpc_address": running.as_ref().and_then(|running| bound(running.grpc)),
            "http_address": running.as_ref().and_then(|running| bound(running.http)),
            "reservations": reservations,
            "selections": selections,
            "models": self.service.model_reports(),
            "feeds": self.service.feed_reports(),
            "peer_address": self.service.peer_address().map(|address| address.to_string()),
        })
        .to_string()
    }

    /// The metrics page in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.service.render_metrics()
    }

    /// Stops all threads and cuts the calls in flight. A second call does nothing.
    pub fn stop(&self) {
        self.draining.store(true, Ordering::Relaxed);
        if let Some(running) = self.running.lock().take() {
            running.runtime.shutdown_background();
        }
        self.service.stop();
    }
}

impl Drop for SelectServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The address that a listener is bound to.
fn address(listener: &TcpListener) -> Result<SocketAddr, ServiceError> {
    listener
        .local_addr()
        .map_err(|source| io("reading the bound address", source))
}
