//! Spans on their way to the collector: a list with a limit.

use opentelemetry_sdk::trace::SpanData;
use parking_lot::Mutex;

use super::metrics::{Loss, SpanMetrics};
use crate::metrics::MetricBuilder;

/// Maximum number of spans that wait: about 8 MB.
const MAX_SPANS: usize = 8192;
/// Spans that wait when the export begins before its time.
const EARLY_SPANS: usize = 1024;

/// Spans that wait for the export thread.
pub(super) struct Outbox {
    /// Spans that the export thread has not taken.
    waiting: Mutex<Waiting>,
    /// Counters of the spans.
    pub metrics: SpanMetrics,
}

/// The list behind the lock.
#[derive(Default)]
struct Waiting {
    /// Spans, oldest first; at most [`MAX_SPANS`].
    spans: Vec<SpanData>,
    /// The service stops. Further spans are dropped and counted.
    is_closed: bool,
}

impl Outbox {
    /// An empty outbox with its counters.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            waiting: Mutex::default(),
            metrics: SpanMetrics::new(builder)?,
        })
    }

    /// Adds the spans of one request, or drops and counts them beyond the limit. Returns whether the export should begin now.
    pub fn put(&self, spans: impl ExactSizeIterator<Item = SpanData>) -> bool {
        let count = spans.len();
        let mut waiting = self.waiting.lock();
        if waiting.is_closed || waiting.spans.len() + count > MAX_SPANS {
            drop(waiting);
            self.metrics.lost(Loss::QueueFull, count);
            return false;
        }
        let before = waiting.spans.len();
        waiting.spans.extend(spans);
        before < EARLY_SPANS && waiting.spans.len() >= EARLY_SPANS
    }

    /// Moves at most `limit` of the oldest spans out. The second value says that the outbox is closed and empty then.
    pub fn take(&self, limit: usize) -> (Vec<SpanData>, bool) {
        let mut waiting = self.waiting.lock();
        let count = waiting.spans.len().min(limit);
        let spans = waiting.spans.drain(..count).collect();
        (spans, waiting.is_closed && waiting.spans.is_empty())
    }

    /// Whether no more spans come.
    pub fn is_closed(&self) -> bool {
        self.waiting.lock().is_closed
    }

    /// Refuses further spans.
    pub fn close(&self) {
        self.waiting.lock().is_closed = true;
    }
}
