//! Booking of one request on one or two workers. Dropping the booking releases it, regardless of how the request ended.
//!
//! [`crate::ActiveRequest`] owns the booking from the decision to the end of the answer, so a
//! client that leaves releases its load with the dropped task. Cost of each call: one short lock
//! per leg.

use std::sync::Arc;

use wardrop_core::ledger::Outcome;
use wardrop_core::{RequestId, WorkerId};

use super::{Explanation, Role, WorkerPool};
use crate::Clock;
use crate::peers::Announced;
use crate::request::Usage;

/// Part of a booking on one worker.
pub struct Leg {
    /// Pool of the worker.
    pub pool: Arc<WorkerPool>,
    /// Booked worker.
    pub worker: WorkerId,
    /// Leading prompt blocks that the index predicted on the worker.
    pub overlap_blocks: u32,
    /// Whether the door pins the rank as well as the instance.
    pub pin_rank: bool,
    /// Costs behind the decision; `None` when receipts are off or a receipt took the explanation over.
    pub(crate) explanation: Option<Box<Explanation>>,
    /// The leg as peers know it; `None` where no peer follows this router.
    pub(crate) announced: Option<Announced>,
}

/// Booking of one request: one leg, or a prefill leg and a decode leg in a split.
///
/// Each leg is a booking in its own pool, with the same id in both pools.
pub struct Booking {
    /// Id of the booking in every pool of its legs.
    id: RequestId,
    /// Legs in booking order.
    legs: [Option<Leg>; 2],
    /// Clock of the service; all reported times are on it.
    clock: Clock,
    /// Whether the first token was reported. Later reports do nothing.
    prefilled: bool,
    /// Outcome for the workers' curves, used when the booking ends.
    outcome: Outcome,
    /// Prompt tokens that the prefill worker found in its cache, once its leg ended on its own.
    prefill_cached_tokens: Option<u64>,
    /// When the booking was made.
    placed_s: f64,
    /// When the booking was made, or last renewed.
    renewed_s: f64,
}

/// Shortest time between two renewals of a booking, seconds.
const RENEW_EVERY_S: f64 = 60.0;

impl Booking {
    /// Creates a booking without legs.
    pub(crate) fn new(id: RequestId, clock: Clock) -> Self {
        Self {
            id,
            legs: [None, None],
            clock,
            prefilled: false,
            outcome: Outcome::default(),
            prefill_cached_tokens: None,
            placed_s: clock.now_s(),
            renewed_s: clock.now_s(),
        }
    }

    /// Adds a leg that a pool booked under this id. In a split the prefill leg comes before the decode leg.
    pub(crate) fn add(&mut self, leg: Leg) {
        let [first, second] = &mut self.legs;
        if first.is_none() {
            *first = Some(leg);
            return;
        }
        // The prefill worker processes the prompt, so the prompt is no prefill load on the decode worker.
        leg.pool.prefill_done(self.id, self.clock.now_s());
        if let Some(announced) = &leg.announced {
            announced.prefill_done();
        }
        *second = Some(leg);
    }

    /// Id of the booking in the pools of its workers.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// Legs in booking order.
    pub fn legs(&self) -> impl Iterator<Item = &Leg> {
        self.legs.iter().flatten()
    }

    /// Mutable legs in booking order.
    pub(crate) fn legs_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        self.legs.iter_mut().flatten()
    }

    /// Reports the first token, `ttft_s` seconds after the request.
    ///
    /// A prefill leg ends here, because its worker has done its part. Repeated calls do nothing.
    pub fn prefill_done(&mut self, ttft_s: f64) {
        if self.prefilled {
            return;
        }
        self.prefilled = true;
        let now_s = self.clock.now_s();
        for leg in self.legs.iter().flatten() {
            leg.pool.answered(leg.worker, now_s);
            match leg.pool.role {
                Role::Prefill => {
                    let outcome = Outcome {
                        at_first_token: true,
                        ..self.outcome
                    };
                    leg.pool.finish(self.id, outcome, now_s);
                    if let Some(announced) = &leg.announced {
                        announced.release();
                    }
                }
                Role::Aggregated => {
                    leg.pool.prefill_done(self.id, now_s);
                    if let Some(announced) = &leg.announced {
                        announced.prefill_done();
                    }
                }
                Role::Decode => {
                    leg.pool.prefill_done(self.id, now_s);
                    leg.pool.observe_first_token(ttft_s, now_s);
                }
            }
        }
    }

    /// Ends the prefill leg, `usage` being what its worker counted. The decode leg goes on. Without a prefill leg it does nothing.
    ///
    /// A door calls it when the prefill worker answers on its own, which is before the first token of the decode worker.
    pub fn prefill_leg_ended(&mut self, usage: Usage) {
        let now_s = self.clock.now_s();
        let Some(leg) = self.leg(Role::Prefill) else {
            return;
        };
        leg.pool.answered(leg.worker, now_s);
        let outcome = Outcome {
            at_first_token: true,
            cached_tokens: usage.cached_tokens.and_then(|tokens| u32::try_from(tokens).ok()),
            ..Outcome::default()
        };
        leg.pool.finish(self.id, outcome, now_s);
        if outcome.cached_tokens.is_some() {
            leg.pool.review_trust(leg.worker, self.placed_s);
        }
        if let Some(announced) = &leg.announced {
            announced.release();
        }
        self.prefill_cached_tokens = usage.cached_tokens;
    }

    /// Prompt tokens that the prefill worker found in its cache; `None` without a prefill leg that ended on its own.
    pub(crate) fn prefill_cached_tokens(&self) -> Option<u64> {
        self.prefill_cached_tokens
    }

    /// Whether prefill and decode have a leg each.
    pub fn is_split(&self) -> bool {
        self.legs[1].is_some()
    }

    /// The leg in a role.
    pub fn leg(&self, role: Role) -> Option<&Leg> {
        self.legs_of(Some(role)).next()
    }

    /// Sets what the engine counted. The worker's curves learn from it when the booking ends.
    pub fn set_usage(&mut self, usage: Usage) {
        self.outcome.output_tokens = usage.output_tokens;
        self.outcome.cached_tokens = usage.cached_tokens.and_then(|tokens| u32::try_from(tokens).ok());
    }

    /// Sets the outcome of the request. The workers' curves learn from it when the booking ends.
    pub(crate) fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Whether the worker that decodes went silent; the only worker of a request without a split.
    pub fn is_decoder_silent(&self) -> bool {
        self.legs()
            .last()
            .is_some_and(|leg| leg.pool.is_silent(leg.worker))
    }

    /// Reports that the request was refused. A refusal is no outcome: the workers' curves learn nothing from the booking.
    ///
    /// A worker that refuses several requests in a row is skipped for a while, see `health`.
    pub fn refuse(&mut self) {
        self.refuse_by(None);
    }

    /// As [`Booking::refuse`]. With a role, only the worker of its leg refused.
    pub fn refuse_by(&mut self, role: Option<Role>) {
        self.outcome.is_refused = true;
        let now_s = self.clock.now_s();
        for leg in self.legs_of(role) {
            leg.pool.refused(leg.worker, now_s);
        }
    }

    /// The leg of a role, or all legs without one.
    pub fn legs_of(&self, role: Option<Role>) -> impl Iterator<Item = &Leg> {
        self.legs()
            .filter(move |leg| role.is_none_or(|role| leg.pool.role == role))
    }

    /// Keeps the booking open, because the request is still served. At most one call in a minute, and four in the life of a
    /// booking that is not renewed, have an effect.
    pub fn renew(&mut self) {
        let now_s = self.clock.now_s();
        let lives_s = self.legs.iter().flatten().map(|leg| leg.pool.booking_ttl_s());
        if now_s - self.renewed_s < lives_s.fold(RENEW_EVERY_S, |every_s, ttl_s| every_s.min(ttl_s / 4.0)) {
            return;
        }
        self.renewed_s = now_s;
        for leg in self.legs.iter().flatten() {
            leg.pool.renew(self.id, now_s);
            if let Some(announced) = &leg.announced {
                announced.renew();
            }
        }
    }

    /// Reports a failure of the request on every worker of the booking.
    pub fn fail(&self) {
        self.fail_on(None);
    }

    /// As [`Booking::fail`]. With a role, only the worker of its leg failed.
    pub fn fail_on(&self, role: Option<Role>) {
        let now_s = self.clock.now_s();
        for leg in self.legs_of(role) {
            leg.pool.fail(leg.worker, now_s);
        }
    }

    /// Withdraws the reported failure, because no worker caused it.
    ///
    /// A door calls it when the retry shows that the client or the prompt caused the failure.
    pub fn withdraw_failure(&self) {
        self.withdraw_failure_on(None);
    }

    /// As [`Booking::withdraw_failure`]. With a role, only for the worker of its leg.
    pub fn withdraw_failure_on(&self, role: Option<Role>) {
        let now_s = self.clock.now_s();
        for leg in self.legs_of(role) {
            leg.pool.withdraw_failure(leg.worker, now_s);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let now_s = self.clock.now_s();
        for leg in self.legs.iter().flatten() {
            leg.pool.finish(self.id, self.outcome, now_s);
            if self.outcome.cached_tokens.is_some() {
                leg.pool.review_trust(leg.worker, self.placed_s);
            }
        }
    }
}
