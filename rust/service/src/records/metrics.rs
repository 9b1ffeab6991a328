//! Metrics of the decision records.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::metrics::MetricBuilder;

/// Cause of a dropped record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Too many records waited for the writer.
    QueueFull,
    /// No file could be written.
    WriteFailed,
    /// The record is larger than a file may be.
    TooLarge,
}

impl Loss {
    /// Every cause, so that each series exists before its first loss.
    const ALL: [Self; 3] = [Self::QueueFull, Self::WriteFailed, Self::TooLarge];

    /// Value of the `reason` label.
    fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::WriteFailed => "write_failed",
            Self::TooLarge => "too_large",
        }
    }
}

/// Counters and gauges of the decision records.
pub(super) struct RecordMetrics {
    /// Records that reached a file.
    pub written: IntCounter,
    /// Records that were dropped, by cause.
    lost: IntCounterVec,
    /// Size of all files of the folder, in bytes.
    pub bytes: IntGauge,
    /// Files removed to keep the limit.
    pub removed: IntCounter,
    /// 1 while files can be written.
    pub writable: IntGauge,
}

impl RecordMetrics {
    /// Registers the metrics.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            written: builder.counter("records_written_total", "Decision records written to a file")?,
            lost: builder.counters(
                "records_dropped_total",
                "Decision records dropped: too many waited, no file could be written, or the record was larger than a file",
                &["reason"],
            )?,
            bytes: builder.gauge("record_files_bytes", "Size of all files of decision records in the folder")?,
            removed: builder.counter(
                "record_files_removed_total",
                "Oldest files of decision records that were removed to keep the limit of all files",
            )?,
            writable: builder.gauge(
                "records_writable",
                "1 while decision records can be written, 0 after a write failed",
            )?,
        };
        for cause in Loss::ALL {
            metrics.lost.with_label_values(&[cause.name()]);
        }
        metrics.writable.set(1);
        Ok(metrics)
    }

    /// Counts dropped records.
    pub fn lost(&self, cause: Loss, records: u64) {
        self.lost.with_label_values(&[cause.name()]).inc_by(records);
    }
}
