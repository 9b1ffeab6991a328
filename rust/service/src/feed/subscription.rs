//! What a feed is about: publisher, topic, model, role. The control plane or a door subscribes with it.
//!
//! [`super::Feeds`] checks a subscription and keeps one per publisher.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wardrop_core::WorkerId;

use crate::ServiceError;
use crate::pool::Role;

/// Kind of messages of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Topic {
    /// Changes of KV caches.
    #[serde(rename = "kv-events")]
    KvEvents,
    /// Engine steps and heartbeats.
    #[serde(rename = "forward-pass-metrics")]
    ForwardPass,
    /// Cache use; read for its freshness only.
    #[serde(rename = "kv_metrics")]
    KvMetrics,
    /// Changes of the KV cache of one worker, as vLLM, `SGLang` and TensorRT-LLM publish them without Dynamo.
    #[serde(rename = "engine-events")]
    EngineEvents,
}

impl Topic {
    /// Shortest time between two reads of a feed. Engines report each step, and a wake-up for each report costs more than
    /// all other work of the gateway per token.
    pub(super) fn pace(self) -> Duration {
        match self {
            Self::KvEvents | Self::EngineEvents => Duration::from_millis(2),
            Self::ForwardPass | Self::KvMetrics => Duration::from_millis(20),
        }
    }
}

/// A feed to follow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subscription {
    /// `tcp://host:port` of the publisher.
    pub endpoint: String,
    /// Kind of its messages.
    pub topic: Topic,
    /// Name of the model that the feed is about.
    pub model: String,
    /// Role of the workers that the feed is about.
    pub role: Role,
    /// Id of the subscription. Every message must carry it as its publisher, unless `any_publisher` is set.
    pub publisher_id: u64,
    /// Whether messages of every publisher are accepted: the endpoint is known by its address only.
    #[serde(default)]
    pub any_publisher: bool,
    /// Instance of the publisher, when known. Events about another instance are then refused.
    #[serde(default)]
    pub instance: Option<u64>,
    /// Rank of the instance that the feed is about; for [`Topic::EngineEvents`] only.
    #[serde(default)]
    pub dp_rank: u32,
    /// `tcp://host:port` of the replay socket; for [`Topic::EngineEvents`] only.
    #[serde(default)]
    pub replay: Option<String>,
}

impl Subscription {
    /// The worker of a feed of [`Topic::EngineEvents`]; `None` for another topic.
    ///
    /// # Errors
    /// A feed of an engine that names no instance.
    pub(super) fn engine_worker(&self) -> Result<Option<WorkerId>, ServiceError> {
        if self.topic != Topic::EngineEvents {
            return Ok(None);
        }
        let instance = self.instance.ok_or_else(|| {
            ServiceError::Config(
                "a feed of engine-events: got no instance, expected the id of its worker".into(),
            )
        })?;
        Ok(Some(WorkerId::new(instance, self.dp_rank)))
    }
}
