//! What requests and engines tell: bookings by others, first tokens, ends, metrics.

use std::sync::atomic::Ordering;

use super::Router;
use super::desk::Desk;
use crate::error::Error;
use crate::index::Slot;
use crate::latency::{FleetCurves, FleetRecord};
use crate::ledger::{EngineQueue, Outcome};
use crate::request::{RequestId, RouteRequest};
use crate::worker::WorkerId;

impl Router {
    /// Book a placement that somebody else made. The request must have an id.
    pub fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(worker)?;
        if request.request_id.is_none() {
            let expected = "an id to book under";
            return Err(Error::Parameter {
                field: "request_id",
                got: "none".to_owned(),
                expected,
            });
        }
        desk.expire(now_s);
        desk.check(request)?;
        let overlap = desk.overlaps_of(&request.prompt(), &self.index)[slot.index()];
        let work = desk.work(request.input_tokens, overlap);
        desk.open(request, slot, work, now_s);
        Ok(())
    }

    /// The first token of a request is out. Its worker. Twice is harmless; in a pool that only decodes, where a booking waits for
    /// nothing and may be told so at once, the second time is that of the first token.
    pub fn prefill_done(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.room_changed();
        let desk = &mut *self.desk();
        let slot = desk
            .load
            .prefill_done(request)
            .ok_or(Error::UnknownRequest(request))?;
        desk.first_token(request, now_s);
        desk.predicted.first_token(request, now_s);
        Ok(desk.fleet.ids()[slot.index()])
    }

    /// The request ended, well or not. Its worker.
    pub fn release(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.finish(request, Outcome::default(), now_s)
    }

    /// As [`Router::release`], with what the request told: the latency curves learn from it.
    pub fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) -> Result<WorkerId, Error> {
        let desk = &mut *self.desk();
        let slot = desk.load.release(request).ok_or(Error::UnknownRequest(request))?;
        if desk.ledger.waits(request) {
            self.room_changed();
        }
        self.ends.fetch_add(1, Ordering::Relaxed);
        if outcome.at_first_token {
            desk.first_token(request, now_s);
        }
        desk.ledger.release(request, desk.kv_tokens(slot), outcome, now_s);
        desk.predicted.finished(request, now_s);
        desk.counters.released += 1;
        Ok(desk.fleet.ids()[slot.index()])
    }

    /// A first token came, `ttft_s` after its request: for the policy of a pool that only decodes, which sees no prefill. A pool
    /// that prefills hears it by [`Router::prefill_done`] or [`Router::finish`].
    pub fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        let desk = &mut *self.desk();
        if !desk.config.tracks_prefill {
            desk.policy.first_token(ttft_s, now_s);
        }
    }

    /// The curves and the dense position of `worker`, to teach them from engine metrics. `None`: nobody has this id.
    pub fn teach<T>(&self, worker: WorkerId, lesson: impl FnOnce(&mut FleetCurves, usize) -> T) -> Option<T> {
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(worker).ok()?;
        Some(desk.ledger.teach(slot, lesson))
    }

    /// An engine told what waits in it: a queue in front of this router knows its room by that. False: nobody has this id.
    pub fn engine_queue(&self, worker: WorkerId, queue: EngineQueue, now_s: f64) -> bool {
        self.room_changed();
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(worker);
        slot.map(|slot| desk.ledger.engine_queue(slot, queue, now_s))
            .is_ok()
    }

    /// Takes over learned curves; how many workers were known.
    pub fn restore_curves(&self, record: &FleetRecord) -> Result<usize, Error> {
        self.room_changed();
        let Desk { fleet, ledger, .. } = &mut *self.desk();
        let position = |worker| fleet.slot(worker).ok().map(Slot::index);
        ledger.restore_curves(record, position)
    }
}
