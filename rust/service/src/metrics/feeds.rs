//! Metrics of feeds: KV events by result, refused messages, lost connections, replays.
//!
//! Cost: a few atomic additions per payload, not per event.

use prometheus::{IntCounter, IntCounterVec};

use super::MetricBuilder;
use crate::pool::ApplyCounts;

/// Counters of all feeds: the feeds of the service, and the feeds that a door reads.
pub(crate) struct FeedMetrics {
    /// KV events, by result.
    events: IntCounterVec,
    /// Messages that gaps in a publisher's sequence show as lost.
    lost: IntCounter,
    /// Events of dumps.
    dumped: IntCounter,
    /// Workers of a saved index, by whether their blocks were taken over.
    restored: IntCounterVec,
    /// First events of restored workers, by what the event said of the saved blocks.
    first_events: IntCounterVec,
    /// Refused messages, by reason.
    malformed: IntCounterVec,
    /// Connections that were lost, by reason.
    pub reconnects: IntCounterVec,
    /// Replays of engines' KV events, by result.
    pub replays: IntCounterVec,
}

impl FeedMetrics {
    /// Registers the counters, without a series.
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            events: builder.counters(
                "kv_events_total",
                "KV events of feeds, by what the service did with them",
                &["result"],
            )?,
            lost: builder.counter(
                "feed_messages_lost_total",
                "Messages of feeds that gaps in their numbers show as lost",
            )?,
            dumped: builder.counter(
                "index_dumped_events_total",
                "Events of dumps, which replace the blocks of workers",
            )?,
            restored: builder.counters(
                "index_restored_workers_total",
                "Workers of a saved index: their blocks were taken over, or the worker has restarted since",
                &["result"],
            )?,
            first_events: builder.counters(
                "index_restored_first_events_total",
                "First events of workers whose saved blocks were taken over: the blocks are exact, the worker went on without them (outrun), or it restarted",
                &["result"],
            )?,
            malformed: builder.counters(
                "feed_malformed_total",
                "Feed messages that were refused",
                &["reason"],
            )?,
            reconnects: builder.counters(
                "feed_reconnects_total",
                "Feed connections that were lost",
                &["reason"],
            )?,
            replays: builder.counters(
                "feed_replays_total",
                "Replays of engines' KV events, by their result: complete, with holes, or failed",
                &["result"],
            )?,
        })
    }

    /// Counts the events of one payload: what the pool did with each, and how many could not be read.
    pub fn count_events(&self, counts: &ApplyCounts, unreadable: u64) {
        for (result, count) in [
            ("applied", counts.applied),
            ("refused", counts.refused),
            ("foreign", counts.foreign),
            ("duplicate", counts.duplicates),
            ("superseded", counts.superseded),
            ("passed_over", counts.passed_over),
            ("unreadable", unreadable),
        ] {
            // A series begins with its first event, so an idle feed has no series of zeros.
            if count > 0 {
                self.count_result(result, count);
            }
        }
        for (verdict, count) in ["exact", "outrun", "restarted"].into_iter().zip(counts.restored) {
            if count > 0 {
                self.first_events.with_label_values(&[verdict]).inc_by(count);
            }
        }
    }

    /// Counts messages that gaps in a publisher's sequence show as lost.
    pub fn count_lost(&self, messages: u64) {
        self.lost.inc_by(messages);
    }

    /// Counts events of a dump, which replace the blocks of a worker.
    pub fn count_dumped(&self, events: u64) {
        self.dumped.inc_by(events);
    }

    /// Counts workers of a saved index.
    pub fn count_restored(&self, result: &str, workers: u64) {
        self.restored.with_label_values(&[result]).inc_by(workers);
    }

    /// Counts a refused message.
    pub fn count_malformed(&self, reason: &str) {
        self.malformed.with_label_values(&[reason]).inc();
    }

    fn count_result(&self, result: &str, count: u64) {
        self.events.with_label_values(&[result]).inc_by(count);
    }
}
