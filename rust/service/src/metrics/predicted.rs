//! Metrics of the predicted caches: records and blocks per pool.

use prometheus::{GaugeVec, IntCounterVec};
use wardrop_core::predicted::PredictedSize;

use super::MetricBuilder;

/// Gauges and counters of the predicted caches.
pub(super) struct PredictedMetrics {
    records: GaugeVec,
    blocks: GaugeVec,
    /// Records since the start, by what became of them.
    ever: IntCounterVec,
}

impl PredictedMetrics {
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
            ever: builder.counters(
                "predicted_records_total",
                "Records of predicted caches: inserted; and ended by their time (expired), to make room (evicted), with their worker or its cache (cleared)",
                &["model", "worker_type", "result"],
            )?,
        })
    }

    /// Ends all series; [`PredictedMetrics::set`] starts the series of the present pools again.
    pub fn reset(&self) {
        self.records.reset();
        self.blocks.reset();
        self.ever.reset();
    }

    /// Sets the series of one pool.
    pub fn set(&self, model: &str, role: &str, size: &PredictedSize) {
        self.records
            .with_label_values(&[model, role])
            .set(size.records as f64);
        self.blocks
            .with_label_values(&[model, role])
            .set(size.blocks as f64);
        for (result, count) in [
            ("inserted", size.inserted),
            ("expired", size.expired),
            ("evicted", size.evicted),
            ("cleared", size.cleared),
        ] {
            let counter = self.ever.with_label_values(&[model, role, result]);
            counter.inc_by(count);
        }
    }
}
