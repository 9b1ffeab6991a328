//! Subscriptions by publisher: connect, read, apply, reconnect with growing pauses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::zmtp::{Subscriber, ZmtpError};
use crate::config::FeedOptions;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pool::{EventSource, Role, WorkerPool};
use crate::{Clock, ServiceError};
use wardrop_engines::dynamo::{Malformed, decode_forward_pass, decode_frames, decode_kv_events};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a publisher tells.
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
}

impl Topic {
    /// Least time between two reads of a feed. Engines tell of every step; to wake for each of them costs more than all else
    /// that the gateway does for a token.
    fn pace(self) -> Duration {
        match self {
            Self::KvEvents => Duration::from_millis(2),
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
    /// What it tells.
    pub topic: Topic,
    /// The model it is about.
    pub model: String,
    /// The role of its workers.
    pub role: Role,
    /// The publisher's identity, which every message must carry.
    pub publisher_id: u64,
    /// The instance that it belongs to, when known: it may then only touch that one.
    #[serde(default)]
    pub instance: Option<u64>,
}

/// One feed in a status report.
#[derive(Debug, Serialize)]
pub struct FeedReport {
    /// Identity of the publisher.
    pub publisher_id: u64,
    /// Kind of messages.
    pub topic: Topic,
    /// Model that the feed is about.
    pub model: String,
    /// Role of the workers that the feed is about.
    pub role: Role,
    /// `tcp://host:port` of the publisher.
    pub endpoint: String,
    /// Instance that the feed belongs to, when that is known.
    pub instance: Option<u64>,
    /// The connection to the publisher is open.
    pub connected: bool,
    /// Messages received.
    pub messages: u64,
    /// Messages refused as malformed.
    pub malformed: u64,
    /// Connections lost.
    pub reconnects: u64,
    /// Seconds since the last message; `None` before the first.
    pub age_s: Option<f64>,
}

struct Feed {
    subscription: Subscription,
    state: Arc<FeedState>,
    task: AbortHandle,
}

#[derive(Default)]
struct FeedState {
    connected: AtomicBool,
    messages: AtomicU64,
    malformed: AtomicU64,
    reconnects: AtomicU64,
    /// Milliseconds on the gateway's clock, +1; 0 before the first message.
    last_ms: AtomicU64,
    /// The instance whose engine steps this feed reported last.
    last_instance: Mutex<Option<u64>>,
}

/// What feeds read and write besides their own sockets.
pub(crate) struct FeedContext {
    /// Models whose workers take the events.
    pub models: Arc<Models>,
    /// Counters of events and faults.
    pub metrics: Arc<Metrics>,
    /// Time base of the workers' health.
    pub clock: Clock,
    /// Limits of feeds.
    pub options: FeedOptions,
}

/// All feeds that are followed.
pub(crate) struct Feeds {
    context: Arc<FeedContext>,
    /// The event loop that reads the feeds.
    runtime: Handle,
    by_publisher: Mutex<BTreeMap<u64, Feed>>,
}

impl Feeds {
    /// No feeds yet; `runtime` is the event loop that reads them.
    pub fn new(context: FeedContext, runtime: Handle) -> Self {
        Self {
            context: Arc::new(context),
            runtime,
            by_publisher: Mutex::default(),
        }
    }

    /// Follows a feed. The same subscription again changes nothing; another one of the same publisher replaces it.
    ///
    /// # Errors
    /// An unknown model, an endpoint that is not TCP, or too many feeds.
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), ServiceError> {
        let context = &self.context;
        if context.models.find(&subscription.model).is_none() {
            return Err(ServiceError::UnknownModel(subscription.model));
        }
        if !subscription.endpoint.starts_with("tcp://") {
            return Err(ServiceError::Config(format!(
                "a feed's endpoint must be tcp://host:port, got {:?}",
                subscription.endpoint
            )));
        }
        let mut feeds = self.by_publisher.lock();
        if let Some(known) = feeds.get(&subscription.publisher_id) {
            if known.subscription == subscription {
                return Ok(());
            }
            known.task.abort();
        } else if feeds.len() >= context.options.max_feeds {
            return Err(ServiceError::State(format!(
                "{} feeds are open, the limit; raise feed.max_feeds",
                feeds.len()
            )));
        }
        if let (Topic::KvEvents, Some(instance)) = (subscription.topic, subscription.instance)
            && let Some((model, _)) = context.models.find(&subscription.model)
        {
            let pool = model.pool(subscription.role);
            pool.feed_followed(instance, subscription.publisher_id);
        }
        let state = Arc::new(FeedState::default());
        let task = FeedTask {
            subscription: subscription.clone(),
            state: state.clone(),
            context: context.clone(),
        };
        let task = self.runtime.spawn(task.follow()).abort_handle();
        feeds.insert(
            subscription.publisher_id,
            Feed {
                subscription,
                state,
                task,
            },
        );
        Ok(())
    }

    /// Leaves a feed; whether it was followed.
    pub fn unsubscribe(&self, publisher_id: u64) -> bool {
        let feed = self.by_publisher.lock().remove(&publisher_id);
        if let Some(feed) = &feed {
            feed.task.abort();
        }
        feed.is_some()
    }

    /// Leaves the feeds of a model.
    pub fn leave_model(&self, model: &str) {
        self.by_publisher.lock().retain(|_, feed| {
            let keep = feed.subscription.model != model;
            if !keep {
                feed.task.abort();
            }
            keep
        });
    }

    /// All feeds for a status report.
    pub fn report(&self, now_s: f64) -> Vec<FeedReport> {
        let feeds = self.by_publisher.lock();
        feeds
            .values()
            .map(|feed| {
                let last_ms = feed.state.last_ms.load(Ordering::Relaxed);
                FeedReport {
                    publisher_id: feed.subscription.publisher_id,
                    topic: feed.subscription.topic,
                    model: feed.subscription.model.clone(),
                    role: feed.subscription.role,
                    endpoint: feed.subscription.endpoint.clone(),
                    instance: feed.subscription.instance,
                    connected: feed.state.connected.load(Ordering::Relaxed),
                    messages: feed.state.messages.load(Ordering::Relaxed),
                    malformed: feed.state.malformed.load(Ordering::Relaxed),
                    reconnects: feed.state.reconnects.load(Ordering::Relaxed),
                    age_s: (last_ms > 0).then(|| now_s - (last_ms - 1) as f64 / 1e3),
                }
            })
            .collect()
    }
}

/// One feed at work.
struct FeedTask {
    subscription: Subscription,
    state: Arc<FeedState>,
    context: Arc<FeedContext>,
}

impl FeedTask {
    /// The pool as it is now: a model that is registered anew has another one.
    fn pool(&self) -> Option<Arc<WorkerPool>> {
        let (model, _) = self.context.models.find(&self.subscription.model)?;
        Some(model.pool(self.subscription.role).clone())
    }

    async fn follow(self) {
        let mut pause = FIRST_PAUSE;
        let mut was_connected = false;
        loop {
            let limit = self.context.options.frame_bytes;
            match Subscriber::connect(&self.subscription.endpoint, limit).await {
                Ok(subscriber) => {
                    pause = FIRST_PAUSE;
                    self.state.connected.store(true, Ordering::Relaxed);
                    if was_connected && self.subscription.topic == Topic::KvEvents {
                        // What was published in between is lost, and if it was the last for a while no later id shows it.
                        if let Some(pool) = self.pool() {
                            pool.feed_interrupted(self.subscription.instance);
                        }
                    }
                    was_connected = true;
                    let error = self.read(subscriber).await;
                    self.state.connected.store(false, Ordering::Relaxed);
                    let last_instance = self.state.last_instance.lock().take();
                    if let (Some(instance), Some(pool)) = (last_instance, self.pool()) {
                        // A process that dies closes its sockets: this comes before any lease ends or request fails.
                        pool.lost(instance, self.context.clock.now_s());
                    }
                    self.state.reconnects.fetch_add(1, Ordering::Relaxed);
                    self.context
                        .metrics
                        .reconnects
                        .with_label_values(&[reason(&error)])
                        .inc();
                    tracing::info!(publisher_id = self.subscription.publisher_id, %error, "feed lost, reconnecting");
                }
                Err(error) => {
                    tracing::debug!(publisher_id = self.subscription.publisher_id, %error, "feed not reached");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn read(&self, mut subscriber: Subscriber) -> ZmtpError {
        loop {
            match subscriber.receive().await {
                Ok(frames) => {
                    self.state.messages.fetch_add(1, Ordering::Relaxed);
                    let now_s = self.context.clock.now_s();
                    self.state
                        .last_ms
                        .store((now_s * 1e3) as u64 + 1, Ordering::Relaxed);
                    if let Err(malformed) = self.take(&frames, now_s) {
                        self.state.malformed.fetch_add(1, Ordering::Relaxed);
                        self.context
                            .metrics
                            .malformed
                            .with_label_values(&[label(malformed)])
                            .inc();
                    }
                    if subscriber.is_drained() {
                        tokio::time::sleep(self.subscription.topic.pace()).await;
                    }
                }
                Err(error) => {
                    if matches!(error, ZmtpError::TooLarge) {
                        self.state.malformed.fetch_add(1, Ordering::Relaxed);
                        self.context
                            .metrics
                            .malformed
                            .with_label_values(&["too_large"])
                            .inc();
                    }
                    return error;
                }
            }
        }
    }

    fn take(&self, frames: &[Vec<u8>], now_s: f64) -> Result<(), Malformed> {
        let envelope = decode_frames(frames)?;
        if envelope.publisher_id != self.subscription.publisher_id {
            return Err(Malformed::Envelope);
        }
        let owner = self.subscription.instance;
        let Some(pool) = self.pool() else {
            return Ok(());
        };
        match self.subscription.topic {
            Topic::KvEvents => {
                let source = EventSource {
                    publisher: envelope.publisher_id,
                    owner,
                };
                let decoded = decode_kv_events(&envelope.payload)?;
                let unreadable = decoded.unreadable as u64;
                let counts = pool.apply(decoded.events, source, now_s);
                let events = &self.context.metrics.events;
                for (name, count) in [
                    ("applied", counts.applied),
                    ("refused", counts.refused),
                    ("foreign", counts.foreign),
                    ("duplicate", counts.duplicates),
                    ("passed_over", counts.passed_over),
                    ("unreadable", unreadable),
                ] {
                    if count > 0 {
                        events.with_label_values(&[name]).inc_by(count);
                    }
                }
                let restored = &self.context.metrics.restored;
                for (name, count) in ["exact", "outrun", "restarted"].into_iter().zip(counts.restored) {
                    if count > 0 {
                        restored.with_label_values(&[name]).inc_by(count);
                    }
                }
            }
            Topic::ForwardPass => {
                let step = decode_forward_pass(&envelope.payload)?;
                let worker = step.worker();
                if pool.forward_pass(step, owner, now_s) {
                    *self.state.last_instance.lock() = worker.map(|worker| worker.instance);
                }
            }
            Topic::KvMetrics => {}
        }
        Ok(())
    }
}

fn reason(error: &ZmtpError) -> &'static str {
    match error {
        ZmtpError::Io(_) => "closed",
        ZmtpError::Handshake => "handshake",
        ZmtpError::TooLarge => "too_large",
        ZmtpError::Timeout => "timeout",
    }
}

fn label(malformed: Malformed) -> &'static str {
    match malformed {
        Malformed::Frames => "frames",
        Malformed::Length => "length",
        Malformed::Version => "version",
        Malformed::Envelope => "envelope",
        Malformed::Payload => "payload",
    }
}
