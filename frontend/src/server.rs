//! The server: Dynamo's HTTP service, with Wardrop's decision in every pipeline that has token ids.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use dynamo_llm::http::service::FrontendRouteSet;
use dynamo_llm::http::service::service_v2::HttpService;
use dynamo_llm::local_model::LocalModel;
use dynamo_llm::request_trace;
use dynamo_runtime::DistributedRuntime;
use dynamo_runtime::metrics::MetricsHierarchy as _;
use tokio::net::{TcpListener, TcpSocket};
use wardrop_service::Service;

use crate::control_plane::ControlPlane;
use crate::grpc;
use crate::settings::Settings;
use crate::spans;
use crate::watching::{Server, watch_models};

/// Path of the routing service's status.
const STATUS_PATH: &str = "/wardrop/status";
/// Address to listen on where none is configured, as in Dynamo.
const ANY_HOST: &str = "0.0.0.0";
/// Waiting connections when `DYN_HTTP_LISTEN_BACKLOG` names no number, as in Dynamo.
const DEFAULT_BACKLOG: u32 = 4096;

/// Serves until the runtime shuts down.
///
/// # Errors
/// Settings that Dynamo refuses, or an address that cannot be bound.
pub async fn serve(runtime: DistributedRuntime, settings: Settings) -> anyhow::Result<()> {
    let local_model = settings.frontend.local_model().await?;
    let service = Service::new(settings.wardrop.clone())?;
    if spans::are_exported() {
        service.expect_door_traces();
    }
    // `start_peers` blocks until its listener is bound, and a thread of this async runtime must not block.
    let peers = service.clone();
    if let Some(address) = tokio::task::spawn_blocking(move || peers.start_peers()).await?? {
        tracing::info!(%address, "peers may follow this router");
    }
    let traces = request_trace::ActiveInput::register();
    if let Err(error) = request_trace::init_from_env_with_shutdown(runtime.child_token()).await {
        tracing::warn!(%error, "no request traces");
    }
    let control_plane = start_control_plane(&settings, &local_model, &service)?;
    let result = if settings.frontend.kserve_grpc_server {
        grpc::serve(&runtime, &local_model, &settings, &service).await
    } else {
        serve_http(&runtime, &local_model, &settings, &service).await
    };
    runtime.shutdown();
    // The end of the control plane's process and of the service's threads may take seconds.
    let stopped = tokio::task::spawn_blocking(move || {
        drop(control_plane);
        service.stop();
    });
    if let Err(error) = stopped.await {
        tracing::error!(%error, "the routing service did not stop as it should");
    }
    traces.release_and_drain().await;
    result
}

async fn serve_http(
    runtime: &DistributedRuntime,
    local_model: &LocalModel,
    settings: &Settings,
    service: &Arc<Service>,
) -> anyhow::Result<()> {
    let http = http_service(runtime, local_model, service)?;
    let server = Server {
        manager: http.state().manager_clone(),
        metrics: http.state().metrics_clone(),
        http: Some(http.clone()),
    };
    watch_models(runtime, local_model, settings, service, server).await?;
    listen_and_serve(runtime, local_model, &http).await
}

/// Starts admin API, live page and controller, where the settings ask for them.
fn start_control_plane(
    settings: &Settings,
    local_model: &LocalModel,
    service: &Arc<Service>,
) -> anyhow::Result<Option<ControlPlane>> {
    let host = local_model.http_host().unwrap_or_else(|| ANY_HOST.to_owned());
    let port = local_model.http_port();
    let address = socket_address(&host, port).map_or_else(|_| format!("{host}:{port}"), |at| at.to_string());
    let control_plane = settings.control_plane.as_ref();
    let control_plane = control_plane.map(|settings| ControlPlane::start(settings, service.clone(), address));
    control_plane.transpose()
}

fn http_service(
    runtime: &DistributedRuntime,
    local_model: &LocalModel,
    service: &Arc<Service>,
) -> anyhow::Result<HttpService> {
    let metrics = runtime.get_metrics_registry().clone();
    let page = service.clone();
    metrics.add_expfmt_callback(Arc::new(move || Ok(page.render_metrics())));
    let mut builder = HttpService::builder();
    if let (Some(certificate), Some(key)) = (local_model.tls_cert_path(), local_model.tls_key_path()) {
        for path in [certificate, key]
            .into_iter()
            .chain(local_model.tls_client_ca_cert_path())
        {
            if !path.exists() {
                bail!("TLS: the file {} does not exist", path.display());
            }
        }
        builder = builder
            .enable_tls(true)
            .tls_cert_path(Some(certificate.to_path_buf()))
            .tls_key_path(Some(key.to_path_buf()))
            .tls_client_ca_cert_path(local_model.tls_client_ca_cert_path().map(ToOwned::to_owned));
    }
    if let Some(host) = local_model.http_host() {
        builder = builder.host(host);
    }
    let status = service.clone();
    builder
        .port(local_model.http_port())
        .cancel_token(Some(runtime.primary_token()))
        .with_request_template(local_model.request_template())
        .metrics_config(local_model.metrics_config().clone())
        .frontend_api_config(local_model.frontend_api_config().clone())
        .drt_metrics(Some(metrics))
        .drt_discovery(Some(runtime.discovery()))
        .discovery(Some(runtime.discovery()))
        .runtime(Some(Arc::new(runtime.clone())))
        .add_frontend_route_extension(move |_context| {
            let status = status.clone();
            let report = move || {
                let report =
                    serde_json::json!({ "models": status.model_reports(), "feeds": status.feed_reports() });
                let text = report.to_string();
                async move { text }
            };
            Ok(FrontendRouteSet::builder().get(STATUS_PATH, report)?.build())
        })
        .build()
}

async fn listen_and_serve(
    runtime: &DistributedRuntime,
    local_model: &LocalModel,
    http: &HttpService,
) -> anyhow::Result<()> {
    let token = runtime.primary_token();
    if local_model.tls_cert_path().is_some() {
        // Dynamo binds the port itself when it speaks TLS.
        return http.run(token).await;
    }
    let host = local_model.http_host().unwrap_or_else(|| ANY_HOST.to_owned());
    let listener = listen(&host, local_model.http_port())?;
    http.run_with_listener(token, listener).await
}

/// Binds the port with TCP_NODELAY, which every accepted connection inherits on Linux.
///
/// Dynamo's server leaves it off. The last small write of a streamed answer then waits for the client's delayed acknowledgement, about 40 ms.
fn listen(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let address = socket_address(host, port)?;
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    let backlog = std::env::var("DYN_HTTP_LISTEN_BACKLOG")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let bound = socket
        .bind(address)
        .and_then(|()| socket.listen(backlog.unwrap_or(DEFAULT_BACKLOG)));
    bound.with_context(|| format!("port {port} of {host} cannot be bound; choose another with --http-port"))
}

/// The address of a host, which is an IP address, in brackets or without, and a port.
///
/// # Errors
/// The host is a name.
fn socket_address(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let literal = host.trim();
    let literal = literal
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(literal);
    let ip: IpAddr = literal
        .parse()
        .with_context(|| format!("--http-host must be an IP address, got {host:?}"))?;
    Ok(SocketAddr::new(ip, port))
}
