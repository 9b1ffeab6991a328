//! The loop that every feed runs: connect, read, record the loss, connect again after growing pauses.
//!
//! ```text
//! connect ─▶ connected ─▶ message ─▶ take ─▶ … ─▶ error ─▶ lost ─▶ pause ─▶ connect
//!                              └─ now and then, also in the middle of a message ─▶ look
//! ```
//!
//! A [`FeedReader`] is what differs: [`super::dynamo`] reads Dynamo's event plane, [`super::engine`] an engine's own feed.
//!
//! Cost: one task per feed. A pause after each drained read lets messages gather. So a busy feed wakes its
//! task, and its thread, at most once per pace of its topic.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

use super::counts::FeedCounts;
use super::pings::PingHistory;
use super::subscription::Subscription;
use super::zmtp::{Subscriber, SubscriberLimits, ZmtpError};
use crate::Clock;
use crate::config::FeedOptions;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pool::WorkerPool;

/// Pause after the first lost connection; each further attempt doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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

/// What a feed's task knows: the subscription, the counts, and the service around it.
pub(super) struct FeedLink {
    /// What the feed is about.
    pub subscription: Subscription,
    /// Counts that a status report shows.
    pub counts: Arc<FeedCounts>,
    /// State that all feeds share.
    pub context: Arc<FeedContext>,
}

impl FeedLink {
    /// The present pool of the feed. A model that is registered again has another pool.
    pub fn pool(&self) -> Option<Arc<WorkerPool>> {
        let (model, _) = self.context.models.find(&self.subscription.model)?;
        Some(model.pool(self.subscription.role).clone())
    }

    /// Counts messages that the publisher's numbers show as lost.
    pub fn count_lost(&self, messages: u64) {
        self.counts.count_lost(messages);
        self.context.metrics.feeds.count_lost(messages);
    }

    /// Counts a refused message.
    pub fn count_malformed(&self, reason: &str) {
        self.counts.count_malformed();
        self.context.metrics.feeds.count_malformed(reason);
    }

    /// Counts and logs the end of a connection, by its reason.
    fn disconnected(&self, error: &ZmtpError) {
        if matches!(error, ZmtpError::TooLarge) {
            self.count_malformed("too_large");
        }
        self.context
            .metrics
            .feeds
            .reconnects
            .with_label_values(&[reason(error)])
            .inc();
        tracing::info!(publisher_id = self.subscription.publisher_id, %error, "feed lost, reconnecting");
    }
}

/// How the messages of one kind of feed are read. All calls come from the feed's own task, one at a time.
pub(super) trait FeedReader: Send {
    /// Interval between two calls of [`FeedReader::look`]; `None` for no calls.
    const LOOK_EVERY: Option<Duration>;

    /// The feed's subscription, counts and surroundings.
    fn link(&self) -> &FeedLink;

    /// Begins a connection, before its first message.
    fn connected(&mut self) -> impl Future<Output = ()> + Send;

    /// Takes one message.
    ///
    /// # Errors
    /// The reason of a refusal, as a metric label. The feed lives on.
    fn take(
        &mut self,
        frames: &[Vec<u8>],
        now_s: f64,
    ) -> impl Future<Output = Result<(), &'static str>> + Send;

    /// Looks at the state of the feed between messages.
    fn look(&mut self) -> impl Future<Output = ()> + Send;

    /// Ends a connection: from now on events may be missed.
    fn lost(&mut self, now_s: f64);
}

/// Follows a feed without end; the task is aborted when the feed is left.
///
/// The pause starts anew with each connection that succeeds, so a publisher that restarts is found
/// within [`FIRST_PAUSE`] or a few doublings of it.
pub(super) async fn follow(mut reader: impl FeedReader) {
    let mut pause = FIRST_PAUSE;
    let mut pings = PingHistory::default();
    let deadline = Duration::from_millis(reader.link().context.options.deadline_ms);
    loop {
        let limits = SubscriberLimits {
            frame_bytes: reader.link().context.options.frame_bytes,
            deadline: pings.are_useful().then_some(deadline),
        };
        match Subscriber::connect(&reader.link().subscription.endpoint, limits).await {
            Ok(mut subscriber) => {
                pause = FIRST_PAUSE;
                reader.link().counts.connected();
                let error = read(&mut reader, &mut subscriber).await;
                pings.record(subscriber.has_pong(), &error);
                let now_s = reader.link().context.clock.now_s();
                reader.link().counts.disconnected(now_s);
                reader.lost(now_s);
                reader.link().disconnected(&error);
            }
            Err(error) => {
                tracing::debug!(publisher_id = reader.link().subscription.publisher_id, %error, "feed not reached");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Reads messages until the connection ends.
///
/// It returns the error that ended the connection; a malformed message is no such error.
async fn read<R: FeedReader>(reader: &mut R, subscriber: &mut Subscriber) -> ZmtpError {
    reader.connected().await;
    let pace = reader.link().subscription.topic.pace();
    let mut looks = R::LOOK_EVERY.map(|every| {
        let mut looks = tokio::time::interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks
    });
    loop {
        let received = {
            let mut receive = std::pin::pin!(subscriber.receive());
            loop {
                tokio::select! {
                    received = &mut receive => break received,
                    // A half-read message stays in `receive` while the reader looks.
                    () = next_look(&mut looks) => reader.look().await,
                }
            }
        };
        let frames = match received {
            Ok(frames) => frames,
            Err(error) => return error,
        };
        let now_s = reader.link().context.clock.now_s();
        reader.link().counts.received(now_s);
        if let Err(reason) = reader.take(&frames, now_s).await {
            reader.link().count_malformed(reason);
        }
        // With bytes left in the buffer, the next message is read without a pause.
        if subscriber.is_drained()
            && let Err(error) = subscriber.pause(pace).await
        {
            return error;
        }
        // A publisher that writes faster than the feed reads must leave time for the other feeds of this event loop.
        tokio::task::coop::consume_budget().await;
    }
}

/// Waits for the next look; without looks it never ends, so that `select!` waits for the message
/// alone.
async fn next_look(looks: &mut Option<Interval>) {
    match looks {
        Some(looks) => {
            looks.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Label of a lost connection.
fn reason(error: &ZmtpError) -> &'static str {
    match error {
        ZmtpError::Io(_) => "closed",
        ZmtpError::Handshake => "handshake",
        ZmtpError::TooLarge => "too_large",
        ZmtpError::Timeout => "timeout",
        ZmtpError::Silent => "silent",
    }
}
