//! Views of a router: copies of what it knows, for metrics, receipts and control.
//!
//! Each call takes the state's lock once and copies under it, so the figures of the load are of one moment.
//! The index has a lock of its own, so its figures may be of a moment before.

use std::sync::atomic::Ordering;

use super::Router;
use crate::anarchy::RecordedDecision;
use crate::index::Slot;
use crate::latency::{CurveView, FleetRecord, WorkerCurves};
use crate::ledger::Occupancy;
use crate::predicted::{PredictedSize, PredictedUse};
use crate::regime::RegimeChange;
use crate::request::RequestId;
use crate::snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
use crate::worker::WorkerId;

/// Largest number of decisions that are kept for [`Router::take_decisions`]. The meter samples, so dropped
/// ones cost precision only.
pub const MAX_KEPT: usize = 256;

/// Sums over the workers that take requests, and what was booked since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FleetLoad {
    /// Workers that take requests.
    pub workers: u32,
    /// Prefill seconds of requests that wait for their first token.
    pub backlog_s: f64,
    /// Requests in flight.
    pub requests: u64,
    /// Distinct prompt tokens in flight on each worker.
    pub kv_tokens: f64,
    /// Requests booked since the start, on every worker.
    pub booked: u64,
    /// Prefill seconds that they were expected to take.
    pub booked_prefill_s: f64,
}

impl Router {
    /// Registered workers, in id order. A copy: workers may join or leave while the caller iterates.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        self.state().fleet.sorted().into_iter().map(|(id, _)| id)
    }

    /// Whether a booking with this id is open.
    pub fn is_booked(&self, request: RequestId) -> bool {
        self.state().load.contains(request)
    }

    /// Counts since the router was made.
    pub fn counters(&self) -> Counters {
        let state = self.state().counters;
        Counters {
            reads_given_up: self.index.reads_given_up(),
            ..state.with_events(&self.index.counters())
        }
    }

    /// Size of the predicted caches. `None` when prediction is off.
    pub fn predicted(&self) -> Option<PredictedSize> {
        let is_off = self.config.predicted.used == PredictedUse::Off;
        (!is_off).then(|| self.state().predicted.size())
    }

    /// How full a worker is; `None` for an unknown worker. O(1).
    ///
    /// Doors outside a queue use it, for instance to report saturation.
    pub fn occupancy_of(&self, id: WorkerId, now_s: f64) -> Option<Occupancy> {
        let state = &*self.state();
        let slot = state.fleet.slot(id).ok()?;
        Some(state.ledger.occupancy(slot.index(), now_s))
    }

    /// A copy of the load and the caches of every worker, with sizes and counts. O(workers).
    ///
    /// It is for people and metrics, not for decisions: no lock is held between its parts.
    pub fn snapshot(&self) -> Snapshot {
        let counters = self.counters();
        let held = self.index.held();
        let state = &*self.state();
        let worker = |(worker, slot): (WorkerId, Slot)| WorkerSnapshot {
            worker,
            spec: state.fleet.spec(slot).clone(),
            available: state.fleet.is_available(slot),
            prefill_tokens: state.load.prefill_tokens[slot.index()],
            decode_blocks: state.load.decode_blocks[slot.index()],
            active_requests: state.load.active_requests[slot.index()],
            held_blocks: held.get(slot.index()).copied().unwrap_or_default(),
            trust: state.trust.report(slot),
        };
        let workers: Vec<WorkerSnapshot> = state.fleet.sorted().into_iter().map(worker).collect();
        let holdings = workers.iter().flat_map(|worker| worker.held_blocks).sum();
        Snapshot {
            workers,
            policy: state.pricing.configured().name().to_owned(),
            price_guard: state.price_guard.report(),
            bookings: state.load.len(),
            index: IndexSize {
                blocks: self.index.blocks(),
                holdings,
                bytes: self.index.bytes(),
            },
            predicted: state.predicted.size(),
            counters,
        }
    }

    /// Load of the workers that take requests, summed up. O(workers), one lock.
    pub fn fleet_load(&self, now_s: f64) -> FleetLoad {
        let state = &*self.state();
        let booked = state.ledger.booked();
        let mut sum = FleetLoad {
            booked: booked.requests,
            booked_prefill_s: booked.prefill_s,
            ..FleetLoad::default()
        };
        let slots = (0..state.fleet.slots()).filter(|&slot| state.fleet.is_available(Slot(slot as u32)));
        for occupancy in slots.map(|slot| state.ledger.occupancy(slot, now_s)) {
            sum.workers += 1;
            sum.backlog_s += occupancy.backlog_s;
            sum.requests += u64::from(occupancy.requests);
            sum.kv_tokens += occupancy.kv_tokens;
        }
        sum
    }

    /// Starts or stops keeping booked decisions for [`Router::take_decisions`]. Keeping a decision is O(candidates).
    /// Once [`MAX_KEPT`] are kept, further ones are dropped.
    pub fn record_decisions(&self, keep: bool) {
        if self.records_decisions.swap(keep, Ordering::Relaxed) != keep {
            self.state().records_decisions = keep;
        }
    }

    /// The decisions kept since the last call, oldest first. Empty while keeping is stopped: decisions kept before
    /// that are returned once it is started again.
    pub fn take_decisions(&self) -> Vec<RecordedDecision> {
        if !self.records_decisions.load(Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut self.state().kept)
    }

    /// The learned latency curves of the fleet as a whole.
    pub fn fleet_curves(&self) -> WorkerCurves {
        *self.state().ledger.curves().fleet()
    }

    /// Mean output tokens of recent requests.
    pub fn mean_output_tokens(&self) -> f64 {
        self.state().ledger.mean_output_tokens()
    }

    /// The learned latency curves of every worker.
    pub fn curves(&self) -> Vec<CurveView> {
        let state = &*self.state();
        state.ledger.curves().views(state.positions()).collect()
    }

    /// All learned latency curves, for a file.
    pub fn curve_record(&self) -> FleetRecord {
        let state = &*self.state();
        state.ledger.curves().record(state.positions())
    }

    /// Changes of regime, oldest first. At most 1,024, and none for a policy without regimes.
    pub fn regime_changes(&self) -> Vec<RegimeChange> {
        self.state().pricing.regime_changes()
    }
}
