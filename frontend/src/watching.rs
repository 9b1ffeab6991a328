//! Dynamo's watcher of models, with Wardrop's decision in the pipelines of every worker set that it finds.

use std::sync::Arc;

use dynamo_llm::discovery::{ModelManager, ModelUpdate, ModelWatcher};
use dynamo_llm::endpoint_type::EndpointType;
use dynamo_llm::entrypoint::{ChatEngineFactoryCallback, PrefillRoutedEngine};
use dynamo_llm::http::service::Metrics;
use dynamo_llm::http::service::service_v2::HttpService;
use dynamo_llm::local_model::LocalModel;
use dynamo_llm::lora::lora_serving_enabled;
use dynamo_llm::model_card::ModelDeploymentCard;
use dynamo_llm::namespace::NamespaceFilter;
use dynamo_llm::types::openai::chat_completions::OpenAIChatCompletionsStreamingEngine;
use dynamo_runtime::DistributedRuntime;
use dynamo_runtime::discovery::{DiscoveryQuery, ModelCardInstanceId};
use tokio::sync::mpsc;
use wardrop_service::Service;

use crate::adapters::Adapters;
use crate::fleet::Fleet;
use crate::models::Models;
use crate::pipeline::Parts;
use crate::selection::Selection;
use crate::settings::Settings;
use crate::silence::Silences;
use crate::spans;
use crate::surface::Surface;

/// Most updates of models that wait for the server.
const UPDATES: usize = 32;

/// Attaches worker sets of Dynamo to the routing service.
struct Attachment {
    service: Arc<Service>,
    fleet: Arc<Fleet>,
    silences: Arc<Silences>,
    models: Arc<Models>,
    adapters: Arc<Adapters>,
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
                adapters: self.adapters.clone(),
                model: model.clone(),
                are_traced: spans::are_exported(),
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

/// The server whose models are watched.
pub struct Server {
    /// Registry of its models.
    pub manager: Arc<ModelManager>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// The server whose routes open and close with the models; `None` for a server with fixed routes.
    pub http: Option<HttpService>,
}

/// Starts Dynamo's watcher of models for a server.
///
/// # Errors
/// Discovery gives no stream of models.
pub async fn watch_models(
    runtime: &DistributedRuntime,
    local_model: &LocalModel,
    settings: &Settings,
    service: &Arc<Service>,
    server: Server,
) -> anyhow::Result<()> {
    let Server {
        manager,
        metrics,
        http,
    } = server;
    if lora_serving_enabled() {
        drop(manager.start_lora_controller(runtime.primary_token()));
    }
    let fleet = Arc::new(Fleet::new(service.clone(), manager.clone()));
    let models = Arc::new(Models::new(runtime.clone(), service.clone(), fleet.clone()));
    let adapters = Arc::new(Adapters::default());
    let surface = Arc::new(Surface::new(manager.clone(), adapters.clone()));
    let attachment = Arc::new(Attachment {
        service: service.clone(),
        fleet,
        silences: Silences::start(),
        models: models.clone(),
        adapters,
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
        if settings.decides {
            0
        } else {
            local_model.migration_limit()
        },
        local_model.migration_max_seq_len(),
        settings.decides.then_some(factory),
        None,
        metrics.clone(),
    );
    let path = local_model.path();
    watcher.set_local_model_path((!path.as_os_str().is_empty()).then(|| path.to_path_buf()));
    watcher.set_tokenizer_backend(local_model.runtime_config().tokenizer_backend);
    watcher.set_tokenizer_fallback_enabled(settings.frontend.tokenizer_fallback);
    let (sender, updates) = mpsc::channel(UPDATES);
    watcher.set_notify_on_model_update(sender);
    let follower = UpdateFollower {
        http,
        manager,
        metrics,
        surface: surface.clone(),
    };
    tokio::spawn(follower.follow(updates));
    let discovery = runtime.discovery();
    let stream = discovery
        .list_and_watch(DiscoveryQuery::AllModels, Some(runtime.primary_token()))
        .await?;
    let stream = if settings.decides {
        surface.tap(stream, models)
    } else {
        stream
    };
    let filter =
        NamespaceFilter::from_namespace_and_prefix(local_model.namespace(), local_model.namespace_prefix());
    let watcher = Arc::new(watcher);
    tokio::spawn(async move { watcher.watch(stream, filter).await });
    Ok(())
}

/// Registers the completions of adapters, and opens and closes routes, as models come and go.
struct UpdateFollower {
    /// The server whose routes open and close; `None` for a server with fixed routes.
    http: Option<HttpService>,
    manager: Arc<ModelManager>,
    metrics: Arc<Metrics>,
    surface: Arc<Surface>,
}

impl UpdateFollower {
    async fn follow(self, mut updates: mpsc::Receiver<ModelUpdate>) {
        while let Some(update) = updates.recv().await {
            if let ModelUpdate::Added(card) = &update
                && card.lora.is_some()
            {
                self.surface.adapter_served(card);
            }
            if let Some(http) = &self.http {
                self.switch(http, update);
            }
        }
    }

    fn switch(&self, http: &HttpService, update: ModelUpdate) {
        let with_anthropic = http.anthropic_api_enabled();
        match update {
            ModelUpdate::Added(card) => {
                for kind in card.model_type.as_endpoint_types_with_anthropic(with_anthropic) {
                    set(http, kind, true);
                }
                if self.surface.has(card.name()) {
                    set(http, EndpointType::Completion, true);
                }
                if let Err(error) = self.metrics.update_metrics_from_mdc(&card) {
                    tracing::warn!(%error, model = card.name(), "the card's figures are not on the metrics page");
                }
            }
            ModelUpdate::Removed(card) => {
                // The flags belong to the process: only a kind that no model serves any more is closed.
                let units = card.model_type.units().into_iter();
                for unit in units.filter(|unit| !self.manager.has_models_of_type(*unit)) {
                    for kind in unit.as_endpoint_types_with_anthropic(with_anthropic) {
                        set(http, kind, false);
                    }
                }
            }
        }
    }
}

/// Opens or closes the routes of one kind.
fn set(http: &HttpService, kind: EndpointType, open: bool) {
    if let Err(error) = http.enable_model_endpoint(kind, open) {
        tracing::error!(%error, "a route cannot be switched");
    }
}
