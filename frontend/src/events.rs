//! KV events, engine steps and heartbeats of the workers of one endpoint.
//!
//! ```text
//! ZeroMQ, direct    discovery ─▶ address of each publisher ─▶ a feed of the routing service
//! NATS, or broker   Dynamo's subscriber ─▶ DoorFeed
//! ```
//!
//! A worker sends one message for each engine step, so a request of 128 tokens costs 16 messages beside 7 others in its batch. Dynamo's
//! subscriber wakes three threads for each message, which cost more CPU time than all other work of a decision. A feed of the routing
//! service takes all messages of a few milliseconds in one wake-up. It also sees lost messages by the publisher's numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dynamo_kv_router::protocols::KV_EVENT_SUBJECT;
use dynamo_runtime::component::Endpoint;
use dynamo_runtime::discovery::{
    DiscoveryEvent, DiscoveryInstance, DiscoveryInstanceId, DiscoveryQuery, EventChannelQuery,
    EventTransport, EventTransportKind,
};
use dynamo_runtime::traits::DistributedRuntimeProvider as _;
use dynamo_runtime::transports::event_plane::EventSubscriber;
use futures::StreamExt as _;
use serde_json::json;
use wardrop_service::{DoorFeed, Role, Service, ServiceError};

/// Pause before a failed or ended watch or subscription is made again.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two looks for feeds that the routing service left: it leaves the feeds of a model that it forgets.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Kind of messages that workers publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Changes of KV caches.
    KvEvents,
    /// Engine steps and heartbeats.
    EngineSteps,
}

impl Topic {
    /// Name in Dynamo's event plane.
    fn name(self) -> &'static str {
        match self {
            Self::KvEvents => KV_EVENT_SUBJECT,
            Self::EngineSteps => "forward-pass-metrics",
        }
    }
}

/// The messages of one topic from the workers of one endpoint, for one pool of the routing service.
pub struct Events {
    /// Kind of messages.
    pub topic: Topic,
    /// The routing service.
    pub service: Arc<Service>,
    /// Model of the pool.
    pub model: String,
    /// Role of the pool.
    pub role: Role,
    /// Endpoint of the workers.
    pub endpoint: Endpoint,
    /// Entry for messages that Dynamo's subscriber reads.
    pub feed: Arc<DoorFeed>,
}

impl Events {
    /// Follows the publishers for the life of the process.
    pub async fn follow(self) {
        loop {
            let ended = if is_direct(&self.endpoint) {
                self.follow_publishers().await
            } else {
                self.follow_subscriber().await
            };
            if let Err(error) = ended {
                let topic = self.topic.name();
                tracing::warn!(endpoint = %self.endpoint.id(), topic, %error, "workers' events are not read, trying again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has the routing service read each publisher that discovery lists, until the watch ends.
    ///
    /// # Errors
    /// Discovery gives no watch.
    async fn follow_publishers(&self) -> anyhow::Result<()> {
        let wanted = self.topic.name();
        let runtime = self.endpoint.drt();
        let query = EventChannelQuery::endpoint_topic(self.endpoint.id(), wanted);
        let mut changes = runtime
            .discovery()
            .list_and_watch(
                DiscoveryQuery::EventChannels(query),
                Some(runtime.primary_token()),
            )
            .await?;
        let mut addresses: BTreeMap<u64, String> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                _ = look.tick() => {
                    for (publisher, address) in &addresses {
                        self.subscribe(*publisher, address, &mut refused);
                    }
                    continue;
                }
            };
            match change {
                Some(Ok(DiscoveryEvent::Added(DiscoveryInstance::EventChannel {
                    topic,
                    instance_id: publisher,
                    transport: EventTransport::Zmq { endpoint: address },
                    ..
                }))) if topic == wanted => {
                    self.subscribe(publisher, &address, &mut refused);
                    addresses.insert(publisher, address);
                }
                Some(Ok(DiscoveryEvent::Removed(DiscoveryInstanceId::EventChannel(channel))))
                    if channel.topic == wanted =>
                {
                    addresses.remove(&channel.instance_id);
                    refused.remove(&channel.instance_id);
                    self.service.unsubscribe(channel.instance_id);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::debug!(%error, "a change of the publishers cannot be read"),
                None => break,
            }
        }
        // The next watch lists the publishers that are left.
        for publisher in addresses.keys() {
            self.service.unsubscribe(*publisher);
        }
        Ok(())
    }

    /// Has the routing service read a publisher. A publisher that it reads already stays as it is.
    fn subscribe(&self, publisher: u64, address: &str, refused: &mut BTreeSet<u64>) {
        let subscription = json!({
            "endpoint": address,
            "topic": self.topic.name(),
            "model": self.model,
            "role": self.role.name(),
            "publisher_id": publisher,
        });
        match self.service.subscribe(&subscription.to_string()) {
            // The model comes with its first worker, and the next look finds it.
            Ok(()) | Err(ServiceError::UnknownModel(_)) => {
                refused.remove(&publisher);
            }
            Err(error) => {
                if refused.insert(publisher) {
                    let topic = self.topic.name();
                    tracing::warn!(publisher, topic, %error, "the events of a worker are not read");
                }
            }
        }
    }

    /// Reads all publishers through Dynamo's subscriber, until it ends.
    ///
    /// # Errors
    /// Dynamo's event plane gives no subscriber.
    async fn follow_subscriber(&self) -> anyhow::Result<()> {
        let topic = self.topic.name();
        let mut subscriber = EventSubscriber::for_endpoint(&self.endpoint, topic).await?;
        if self.topic == Topic::KvEvents {
            // A dump that was read before this subscription misses the events in between.
            self.feed.interrupted();
        }
        while let Some(next) = subscriber.next().await {
            match (next, self.topic) {
                (Ok(envelope), Topic::KvEvents) => {
                    self.feed.kv_events(envelope.publisher_id, &envelope.payload)
                }
                (Ok(envelope), Topic::EngineSteps) => self.feed.forward_pass(&envelope.payload),
                (Err(error), _) => tracing::debug!(topic, %error, "an event of a worker cannot be read"),
            }
        }
        Ok(())
    }
}

/// Whether workers publish over ZeroMQ to each reader, without a broker in between.
fn is_direct(endpoint: &Endpoint) -> bool {
    let has_broker = std::env::var_os("DYN_ZMQ_BROKER_URL").is_some()
        || dynamo_runtime::config::env_is_truthy("DYN_ZMQ_BROKER_ENABLED");
    endpoint.drt().default_event_transport_kind() == EventTransportKind::Zmq && !has_broker
}
