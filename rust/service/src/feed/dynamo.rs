//! One feed of Dynamo's event plane: KV events, engine steps, or cache use of one publisher.
//!
//! ```text
//! envelope (publisher, number) ─▶ sequence window (duplicates, lost messages) ─▶ decode ─▶ WorkerPool::apply, forward_pass
//! ```
//!
//! Complexity: O(1) per message beside its blocks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use wardrop_engines::dynamo::{Malformed, decode_forward_pass, decode_frames, decode_kv_events};

use super::link::{FeedLink, FeedReader};
use super::sequence::{MessageOrder, SequenceWindow};
use super::subscription::Topic;
use crate::pool::{EventSource, WorkerPool};

/// Reader of one publisher.
pub(super) struct DynamoFeed {
    /// The subscription, its counts, and the service around the feed.
    link: FeedLink,
    /// Numbers of this connection's messages. A publisher that starts anew needs a new connection.
    window: SequenceWindow,
    /// The instance whose engine steps this connection reported last.
    last_instance: Option<u64>,
}

impl DynamoFeed {
    /// A reader without a connection; [`follow`](super::link::follow) connects it.
    pub fn new(link: FeedLink) -> Self {
        Self {
            link,
            window: SequenceWindow::default(),
            last_instance: None,
        }
    }

    /// Marks the blocks of the feed's workers as suspect.
    ///
    /// A subscription of any publisher serves every worker of its pool, so all of them are marked.
    /// Suspect blocks still count, with less trust, until a dump replaces them.
    fn interrupt(&self) {
        if let Some(pool) = self.link.pool() {
            let subscription = &self.link.subscription;
            let publisher = (!subscription.any_publisher).then_some(subscription.publisher_id);
            pool.feed_interrupted(subscription.instance, publisher);
        }
    }

    /// Takes one message: envelope, order, payload.
    ///
    /// # Errors
    /// [`Malformed`] for a message that cannot be read or comes from another publisher. The message
    /// changes nothing except the trust in the worker's blocks.
    fn read(&mut self, frames: &[Vec<u8>], now_s: f64) -> Result<(), Malformed> {
        let envelope = decode_frames(frames)?;
        let subscription = &self.link.subscription;
        let (topic, owner) = (subscription.topic, subscription.instance);
        if !subscription.any_publisher && envelope.publisher_id != subscription.publisher_id {
            return Err(Malformed::Envelope);
        }
        match self.window.take(envelope.publisher_id, envelope.sequence) {
            MessageOrder::Next => {}
            MessageOrder::Seen => {
                self.link.counts.duplicates.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            MessageOrder::Gap(lost) => {
                self.link.count_lost(lost);
                if topic == Topic::KvEvents {
                    // The last events of a worker may be among the lost ones, and no later id would show it.
                    self.interrupt();
                }
            }
        }
        // The model may have been removed while its feed's task was still running.
        let Some(pool) = self.link.pool() else {
            return Ok(());
        };
        match topic {
            Topic::KvEvents => {
                let source = EventSource {
                    publisher: envelope.publisher_id,
                    owner,
                };
                self.apply(&pool, &envelope.payload, source, now_s)?;
            }
            Topic::ForwardPass => {
                let step = decode_forward_pass(&envelope.payload)?;
                let worker = step.worker();
                if pool.forward_pass(step, owner, now_s) {
                    self.last_instance = worker.map(|worker| worker.instance);
                }
            }
            // Cache use is read for its freshness only, and an engine's own feed has a reader of its own.
            Topic::KvMetrics | Topic::EngineEvents => {}
        }
        Ok(())
    }

    /// Applies the events of one payload. An event that cannot be read may have changed any block, so all are suspect then.
    fn apply(
        &self,
        pool: &WorkerPool,
        payload: &[u8],
        source: EventSource,
        now_s: f64,
    ) -> Result<(), Malformed> {
        let decoded = decode_kv_events(payload).inspect_err(|_| self.interrupt())?;
        if decoded.unreadable > 0 {
            self.interrupt();
        }
        let counts = pool.apply(decoded.events, source, now_s);
        let feeds = &self.link.context.metrics.feeds;
        feeds.count_events(&counts, decoded.unreadable as u64);
        Ok(())
    }
}

impl FeedReader for DynamoFeed {
    /// No look: [`crate::service`] asks for a dump where blocks are suspect.
    const LOOK_EVERY: Option<Duration> = None;

    fn link(&self) -> &FeedLink {
        &self.link
    }

    async fn connected(&mut self) {
        self.window = SequenceWindow::default();
    }

    async fn take(&mut self, frames: &[Vec<u8>], now_s: f64) -> Result<(), &'static str> {
        self.read(frames, now_s).map_err(malformed_reason)
    }

    async fn look(&mut self) {}

    /// From now on the index may miss events, so the blocks of the feed's workers are suspect until a dump replaces them.
    fn lost(&mut self, now_s: f64) {
        if self.link.subscription.topic == Topic::KvEvents {
            self.interrupt();
        }
        if let (Some(instance), Some(pool)) = (self.last_instance.take(), self.link.pool()) {
            // A process that dies closes its sockets: this comes before any lease ends or request fails.
            pool.lost(instance, now_s);
        }
    }
}

/// Metric label of a refused message.
pub(crate) fn malformed_reason(malformed: Malformed) -> &'static str {
    match malformed {
        Malformed::Frames => "frames",
        Malformed::Length => "length",
        Malformed::Version => "version",
        Malformed::Envelope => "envelope",
        Malformed::Payload => "payload",
    }
}
