//! A request's claim on one or two workers. It ends when it is dropped, whatever happened.

use std::sync::Arc;
use std::time::Instant;

use wardrop_core::ledger::Outcome;
use wardrop_core::{RequestId, WorkerId};

use super::pool::{Role, WorkerPool};
use crate::receipts::Why;

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
    pub why: Option<Box<Why>>,
}

/// The claims of one request. Prefill and decode legs of a split are separate bookings with the same id.
pub struct Booking {
    id: RequestId,
    legs: [Option<Leg>; 2],
    clock: Instant,
    prefilled: bool,
    outcome: Outcome,
}

impl Booking {
    /// Takes over bookings that were made under `id`. `clock` is the origin of the routers' time.
    pub fn new(id: RequestId, legs: [Option<Leg>; 2], clock: Instant) -> Self {
        Self {
            id,
            legs,
            clock,
            prefilled: false,
            outcome: Outcome::default(),
        }
    }

    /// Takes over the second leg of a split.
    pub fn add_second(&mut self, leg: Leg) {
        self.legs[1] = Some(leg);
    }

    /// The legs that are there.
    pub fn legs(&self) -> impl Iterator<Item = &Leg> {
        self.legs.iter().flatten()
    }

    /// The same, to take from.
    pub fn legs_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        self.legs.iter_mut().flatten()
    }

    /// The first token is here, `ttft_s` after the request: prompts are processed, prefill workers are free again.
    pub fn prefill_done(&mut self, ttft_s: f64) {
        if self.prefilled {
            return;
        }
        self.prefilled = true;
        let now_s = self.clock.elapsed().as_secs_f64();
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
    pub fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Every worker of this booking failed the request.
    pub fn fail(&self) {
        let now_s = self.clock.elapsed().as_secs_f64();
        for leg in self.legs() {
            leg.pool.fail(leg.worker, now_s);
        }
    }
}

impl Booking {
    /// The failure was not the workers' after all.
    pub fn absolve(&self) {
        let now_s = self.clock.elapsed().as_secs_f64();
        for leg in self.legs() {
            leg.pool.absolve(leg.worker, now_s);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let now_s = self.clock.elapsed().as_secs_f64();
        for leg in self.legs.iter().flatten() {
            leg.pool.finish(self.id, self.outcome, now_s);
        }
    }
}
