//! Completions pipelines. Dynamo lets Wardrop replace the engines of chat requests only, so this module adds the completions.
//!
//! The watcher of models sees cards without `Completions`, and therefore builds no completions pipeline of its own. Wardrop's pipeline is
//! registered in its place while an instance of the model exists. The completions of an adapter use the pipeline of its model. They are
//! registered once Dynamo serves the adapter: Dynamo refuses an adapter whose name is in use.

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

use crate::adapters::{Adapters, base_of};
use crate::models::Models;

/// Most instances that are remembered. Beyond this number a card reaches the watcher unchanged.
const MAX_INSTANCES: usize = 65_536;

/// Name under which Dynamo's preprocessor finds the adapter in the context of a request. Dynamo keeps the constant to itself.
const ADAPTER_KEY: &str = "discovery.lora_name";

/// Completions pipelines of all models.
pub struct Surface {
    manager: Arc<ModelManager>,
    /// Adapters of the models, by the cards in discovery.
    adapters: Arc<Adapters>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Name of the model of each instance whose card was changed.
    instances: HashMap<ModelCardInstanceId, String>,
    engines: HashMap<String, Arc<Engines>>,
    /// Adapters whose completions are registered, by name.
    adapters: HashSet<String>,
}

impl Surface {
    /// No models yet.
    pub fn new(manager: Arc<ModelManager>, adapters: Arc<Adapters>) -> Self {
        Self {
            manager,
            adapters,
            state: Mutex::default(),
        }
    }

    /// Whether the completions of a model are Wardrop's.
    pub fn has(&self, model: &str) -> bool {
        let state = self.state.lock();
        state.adapters.contains(model) || state.instances.values().any(|name| name == model)
    }

    /// Registers the completions of an adapter that Dynamo serves now. A known adapter, and an adapter of a model whose completions
    /// are Dynamo's, stay as they are.
    pub fn adapter_served(&self, card: &ModelDeploymentCard) {
        let adapter = card.name();
        let mut state = self.state.lock();
        if state.adapters.contains(adapter) {
            return;
        }
        let model = |id: &ModelCardInstanceId| state.instances.get(&base_of(id));
        let model = self.adapters.find_card(adapter, model);
        let Some(engines) = model.and_then(|model| state.engines.get(model)) else {
            return;
        };
        let engine = Arc::new(AdapterEngine {
            adapter: adapter.to_owned(),
            engines: engines.clone(),
        });
        match self.manager.add_completions_model(adapter, card.mdcsum(), engine) {
            Ok(()) => {
                state.adapters.insert(adapter.to_owned());
            }
            Err(error) => tracing::warn!(adapter, %error, "the completions of an adapter are not served"),
        }
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
                let mut known = self.adapters.ids();
                known.extend(self.state.lock().instances.keys().cloned());
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
        if card.lora.is_some() {
            self.adapters.added(id, &card);
            return;
        }
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
        if !is_ours || lora_serving_enabled() {
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
        self.adapters.removed(id);
        let mut state = self.state.lock();
        if let Some(model) = state.instances.remove(id) {
            let is_last = !state.instances.values().any(|name| *name == model);
            if is_last && state.engines.remove(&model).is_some() {
                let _ = self.manager.remove_completions_model(&model);
            }
        }
        // Dynamo ends an adapter with its last worker, and would refuse to serve it again under a name that is in use.
        let State {
            instances, adapters, ..
        } = &mut *state;
        adapters.retain(|adapter| {
            let served = |id: &ModelCardInstanceId| instances.contains_key(&base_of(id)).then_some(());
            let is_served = self.adapters.find_card(adapter, served).is_some();
            if !is_served {
                let _ = self.manager.remove_completions_model(adapter);
            }
            is_served
        });
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

/// The completions of one adapter: the pipelines of its model, with the adapter's name in the context.
struct AdapterEngine {
    adapter: String,
    engines: Arc<Engines>,
}

#[async_trait]
impl AsyncEngine<SingleIn<NvCreateCompletionRequest>, ManyOut<Annotated<NvCreateCompletionResponse>>, Error>
    for AdapterEngine
{
    async fn generate(
        &self,
        mut request: SingleIn<NvCreateCompletionRequest>,
    ) -> Result<ManyOut<Annotated<NvCreateCompletionResponse>>, Error> {
        request.insert(ADAPTER_KEY, self.adapter.clone());
        self.engines.generate(request).await
    }
}
