//! What requests and engines tell: bookings by others, first tokens, ends, metrics.

use super::Router;
use super::state::RouterState;
use crate::error::Error;
use crate::index::Slot;
use crate::latency::{FleetCurves, FleetRecord};
use crate::ledger::{EngineQueue, Outcome};
use crate::request::{RequestId, RouteRequest};
use crate::worker::WorkerId;

impl Router {
    /// Book a placement that somebody else made. The request must have an id.
    pub fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        let state = &mut *self.state();
        let slot = state.fleet.slot(worker)?;
        if request.request_id.is_none() {
            let expected = "an id to book under";
            return Err(Error::Parameter {
                field: "request_id",
                got: "none".to_owned(),
                expected,
            });
        }
        state.expire(now_s);
        state.check(request)?;
        let overlap = state.overlaps_of(&request.prompt(), &self.index)[slot.index()];
        let work = state.work(request.input_tokens, overlap);
        state.open(request, slot, work, now_s);
        Ok(())
    }

    /// The first token of a request is out. Its worker. Twice is harmless; in a pool that only decodes, where a booking waits for
    /// nothing and may be told so at once, the second time is that of the first token.
    pub fn prefill_done(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        let state = &mut *self.state();
        state.room_changes.prefills += 1;
        let slot = state
            .load
            .prefill_done(request)
            .ok_or(Error::UnknownRequest(request))?;
        state.first_token(request, now_s);
        state.predicted.first_token(request, now_s);
        Ok(state.fleet.ids()[slot.index()])
    }

    /// The request ended, well or not. Its worker.
    pub fn release(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.finish(request, Outcome::default(), now_s)
    }

    /// As [`Router::release`], with what the request told: the latency curves learn from it.
    pub fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) -> Result<WorkerId, Error> {
        let state = &mut *self.state();
        let slot = state
            .load
            .release(request)
            .ok_or(Error::UnknownRequest(request))?;
        if state.ledger.waits(request) {
            state.room_changes.prefills += 1;
        }
        state.room_changes.releases += 1;
        if outcome.at_first_token {
            state.first_token(request, now_s);
        }
        state
            .ledger
            .release(request, state.kv_tokens(slot), outcome, now_s);
        state.predicted.finished(request, now_s);
        state.counters.released += 1;
        Ok(state.fleet.ids()[slot.index()])
    }

    /// A first token came, `ttft_s` after its request: for the policy of a pool that only decodes, which sees no prefill. A pool
    /// that prefills hears it by [`Router::prefill_done`] or [`Router::finish`].
    pub fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        let state = &mut *self.state();
        if !state.config.tracks_prefill {
            state.pricing.first_token(ttft_s, now_s);
        }
    }

    /// The curves and the dense position of `worker`, to teach them from engine metrics. `None`: nobody has this id.
    pub fn teach<T>(&self, worker: WorkerId, lesson: impl FnOnce(&mut FleetCurves, usize) -> T) -> Option<T> {
        let state = &mut *self.state();
        let slot = state.fleet.slot(worker).ok()?;
        Some(state.ledger.teach(slot, lesson))
    }

    /// An engine told what waits in it: a queue in front of this router knows its room by that. False: nobody has this id.
    pub fn engine_queue(&self, worker: WorkerId, queue: EngineQueue, now_s: f64) -> bool {
        let state = &mut *self.state();
        state.room_changes.prefills += 1;
        let slot = state.fleet.slot(worker);
        slot.map(|slot| state.ledger.engine_queue(slot, queue, now_s))
            .is_ok()
    }

    /// Takes over learned curves; how many workers were known.
    pub fn restore_curves(&self, record: &FleetRecord) -> Result<usize, Error> {
        let RouterState {
            fleet,
            ledger,
            room_changes,
            ..
        } = &mut *self.state();
        room_changes.prefills += 1;
        let position = |worker| fleet.slot(worker).ok().map(Slot::index);
        ledger.restore_curves(record, position)
    }
}
