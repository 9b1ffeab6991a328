//! Completions pipelines. Dynamo lets Wardrop replace the engines of chat requests only, so this module adds the completions.
//!
//! The watcher of models sees cards without `Completions`, and therefore builds no completions pipeline of its own. Wardrop's pipeline is
//! registered in its place while an instance of the model exists. Models with adapters keep Dynamo's own pipeline, which knows the adapters.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use dynamo_llm::discovery::ModelManager;
use dynamo_llm::lora::lora_serving_enabled;
use dynamo_llm::model_card::ModelDeploymentCard;
use dynamo_llm::model_type::ModelType;
use dynamo_llm::types::Annotated;
use dynamo_llm::types::openai::completions::{
    NvCreateCompletionRequest, NvCreateCompletionResponse, OpenAICompletionsStreamingEngine,
};
use dynamo_llm::worker_type::WorkerType;
use dynamo_runtime::discovery::{
    DiscoveryEvent, DiscoveryInstance, DiscoveryInstanceId, DiscoveryStream, ModelCardInstanceId,
};
use dynamo_runtime::pipeline::{AsyncEngine, Error, ManyOut, SingleIn};
use futures::StreamExt as _;
use parking_lot::Mutex;

use crate::models::Models;

/// Most instances that are remembered. Beyond this number a card reaches the watcher unchanged.
const MAX_INSTANCES: usize = 65_536;

/// Completions pipelines of all models.
pub struct Surface {
    manager: Arc<ModelManager>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Name of the model of each instance whose card was changed.
    instances: HashMap<ModelCardInstanceId, String>,
    engines: HashMap<String, Arc<Engines>>,
}

impl Surface {
    /// No models yet.
    pub fn new(manager: Arc<ModelManager>) -> Self {
        Self {
            manager,
            state: Mutex::default(),
        }
    }

    /// Whether the completions of a model are Wardrop's.
    pub fn has(&self, model: &str) -> bool {
        self.state.lock().instances.values().any(|name| name == model)
    }

    /// Registers the pipeline of one worker set.
    ///
    /// # Errors
    /// Dynamo's registry refuses the model.
    pub fn register(
        &self,
        card: &ModelDeploymentCard,
        worker_set: &str,
        engine: OpenAICompletionsStreamingEngine,
    ) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        if let Some(engines) = state.engines.get(card.name()) {
            engines.insert(worker_set, engine);
            return Ok(());
        }
        let engines = Arc::new(Engines::default());
        engines.insert(worker_set, engine);
        self.manager
            .add_completions_model(card.name(), card.mdcsum(), engines.clone())?;
        state.engines.insert(card.name().to_owned(), engines);
        Ok(())
    }

    /// The discovery stream for Dynamo's watcher, with changed cards.
    pub fn tap(self: &Arc<Self>, stream: DiscoveryStream, models: Arc<Models>) -> DiscoveryStream {
        let surface = self.clone();
        Box::pin(stream.map(move |event| {
            event.map(|mut event| {
                surface.see(&mut event, &models);
                event
            })
        }))
    }

    fn see(&self, event: &mut DiscoveryEvent, models: &Arc<Models>) {
        match event {
            DiscoveryEvent::Added(instance) => self.added(instance, models),
            DiscoveryEvent::Removed(DiscoveryInstanceId::Model(id)) => self.removed(id),
            DiscoveryEvent::Resync(instances) => {
                for instance in instances.iter_mut() {
                    self.added(instance, models);
                }
                let present: HashSet<ModelCardInstanceId> = instances.iter().filter_map(card_id).collect();
                let known: Vec<_> = self.state.lock().instances.keys().cloned().collect();
                for id in known.iter().filter(|id| !present.contains(id)) {
                    self.removed(id);
                }
            }
            _ => {}
        }
    }

    fn added(&self, instance: &mut DiscoveryInstance, models: &Arc<Models>) {
        let Some(id) = card_id(instance) else { return };
        let DiscoveryInstance::Model { card_json, .. } = instance else {
            return;
        };
        // The watcher reports a card that cannot be read.
        let Ok(card) = serde_json::from_value::<ModelDeploymentCard>(card_json.clone()) else {
            return;
        };
        if card.effective_worker_type() == WorkerType::Prefill {
            let models = models.clone();
            tokio::spawn(async move {
                if let Err(error) = models.attach_prefill(&id, &card).await {
                    tracing::warn!(model = card.name(), %error, "prefill workers are not routed by Wardrop");
                }
            });
            return;
        }
        let is_ours = card.model_type.supports_chat() && card.model_type.supports_completions();
        if !is_ours || card.lora.is_some() || lora_serving_enabled() {
            return;
        }
        let mut state = self.state.lock();
        if state.instances.len() >= MAX_INSTANCES {
            return;
        }
        if let Ok(kept) = serde_json::to_value(card.model_type - ModelType::Completions) {
            card_json["model_type"] = kept;
            state.instances.insert(id, card.name().to_owned());
        }
    }

    fn removed(&self, id: &ModelCardInstanceId) {
        let mut state = self.state.lock();
        let Some(model) = state.instances.remove(id) else {
            return;
        };
        let is_last = !state.instances.values().any(|name| *name == model);
        if is_last && state.engines.remove(&model).is_some() {
            let _ = self.manager.remove_completions_model(&model);
        }
    }
}

/// Identity of a card; `None` for an instance that is no card.
fn card_id(instance: &DiscoveryInstance) -> Option<ModelCardInstanceId> {
    match instance {
        DiscoveryInstance::Model {
            namespace,
            component,
            endpoint,
            instance_id,
            model_suffix,
            ..
        } => Some(ModelCardInstanceId {
            namespace: namespace.clone(),
            component: component.clone(),
            endpoint: endpoint.clone(),
            instance_id: *instance_id,
            model_suffix: model_suffix.clone(),
        }),
        _ => None,
    }
}

/// The pipelines of one model's worker sets, used in turn.
#[derive(Default)]
struct Engines {
    by_worker_set: Mutex<Vec<(String, OpenAICompletionsStreamingEngine)>>,
    next: AtomicUsize,
}

impl Engines {
    fn insert(&self, worker_set: &str, engine: OpenAICompletionsStreamingEngine) {
        let mut engines = self.by_worker_set.lock();
        engines.retain(|(known, _)| known != worker_set);
        engines.push((worker_set.to_owned(), engine));
    }
}

#[async_trait]
impl AsyncEngine<SingleIn<NvCreateCompletionRequest>, ManyOut<Annotated<NvCreateCompletionResponse>>, Error>
    for Engines
{
    async fn generate(
        &self,
        request: SingleIn<NvCreateCompletionRequest>,
    ) -> Result<ManyOut<Annotated<NvCreateCompletionResponse>>, Error> {
        let engine = {
            let engines = self.by_worker_set.lock();
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % engines.len().max(1);
            engines.get(turn).map(|(_, engine)| engine.clone())
        };
        match engine {
            Some(engine) => engine.generate(request).await,
            None => anyhow::bail!("the model has no worker set"),
        }
    }
}
