//! What can be looked at: copies of what the router knows.

use std::sync::atomic::Ordering;

use super::Router;
use crate::game::Placed;
use crate::index::Slot;
use crate::latency::{CurveView, FleetRecord, WorkerCurves};
use crate::predicted::{PredictedSize, PredictedUse};
use crate::price::RegimeChange;
use crate::request::RequestId;
use crate::snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
use crate::worker::WorkerId;

/// Decisions that are kept until they are taken.
pub const MAX_KEPT: usize = 256;

impl Router {
    /// Registered workers, in id order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        self.desk().fleet.sorted().into_iter().map(|(id, _)| id)
    }

    /// Whether a booking with this id is open.
    pub fn is_booked(&self, request: RequestId) -> bool {
        self.desk().load.contains(request)
    }

    /// What happened since the router was made.
    pub fn counters(&self) -> Counters {
        let desk = self.desk().counters;
        Counters {
            reads_given_up: self.index.reads_given_up(),
            ..desk.with_events(&self.index.counters())
        }
    }

    /// What is predicted of caches; `None` when nothing is.
    pub fn predicted(&self) -> Option<PredictedSize> {
        let is_off = self.config.predicted.used == PredictedUse::Off;
        (!is_off).then(|| self.desk().predicted.size())
    }

    /// Everything the router knows, copied out. O(workers).
    pub fn snapshot(&self) -> Snapshot {
        let counters = self.counters();
        let held = self.index.held();
        let desk = &*self.desk();
        let worker = |(worker, slot): (WorkerId, Slot)| WorkerSnapshot {
            worker,
            spec: desk.fleet.spec(slot).clone(),
            available: desk.fleet.is_available(slot),
            prefill_tokens: desk.load.prefill_tokens[slot.index()],
            decode_blocks: desk.load.decode_blocks[slot.index()],
            active_requests: desk.load.active_requests[slot.index()],
            held_blocks: held.get(slot.index()).copied().unwrap_or_default(),
        };
        let workers: Vec<WorkerSnapshot> = desk.fleet.sorted().into_iter().map(worker).collect();
        let holdings = workers.iter().flat_map(|worker| worker.held_blocks).sum();
        Snapshot {
            workers,
            policy: desk.policy.name().to_owned(),
            bookings: desk.load.len(),
            index: IndexSize {
                blocks: self.index.blocks(),
                holdings,
                bytes: self.index.bytes(),
            },
            predicted: desk.predicted.size(),
            counters,
        }
    }

    /// Keep each booked decision, or stop, for [`Router::take_placements`]. Keeping one is O(candidates); at most
    /// [`MAX_KEPT`] wait to be taken, and what comes beyond is passed over.
    pub fn keep_placements(&self, keep: bool) {
        if self.keeps_placements.swap(keep, Ordering::Relaxed) != keep {
            self.desk().keeps_placements = keep;
        }
    }

    /// The decisions kept since the last call, oldest first. Those that were kept before it was stopped are taken once it
    /// goes on.
    pub fn take_placements(&self) -> Vec<Placed> {
        if !self.keeps_placements.load(Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut self.desk().kept)
    }

    /// The curves of the fleet as a whole.
    pub fn fleet_curves(&self) -> WorkerCurves {
        *self.desk().ledger.curves().fleet()
    }

    /// Mean tokens of an answer so far.
    pub fn mean_output_tokens(&self) -> f64 {
        self.desk().ledger.mean_output_tokens()
    }

    /// The learned latency curves of every worker.
    pub fn curves(&self) -> Vec<CurveView> {
        let desk = &*self.desk();
        desk.ledger.curves().views(desk.placed()).collect()
    }

    /// Everything learned of latency, for a file.
    pub fn curve_record(&self) -> FleetRecord {
        let desk = &*self.desk();
        desk.ledger.curves().record(desk.placed())
    }

    /// Changes of regime by a policy that has regimes, oldest first; bounded.
    pub fn regime_changes(&self) -> Vec<RegimeChange> {
        self.desk().policy.regime_changes()
    }
}
