//! Metrics of the predicted caches: records and blocks per pool.

use prometheus::{GaugeVec, IntCounterVec};
use wardrop_core::predicted::PredictedSize;

use super::MetricBuilder;

/// Gauges and counters of the predicted caches.
pub(super) struct PredictedMetrics {
    /// Records at present, per pool.
    records: GaugeVec,
    /// Predicted blocks at present, over all workers of a pool.
    blocks: GaugeVec,
    /// Records since the start.
    inserted: IntCounterVec,
    /// Records that ended since the start, by why they ended.
    ended: IntCounterVec,
}

impl PredictedMetrics {
    /// Registers the metrics, without a series.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            records: builder.gauges(
                "predicted_records",
                "Requests by which caches are predicted now",
                &["model", "worker_type"],
            )?,
            blocks: builder.gauges(
                "predicted_blocks",
                "Blocks that workers are predicted to hold, over all of them",
                &["model", "worker_type"],
            )?,
            inserted: builder.counters(
                "predicted_records_inserted_total",
                "Records of predicted caches that were made, one per placed request",
                &["model", "worker_type"],
            )?,
            ended: builder.counters(
                "predicted_records_ended_total",
                "Records of predicted caches that ended: by their time (expired), to make room (evicted), with their worker or its cache (cleared)",
                &["model", "worker_type", "reason"],
            )?,
        })
    }

    /// Ends all series; [`PredictedMetrics::set`] starts the series of the present pools again.
    pub fn reset(&self) {
        self.records.reset();
        self.blocks.reset();
        self.inserted.reset();
        self.ended.reset();
    }

    /// Sets the series of one pool.
    pub fn set(&self, model: &str, role: &str, size: &PredictedSize) {
        self.records
            .with_label_values(&[model, role])
            .set(size.records as f64);
        self.blocks
            .with_label_values(&[model, role])
            .set(size.blocks as f64);
        self.inserted
            .with_label_values(&[model, role])
            .inc_by(size.inserted);
        for (reason, count) in [
            ("expired", size.expired),
            ("evicted", size.evicted),
            ("cleared", size.cleared),
        ] {
            let counter = self.ended.with_label_values(&[model, role, reason]);
            counter.inc_by(count);
        }
    }
}
