//! Models by name: their workers, their prompter, and the adapters that run on them.
//!
//! The control plane registers models here; each request looks its model up by name, O(log names). Files are read before any lock is
//! taken: a tokeniser of 35 MB takes seconds, and no other model waits for it.
//!
//! Bounds: [`MAX_MODELS`] models and [`MAX_ADAPTERS`] further names of each. A change copies the
//! table of names, O(names), and swaps it whole; a request in flight keeps the model that it found.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Deserialize;
use wardrop_core::RouterConfig;
use wardrop_core::control::Routing;
use wardrop_core::predicted::PredictedConfig;

use crate::ServiceError;
use crate::bound::{Account, BoundMeter};
use crate::config::ServiceConfig;
use crate::latency_bins::StreamLatency;
use crate::pool::{HealthOptions, Role, TrustOptions, WorkerPool};
use crate::prompt::{CardOptions, HandoverReport, PromptTarget, Prompter, SharedTokenisers, TokeniserFiles};

/// A model as discovery reports it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSpec {
    /// Name that clients use.
    pub name: String,
    /// Folder with tokeniser and template; without it only token prompts are placed by prefix.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Longest prompt and answer together, in tokens.
    #[serde(default)]
    pub context_length: Option<u64>,
    /// Names of adapters that run on this model and are asked for by their own name.
    #[serde(default)]
    pub loras: Vec<String>,
    /// Further names of the model itself.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Checksums of the model cards of all workers. After a change, files are read and token ids are compared again.
    #[serde(default)]
    pub checksums: Vec<String>,
    /// Properties of the model card that change prompts.
    #[serde(default)]
    pub card: CardOptions,
    /// Whether the engine's own router draws one of several worker sets per request. A pin could name a worker of another set.
    #[serde(default)]
    pub left_to_dynamo: bool,
}

impl ModelSpec {
    /// Whether the prompts of both models come from the same files.
    fn has_files_of(&self, other: &Self) -> bool {
        (&self.folder, &self.checksums, &self.card) == (&other.folder, &other.checksums, &other.card)
    }

    /// Whether the workers have different cards, so that the prompt depends on the worker that Dynamo chooses.
    pub fn has_different_cards(&self) -> bool {
        self.checksums.len() > 1
    }
}

/// A registered model.
pub struct Model {
    /// The model as discovery reported it last.
    pub(crate) spec: ModelSpec,
    /// Tokeniser and template; `None` for a model without a folder of files.
    pub(crate) prompter: Option<Arc<Prompter>>,
    /// Result of the last comparison with Dynamo's own ids; `None` before the first one. It
    /// outlives a change of the model that keeps the files.
    pub(crate) handover: Arc<Mutex<Option<HandoverReport>>>,
    /// Counts of the latencies of streamed answers since the model was first registered.
    pub(crate) latency: Arc<StreamLatency>,
    /// Price of anarchy against the lower bound; `None` while it is off.
    pub(crate) bound: Option<Arc<BoundMeter>>,
    /// Pools by `Role as usize`. A changed model keeps them while its block size stays, since every
    /// hash depends on that size.
    pools: [Arc<WorkerPool>; 3],
}

impl Model {
    /// The workers in one role.
    pub(crate) fn pool(&self, role: Role) -> &Arc<WorkerPool> {
        &self.pools[role as usize]
    }

    /// All three pools.
    pub(crate) fn pools(&self) -> &[Arc<WorkerPool>; 3] {
        &self.pools
    }

    /// Whether prefill and decode run on different workers.
    pub(crate) fn is_split(&self) -> bool {
        self.pool(Role::Prefill).size() > 0 && self.pool(Role::Decode).size() > 0
    }

    /// Roles of the workers that one request needs, in the order of booking.
    pub(crate) fn roles(&self) -> &'static [Role] {
        if self.is_split() {
            &[Role::Prefill, Role::Decode]
        } else {
            &[Role::Aggregated]
        }
    }

    /// Facts that the prompts of this model, or of an adapter on it, depend on.
    pub(crate) fn prompt_target<'a>(&'a self, lora: Option<&'a str>) -> PromptTarget<'a> {
        PromptTarget {
            block_size: self.spec.block_size,
            context_length: self.spec.context_length,
            lora,
            prompter: self.prompter.as_deref(),
        }
    }
}

/// Most models at one time: ten times as many as a large fleet has. A model takes about 100 kB without its tokeniser.
const MAX_MODELS: usize = 1024;
/// Most adapters of one model.
const MAX_ADAPTERS: usize = 4096;

/// Models by the names that clients use.
#[derive(Default)]
pub(crate) struct Models {
    /// Models by name, alias and adapter. A reader takes no lock and sees one state of all names.
    by_name: ArcSwap<HashMap<String, Named>>,
    /// Lock of a change, so that two changes cannot each copy the same old table.
    change: Mutex<()>,
    /// Tokenisers that models with the same files share. Made with the first model, whose
    /// configuration bounds their cache.
    tokenisers: OnceLock<SharedTokenisers>,
    /// CPU time of the meters of all models.
    bound_account: OnceLock<Arc<Account>>,
}

/// A model's prompter, ready before the model is registered.
pub(crate) struct LoadedPrompter {
    /// The new prompter, or the prompter of the registered model with the same files.
    prompter: Option<Arc<Prompter>>,
    /// Whether the prompter's ids have not been compared with Dynamo's.
    is_new: bool,
}

/// What a name stands for.
#[derive(Clone)]
struct Named {
    /// The model that serves requests with the name.
    model: Arc<Model>,
    /// The adapter with the name; `None` for a name of the model itself. An adapter's name is part
    /// of its block hashes.
    lora: Option<Arc<str>>,
}

impl Models {
    /// The model behind a name, and the adapter when the name is one.
    pub fn find(&self, name: &str) -> Option<(Arc<Model>, Option<Arc<str>>)> {
        self.by_name
            .load()
            .get(name)
            .map(|named| (named.model.clone(), named.lora.clone()))
    }

    /// Whether a registered model has a worker in some role.
    pub fn has_worker(&self, name: &str) -> bool {
        self.find(name)
            .is_some_and(|(model, _)| model.pools().iter().any(|pool| pool.size() > 0))
    }

    /// Every model once, by name.
    ///
    /// O(names log names); pages and status reports call it, requests do not.
    pub fn all(&self) -> Vec<Arc<Model>> {
        let models = self.by_name.load();
        let mut all: Vec<_> = models
            .iter()
            .filter(|(name, named)| **name == named.model.spec.name)
            .map(|(_, named)| named.model.clone())
            .collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }

    /// Refuses a model beyond the limits, before its files are read.
    ///
    /// A change of a registered model is checked for its further names alone: it adds no model.
    ///
    /// # Errors
    /// [`ServiceError::Limit`].
    pub fn admit(&self, spec: &ModelSpec) -> Result<(), ServiceError> {
        let further_names = spec.loras.len() + spec.aliases.len();
        if further_names > MAX_ADAPTERS {
            return Err(ServiceError::Limit(format!(
                "model {:?}: got {further_names} adapters, expected at most {MAX_ADAPTERS}",
                spec.name
            )));
        }
        let known = self.by_name.load();
        if known.get(&spec.name).is_some_and(|named| named.lora.is_none()) {
            return Ok(());
        }
        let models = known
            .iter()
            .filter(|(name, named)| **name == named.model.spec.name)
            .count();
        if models >= MAX_MODELS {
            return Err(ServiceError::Limit(format!(
                "model {:?}: got one more model than the {MAX_MODELS} that one router serves; take models out of the fleet, or give \
                 each group of models a router of its own",
                spec.name
            )));
        }
        Ok(())
    }

    /// Reads the files of a model, unless the registered model has read the same files. Takes seconds for a large tokeniser.
    pub fn load_prompter(&self, spec: &ModelSpec, config: &ServiceConfig) -> LoadedPrompter {
        let known = self
            .find(&spec.name)
            .filter(|(model, lora)| lora.is_none() && model.spec.name == spec.name);
        let same = known.filter(|(known, _)| known.spec.has_files_of(spec));
        if let Some((known, _)) = same {
            return LoadedPrompter {
                prompter: known.prompter.clone(),
                is_new: false,
            };
        }
        let Some(folder) = &spec.folder else {
            return LoadedPrompter {
                prompter: None,
                is_new: false,
            };
        };
        let limit_bytes = config.prompt.segment_cache_bytes;
        let tokenisers = self.tokenisers.get_or_init(|| SharedTokenisers::new(limit_bytes));
        let files = TokeniserFiles {
            folder: folder.clone(),
            checksums: spec.checksums.clone(),
            backend: spec.card.tokenizer_backend,
        };
        let prompter = Prompter::from_files(&files, &spec.name, &spec.card, tokenisers);
        for problem in prompter.problems() {
            tracing::warn!(model = %spec.name, problem, "prompts of this model are routed by load");
        }
        let is_comparable = prompter.has_tokeniser() && !spec.has_different_cards();
        LoadedPrompter {
            prompter: Some(Arc::new(prompter)),
            is_new: is_comparable,
        }
    }

    /// Registers a model, or changes it. A model with the same block size keeps its workers and their blocks.
    ///
    /// Returns the model, and whether its prompter is new and has to be compared with Dynamo.
    pub fn upsert(
        &self,
        spec: ModelSpec,
        loaded: LoadedPrompter,
        config: &ServiceConfig,
        routing: &Routing,
    ) -> Result<(Arc<Model>, bool), ServiceError> {
        let _change = self.change.lock();
        self.admit(&spec)?;
        let old = self
            .find(&spec.name)
            .filter(|(model, lora)| lora.is_none() && model.spec.name == spec.name)
            .map(|(model, _)| model);
        if let Some(old) = &old
            && old.spec == spec
        {
            return Ok((old.clone(), false));
        }
        let LoadedPrompter { prompter, is_new } = loaded;
        let pools = match old.as_ref().filter(|old| old.spec.block_size == spec.block_size) {
            Some(old) => old.pools.clone(),
            None => new_pools(&spec, config, routing)?,
        };
        let latency = old.as_ref().map(|old| old.latency.clone()).unwrap_or_default();
        let bound = match old.as_ref().filter(|old| old.spec.block_size == spec.block_size) {
            Some(old) => old.bound.clone(),
            None => self.new_meter(config),
        };
        let handover = old
            .filter(|old| old.spec.has_files_of(&spec))
            .map_or_else(Arc::default, |old| old.handover.clone());
        let model = Arc::new(Model {
            spec,
            prompter,
            handover,
            latency,
            bound,
            pools,
        });
        let mut models = HashMap::clone(&self.by_name.load());
        models.retain(|_, named| named.model.spec.name != model.spec.name);
        for alias in &model.spec.aliases {
            let named = Named {
                model: model.clone(),
                lora: None,
            };
            // An alias never takes the name of another model; an adapter's name and the model's own
            // name do.
            models.entry(alias.clone()).or_insert(named);
        }
        for lora in &model.spec.loras {
            models.insert(
                lora.clone(),
                Named {
                    model: model.clone(),
                    lora: Some(Arc::from(lora.as_str())),
                },
            );
        }
        models.insert(
            model.spec.name.clone(),
            Named {
                model: model.clone(),
                lora: None,
            },
        );
        self.by_name.store(Arc::new(models));
        Ok((model, is_new))
    }

    fn new_meter(&self, config: &ServiceConfig) -> Option<Arc<BoundMeter>> {
        let window_s = config.routing.bound_window_s;
        let account = self.bound_account.get_or_init(|| Arc::new(Account::new()));
        (window_s > 0.0).then(|| BoundMeter::new(window_s, account.clone()))
    }

    /// Forgets a model with its adapters and workers; whether it was known.
    pub fn remove(&self, name: &str) -> bool {
        let _change = self.change.lock();
        let mut models = HashMap::clone(&self.by_name.load());
        let before = models.len();
        models.retain(|_, named| named.model.spec.name != name);
        let found = models.len() < before;
        self.by_name.store(Arc::new(models));
        found
    }
}

/// Empty pools for the three roles of a model.
///
/// # Errors
/// [`ServiceError::Core`] for a value that the router refuses, such as a block size of 0.
fn new_pools(
    spec: &ModelSpec,
    config: &ServiceConfig,
    routing: &Routing,
) -> Result<[Arc<WorkerPool>; 3], ServiceError> {
    let name: Arc<str> = Arc::from(spec.name.as_str());
    let options = HealthOptions {
        silence_s: config.feed.silence_ms as f64 / 1e3,
        quarantine_s: config.feed.quarantine_ms as f64 / 1e3,
        trust: TrustOptions::new(config.feed.distrust_ms as f64 / 1e3),
    };
    let curves = config.routing.timing.prior();
    let pool = |role: Role| -> Result<Arc<WorkerPool>, ServiceError> {
        // No price depends on the blocks of a decode worker, and its events do not report them.
        let predicted = match role {
            Role::Decode => PredictedConfig::default(),
            Role::Aggregated | Role::Prefill => config.routing.predicted,
        };
        let router = RouterConfig::new(spec.block_size)
            .with_seed(config.routing.seed.wrapping_add(role as u64))
            .with_policy(routing.policy.clone())
            .with_prefill_tracking(role != Role::Decode)
            .with_decode_tracking(role != Role::Prefill)
            .with_price_guard(config.routing.price_guard)
            .with_predicted(predicted)
            .with_curves(curves)
            .with_handoff_s_per_token(config.routing.handoff_s_per_token)
            .with_booking_ttl_s(config.routing.booking_ttl_s);
        let pool = WorkerPool::new(name.clone(), role, router, options)?;
        pool.set_queue(routing.queue, 0.0)?;
        Ok(Arc::new(pool))
    };
    Ok([pool(Role::Aggregated)?, pool(Role::Prefill)?, pool(Role::Decode)?])
}
