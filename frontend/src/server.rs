//! The server: Dynamo's HTTP service and model watcher, with Wardrop's decision in every pipeline that has token ids.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use dynamo_llm::discovery::{ModelManager, ModelUpdate, ModelWatcher};
use dynamo_llm::endpoint_type::EndpointType;
use dynamo_llm::entrypoint::{ChatEngineFactoryCallback, PrefillRoutedEngine};
use dynamo_llm::http::service::service_v2::HttpService;
use dynamo_llm::http::service::{FrontendRouteSet, Metrics};
use dynamo_llm::local_model::LocalModel;
use dynamo_llm::lora::lora_serving_enabled;
use dynamo_llm::model_card::ModelDeploymentCard;
use dynamo_llm::namespace::NamespaceFilter;
use dynamo_llm::request_trace;
use dynamo_llm::types::openai::chat_completions::OpenAIChatCompletionsStreamingEngine;
use dynamo_runtime::DistributedRuntime;
use dynamo_runtime::discovery::{DiscoveryQuery, ModelCardInstanceId};
use dynamo_runtime::metrics::MetricsHierarchy as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use wardrop_service::Service;

use crate::fleet::Fleet;
use crate::models::Models;
use crate::pipeline::Parts;
use crate::selection::Selection;
use crate::settings::Settings;
use crate::silence::Silences;
use crate::surface::Surface;

/// Path of the routing service's status.
const STATUS_PATH: &str = "/wardrop/status";
/// Waiting connections when `DYN_HTTP_LISTEN_BACKLOG` names no number, as in Dynamo.
const DEFAULT_BACKLOG: u32 = 4096;
/// Most updates of models that wait for the server.
const UPDATES: usize = 32;

/// Attaches worker sets of Dynamo to the routing service.
struct Attachment {
    service: Arc<Service>,
    fleet: Arc<Fleet>,
    silences: Arc<Silences>,
    models: Arc<Models>,
    surface: Arc<Surface>,
    metrics: Arc<Metrics>,
    migration_limit: u32,
    migration_max_seq_len: Option<u32>,
}

impl Attachment {
    /// Attaches one worker set. Dynamo's watcher calls this for every worker set, with the routed engine below the decision.
    async fn attach(
        &self,
        id: ModelCardInstanceId,
        card: ModelDeploymentCard,
        next: PrefillRoutedEngine,
    ) -> anyhow::Result<OpenAIChatCompletionsStreamingEngine> {
        let model = match self.models.attach(&id, &card).await {
            Ok(model) => model,
            Err(error) => {
                // Dynamo still serves the model: Wardrop abstains for a model that it does not know.
                tracing::warn!(model = card.name(), %error, "Dynamo routes the model, Wardrop cannot");
                card.name().to_owned()
            }
        };
        let parts = Parts {
            card: &card,
            selection: Arc::new(Selection {
                service: self.service.clone(),
                fleet: self.fleet.clone(),
                silences: self.silences.clone(),
                model: model.clone(),
                next,
            }),
            metrics: self.metrics.clone(),
            migration_limit: self.migration_limit,
            migration_max_seq_len: self.migration_max_seq_len,
        };
        let chat = parts.chat()?;
        let completions = self.surface.has(card.name());
        if completions {
            self.surface.register(&card, &model, parts.completions()?)?;
        }
        tracing::info!(model, completions, "Wardrop routes the model in process");
        Ok(chat)
    }
}

/// Serves until the runtime shuts down.
///
/// # Errors
/// Settings that Dynamo refuses, or an address that cannot be bound.
pub async fn serve(runtime: DistributedRuntime, settings: Settings) -> anyhow::Result<()> {
    let local_model = settings.frontend.local_model().await?;
    let service = Service::new(settings.wardrop.clone())?;
    let traces = request_trace::ActiveInput::register();
    if let Err(error) = request_trace::init_from_env_with_shutdown(runtime.child_token()).await {
        tracing::warn!(%error, "no request traces");
    }
    let http = http_service(&runtime, &local_model, &service)?;
    let fallback = settings.frontend.tokenizer_fallback;
    let result = match watch_models(&runtime, &local_model, fallback, &service, &http).await {
        Ok(()) => listen_and_serve(&runtime, &local_model, &http).await,
        Err(error) => Err(error),
    };
    runtime.shutdown();
    service.stop();
    traces.release_and_drain().await;
    result
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
                let text = serde_json::json!({ "models": status.model_reports() }).to_string();
                async move { text }
            };
            Ok(FrontendRouteSet::builder().get(STATUS_PATH, report)?.build())
        })
        .build()
}

/// Starts Dynamo's watcher of models.
async fn watch_models(
    runtime: &DistributedRuntime,
    local_model: &LocalModel,
    tokenizer_fallback: Option<bool>,
    service: &Arc<Service>,
    http: &HttpService,
) -> anyhow::Result<()> {
    let manager = http.state().manager_clone();
    let metrics = http.state().metrics_clone();
    if lora_serving_enabled() {
        drop(manager.start_lora_controller(runtime.primary_token()));
    }
    let fleet = Arc::new(Fleet::new(service.clone(), manager.clone()));
    let models = Arc::new(Models::new(runtime.clone(), service.clone(), fleet.clone()));
    let surface = Arc::new(Surface::new(manager.clone()));
    let attachment = Arc::new(Attachment {
        service: service.clone(),
        fleet,
        silences: Silences::start(),
        models: models.clone(),
        surface: surface.clone(),
        metrics: metrics.clone(),
        migration_limit: local_model.migration_limit(),
        migration_max_seq_len: local_model.migration_max_seq_len(),
    });
    let factory: ChatEngineFactoryCallback = Arc::new(move |id, card, next| {
        let attachment = attachment.clone();
        Box::pin(async move { attachment.attach(id, card, next).await })
    });
    // Migration stands above the decision, because a pinned request never moves. The Migration below the decision never acts.
    let mut watcher = ModelWatcher::new(
        runtime.clone(),
        manager.clone(),
        local_model.router_config().clone(),
        0,
        local_model.migration_max_seq_len(),
        Some(factory),
        None,
        metrics.clone(),
    );
    let path = local_model.path();
    watcher.set_local_model_path((!path.as_os_str().is_empty()).then(|| path.to_path_buf()));
    watcher.set_tokenizer_backend(local_model.runtime_config().tokenizer_backend);
    watcher.set_tokenizer_fallback_enabled(tokenizer_fallback);
    let (sender, updates) = mpsc::channel(UPDATES);
    watcher.set_notify_on_model_update(sender);
    let discovery = runtime.discovery();
    let stream = discovery
        .list_and_watch(DiscoveryQuery::AllModels, Some(runtime.primary_token()))
        .await?;
    let stream = surface.tap(stream, models);
    let switch = EndpointSwitch {
        http: http.clone(),
        manager,
        metrics,
        surface,
    };
    tokio::spawn(switch.follow(updates));
    let filter =
        NamespaceFilter::from_namespace_and_prefix(local_model.namespace(), local_model.namespace_prefix());
    let watcher = Arc::new(watcher);
    tokio::spawn(async move { watcher.watch(stream, filter).await });
    Ok(())
}

/// Opens and closes routes as models come and go.
struct EndpointSwitch {
    http: HttpService,
    manager: Arc<ModelManager>,
    metrics: Arc<Metrics>,
    surface: Arc<Surface>,
}

impl EndpointSwitch {
    async fn follow(self, mut updates: mpsc::Receiver<ModelUpdate>) {
        while let Some(update) = updates.recv().await {
            match update {
                ModelUpdate::Added(card) => {
                    let kinds = card
                        .model_type
                        .as_endpoint_types_with_anthropic(self.http.anthropic_api_enabled());
                    for kind in kinds {
                        self.set(kind, true);
                    }
                    if self.surface.has(card.name()) {
                        self.set(EndpointType::Completion, true);
                    }
                    if let Err(error) = self.metrics.update_metrics_from_mdc(&card) {
                        tracing::warn!(%error, model = card.name(), "the card's figures are not on the metrics page");
                    }
                }
                ModelUpdate::Removed(card) => {
                    // The flags belong to the process: only a kind that no model serves any more is closed.
                    let units = card.model_type.units().into_iter();
                    for unit in units.filter(|unit| !self.manager.has_models_of_type(*unit)) {
                        for kind in unit.as_endpoint_types_with_anthropic(self.http.anthropic_api_enabled()) {
                            self.set(kind, false);
                        }
                    }
                }
            }
        }
    }

    fn set(&self, kind: EndpointType, open: bool) {
        if let Err(error) = self.http.enable_model_endpoint(kind, open) {
            tracing::error!(%error, "a route cannot be switched");
        }
    }
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
    let host = local_model.http_host().unwrap_or_else(|| "0.0.0.0".to_owned());
    let listener = listen(&host, local_model.http_port())?;
    http.run_with_listener(token, listener).await
}

/// Binds the port with TCP_NODELAY, which every accepted connection inherits on Linux.
///
/// Dynamo's server leaves it off. The last small write of a streamed answer then waits for the client's delayed acknowledgement, about 40 ms.
fn listen(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let literal = host.trim();
    let literal = literal
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(literal);
    let ip: IpAddr = literal
        .parse()
        .with_context(|| format!("--http-host must be an IP address, got {host:?}"))?;
    let address = SocketAddr::new(ip, port);
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
