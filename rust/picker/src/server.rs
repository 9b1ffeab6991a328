//! The servers of the picker: external processing with health checks, plain health checks, and HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use wardrop_service::ServiceError;
use wardrop_service::metrics::THREAD_PREFIX;

use crate::config::{PickerConfig, TlsFiles};
use crate::exchange::Exchange;
use crate::http;
use crate::proto::ext_proc::external_processor_server::{ExternalProcessor, ExternalProcessorServer};
use crate::proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use crate::shared::Shared;

/// Name of the service that Envoy calls, and whose health it asks for.
pub(crate) const EXT_PROC: &str = "envoy.service.ext_proc.v3.ExternalProcessor";
/// Time between two looks at the workers for the health checks.
const HEALTH_EVERY: Duration = Duration::from_millis(200);
/// Messages of one stream that wait for Envoy.
const OUTBOX: usize = 8;
/// Time between two pings of an idle connection, and time for their answer: a dead caller frees its streams.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Bytes of a message around the body in it.
const MESSAGE_OVERHEAD_BYTES: usize = 1 << 20;

/// Addresses that the servers are bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// External processing.
    pub grpc: SocketAddr,
    /// Plain health checks.
    pub health: Option<SocketAddr>,
    /// Metrics.
    pub http: Option<SocketAddr>,
}

/// The running servers.
pub(crate) struct Servers {
    /// Addresses that the servers listen on.
    pub addresses: Addresses,
    /// Signal to accept nothing more.
    stop: watch::Sender<bool>,
    /// Event loop; `None` once it was stopped.
    runtime: Option<Runtime>,
}

impl Servers {
    /// Binds and starts serving.
    ///
    /// # Errors
    /// An address cannot be bound, or the files of TLS cannot be read.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, ServiceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(shared.config.worker_threads)
            .thread_name(format!("{THREAD_PREFIX}pick"))
            .enable_all()
            .build()
            .map_err(|source| io("starting threads", source))?;
        let tls = shared.config.tls.as_ref().map(read_tls).transpose()?;
        let (stop, stopped) = watch::channel(false);
        let addresses = runtime.block_on(serve(shared, tls, &stopped))?;
        Ok(Self {
            addresses,
            stop,
            runtime: Some(runtime),
        })
    }

    /// Accepts no new connection, and asks the peers of open connections to send no new stream.
    pub fn drain(&self) {
        let _ = self.stop.send(true);
    }

    /// Cuts all connections.
    pub fn stop(mut self) {
        self.drain();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    tls: Option<ServerTlsConfig>,
    stopped: &watch::Receiver<bool>,
) -> Result<Addresses, ServiceError> {
    let config = &shared.config;
    let grpc = bind(&config.listen).await?;
    let health = bind_some(config.health_listen.as_deref()).await?;
    let web = bind_some(config.http_listen.as_deref()).await?;
    let address = |listener: &TcpListener| {
        let bound = listener.local_addr();
        bound.map_err(|source| io("reading the bound address", source))
    };
    let addresses = Addresses {
        grpc: address(&grpc)?,
        health: health.as_ref().map(address).transpose()?,
        http: web.as_ref().map(address).transpose()?,
    };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(shared.clone(), reporter));
    let service = ExternalProcessorServer::new(Door {
        shared: shared.clone(),
    })
    .max_decoding_message_size(config.limits.body_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES));
    let mut server = builder(config);
    if let Some(tls) = tls {
        server = server
            .tls_config(tls)
            .map_err(|error| ServiceError::Config(format!("tls: {error}")))?;
    }
    let server = server.add_service(health_service.clone()).add_service(service);
    let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
    let until = ended(stopped.clone());
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, until).await {
            tracing::error!(%error, "the server of external processing ended");
        }
    });
    if let Some(listener) = health {
        let server = builder(config).add_service(health_service);
        let incoming = TcpListenerStream::new(listener);
        let until = ended(stopped.clone());
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, until));
    }
    if let Some(listener) = web {
        let routes = http::routes(shared.clone());
        tokio::spawn(axum::serve(listener, routes).into_future());
    }
    Ok(addresses)
}

/// A gRPC server with the limits of the configuration.
fn builder(config: &PickerConfig) -> Server {
    Server::builder()
        .max_concurrent_streams(config.limits.streams_per_connection)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}

/// Ends when the servers have to stop accepting.
async fn ended(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Binds an address that may be absent.
async fn bind_some(listen: Option<&str>) -> Result<Option<TcpListener>, ServiceError> {
    match listen {
        Some(listen) => bind(listen).await.map(Some),
        None => Ok(None),
    }
}

///
/// # Errors
/// [`ServiceError::Io`] names the address.
pub(crate) async fn bind(listen: &str) -> Result<TcpListener, ServiceError> {
    let bound = TcpListener::bind(listen).await;
    bound.map_err(|source| io(&format!("listening on {listen}"), source))
}

/// An error of the operating system, with the action that failed.
pub(crate) fn io(what: &str, source: std::io::Error) -> ServiceError {
    ServiceError::Io {
        what: what.into(),
        source,
    }
}

/// Reads certificate and key.
///
/// # Errors
/// [`ServiceError::Io`] names the file.
fn read_tls(files: &TlsFiles) -> Result<ServerTlsConfig, ServiceError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| io(&format!("reading {}", path.display()), source))
    };
    let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
    Ok(ServerTlsConfig::new().identity(identity))
}

/// Updates the health checks: live as a process, ready while a worker may be chosen.
///
/// The check of external processing itself passes without workers too: the picker then answers 503, as the protocol requires.
async fn report_health(shared: Arc<Shared>, reporter: HealthReporter) {
    let status = |is_up| {
        if is_up {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    };
    loop {
        let draining = shared.draining.load(std::sync::atomic::Ordering::Relaxed);
        for (name, is_up) in [
            ("", !draining),
            (EXT_PROC, !draining),
            ("liveness", true),
            ("readiness", shared.is_ready()),
        ] {
            reporter.set_service_status(name, status(is_up)).await;
        }
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

/// The service that Envoy calls.
struct Door {
    /// State of the picker.
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl ExternalProcessor for Door {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (out, messages) = mpsc::channel(OUTBOX);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let exchange = Exchange::new(shared.clone(), out.clone());
            // A task of its own, so that a panic ends one stream with a status instead of the
            // connection.
            let served = tokio::spawn(exchange.run(request.into_inner())).await;
            if served.is_err_and(|error| error.is_panic()) {
                shared.metrics.panics.with_label_values(&["request"]).inc();
                let failed =
                    Status::internal("the picker failed at this request; other requests are not affected");
                let _ = out.send(Err(failed)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}
