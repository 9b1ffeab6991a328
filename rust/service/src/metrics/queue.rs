//! Metrics of the router's queue: requests in it, requests placed from it, requests refused by it.

use std::collections::HashMap;

use prometheus::{GaugeVec, HistogramVec, IntCounterVec};
use wardrop_core::queue::QueueStats;

use super::MetricBuilder;
use super::latencies::TTFT_BUCKETS_S;
use crate::pool::Role;

/// Metrics of the queues of all pools.
pub(crate) struct QueueMetrics {
    /// Time in the queue of requests that were placed from it, in seconds.
    pub time: HistogramVec,
    /// Requests placed from the queue, by reason.
    pub placed: IntCounterVec,
    /// Requests that the queue refused, by the limit that refused them.
    pub refused: IntCounterVec,
    /// Requests that wait now, per pool.
    requests: GaugeVec,
    /// Prefill of the waiting requests, in seconds, per pool.
    prefill: GaugeVec,
}

impl QueueMetrics {
    /// Registers the metrics, without a series.
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            time: builder.histograms(
                "queue_seconds",
                "Time in the router's queue, of requests placed from it",
                &["model", "worker_type"],
                TTFT_BUCKETS_S,
            )?,
            placed: builder.counters(
                "queue_placed_total",
                "Requests placed from the queue: there was room, the window was full, or they had waited long enough",
                &["model", "worker_type", "reason"],
            )?,
            refused: builder.counters(
                "queue_refused_total",
                "Requests refused by the queue, by the limit they met: requests, bytes, tenant_requests, tenant_bytes, deadline",
                &["model", "worker_type", "limit"],
            )?,
            requests: builder.gauges(
                "queue_requests",
                "Requests in the router's queue",
                &["model", "worker_type"],
            )?,
            prefill: builder.gauges(
                "queue_prefill_seconds",
                "Prefill of the requests in the router's queue, each on its best worker",
                &["model", "worker_type"],
            )?,
        })
    }

    /// Ends the series of pools that are gone; the next [`QueueMetrics::set`] starts those of the others again.
    pub(super) fn reset(&self) {
        self.requests.reset();
        self.prefill.reset();
    }

    /// Sets the gauges of one pool that has a queue.
    pub(super) fn set(&self, model: &str, role: Role, stats: &QueueStats) {
        let labels = [model, role.name()];
        self.requests.with_label_values(&labels).set(stats.waiting as f64);
        self.prefill.with_label_values(&labels).set(stats.prefill_s);
    }

    /// Ends the series of a model.
    pub(super) fn forget_model(&self, model: &str) {
        for role in Role::ALL {
            // A series that no request has made is not there to be removed.
            let _ = self.time.remove_label_values(&[model, role.name()]);
        }
        let of_model = HashMap::from([("model", model)]);
        let _ = self.placed.remove(&of_model);
        let _ = self.refused.remove(&of_model);
    }
}
