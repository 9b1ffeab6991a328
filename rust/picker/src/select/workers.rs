//! The record of a worker, as a caller registers it. Field names are those of Dynamo's selection service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::SelectError;

/// Name of the model and of the group where a caller names none.
pub(crate) const DEFAULT: &str = "default";

/// One worker. Fields that Wardrop does not use are kept and shown.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(crate) struct WorkerRecord {
    /// Id that the caller chose.
    pub worker_id: u64,
    /// Name of the model.
    #[serde(default = "default_name")]
    pub model_name: String,
    /// Workers of another group are never chosen.
    #[serde(default = "default_name")]
    pub routing_group: String,
    /// Address of the worker, which a selection gives back to the caller.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Socket of KV events for each rank.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kv_events_endpoints: BTreeMap<u32, String>,
    /// Socket for missed KV events.
    #[serde(default)]
    pub replay_endpoint: Option<String>,
    /// Tokens per block.
    #[serde(default)]
    pub block_size: Option<u32>,
    /// First rank.
    #[serde(default)]
    pub data_parallel_start_rank: Option<u32>,
    /// Number of ranks.
    #[serde(default)]
    pub data_parallel_size: Option<u32>,
    /// Tokens of one step of a rank.
    #[serde(default)]
    pub max_num_batched_tokens: Option<u64>,
    /// KV blocks of a rank.
    #[serde(default)]
    pub total_kv_blocks: Option<u64>,
}

/// Name of an absent model or group.
fn default_name() -> String {
    DEFAULT.into()
}

impl WorkerRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// [`SelectError::Invalid`] with the field that is wrong.
    pub fn from_json(value: Value) -> Result<Self, SelectError> {
        serde_json::from_value(value).map_err(|error| SelectError::Invalid(format!("not a worker: {error}")))
    }

    /// The record with the fields of `patch` in place of its own.
    ///
    /// # Errors
    /// [`SelectError::Invalid`] with the field that is wrong.
    pub fn patched(&self, patch: Value) -> Result<Self, SelectError> {
        let Value::Object(patch) = patch else {
            return Err(SelectError::Invalid(
                "expected an object of fields to change".into(),
            ));
        };
        let mut value = serde_json::to_value(self).expect("a record of plain values must serialise");
        let fields = value
            .as_object_mut()
            .expect("a record must serialise as an object");
        fields.extend(patch);
        fields.insert("worker_id".into(), self.worker_id.into());
        Self::from_json(value)
    }

    /// Name of the pool in the routing service.
    pub fn pool(&self) -> String {
        pool_name(&self.model_name, &self.routing_group)
    }

    /// Reasons why the worker cannot be chosen; empty for a schedulable worker.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if self.endpoint.as_deref().unwrap_or_default().is_empty() {
            reasons.push("endpoint is required");
        }
        if self.block_size.unwrap_or(0) == 0 {
            reasons.push("block_size must be greater than 0");
        }
        reasons
    }

    /// The worker as the routing service takes it.
    pub fn worker_json(&self) -> String {
        serde_json::json!({
            "model": self.pool(),
            "role": "aggregated",
            "instance": self.worker_id,
            "dp_start": self.data_parallel_start_rank.unwrap_or(0),
            "dp_size": self.data_parallel_size.unwrap_or(1),
            "total_kv_blocks": self.total_kv_blocks,
            "max_num_batched_tokens": self.max_num_batched_tokens,
        })
        .to_string()
    }

    /// The feeds of the worker's KV events as the routing service takes them, with the id of each.
    pub fn feeds(&self) -> Vec<(u64, String)> {
        let feeds = self.kv_events_endpoints.iter().map(|(rank, endpoint)| {
            // An odd multiplier keeps the ids of two workers apart; the rank differs within a worker.
            let id = self.worker_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(*rank);
            let feed = serde_json::json!({
                "endpoint": endpoint,
                "topic": "engine-events",
                "model": self.pool(),
                "role": "aggregated",
                "publisher_id": id,
                "instance": self.worker_id,
                "dp_rank": rank,
                "replay": self.replay_endpoint,
            });
            (id, feed.to_string())
        });
        feeds.collect()
    }

    /// The record as callers see it.
    pub fn to_json(&self, is_gone: bool) -> Value {
        let mut value = serde_json::to_value(self).expect("a record of plain values must serialise");
        let reasons = self.reasons();
        let lifecycle = match (is_gone, reasons.is_empty()) {
            (true, _) => "unschedulable",
            (false, true) => "schedulable",
            (false, false) => "incomplete",
        };
        value["lifecycle"] = lifecycle.into();
        if !reasons.is_empty() {
            value["not_schedulable_reasons"] = reasons.into();
        }
        value
    }
}

/// Name of the pool of a model and a group in the routing service.
pub(crate) fn pool_name(model: &str, group: &str) -> String {
    format!("{model}:{group}")
}
