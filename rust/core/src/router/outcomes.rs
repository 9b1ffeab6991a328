//! Outcomes: bookings that others made, first tokens, ends, and metrics of engines.
//!
//! ```text
//! prefill_done        load: prompt tokens go ─▶ ledger: backlog goes, prefill curve learns ─▶ regime
//! finish, release     load: booking goes     ─▶ ledger: step curve learns ─▶ predicted cache
//! report_pass         curves learn           report_engine_queue   room for the queue
//! ```
//!
//! Every call that may give a worker room counts it ([`super::room_changes`]), under the same lock. A queue
//! that reads the count before a round cannot miss the change.
//!
//! Figures from outside are checked here, before they reach load, ledger or curves. A figure that cannot be
//! true teaches nothing and is counted.

use super::Router;
use super::state::RouterState;
use crate::error::Error;
use crate::index::Slot;
use crate::latency::{FleetRecord, Pass};
use crate::ledger::{EngineQueue, Outcome};
use crate::price_guard::{Misfit, PriceGuardReport};
use crate::request::{RequestId, RouteRequest};
use crate::trust::{Claim, Trust};
use crate::worker::WorkerId;

impl Router {
    /// Books a placement that another router or the client made.
    ///
    /// # Errors
    /// [`Error::UnknownWorker`], [`Error::RequestExists`], [`Error::TooManyBookings`], and [`Error::Parameter`] for a
    /// request without an id.
    pub fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        let state = &mut *self.state();
        let slot = state.fleet.slot(worker)?;
        if request.request_id.is_none() {
            let expected = "an id for the booking";
            return Err(Error::Parameter {
                field: "request_id",
                got: "none".to_owned(),
                expected,
            });
        }
        let now_s = state.clock.read(now_s);
        state.expire(now_s);
        state.check(request)?;
        let overlap = state.overlaps_of(&request.prompt(), &self.index)[slot.index()];
        let claim = Claim {
            request_blocks: request.local_hashes.len() as u32,
            device_blocks: overlap[0],
            all_tiers_blocks: overlap.iter().sum(),
            in_flight_blocks: state.in_flight_blocks(request, slot),
            placed_blocks: None,
            epoch: state.trust.epoch(slot),
        };
        let (believed, _) = state.trust.believed(slot, overlap, 0);
        let work = state.work(request.input_tokens, believed);
        state.open(request, slot, (work, claim), now_s);
        Ok(())
    }

    /// The first token of a request came. Returns its worker. A second call is harmless.
    ///
    /// In a pool that only decodes, a booking waits for no prefill, so the first call may follow the booking at once.
    /// The second call is then the time of the first token.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`].
    pub fn prefill_done(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        let state = &mut *self.state();
        let now_s = state.clock.read(now_s);
        state.room_changes.prefills += 1;
        let slot = state
            .load
            .prefill_done(request)
            .ok_or(Error::UnknownRequest(request))?;
        state.first_token(request, now_s);
        state.predicted.first_token(request, now_s);
        Ok(state.fleet.ids()[slot.index()])
    }

    /// The request ended, successfully or not. Returns its worker.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`].
    pub fn release(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.finish(request, Outcome::default(), now_s)
    }

    /// Lets a booking live for another `booking_ttl_s` from `now_s`, because its request is still served. O(1). An unknown
    /// request is ignored.
    pub fn renew(&self, request: RequestId, now_s: f64) {
        let state = &mut *self.state();
        let expires_at_s = now_s + state.config.booking_ttl_s;
        state.load.renew(request, expires_at_s);
        state.ledger.renew(request, expires_at_s);
    }

    /// As [`Router::release`], with an outcome that the latency curves learn from.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`].
    pub fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) -> Result<WorkerId, Error> {
        let state = &mut *self.state();
        let now_s = state.clock.read(now_s);
        if let Some(slot) = state
            .load
            .slot(request)
            .filter(|_| outcome.cached_tokens.is_some())
        {
            state.audit(request, slot, outcome);
        }
        let slot = state
            .load
            .release(request)
            .ok_or(Error::UnknownRequest(request))?;
        if state.ledger.is_prefilling(request) {
            state.room_changes.prefills += 1;
        }
        state.room_changes.releases += 1;
        if outcome.at_first_token {
            state.first_token(request, now_s);
        }
        state.count_report(request, outcome, now_s);
        let step = state
            .ledger
            .release(request, state.kv_tokens(slot), outcome, now_s);
        if let Some(step) = step {
            let changed = state.price_guard.step(&step);
            state.follow_price_guard(changed);
        }
        state.predicted.finished(request, now_s);
        state.counters.released += 1;
        Ok(state.fleet.ids()[slot.index()])
    }

    /// A first token came, `ttft_s` after its request. Only a pool that does not prefill needs this call, for the
    /// regime of its fleet: other pools learn of it by [`Router::prefill_done`] or [`Router::finish`], and ignore the
    /// call.
    pub fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        let state = &mut *self.state();
        if !state.config.tracks_prefill {
            let now_s = state.clock.read(now_s);
            state.pricing.first_token(ttft_s, now_s);
        }
    }

    /// Sets how far the state of a worker's feed lets its index be believed, 0 to 1. Gaps, silence and blocks that nothing has
    /// confirmed lower the share. A share that is no number counts as 0. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`].
    pub fn set_feed_share(&self, worker: WorkerId, feed_share: f64) -> Result<(), Error> {
        let state = &mut *self.state();
        let slot = state.fleet.slot(worker)?;
        if state.trust.set_feed_share(slot, feed_share) {
            state.follow_trust(slot);
        }
        Ok(())
    }

    /// A new incarnation of a worker began: the trust in its index starts without evidence. The blocks of the former
    /// incarnation leave by [`KvEvent::Cleared`](crate::KvEvent::Cleared).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`].
    pub fn begin_incarnation(&self, worker: WorkerId) -> Result<(), Error> {
        let state = &mut *self.state();
        let slot = state.fleet.slot(worker)?;
        if state.trust.begin_incarnation(slot) {
            state.follow_trust(slot);
        }
        Ok(())
    }

    /// Trust in the index about one worker. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`].
    pub fn trust(&self, worker: WorkerId) -> Result<Trust, Error> {
        let state = self.state();
        let slot = state.fleet.slot(worker)?;
        Ok(state.trust.report(slot))
    }

    /// Turns the price guard on or off. Off, the policy decides at once. O(1).
    pub fn set_price_guard(&self, is_on: bool) {
        let state = &mut *self.state();
        state.price_guard.turn(is_on);
        state.follow_price_guard(true);
    }

    /// What the price guard finds wrong with the predictions; `None` while they fit. O(1).
    pub fn misfit(&self) -> Option<Misfit> {
        self.state().price_guard.misfit()
    }

    /// State and evidence of the price guard. O(1).
    pub fn price_guard(&self) -> PriceGuardReport {
        self.state().price_guard.report()
    }

    /// Reports of engines so far with figures that cannot be true.
    pub fn reports_refused(&self) -> u64 {
        self.state().counters.reports_refused
    }

    /// An engine reported one of its passes, which teaches the latency curves. False for an unknown worker, and for a
    /// report that cannot be true: it changes nothing.
    pub fn report_pass(&self, worker: WorkerId, pass: &Pass) -> bool {
        let state = &mut *self.state();
        if !pass.is_believable() {
            state.counters.reports_refused += 1;
            return false;
        }
        let slot = state.fleet.slot(worker);
        slot.map(|slot| state.ledger.report_pass(slot, pass)).is_ok()
    }

    /// An engine reported the prompts that wait in it. A queue in front of this router judges the worker's room by
    /// the report. False for an unknown worker, and for a report that cannot be true: it changes nothing.
    pub fn report_engine_queue(&self, worker: WorkerId, queue: EngineQueue, now_s: f64) -> bool {
        let state = &mut *self.state();
        if !queue.is_believable() {
            state.counters.reports_refused += 1;
            return false;
        }
        let now_s = state.clock.read(now_s);
        state.room_changes.prefills += 1;
        let slot = state.fleet.slot(worker);
        slot.map(|slot| state.ledger.report_engine_queue(slot, queue, now_s))
            .is_ok()
    }

    /// Restores learned curves. Returns how many of the workers are registered.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another version or a damaged record. Nothing changes then.
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
