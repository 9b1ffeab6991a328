//! Snapshot: a copy of a router's state for people and metrics.
//!
//! Every field is a plain number or name, and serialises under its own name. Each counter has one cause, so a
//! rising counter says what is wrong.

use serde::Serialize;

use crate::event::KvEvent;
use crate::index::Refusal;
use crate::predicted::PredictedSize;
use crate::price_guard::PriceGuardReport;
use crate::trust::Trust;
use crate::worker::{WorkerId, WorkerSpec};

/// State of a router at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Every registered worker, by id.
    pub workers: Vec<WorkerSnapshot>,
    /// Name of the configured policy.
    pub policy: String,
    /// State and evidence of the price guard.
    pub price_guard: PriceGuardReport,
    /// Open bookings.
    pub bookings: usize,
    /// Size of the index.
    pub index: IndexSize,
    /// Size of the predicted caches.
    pub predicted: PredictedSize,
    /// Counts since the router was made.
    pub counters: Counters,
}

/// Load and cache of one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkerSnapshot {
    /// Id of the worker.
    pub worker: WorkerId,
    /// Sizes that the worker reported.
    pub spec: WorkerSpec,
    /// Whether the worker takes requests.
    pub available: bool,
    /// Uncached prompt tokens of its requests before their first token.
    pub prefill_tokens: u64,
    /// Distinct blocks of its requests in flight.
    pub decode_blocks: u64,
    /// Requests in flight.
    pub active_requests: u32,
    /// Blocks that the worker holds: device, host, disk.
    pub held_blocks: [u64; 3],
    /// Trust in the index about the worker.
    pub trust: Trust,
}

/// Size of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IndexSize {
    /// Distinct blocks.
    pub blocks: u64,
    /// (worker, tier, block) triples.
    pub holdings: u64,
    /// Bytes of the structures, from their capacities.
    pub bytes: u64,
}

/// Counts since the router was made. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Decisions made.
    pub routed: u64,
    /// Decisions for which no candidate had a finite cost: the least loaded candidate was chosen.
    pub unpriced: u64,
    /// Decisions that a static rule made in place of the policy.
    pub decided_statically: u64,
    /// Bookings opened.
    pub booked: u64,
    /// Bookings released.
    pub released: u64,
    /// Bookings that ended by expiry.
    pub expired: u64,
    /// Bookings dropped with their worker.
    pub dropped_with_worker: u64,
    /// Bookings refused because of the limit.
    pub bookings_refused: u64,
    /// Reports of engines with figures that cannot be true. They teach nothing.
    pub reports_refused: u64,
    /// Events applied without an error.
    pub events_applied: u64,
    /// Blocks of applied stored events.
    pub blocks_stored: u64,
    /// Blocks of applied removed events.
    pub blocks_removed: u64,
    /// Events of unregistered workers.
    pub unknown_worker: u64,
    /// Stored events whose parent the worker did not hold.
    pub unknown_parent: u64,
    /// Removed blocks that the worker did not hold.
    pub unknown_block: u64,
    /// Stored events that gave an engine hash a second meaning.
    pub conflicting_block: u64,
    /// Stored events refused because the index was full.
    pub index_full: u64,
    /// Distinct blocks that the index evicted to keep its budget.
    pub blocks_evicted: u64,
    /// Matches that ended early because a writer interfered in every attempt. Their overlaps are true, but
    /// may be short.
    pub reads_given_up: u64,
}

impl Counters {
    /// These counts, with the counts of events from `events`.
    pub(crate) fn with_events(self, events: &Self) -> Self {
        Self {
            routed: self.routed,
            unpriced: self.unpriced,
            decided_statically: self.decided_statically,
            booked: self.booked,
            released: self.released,
            expired: self.expired,
            dropped_with_worker: self.dropped_with_worker,
            bookings_refused: self.bookings_refused,
            reports_refused: self.reports_refused,
            ..*events
        }
    }

    /// Counts one event by its outcome.
    pub(crate) fn count_event(&mut self, event: &KvEvent, outcome: Result<(), Refusal>) {
        self.count_outcome(outcome);
        match (event, outcome) {
            (KvEvent::Stored { blocks, .. }, Ok(())) => self.blocks_stored += blocks.len() as u64,
            (KvEvent::Removed { blocks, .. }, Ok(())) => self.blocks_removed += blocks.len() as u64,
            (KvEvent::Removed { blocks, .. }, Err(Refusal::UnknownBlocks(unknown))) => {
                self.blocks_removed += (blocks.len() - unknown) as u64;
            }
            _ => {}
        }
    }

    /// Counts one event by its outcome.
    pub(crate) fn count_outcome(&mut self, outcome: Result<(), Refusal>) {
        match outcome {
            Ok(()) => self.events_applied += 1,
            Err(Refusal::UnknownParent) => self.unknown_parent += 1,
            Err(Refusal::UnknownBlocks(unknown)) => self.unknown_block += unknown as u64,
            Err(Refusal::ConflictingBlock(_)) => self.conflicting_block += 1,
            Err(Refusal::Full) => self.index_full += 1,
            Err(Refusal::UnknownWorker) => self.unknown_worker += 1,
        }
    }
}
