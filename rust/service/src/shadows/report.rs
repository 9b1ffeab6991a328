//! Report on the shadows of one model, for the metrics page and the admin API.
//!
//! The keys of the JSON are the names of the fields.

use std::collections::BTreeMap;

use serde::Serialize;
use wardrop_core::PolicyConfig;
use wardrop_core::queue::QueueConfig;
use wardrop_sim::shadow::{Limit, ShadowReport};

use crate::pool::Role;

/// Report on the shadows of one model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelShadowReport {
    /// Name of the model.
    pub model: String,
    /// Roles of the shadowed pools: aggregated alone, or prefill and decode together.
    pub roles: Vec<Role>,
    /// Number of workers in the shadowed pools.
    pub workers: usize,
    /// Number of workers that did not report the size of their KV cache; the shadows assume 16,384 blocks.
    pub assumed_capacities: usize,
    /// Reason why the model has no shadows; `None` while shadows run.
    pub note: Option<String>,
    /// Time from the last simulated moment to now, in seconds; `None` before the first simulated moment.
    pub age_s: Option<f64>,
    /// CPU time that the shadows used since the start, in seconds.
    pub cpu_s: f64,
    /// Whether limits of goodput are set; without limits the goodput figures have no meaning.
    pub has_goodput: bool,
    /// Number of prompts of the recent mean size that fit into the KV cache of the smallest worker.
    pub requests_per_cache: Option<f64>,
    /// Policy and queue of each arm, in the order of `arms`.
    pub policies: Vec<ShadowArm>,
    /// Suggested arm by figure: an adoptable arm that is significantly better than the policy in force and does no harm.
    pub suggested: BTreeMap<&'static str, Option<String>>,
    /// Limits of the fleet that no arm relaxes because their caches exceed `shadows.max_blocks`.
    pub limits_without_room: Vec<Limit>,
    /// Figures of the arms, the trust in them and the counts of requests; `None` without shadows.
    #[serde(flatten)]
    pub fleets: Option<ShadowReport>,
}

/// Policy and queue of one arm.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShadowArm {
    /// Configured name of the arm; `in_force` for the first arm.
    pub name: String,
    /// Policy of the arm.
    pub policy: PolicyConfig,
    /// Queue of the arm; `None` when the arm places every request at once.
    pub queue: Option<QueueConfig>,
    /// Whether the calibrator may adopt the arm: it differs from the routing in force only in the `toll` objective and κ.
    pub is_adoptable: bool,
    /// Whether mean TTFT, p99 TTFT, ITL or end-to-end time is significantly worse, by more than 10 %.
    pub does_harm: bool,
}
