//! Metrics of the spans.

use prometheus::{IntCounter, IntCounterVec};

use crate::metrics::MetricBuilder;

/// Cause of a dropped span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Too many spans waited for the export.
    QueueFull,
    /// The collector was away, or refused the spans.
    ExportFailed,
}

impl Loss {
    /// Every cause, so that each series exists before its first loss.
    const ALL: [Self; 2] = [Self::QueueFull, Self::ExportFailed];

    /// Value of the `reason` label.
    fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
        }
    }
}

/// Counters of the spans.
pub(super) struct SpanMetrics {
    /// Spans that the collector took.
    pub exported: IntCounter,
    /// Spans that were dropped, by cause.
    lost: IntCounterVec,
}

impl SpanMetrics {
    /// Registers the counters.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            exported: builder.counter("spans_exported_total", "Spans that the collector took")?,
            lost: builder.counters(
                "spans_dropped_total",
                "Spans dropped: too many waited, or the collector was away or refused them",
                &["reason"],
            )?,
        };
        for cause in Loss::ALL {
            metrics.lost.with_label_values(&[cause.name()]);
        }
        Ok(metrics)
    }

    /// Counts dropped spans.
    pub fn lost(&self, cause: Loss, spans: usize) {
        self.lost.with_label_values(&[cause.name()]).inc_by(spans as u64);
    }
}
