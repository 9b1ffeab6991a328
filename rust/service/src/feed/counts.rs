//! Counts and times of one feed, and the status report made of them.
//!
//! The feed's task writes, and a status request reads. The values are independent, so all accesses are relaxed.
//!
//! Cost: two atomic operations per message. A report reads the values one by one, so it may count a
//! message whose time it does not show yet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use super::subscription::{Subscription, Topic};
use crate::pool::Role;

/// One feed in a status report.
///
/// Every count starts at 0 when the subscription begins, and a replaced subscription starts anew.
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

/// Counts and times of one feed.
#[derive(Default)]
pub(super) struct FeedCounts {
    /// The connection to the publisher is open.
    connected: AtomicBool,
    /// Messages received, refused ones included.
    messages: AtomicU64,
    /// Messages refused as malformed.
    malformed: AtomicU64,
    /// Connections lost.
    reconnects: AtomicU64,
    /// Messages dropped because they arrived twice.
    pub duplicates: AtomicU64,
    /// Messages lost, by the gaps in the publisher's sequence.
    lost: AtomicU64,
    /// Messages that a replay brought in place of lost ones.
    pub replayed: AtomicU64,
    /// Restarts of the engine that its feed showed.
    pub restarts: AtomicU64,
    /// Time of the loss of the connection, milliseconds on the service's clock, +1; 0 while none is lost.
    lost_since_ms: AtomicU64,
    /// Time of the last message, milliseconds on the service's clock, +1; 0 before the first message.
    last_ms: AtomicU64,
}

impl FeedCounts {
    /// Records an open connection.
    pub fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.lost_since_ms.store(0, Ordering::Relaxed);
    }

    /// Records a lost connection.
    pub fn disconnected(&self, now_s: f64) {
        self.connected.store(false, Ordering::Relaxed);
        self.lost_since_ms.store(ms_plus_1(now_s), Ordering::Relaxed);
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a message.
    pub fn received(&self, now_s: f64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.last_ms.store(ms_plus_1(now_s), Ordering::Relaxed);
    }

    /// Counts a refused message.
    pub fn count_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts lost messages.
    pub fn count_lost(&self, messages: u64) {
        self.lost.fetch_add(messages, Ordering::Relaxed);
    }

    /// The feed as a status report shows it.
    pub fn report(&self, subscription: &Subscription, now_s: f64) -> FeedReport {
        FeedReport {
            publisher_id: subscription.publisher_id,
            topic: subscription.topic,
            model: subscription.model.clone(),
            role: subscription.role,
            endpoint: subscription.endpoint.clone(),
            instance: subscription.instance,
            connected: self.connected.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            reconnects: self.reconnects.load(Ordering::Relaxed),
            duplicates: self.duplicates.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            replayed: self.replayed.load(Ordering::Relaxed),
            restarts: self.restarts.load(Ordering::Relaxed),
            lost_for_s: age_s(self.lost_since_ms.load(Ordering::Relaxed), now_s),
            age_s: age_s(self.last_ms.load(Ordering::Relaxed), now_s),
        }
    }
}

/// A time in whole milliseconds, +1, so that 0 can stand for no time.
fn ms_plus_1(at_s: f64) -> u64 {
    (at_s * 1e3) as u64 + 1
}

/// Seconds since a time of [`ms_plus_1`]; `None` for 0.
fn age_s(since_ms: u64, now_s: f64) -> Option<f64> {
    (since_ms > 0).then(|| (now_s - (since_ms - 1) as f64 / 1e3).max(0.0))
}
