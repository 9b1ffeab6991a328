//! The service's part of a status report, for people and control planes.
//!
//! The keys of the JSON are the names of the fields. `docs/reference` describes them for readers.

use std::collections::BTreeSet;

use serde::Serialize;
use wardrop_core::PriceGuardReport;

use super::Service;
use crate::bound::BoundReport;
pub use crate::feed::FeedReport;
use crate::models::Model;
use crate::pool::{Role, WorkerReport};
use crate::prompt::HandoverReport;

/// One model in a status report.
#[derive(Serialize)]
pub struct ModelReport {
    /// Name of the model.
    name: String,
    /// Tokens per KV block.
    block_size: u32,
    /// Longest prompt and answer together, in tokens; `None` where unknown.
    context_length: Option<u64>,
    /// Names of adapters on the model.
    loras: Vec<String>,
    /// A tokeniser is loaded, so text prompts are known.
    has_tokeniser: bool,
    /// A chat template is loaded, so conversations are known.
    has_template: bool,
    /// The settings allow handing over token ids.
    handover_enabled: bool,
    /// Result of the last comparison of token ids; `None` before the first.
    handover: Option<HandoverReport>,
    /// Faults of the model's files, in words.
    problems: Vec<String>,
    /// Paid over lower bound; `None` while it is off.
    price_of_anarchy: Option<BoundReport>,
    /// Pools with workers, by role.
    pools: Vec<PoolReport>,
}

/// One pool in a status report.
#[derive(Serialize)]
struct PoolReport {
    /// Role of the workers.
    role: Role,
    /// Workers that may be chosen.
    routable: usize,
    /// Name of the policy in force.
    policy: String,
    /// Whether the predictions of the price fit the fleet.
    price_guard: PriceGuardReport,
    /// Open bookings.
    bookings: usize,
    /// Blocks in the index, each counted once over all workers.
    index_blocks: u64,
    /// Every worker, in id order.
    workers: Vec<WorkerReport>,
}

impl ModelReport {
    /// Whether some worker of the model may be chosen.
    pub fn is_routable(&self) -> bool {
        self.pools.iter().any(|pool| pool.routable > 0)
    }
}

impl Service {
    /// Names of the registered models, without their adapters.
    pub fn model_names(&self) -> BTreeSet<String> {
        let models = self.models.all();
        models.iter().map(|model| model.spec.name.clone()).collect()
    }

    /// All models with their workers. O(workers).
    pub fn model_reports(&self) -> Vec<ModelReport> {
        let now_s = self.clock.now_s();
        let models = self.models.all();
        models
            .iter()
            .map(|model| self.model_report(model, now_s))
            .collect()
    }

    /// All feeds that are followed.
    pub fn feed_reports(&self) -> Vec<FeedReport> {
        self.feeds.report(self.clock.now_s())
    }

    /// The report of one model.
    fn model_report(&self, model: &Model, now_s: f64) -> ModelReport {
        let pool_report = |role: Role| {
            let pool = model.pool(role);
            let workers = pool.report(now_s);
            if workers.is_empty() {
                return None;
            }
            let snapshot = pool.snapshot();
            Some(PoolReport {
                role,
                routable: workers.iter().filter(|worker| worker.available).count(),
                policy: snapshot.policy,
                price_guard: snapshot.price_guard,
                bookings: snapshot.bookings,
                index_blocks: snapshot.index.blocks,
                workers,
            })
        };
        let prompter = model.prompter.as_ref();
        ModelReport {
            name: model.spec.name.clone(),
            block_size: model.spec.block_size,
            context_length: model.spec.context_length,
            loras: model.spec.loras.clone(),
            has_tokeniser: prompter.is_some_and(|prompter| prompter.has_tokeniser()),
            has_template: prompter.is_some_and(|prompter| prompter.has_template()),
            problems: prompter.map_or_else(Vec::new, |prompter| prompter.problems().to_vec()),
            handover_enabled: self.config.prompt.handover,
            handover: model.handover.lock().clone(),
            price_of_anarchy: model.bound.as_ref().map(|meter| meter.report(now_s)),
            pools: Role::ALL.into_iter().filter_map(pool_report).collect(),
        }
    }
}
