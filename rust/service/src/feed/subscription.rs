//! Subscriptions by publisher: connect, read, apply, reconnect with growing pauses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::engine::EngineFeed;
use super::sequence::{MessageOrder, SequenceWindow};
use super::zmtp::{Subscriber, SubscriberLimits, ZmtpError};
use crate::config::FeedOptions;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pool::{EventSource, Role, WorkerPool};
use crate::{Clock, ServiceError};
use wardrop_core::WorkerId;
use wardrop_engines::dynamo::{Malformed, decode_forward_pass, decode_frames, decode_kv_events};

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Connections in a row whose PING stayed unanswered after which a publisher that never answered is pinged no more.
const UNANSWERED_MAX: u32 = 2;

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
    fn pace(self) -> Duration {
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
    fn engine_worker(&self) -> Result<Option<WorkerId>, ServiceError> {
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
    /// Messages dropped because they arrived twice.
    pub duplicates: u64,
    /// Messages lost, by the gaps in the publisher's sequence.
    pub lost: u64,
    /// Messages that a replay brought in place of lost ones.
    pub replayed: u64,
    /// Restarts of the engine that its feed showed.
    pub restarts: u64,
    /// Seconds without a connection; `None` while connected and before the first connection.
    pub lost_for_s: Option<f64>,
    /// Seconds since the last message; `None` before the first.
    pub age_s: Option<f64>,
}

struct Feed {
    subscription: Subscription,
    state: Arc<FeedState>,
    task: AbortHandle,
}

/// Counts and times of one feed.
#[derive(Default)]
pub(super) struct FeedState {
    pub connected: AtomicBool,
    pub messages: AtomicU64,
    pub malformed: AtomicU64,
    pub reconnects: AtomicU64,
    pub duplicates: AtomicU64,
    pub lost: AtomicU64,
    pub replayed: AtomicU64,
    pub restarts: AtomicU64,
    /// Time of the loss of the connection, milliseconds on the gateway's clock, +1; 0 while none is lost.
    pub lost_since_ms: AtomicU64,
    /// Milliseconds on the gateway's clock, +1; 0 before the first message.
    last_ms: AtomicU64,
    /// The instance whose engine steps this feed reported last.
    last_instance: Mutex<Option<u64>>,
}

impl FeedState {
    /// A message arrived.
    pub fn seen(&self, now_s: f64) {
        self.last_ms.store((now_s * 1e3) as u64 + 1, Ordering::Relaxed);
    }

    /// The connection was lost.
    pub fn lost_connection(&self, now_s: f64) {
        self.connected.store(false, Ordering::Relaxed);
        self.lost_since_ms
            .store((now_s * 1e3) as u64 + 1, Ordering::Relaxed);
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
}

/// State that feeds share with the rest of the service.
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
    /// Creates an empty set of feeds. `runtime` is the event loop that reads the feeds.
    pub fn new(context: FeedContext, runtime: Handle) -> Self {
        Self {
            context: Arc::new(context),
            runtime,
            by_publisher: Mutex::default(),
        }
    }

    /// Follows a feed. The same subscription again changes nothing; another subscription of the publisher replaces it.
    ///
    /// # Errors
    /// An unknown model, an endpoint that is not TCP, or too many feeds.
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), ServiceError> {
        let context = &self.context;
        if context.models.find(&subscription.model).is_none() {
            return Err(ServiceError::UnknownModel(subscription.model));
        }
        for endpoint in [Some(&subscription.endpoint), subscription.replay.as_ref()] {
            if let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.starts_with("tcp://")) {
                return Err(ServiceError::Config(format!(
                    "a feed's endpoint must be tcp://host:port, got {endpoint:?}"
                )));
            }
        }
        let engine_worker = subscription.engine_worker()?;
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
        if let (Topic::KvEvents | Topic::EngineEvents, Some(instance)) =
            (subscription.topic, subscription.instance)
            && let Some((model, _)) = context.models.find(&subscription.model)
        {
            let pool = model.pool(subscription.role);
            pool.feed_followed(instance, subscription.publisher_id);
        }
        let state = Arc::new(FeedState::default());
        let task = if let Some(worker) = engine_worker {
            let feed = EngineFeed::new(subscription.clone(), worker, state.clone(), context.clone());
            self.runtime.spawn(feed.follow())
        } else {
            let feed = FeedTask {
                subscription: subscription.clone(),
                state: state.clone(),
                context: context.clone(),
            };
            self.runtime.spawn(feed.follow())
        };
        let task = task.abort_handle();
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

    /// Leaves a feed. Returns whether the feed was followed.
    ///
    /// Without its feed, the index learns of no removed block, so the blocks of the feed's workers are suspect.
    pub fn unsubscribe(&self, publisher_id: u64) -> bool {
        let feed = self.by_publisher.lock().remove(&publisher_id);
        if let Some(feed) = &feed {
            feed.task.abort();
            let subscription = &feed.subscription;
            if matches!(subscription.topic, Topic::KvEvents | Topic::EngineEvents)
                && let Some((model, _)) = self.context.models.find(&subscription.model)
            {
                let publisher = (!subscription.any_publisher).then_some(publisher_id);
                model
                    .pool(subscription.role)
                    .feed_ended(subscription.instance, publisher);
            }
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
                    duplicates: feed.state.duplicates.load(Ordering::Relaxed),
                    lost: feed.state.lost.load(Ordering::Relaxed),
                    replayed: feed.state.replayed.load(Ordering::Relaxed),
                    restarts: feed.state.restarts.load(Ordering::Relaxed),
                    lost_for_s: age_s(feed.state.lost_since_ms.load(Ordering::Relaxed), now_s),
                    age_s: age_s(last_ms, now_s),
                }
            })
            .collect()
    }
}

/// Seconds since a time in milliseconds + 1; `None` for 0, which stands for no time.
fn age_s(since_ms: u64, now_s: f64) -> Option<f64> {
    (since_ms > 0).then(|| (now_s - (since_ms - 1) as f64 / 1e3).max(0.0))
}

/// One feed at work.
struct FeedTask {
    subscription: Subscription,
    state: Arc<FeedState>,
    context: Arc<FeedContext>,
}

impl FeedTask {
    /// The present pool of the feed. A model that is registered again has another pool.
    fn pool(&self) -> Option<Arc<WorkerPool>> {
        let (model, _) = self.context.models.find(&self.subscription.model)?;
        Some(model.pool(self.subscription.role).clone())
    }

    async fn follow(self) {
        let mut pause = FIRST_PAUSE;
        let mut pings = PingHistory::default();
        let deadline = Duration::from_millis(self.context.options.deadline_ms);
        loop {
            let limits = SubscriberLimits {
                frame_bytes: self.context.options.frame_bytes,
                deadline: pings.are_useful().then_some(deadline),
            };
            match Subscriber::connect(&self.subscription.endpoint, limits).await {
                Ok(mut subscriber) => {
                    pause = FIRST_PAUSE;
                    self.state.connected.store(true, Ordering::Relaxed);
                    self.state.lost_since_ms.store(0, Ordering::Relaxed);
                    let error = self.read(&mut subscriber).await;
                    pings.record(subscriber.has_pong(), &error);
                    self.lose(&error);
                }
                Err(error) => {
                    tracing::debug!(publisher_id = self.subscription.publisher_id, %error, "feed not reached");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Records a lost connection. From now on the index may miss events, so the blocks of the feed's workers are suspect
    /// until a dump replaces them.
    fn lose(&self, error: &ZmtpError) {
        let now_s = self.context.clock.now_s();
        self.state.lost_connection(now_s);
        if self.subscription.topic == Topic::KvEvents {
            self.interrupt();
        }
        let last_instance = self.state.last_instance.lock().take();
        if let (Some(instance), Some(pool)) = (last_instance, self.pool()) {
            // A process that dies closes its sockets: this comes before any lease ends or request fails.
            pool.lost(instance, now_s);
        }
        self.context
            .metrics
            .reconnects
            .with_label_values(&[reason(error)])
            .inc();
        tracing::info!(publisher_id = self.subscription.publisher_id, %error, "feed lost, reconnecting");
    }

    /// Marks the blocks of the feed's workers as suspect.
    fn interrupt(&self) {
        if let Some(pool) = self.pool() {
            let publisher = (!self.subscription.any_publisher).then_some(self.subscription.publisher_id);
            pool.feed_interrupted(self.subscription.instance, publisher);
        }
    }

    async fn read(&self, subscriber: &mut Subscriber) -> ZmtpError {
        // Sequences of one connection: a publisher that starts anew needs a new connection.
        let mut window = SequenceWindow::default();
        loop {
            match subscriber.receive().await {
                Ok(frames) => {
                    self.state.messages.fetch_add(1, Ordering::Relaxed);
                    let now_s = self.context.clock.now_s();
                    self.state.seen(now_s);
                    if let Err(malformed) = self.take(&frames, &mut window, now_s) {
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

    fn take(&self, frames: &[Vec<u8>], window: &mut SequenceWindow, now_s: f64) -> Result<(), Malformed> {
        let envelope = decode_frames(frames)?;
        if !self.subscription.any_publisher && envelope.publisher_id != self.subscription.publisher_id {
            return Err(Malformed::Envelope);
        }
        match window.take(envelope.publisher_id, envelope.sequence) {
            MessageOrder::Next => {}
            MessageOrder::Seen => {
                self.state.duplicates.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            MessageOrder::Gap(lost) => {
                self.state.lost.fetch_add(lost, Ordering::Relaxed);
                self.context
                    .metrics
                    .events
                    .with_label_values(&["lost"])
                    .inc_by(lost);
                if self.subscription.topic == Topic::KvEvents {
                    // The last events of a worker may be among the lost ones, and no later id would show it.
                    self.interrupt();
                }
            }
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
                let decoded = decode_kv_events(&envelope.payload).inspect_err(|_| self.interrupt())?;
                if decoded.unreadable > 0 {
                    self.interrupt();
                }
                let unreadable = decoded.unreadable as u64;
                let counts = pool.apply(decoded.events, source, now_s);
                let events = &self.context.metrics.events;
                for (name, count) in [
                    ("applied", counts.applied),
                    ("refused", counts.refused),
                    ("foreign", counts.foreign),
                    ("duplicate", counts.duplicates),
                    ("superseded", counts.superseded),
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
            // Cache use is read for its freshness only, and engines' own feeds have a task of their own.
            Topic::KvMetrics | Topic::EngineEvents => {}
        }
        Ok(())
    }
}

/// Whether a publisher answers PINGs. Old or foreign implementations may not.
#[derive(Debug, Default)]
pub(super) struct PingHistory {
    /// The publisher answered a PING once.
    has_answered: bool,
    /// Connections in a row that ended with an unanswered PING.
    unanswered: u32,
}

impl PingHistory {
    /// Whether silence after a PING proves a lost connection. A half-open connection fails the next handshake, while a
    /// publisher without PINGs passes it and stays silent again.
    pub fn are_useful(&self) -> bool {
        self.has_answered || self.unanswered < UNANSWERED_MAX
    }

    /// Records the end of a connection.
    pub fn record(&mut self, has_pong: bool, error: &ZmtpError) {
        self.has_answered |= has_pong;
        if matches!(error, ZmtpError::Silent) {
            self.unanswered += 1;
        } else {
            self.unanswered = 0;
        }
    }
}

/// Label of a lost connection.
pub(super) fn reason(error: &ZmtpError) -> &'static str {
    match error {
        ZmtpError::Io(_) => "closed",
        ZmtpError::Handshake => "handshake",
        ZmtpError::TooLarge => "too_large",
        ZmtpError::Timeout => "timeout",
        ZmtpError::Silent => "silent",
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
