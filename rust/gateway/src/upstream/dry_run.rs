//! Token ids from the dry run of Dynamo's frontend, over HTTP.
//!
//! The comparison of token ids in the service calls it through [`TokenIdSource`]. Bounds: 4 MiB and
//! 15 s per answer, one request at a time per model.

use std::sync::Arc;

use serde_json::Value;
use wardrop_service::{DryRunError, Endpoint, TokenIdSource};

use super::{ConnectionPool, UpstreamSet, post_json};
use crate::config::UpstreamOptions;

/// Largest answer of a dry run that is read.
const ANSWER_LIMIT_BYTES: usize = 4 << 20;

/// Source of dry-run token ids that asks any upstream.
pub struct UpstreamDryRun {
    /// Upstreams whose changes end a handover.
    upstreams: Arc<UpstreamSet>,
    /// Pool of its own, so that dry runs take no connection from requests.
    connections: ConnectionPool,
}

impl UpstreamDryRun {
    /// A source with a connection pool of its own.
    pub fn new(upstreams: Arc<UpstreamSet>, options: UpstreamOptions) -> Self {
        Self {
            connections: ConnectionPool::new(upstreams.clone(), options, 0),
            upstreams,
        }
    }
}

impl TokenIdSource for UpstreamDryRun {
    async fn token_ids(&self, endpoint: Endpoint, body: String) -> Result<Vec<u32>, DryRunError> {
        let (status, answer) = post_json(&self.connections, endpoint.path(), body, ANSWER_LIMIT_BYTES)
            .await
            .map_err(DryRunError::Unavailable)?;
        // Dynamo answers with these statuses to a sample that it refuses; any other status says
        // nothing about the sample.
        if status == 400 || status == 422 || status == 500 {
            return Err(DryRunError::Refused(format!("dry run refused with {status}")));
        }
        if status != 200 {
            return Err(DryRunError::Unavailable(format!("dry run answered {status}")));
        }
        read_ids(&answer).map_err(DryRunError::Unavailable)
    }

    fn incarnation(&self) -> u64 {
        self.upstreams.incarnation()
    }
}

/// Token ids in `nvext.token_ids` of an answer.
///
/// # Errors
/// A text for the log when the answer has no list of ids.
fn read_ids(answer: &[u8]) -> Result<Vec<u32>, String> {
    let answer: Value = serde_json::from_slice(answer).map_err(|e| format!("dry run: {e}"))?;
    let ids = answer["nvext"]["token_ids"]
        .as_array()
        .ok_or("dry run gave no token ids (frontend not in kv mode?)")?;
    ids.iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<Vec<u32>>>()
        .ok_or_else(|| "dry run gave ids that are no u32".to_string())
}
