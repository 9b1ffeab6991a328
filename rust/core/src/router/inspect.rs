//! What can be looked at: copies of what the router knows.

use std::sync::atomic::Ordering;

use super::Router;
use crate::game::Placed;
use crate::index::Slot;
use crate::latency::{CurveView, FleetRecord, WorkerCurves};
use crate::predicted::{PredictedSize, PredictedUse};
use crate::regime::RegimeChange;
use crate::request::RequestId;
use crate::snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
use crate::worker::WorkerId;

/// Decisions that are kept until they are taken.
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
    /// Registered workers, in id order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        self.state().fleet.sorted().into_iter().map(|(id, _)| id)
    }

    /// Whether a booking with this id is open.
    pub fn is_booked(&self, request: RequestId) -> bool {
        self.state().load.contains(request)
    }

    /// What happened since the router was made.
    pub fn counters(&self) -> Counters {
        let state = self.state().counters;
        Counters {
            reads_given_up: self.index.reads_given_up(),
            ..state.with_events(&self.index.counters())
        }
    }

    /// What is predicted of caches; `None` when nothing is.
    pub fn predicted(&self) -> Option<PredictedSize> {
        let is_off = self.config.predicted.used == PredictedUse::Off;
        (!is_off).then(|| self.state().predicted.size())
    }

    /// Everything the router knows, copied out. O(workers).
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
        };
        let workers: Vec<WorkerSnapshot> = state.fleet.sorted().into_iter().map(worker).collect();
        let holdings = workers.iter().flat_map(|worker| worker.held_blocks).sum();
        Snapshot {
            workers,
            policy: state.pricing.policy().name().to_owned(),
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
        let (booked, booked_prefill_s) = state.ledger.booked();
        let mut sum = FleetLoad {
            booked,
            booked_prefill_s,
            ..FleetLoad::default()
        };
        let slots = (0..state.fleet.slots()).filter(|&slot| state.fleet.is_available(Slot(slot as u32)));
        for pressure in slots.map(|slot| state.ledger.pressure(slot, now_s)) {
            sum.workers += 1;
            sum.backlog_s += pressure.backlog_s;
            sum.requests += u64::from(pressure.requests);
            sum.kv_tokens += pressure.kv_tokens;
        }
        sum
    }

    /// Keep each booked decision, or stop, for [`Router::take_placements`]. Keeping one is O(candidates); at most
    /// [`MAX_KEPT`] wait to be taken, and what comes beyond is passed over.
    pub fn keep_placements(&self, keep: bool) {
        if self.keeps_placements.swap(keep, Ordering::Relaxed) != keep {
            self.state().keeps_placements = keep;
        }
    }

    /// The decisions kept since the last call, oldest first. Those that were kept before it was stopped are taken once it
    /// goes on.
    pub fn take_placements(&self) -> Vec<Placed> {
        if !self.keeps_placements.load(Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut self.state().kept)
    }

    /// The curves of the fleet as a whole.
    pub fn fleet_curves(&self) -> WorkerCurves {
        *self.state().ledger.curves().fleet()
    }

    /// Mean tokens of an answer so far.
    pub fn mean_output_tokens(&self) -> f64 {
        self.state().ledger.mean_output_tokens()
    }

    /// The learned latency curves of every worker.
    pub fn curves(&self) -> Vec<CurveView> {
        let state = &*self.state();
        state.ledger.curves().views(state.placed()).collect()
    }

    /// Everything learned of latency, for a file.
    pub fn curve_record(&self) -> FleetRecord {
        let state = &*self.state();
        state.ledger.curves().record(state.placed())
    }

    /// Changes of regime by a policy that has regimes, oldest first; bounded.
    pub fn regime_changes(&self) -> Vec<RegimeChange> {
        self.state().pricing.regime_changes()
    }
}
