//! What the shadows of one model say, for the metrics page and the admin API.

use std::collections::BTreeMap;

use serde::Serialize;
use wardrop_core::PolicyConfig;
use wardrop_core::queue::QueueConfig;
use wardrop_sim::shadow::ShadowReport;

use crate::pool::Role;

/// Everything of one model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelShadowReport {
    /// The model.
    pub model: String,
    /// The pools that are shadowed together: one aggregated, or prefill and decode.
    pub roles: Vec<Role>,
    /// Workers in them.
    pub workers: usize,
    /// … of which did not tell the size of their KV cache: 16,384 blocks are assumed.
    pub assumed_capacities: usize,
    /// Explanation there are no shadows, while there are none.
    pub note: Option<String>,
    /// Seconds from the last simulated moment to now.
    pub age_s: Option<f64>,
    /// CPU seconds spent since the start.
    pub cpu_s: f64,
    /// Limits of goodput are set: it means something.
    pub has_goodput: bool,
    /// Requests of the mean size of late, prompt and answer, that the smallest worker's cache holds.
    pub requests_per_cache: Option<f64>,
    /// What each arm runs, in the order of `arms`.
    pub policies: Vec<ShadowArm>,
    /// By figure: the adoptable arm that is significantly better than what is in force, and does no harm.
    pub suggested: BTreeMap<&'static str, Option<String>>,
    /// Figures of the arms, whether to believe them, and counts.
    #[serde(flatten)]
    pub fleets: Option<ShadowReport>,
}

/// What an arm runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShadowArm {
    /// As configured; `in_force` for the first.
    pub name: String,
    /// Its policy.
    pub policy: PolicyConfig,
    /// Its queue.
    pub queue: Option<QueueConfig>,
    /// It differs from what is in force in nothing but the objective of `toll` and κ: the calibrator may adopt it.
    pub is_adoptable: bool,
    /// Mean or p99 of the first token, time between tokens or end to end would be significantly worse, by more than 10 %.
    pub does_harm: bool,
}
