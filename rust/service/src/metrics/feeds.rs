//! Metrics of feeds: KV events by result, refused messages, lost connections, replays.

use prometheus::IntCounterVec;

use super::MetricBuilder;
use crate::pool::ApplyCounts;

/// Counters of all feeds: the feeds of the service, and the feeds that a door reads.
pub(crate) struct FeedMetrics {
    events: IntCounterVec,
    restored: IntCounterVec,
    malformed: IntCounterVec,
    /// Connections that were lost, by reason.
    pub reconnects: IntCounterVec,
    /// Replays of engines' KV events, by result.
    pub replays: IntCounterVec,
}

impl FeedMetrics {
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            events: builder.counters(
                "kv_events_total",
                "KV events, by what the service did with them",
                &["result"],
            )?,
            restored: builder.counters(
                "index_restored_workers_total",
                "Workers of a saved index: taken over; restarted since (not taken over); and of those taken over, by their first event exact, outrun, restarted",
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
                self.count_restored(verdict, count);
            }
        }
    }

    /// Counts messages that gaps in a publisher's sequence show as lost.
    pub fn count_lost(&self, messages: u64) {
        if messages > 0 {
            self.count_result("lost", messages);
        }
    }

    /// Counts events of a dump, which replace the blocks of a worker.
    pub fn count_dumped(&self, events: u64) {
        self.count_result("dumped", events);
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
