//! What each worker owes to its requests in flight, in seconds, and how much work arrives.
//!
//! [`crate::load`] counts tokens and blocks for every price. The ledger counts time, for prices and queues in
//! seconds. It stands between `outcome ─▶ curves` and `match ─▶ price`:
//!
//! ```text
//! booking, first token, end ─▶ requests.rs ─▶ account.rs ─▶ columns.rs ─▶ estimate.rs ─▶ price
//! engine reports            ─▶ prompt_queue.rs ─▶ Occupancy ─▶ queue
//! finished requests         ─▶ latency curves
//! ```
//!
//! Example. A worker computes 10,000 tokens per second. A booking of 5,000 new tokens adds 0.5 s to what the
//! worker owes. A second booking of 2,000 tokens adds 0.2 s, and its first token is due in 0.7 s. The first
//! token of the first request takes 0.5 s away again. If it comes late, the worker counts as stuck by as
//! much.
//!
//! Load and ledger keep the same bookings, each in its own unit. The load decides which requests are booked,
//! and the ledger follows it under the same lock. Both expire bookings by the same times.
//!
//! Bounded by the router's bookings and their expiry. O(1) per call, except [`Ledger::remove_worker`].

mod account;
mod columns;
mod estimate;
mod evictions;
mod prompt_queue;
mod rates;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

pub use account::Occupancy;
use account::{OpenRequest, WorkerAccount};
use columns::WorkerRow;
pub(crate) use columns::{ColumnSlices, WorkerColumns};
pub(crate) use estimate::CandidateInputs;
pub(crate) use estimate::SharedInputs;
use estimate::estimate;
pub use estimate::{LatencyEstimate, LatencyView};
use evictions::ReuseRate;
pub use prompt_queue::EngineQueue;
use rates::{DecayClock, Rate, RunningMean};
pub(crate) use requests::NewBooking;

use crate::error::Error;
use crate::exact::ordered;
use crate::index::Slot;
use crate::latency::{FleetCurves, FleetRecord, Learning, Pass, Prior};
use crate::request::RequestId;
use crate::worker::{WorkerId, WorkerSpec};

/// What is known of a finished request beyond its times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tokens of the answer, where known. More than 2²⁰ count as unknown.
    pub output_tokens: Option<u32>,
    /// Prompt tokens that the engine found in its cache, where known.
    pub cached_tokens: Option<u32>,
    /// Whether the end of the request is its first token, as in a pool that only prefills. The prefill curve learns
    /// from it. Never set it for requests that were given up, nor for answers that came in one piece after their last
    /// token.
    pub at_first_token: bool,
    /// Whether the worker refused the request. A refusal is no outcome: neither a curve nor the report rate learns.
    pub is_refused: bool,
}

/// What a worker has to do for the prompt of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens to compute.
    pub new_tokens: u64,
    /// Prompt tokens in the worker's cache.
    pub cached_tokens: u64,
}

/// What was booked since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Booked {
    /// Requests.
    pub requests: u64,
    /// Prefill seconds that they were expected to take.
    pub prefill_s: f64,
}

/// Share of a worker's own rate in the mixture with the fleet's mean.
const OWN_SHARE: f64 = 0.3;
/// Bound of every utilisation, so that busy periods stay finite: 1/(1 − ρ) is at most 20.
const MAX_UTILISATION: f64 = 0.95;
/// Samples of its curves below which a worker counts as new.
const KNOWN_SAMPLES: u64 = 4;
/// Window, in requests, of the first-token report rate.
const REPORT_RATE_WINDOW: f64 = 16.0;
/// Below this report rate a missing first token is not evidence of a stall.
const MIN_REPORT_RATE: f64 = 0.5;
/// Answer length before any was seen, tokens.
const GUESSED_OUTPUT_TOKENS: f64 = 256.0;

/// The accounts and curves of every worker of one pool.
///
/// Invariant: every change of an account or of curves rewrites the worker's row of `columns` before the call
/// ends. A test compares the rows with both after random calls.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    /// Latency curves by position. A slot is a position.
    curves: FleetCurves,
    /// Accounts by slot. Default values where no worker is.
    accounts: Vec<WorkerAccount>,
    /// What a price reads of accounts and curves. Every change of either rewrites the worker's row.
    columns: WorkerColumns,
    /// Slots whose rates have not seen their whole horizon yet.
    warming_up: Vec<Slot>,
    /// Registered workers.
    workers: usize,
    /// Requests in flight. Invariant: the same ids as the bookings of [`crate::load`].
    requests: FxHashMap<RequestId, OpenRequest>,
    /// Requests by expiry: the order of booking, since every booking lives equally long. Requests that ended stay
    /// until they reach the front, or until they are too many.
    expiry: VecDeque<(f64, RequestId)>,
    /// Unstreamed requests before their expected first token, by that time.
    unstreamed: BTreeSet<(u64, RequestId)>,
    /// Fraction of recent streamed requests whose first token was reported.
    report_rate: f64,
    /// Whether the first token was reported, for each booking that expired and expected a report, since they were last
    /// taken.
    expired_reports: Vec<bool>,
    /// Mean tokens of recent answers: the expected answer of a request that names none.
    output_tokens: RunningMean,
    /// How often a cached token is wanted again, for the price of an eviction.
    reuse: ReuseRate,
    /// Arriving requests of the whole fleet.
    arrivals: Rate,
    /// Arriving prefill seconds of the whole fleet.
    prefill: Rate,
    /// What was booked since the start, for forecasts.
    booked: Booked,
    /// The clock that all rates share.
    clock: DecayClock,
    /// Weight of the newest time of the clock: e^(age of the base / horizon), at most e²⁰⁰.
    decay_weight: f64,
    /// Time of the last call of [`Ledger::advance`].
    advanced_to_s: f64,
}

impl Ledger {
    /// An empty ledger over curves that start at `prior`.
    pub fn new(prior: &Prior, learning: Learning) -> Self {
        Self {
            curves: FleetCurves::new(prior, learning),
            accounts: Vec::new(),
            columns: WorkerColumns::default(),
            warming_up: Vec::new(),
            workers: 0,
            requests: FxHashMap::default(),
            expiry: VecDeque::new(),
            unstreamed: BTreeSet::new(),
            report_rate: 1.0,
            expired_reports: Vec::new(),
            output_tokens: RunningMean::new(GUESSED_OUTPUT_TOKENS),
            reuse: ReuseRate::default(),
            arrivals: Rate::default(),
            prefill: Rate::default(),
            booked: Booked::default(),
            clock: DecayClock::default(),
            decay_weight: 1.0,
            advanced_to_s: 0.0,
        }
    }

    /// Opens the account of a worker that joined.
    pub fn add_worker(&mut self, slot: Slot, spec: &WorkerSpec, block_size: u32) {
        if self.accounts.len() <= slot.index() {
            self.accounts
                .resize_with(slot.index() + 1, WorkerAccount::default);
        }
        self.accounts[slot.index()] = WorkerAccount::new(spec, block_size);
        self.curves.add(slot.index());
        self.columns.ensure(slot.index() + 1);
        self.warming_up.retain(|&warming| warming != slot);
        self.write_row(slot);
        self.workers += 1;
    }

    /// Replaces the sizes of a worker; its work in flight and its curves stay.
    pub fn set_spec(&mut self, slot: Slot, spec: &WorkerSpec, block_size: u32) {
        self.accounts[slot.index()].set_spec(spec, block_size);
        self.write_row(slot);
    }

    /// Closes the account of a worker that left. `bookings` are its open requests. O(bookings).
    pub fn remove_worker(&mut self, slot: Slot, bookings: &[RequestId]) {
        for request in bookings {
            if let Some(open) = self.requests.remove(request) {
                self.unstreamed.remove(&(ordered(open.due_s), *request));
            }
        }
        self.accounts[slot.index()] = WorkerAccount::default();
        self.curves.remove(slot.index());
        self.warming_up.retain(|&warming| warming != slot);
        self.workers -= 1;
    }

    /// The learned curves.
    pub const fn curves(&self) -> &FleetCurves {
        &self.curves
    }

    /// An engine reported one of its passes.
    pub fn report_pass(&mut self, slot: Slot, pass: &Pass) {
        self.curves.pass(slot.index(), pass);
        self.write_row(slot);
        self.write_followers();
    }

    /// Rewrites the rows of the workers whose curves follow the curves of the fleet, where these moved.
    fn write_followers(&mut self) {
        let moved = self.curves.lead_followers().to_vec();
        for position in moved {
            self.write_row(Slot(position as u32));
        }
    }

    /// Restores learned curves. As [`FleetCurves::restore`].
    pub fn restore_curves(
        &mut self,
        record: &FleetRecord,
        position_of: impl Fn(WorkerId) -> Option<usize>,
    ) -> Result<usize, Error> {
        let known = self.curves.restore(record, position_of)?;
        self.write_all_rows();
        Ok(known)
    }

    /// Mean tokens of recent answers.
    pub const fn mean_output_tokens(&self) -> f64 {
        self.output_tokens.value()
    }

    /// What was booked since the start.
    pub const fn booked(&self) -> Booked {
        self.booked
    }

    /// An engine reported the prompts that wait in it.
    pub fn report_engine_queue(&mut self, slot: Slot, queue: EngineQueue, now_s: f64) {
        self.accounts[slot.index()].queue.report(queue, now_s);
    }

    /// How full the worker at a position is. Empty for a position without a worker.
    pub fn occupancy(&self, position: usize, now_s: f64) -> Occupancy {
        self.accounts[position].occupancy(self.curves.of(position), now_s)
    }

    /// The device cache of a worker stored and removed so many blocks.
    pub fn cache_changed(&mut self, slot: Slot, stored: usize, removed: usize) {
        self.accounts[slot.index()].evictions.count(stored, removed);
        self.write_row(slot);
    }

    /// Brings the rates to `now_s`. [`Ledger::estimate`] and [`Ledger::shared_inputs`] read them as of then.
    ///
    /// O(1), except for workers whose rates are warming up, and once per half hour O(workers).
    pub fn advance(&mut self, now_s: f64) {
        if let Some(factor) = self.clock.advance(now_s) {
            self.arrivals.rebase(factor);
            self.prefill.rebase(factor);
            for account in &mut self.accounts {
                account.arrivals.rebase(factor);
                account.prefill.rebase(factor);
            }
            self.write_all_rows();
        }
        self.decay_weight = self.clock.weight();
        if now_s != self.advanced_to_s {
            self.advanced_to_s = now_s;
            let (accounts, columns) = (&self.accounts, &mut self.columns);
            self.warming_up.retain(|slot| {
                let seen = accounts[slot.index()].arrivals.seen(now_s);
                columns.set_seen(slot.index(), seen);
                seen < 1.0
            });
        }
    }

    /// One candidate in seconds, for an expected answer of `output_tokens`. O(1). Call [`Ledger::advance`] to `now_s`
    /// first.
    pub fn estimate(
        &self,
        slot: Slot,
        inputs: &CandidateInputs,
        output_tokens: f64,
        now_s: f64,
    ) -> LatencyEstimate {
        let row = self.columns.slices().row(slot.index());
        estimate(&self.shared_inputs(output_tokens, now_s), &row, inputs)
    }

    /// What the estimates of all candidates share at `now_s`. O(1). Call [`Ledger::advance`] to `now_s` first.
    pub(crate) fn shared_inputs(&self, output_tokens: f64, now_s: f64) -> SharedInputs {
        let share = 1.0 / self.workers.max(1) as f64;
        let of_fleet = |rate: &Rate| (1.0 - OWN_SHARE) * share * rate.per_s(self.decay_weight, now_s);
        SharedInputs {
            output_tokens,
            written_tokens: 0.5 * self.output_tokens.value(),
            rate_unit: Rate::unit_per_s(self.decay_weight),
            fleet_arrivals_per_s: of_fleet(&self.arrivals),
            fleet_utilisation: of_fleet(&self.prefill),
            reuse: self.reuse.share(),
            late_from_s: if self.report_rate < MIN_REPORT_RATE {
                f64::NEG_INFINITY
            } else {
                now_s
            },
        }
    }

    /// The columns of every worker, by slot.
    pub(crate) fn columns(&self) -> ColumnSlices<'_> {
        self.columns.slices()
    }

    /// Rewrites the row of a worker from its account and its curves. O(1), some 20 ns: it runs at each
    /// booking, first token and end.
    fn write_row(&mut self, slot: Slot) {
        let account = &self.accounts[slot.index()];
        let curves = self.curves.of(slot.index());
        let Prior { prefill, step } = curves.coefficients();
        let (prefill_samples, step_samples) = curves.samples();
        let chunk_s = curves.prefill_s(account.chunk_tokens, 0);
        let row = WorkerRow {
            prefill_pass: prefill[0],
            prefill_token: prefill[1],
            prefill_square: prefill[2],
            prefill_cached: prefill[3],
            step_pass: step[0],
            step_sequence: step[1],
            step_token: step[2],
            chunk_s,
            token_s: chunk_s / account.chunk_tokens as f64,
            wait_s: account.prefill_s,
            requests: f64::from(account.requests),
            kv_capacity_tokens: account.kv_capacity_tokens,
            arrivals: account.arrivals.stored(),
            arriving_s: account.prefill.stored(),
            seen: account.arrivals.seen(self.advanced_to_s),
            evicted_per_block: account.evictions.evicted_per_block(),
            due_s: account.due.front().map_or(f64::INFINITY, |&(due_s, _)| due_s),
            is_new: prefill_samples + step_samples < KNOWN_SAMPLES,
        };
        self.columns.put(slot.index(), &row);
    }

    /// Rewrites every row, after a change that concerns all workers. O(workers).
    fn write_all_rows(&mut self) {
        (0..self.accounts.len() as u32).for_each(|slot| self.write_row(Slot(slot)));
    }
}
