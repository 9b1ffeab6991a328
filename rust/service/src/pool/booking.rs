//! A request's claim on one or two workers. It ends when it is dropped, whatever happened.

use std::sync::Arc;

use wardrop_core::ledger::Outcome;
use wardrop_core::{RequestId, WorkerId};

use super::{Explanation, Role, WorkerPool};
use crate::Clock;

/// The claim on one worker.
pub struct Leg {
    /// The worker's pool.
    pub pool: Arc<WorkerPool>,
    /// The worker.
    pub worker: WorkerId,
    /// Leading blocks that it was predicted to hold.
    pub overlap_blocks: u32,
    /// Pin the rank too.
    pub pin_rank: bool,
    /// How it came about, when decisions are explained.
    pub(crate) explanation: Option<Box<Explanation>>,
}

/// The claims of one request. Prefill and decode legs of a split are separate bookings with the same id.
pub struct Booking {
    id: RequestId,
    legs: [Option<Leg>; 2],
    clock: Clock,
    prefilled: bool,
    outcome: Outcome,
}

impl Booking {
    /// A booking without legs, for a request with this id.
    pub(crate) fn new(id: RequestId, clock: Clock) -> Self {
        Self {
            id,
            legs: [None, None],
            clock,
            prefilled: false,
            outcome: Outcome::default(),
        }
    }

    /// Takes over a claim that a pool booked under this id: the only leg, or prefill and then decode of a split.
    pub(crate) fn add(&mut self, leg: Leg) {
        let [first, second] = &mut self.legs;
        if first.is_none() {
            *first = Some(leg);
            return;
        }
        // The prefill leg's worker processes the prompt: on the decode worker it is no load that waits for a first token.
        leg.pool.prefill_done(self.id, self.clock.now_s());
        *second = Some(leg);
    }

    /// Id under which the workers' pools know this booking.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// The legs that are there.
    pub fn legs(&self) -> impl Iterator<Item = &Leg> {
        self.legs.iter().flatten()
    }

    /// The same, to take from.
    pub(crate) fn legs_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        self.legs.iter_mut().flatten()
    }

    /// The first token is here, `ttft_s` after the request: prompts are processed, prefill workers are free again.
    pub(crate) fn prefill_done(&mut self, ttft_s: f64) {
        if self.prefilled {
            return;
        }
        self.prefilled = true;
        let now_s = self.clock.now_s();
        for leg in self.legs.iter().flatten() {
            match leg.pool.role {
                Role::Prefill => {
                    let outcome = Outcome {
                        at_first_token: true,
                        ..self.outcome
                    };
                    leg.pool.finish(self.id, outcome, now_s);
                }
                Role::Aggregated => leg.pool.prefill_done(self.id, now_s),
                Role::Decode => {
                    leg.pool.prefill_done(self.id, now_s);
                    leg.pool.observe_first_token(ttft_s, now_s);
                }
            }
        }
    }

    /// What the answer told; the workers' curves learn from it when the booking ends.
    pub(crate) fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Every worker of this booking failed the request.
    pub fn fail(&self) {
        let now_s = self.clock.now_s();
        for leg in self.legs() {
            leg.pool.fail(leg.worker, now_s);
        }
    }

    /// The failure was not the workers' after all.
    pub fn withdraw_failure(&self) {
        let now_s = self.clock.now_s();
        for leg in self.legs() {
            leg.pool.withdraw_failure(leg.worker, now_s);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let now_s = self.clock.now_s();
        for leg in self.legs.iter().flatten() {
            leg.pool.finish(self.id, self.outcome, now_s);
        }
    }
}
