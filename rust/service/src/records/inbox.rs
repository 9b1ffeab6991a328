//! Records on their way to the writer thread: a list with limits, which is emptied in one step.
//!
//! Every request takes the lock once, for a push. The writer swaps the whole list out, so it never
//! holds the lock while it works.

use parking_lot::Mutex;

use super::line::{Record, WindowFacts};
use super::metrics::{Loss, RecordMetrics};
use crate::service::PartState;

/// Maximum number of records that wait.
const MAX_RECORDS: usize = 16_384;
/// Maximum number of block hashes in the records that wait: 32 MiB.
const MAX_BLOCKS: usize = 4 << 20;
/// Maximum number of windows of the price of anarchy that wait. A model has one per second at most.
const MAX_WINDOWS: usize = 1_024;

/// Records that wait for the writer.
pub(super) struct Inbox {
    /// Records that the writer has not taken.
    waiting: Mutex<Waiting>,
    /// State of the files, as the writer reported it last.
    state: Mutex<PartState>,
    /// Counters of the records, which inbox and writer share.
    pub metrics: RecordMetrics,
}

/// The list behind the lock.
#[derive(Default)]
struct Waiting {
    /// Records in the order of their ends; at most [`MAX_RECORDS`].
    records: Vec<Record>,
    /// Block hashes in `records`.
    blocks: usize,
    windows: Vec<WindowFacts>,
    /// The service stops. Further records are dropped and counted.
    is_closed: bool,
}

impl Inbox {
    /// An empty inbox whose files count as writable until a write fails.
    pub fn new(metrics: RecordMetrics) -> Self {
        Self {
            waiting: Mutex::default(),
            state: Mutex::new(PartState {
                up: true,
                failures: 0,
                error: String::new(),
                answered_unix_s: None,
            }),
            metrics,
        }
    }

    /// Adds a record, or drops and counts it beyond a limit. Returns whether the list is so full that the writer should begin now.
    ///
    /// The signal comes once per filling: only the record that crosses the half wakes the writer.
    pub fn put(&self, record: Record) -> bool {
        let mut waiting = self.waiting.lock();
        let blocks = waiting.blocks + record.blocks();
        if waiting.is_closed || waiting.records.len() >= MAX_RECORDS || blocks > MAX_BLOCKS {
            drop(waiting);
            self.metrics.lost(Loss::QueueFull, 1);
            return false;
        }
        let was_half = Self::is_half_full(&waiting);
        waiting.blocks = blocks;
        waiting.records.push(record);
        !was_half && Self::is_half_full(&waiting)
    }

    /// Adds a window, or drops and counts it beyond the limit.
    pub fn put_window(&self, window: WindowFacts) {
        let mut waiting = self.waiting.lock();
        if waiting.is_closed || waiting.windows.len() >= MAX_WINDOWS {
            drop(waiting);
            self.metrics.lost(Loss::QueueFull, 1);
            return;
        }
        waiting.windows.push(window);
    }

    fn is_half_full(waiting: &Waiting) -> bool {
        waiting.records.len() >= MAX_RECORDS / 2 || waiting.blocks >= MAX_BLOCKS / 2
    }

    /// Moves everything that waits into `batch` and `windows`, which are empty. Returns whether the inbox is closed, so that this batch
    /// is the last.
    pub fn take(&self, batch: &mut Vec<Record>, windows: &mut Vec<WindowFacts>) -> bool {
        let mut waiting = self.waiting.lock();
        std::mem::swap(batch, &mut waiting.records);
        std::mem::swap(windows, &mut waiting.windows);
        waiting.blocks = 0;
        waiting.is_closed
    }

    /// Refuses further records.
    pub fn close(&self) {
        self.waiting.lock().is_closed = true;
    }

    /// State of the files.
    pub fn state(&self) -> PartState {
        self.state.lock().clone()
    }

    /// Reports that the files can be written.
    pub fn works(&self) {
        let mut state = self.state.lock();
        if !state.up {
            state.up = true;
            self.metrics.writable.set(1);
            tracing::info!("records are written again");
        }
    }

    /// Reports that a file cannot be written.
    pub fn fails(&self, error: String) {
        let mut state = self.state.lock();
        if state.up {
            tracing::warn!(
                error,
                "records cannot be written and are dropped; requests are served as before"
            );
        }
        self.metrics.writable.set(0);
        state.up = false;
        state.failures += 1;
        state.error = error;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use wardrop_core::SequenceHash;

    use super::*;
    use crate::Clock;
    use crate::config::RoutingOptions;
    use crate::metrics::Metrics;
    use crate::records::line::{Settings, arrived_s};

    #[test]
    fn inbox_is_bounded_in_records_and_in_blocks() {
        let metrics = Metrics::new("r").unwrap();
        let inbox = Inbox::new(RecordMetrics::new(metrics.builder()).unwrap());
        let settings = Arc::new(Settings::first("r", RoutingOptions::default().start()));
        let record = |blocks| Record::of_blocks(vec![SequenceHash(1); blocks], settings.clone());
        let woken = (0..MAX_RECORDS + 10).filter(|_| inbox.put(record(0))).count();
        assert_eq!(woken, 1, "only a list that becomes half full wakes the writer");
        let mut batch = Vec::new();
        assert!(!inbox.take(&mut batch, &mut Vec::new()));
        assert_eq!(batch.len(), MAX_RECORDS);
        batch.clear();
        inbox.put(record(MAX_BLOCKS));
        inbox.put(record(1));
        inbox.close();
        inbox.put(record(0));
        assert!(inbox.take(&mut batch, &mut Vec::new()));
        assert_eq!(batch.len(), 1);
        let page = metrics.render(&crate::models::Models::default(), 0.0);
        assert!(page.contains("records_dropped_total{reason=\"queue_full\",router_id=\"r\"} 12"));
        let clock = Clock::start();
        assert!((arrived_s(100.0, clock, Instant::now()) - 100.0).abs() < 1.0);
    }
}
