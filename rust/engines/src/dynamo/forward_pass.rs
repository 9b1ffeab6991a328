//! The payload `forward-pass-metrics`: one step of an engine, with what ran and what waited.
//!
//! The service turns it into a [`wardrop_core::latency::Pass`] for the latency curves and into a
//! [`wardrop_core::ledger::EngineQueue`] for the queue. Whether the figures can be true is decided there, not
//! here.
//!
//! Field names are those of Dynamo's forward-pass metrics. Complexity: O(bytes).

use serde::{Deserialize, Serialize};
use wardrop_core::WorkerId;

use super::Malformed;

/// One engine step as the engine reports it: the most direct load signal.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ForwardPass {
    /// Id of the instance, in decimal.
    pub worker_id: String,
    /// Data-parallel rank.
    #[serde(default)]
    pub dp_rank: u32,
    /// Length of the step in seconds; 0 for a heartbeat.
    #[serde(default)]
    pub wall_time: f64,
    /// Requests that ran in the step.
    #[serde(default)]
    pub scheduled_requests: StepLoad,
    /// Requests that waited.
    #[serde(default)]
    pub queued_requests: StepLoad,
}

/// Requests and tokens of a step or of the engine's queue.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StepLoad {
    /// Requests in prefill.
    pub num_prefill_requests: u64,
    /// New prompt tokens of the requests in prefill.
    pub sum_prefill_tokens: u64,
    /// Prompt tokens of the requests in prefill that were cached before the step.
    pub sum_prefill_kv_tokens: u64,
    /// Requests in decode.
    pub num_decode_requests: u64,
    /// Context tokens of the requests in decode.
    pub sum_decode_kv_tokens: u64,
}

impl ForwardPass {
    /// Worker of the step; `None` when the instance id is not a number.
    pub fn worker(&self) -> Option<WorkerId> {
        Some(WorkerId::new(self.worker_id.parse().ok()?, self.dp_rank))
    }
}

/// Decodes a `forward-pass-metrics` payload.
///
/// # Errors
/// [`Malformed::Payload`] when the payload has another form.
pub fn decode_forward_pass(payload: &[u8]) -> Result<ForwardPass, Malformed> {
    rmp_serde::from_slice(payload).map_err(|_| Malformed::Payload)
}
