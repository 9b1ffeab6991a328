//! The books in seconds: what each worker owes to the requests in flight, and what arrives.
//!
//! Where [`crate::load`] counts tokens and blocks for every price, the ledger counts time for the prices and queues that
//! think in seconds. Stands between `outcome in ─▶ learn curves` and `match ─▶ price`: bookings, first tokens and ends go
//! in; [`Ledger::seconds`] gives one [`Seconds`] per candidate, and every finished request teaches the curves. Bounded by
//! the router's own bookings and their expiry; O(1) per call but for [`Ledger::remove_worker`].

mod books;
mod churn;
mod rates;
mod standing;
#[cfg(test)]
mod tests;
mod truth;

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use books::seconds_of;
pub use books::{Asked, Books, Climate, Seconds};
pub use churn::{Churn, Reuse};
pub use rates::{DecayClock, Rate, RunningMean};
use standing::Stand;
pub use standing::{Lanes, Standing};
pub use truth::EngineQueue;
use truth::{Prompts, Truth};

use crate::error::Error;
use crate::exact::ordered;
use crate::index::Slot;
use crate::latency::{FleetCurves, FleetRecord, Learning, Prior, WorkerCurves};
use crate::request::RequestId;
use crate::worker::{WorkerId, WorkerSpec};

/// What a finished request tells beyond its times. Both may be unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tokens of the answer.
    pub output_tokens: Option<u32>,
    /// Prompt tokens that the engine found in its cache.
    pub cached_tokens: Option<u32>,
    /// Its end is its first token, as in a pool that only prefills: the prefill curve learns from it. Not for requests that
    /// were given up, nor where the answer came in one piece after its last token.
    pub at_first_token: bool,
}

/// What is booked: the tokens of one request on its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens to compute.
    pub new_tokens: u64,
    /// Prompt tokens in the worker's cache.
    pub cached_tokens: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: Slot,
    work: Work,
    prefill_s: f64,
    sent_s: f64,
    expires_at_s: f64,
    /// When the first token was expected at the booking.
    due_s: f64,
    /// Its first token will not be told; that it came is taken for granted at `due_s`.
    in_one_piece: bool,
    /// Time and the worker's running sums at the first token.
    first: Option<(f64, Sums)>,
}

/// Integrals over time of a worker's decode load, and the prefill seconds it has finished.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    batch: f64,
    kv_tokens: f64,
    prefill_s: f64,
}

#[derive(Clone, Debug, Default)]
struct Account {
    /// Prefill seconds before first token, and their tokens.
    prefill_s: f64,
    prefill_tokens: u64,
    requests: u32,
    decoding: u32,
    kv_tokens: f64,
    at_s: f64,
    sums: Sums,
    arrivals: Rate,
    prefill: Rate,
    kv_capacity_tokens: f64,
    chunk_tokens: u64,
    max_requests: u32,
    churn: Churn,
    truth: Truth,
    /// When first tokens were expected, in order of booking. Those that came stay until they are first or too many.
    due: VecDeque<(f64, RequestId)>,
}

/// How full a worker is: what a queue needs to know to hold a request back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Whether its engine or its outcomes tell what is in flight. Where neither does, what follows is no reason to wait.
    pub is_reported: bool,
    /// Prefill seconds before first token.
    pub backlog_s: f64,
    /// Requests before first token.
    pub prefills: u32,
    /// Their prompt tokens to compute.
    pub prefill_tokens: u64,
    /// Tokens of one engine pass.
    pub chunk_tokens: u64,
    /// Requests in flight.
    pub requests: u32,
    /// Sequences that it runs at once.
    pub max_requests: u32,
    /// Distinct prompt tokens in flight.
    pub kv_tokens: f64,
    /// Tokens of its KV cache; infinite when unknown.
    pub kv_capacity_tokens: f64,
}

impl Account {
    /// How much longer a prompt's chunks take for the decode step that shares their pass.
    fn shared_by_steps(&self, curves: &WorkerCurves) -> f64 {
        let chunk_s = curves.prefill_s(self.chunk_tokens, 0);
        if self.decoding == 0 || chunk_s <= 0.0 {
            return 0.0;
        }
        curves.step_s(f64::from(self.decoding), self.kv_tokens) / chunk_s
    }

    /// The prefill of a request is over, and its answer begins.
    fn first_token(&mut self, entry: &mut Entry, now_s: f64) {
        self.advance(now_s);
        self.prefill_over(entry);
        self.truth.over(entry.sent_s, entry.work.new_tokens);
        self.sums.prefill_s += entry.prefill_s;
        self.decoding += 1;
        entry.first = Some((now_s, self.sums));
    }

    fn prefill_over(&mut self, entry: &Entry) {
        self.prefill_s = (self.prefill_s - entry.prefill_s).max(0.0);
        self.prefill_tokens = self.prefill_tokens.saturating_sub(entry.work.new_tokens);
    }

    fn advance(&mut self, now_s: f64) {
        let span_s = (now_s - self.at_s).max(0.0);
        self.sums.batch += span_s * f64::from(self.decoding);
        self.sums.kv_tokens += span_s * self.kv_tokens;
        self.at_s = self.at_s.max(now_s);
    }
}

/// Share of a worker's own rate in the mixture with the fleet's mean.
const OWN_SHARE: f64 = 0.3;
/// Utilisation is taken to be no higher: the busy period stays finite.
const MAX_UTILISATION: f64 = 0.95;
/// A worker is new until its curves have learned from so many outcomes.
const KNOWN_SAMPLES: u64 = 4;
/// Tokens in a prefill chunk where the worker does not say.
const DEFAULT_CHUNK_TOKENS: u64 = 8192;
/// Bookings that the share of told first tokens is of.
const TOLD_OVER: f64 = 16.0;
/// Where fewer first tokens are told, one that does not come says nothing.
const TOLD_MIN: f64 = 0.5;
/// Answer length before any was seen, tokens.
const GUESSED_OUTPUT_TOKENS: f64 = 256.0;

/// See the module.
#[derive(Clone, Debug)]
pub struct Ledger {
    curves: FleetCurves,
    accounts: Vec<Account>,
    /// What a price reads of both; every change of either writes it anew.
    standing: Standing,
    /// Slots whose rates have not seen their whole horizon yet.
    young: Vec<Slot>,
    live: usize,
    entries: FxHashMap<RequestId, Entry>,
    /// In order of expiry, since every booking lives equally long. What ended early stays until it comes up or is too many.
    expiry: VecDeque<(f64, RequestId)>,
    /// Bookings whose first token nobody tells of, by when it is expected; until then.
    silent: BTreeSet<(u64, RequestId)>,
    /// Share of the last bookings, of those whose first token should have been told, of which it was.
    told: f64,
    output_tokens: RunningMean,
    reuse: Reuse,
    arrivals: Rate,
    prefill: Rate,
    /// Since the start: requests and their prefill seconds.
    booked: (u64, f64),
    clock: DecayClock,
    /// Weight of the clock's newest time.
    unit: f64,
    /// When the standing's share of seen time was brought up to date.
    seen_at_s: f64,
}

impl Ledger {
    /// Empty books over curves that start at `prior`.
    pub fn new(prior: &Prior, learning: Learning) -> Self {
        Self {
            curves: FleetCurves::new(prior, learning),
            accounts: Vec::new(),
            standing: Standing::default(),
            young: Vec::new(),
            live: 0,
            entries: FxHashMap::default(),
            expiry: VecDeque::new(),
            silent: BTreeSet::new(),
            told: 1.0,
            output_tokens: RunningMean::new(GUESSED_OUTPUT_TOKENS),
            reuse: Reuse::default(),
            arrivals: Rate::default(),
            prefill: Rate::default(),
            booked: (0, 0.0),
            clock: DecayClock::default(),
            unit: 1.0,
            seen_at_s: 0.0,
        }
    }

    /// Opens the account of a worker that joined.
    pub fn add_worker(&mut self, slot: Slot, spec: &WorkerSpec, block_size: u32) {
        if self.accounts.len() <= slot.index() {
            self.accounts.resize_with(slot.index() + 1, Account::default);
        }
        self.accounts[slot.index()] = Account {
            kv_capacity_tokens: spec
                .total_kv_blocks
                .map_or(f64::INFINITY, |blocks| blocks as f64 * f64::from(block_size)),
            chunk_tokens: spec
                .max_num_batched_tokens
                .map_or(DEFAULT_CHUNK_TOKENS, u64::from)
                .max(1),
            max_requests: spec.max_num_seqs.unwrap_or(u32::MAX),
            ..Account::default()
        };
        self.curves.add(slot.index());
        self.standing.ensure(slot.index() + 1);
        self.young.retain(|&young| young != slot);
        self.stand(slot);
        self.live += 1;
    }

    /// Writes down anew how a worker stands.
    fn stand(&mut self, slot: Slot) {
        let account = &self.accounts[slot.index()];
        let curves = self.curves.of(slot.index());
        let Prior { prefill, step } = curves.coefficients();
        let (prefill_samples, step_samples) = curves.samples();
        let chunk_s = curves.prefill_s(account.chunk_tokens, 0);
        let stand = Stand {
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
            seen: account.arrivals.seen(self.seen_at_s),
            evicted_per_block: account.churn.evicted_per_block(),
            due_s: account.due.front().map_or(f64::INFINITY, |&(due_s, _)| due_s),
            is_new: prefill_samples + step_samples < KNOWN_SAMPLES,
        };
        self.standing.put(slot.index(), &stand);
    }

    /// Closes an account; `bookings` are its open ones. O(bookings).
    pub fn remove_worker(&mut self, slot: Slot, bookings: &[RequestId]) {
        for request in bookings {
            if let Some(entry) = self.entries.remove(request) {
                self.silent.remove(&(ordered(entry.due_s), *request));
            }
        }
        self.accounts[slot.index()] = Account::default();
        self.curves.remove(slot.index());
        self.young.retain(|&young| young != slot);
        self.live -= 1;
    }

    /// The learned curves.
    pub const fn curves(&self) -> &FleetCurves {
        &self.curves
    }

    /// Teaches the curves of one worker from another source.
    pub fn teach<T>(&mut self, slot: Slot, lesson: impl FnOnce(&mut FleetCurves, usize) -> T) -> T {
        let learned = lesson(&mut self.curves, slot.index());
        self.stand(slot);
        learned
    }

    /// Takes over learned curves. As [`FleetCurves::restore`].
    pub fn restore_curves(
        &mut self,
        record: &FleetRecord,
        position_of: impl Fn(WorkerId) -> Option<usize>,
    ) -> Result<usize, Error> {
        let known = self.curves.restore(record, position_of)?;
        (0..self.accounts.len() as u32).for_each(|slot| self.stand(Slot(slot)));
        Ok(known)
    }

    /// Mean tokens of an answer so far.
    pub const fn mean_output_tokens(&self) -> f64 {
        self.output_tokens.value()
    }

    /// Requests booked since the start, and the prefill seconds that they were expected to take.
    pub const fn booked(&self) -> (u64, f64) {
        self.booked
    }

    /// An engine told what waits in it.
    pub fn engine_queue(&mut self, slot: Slot, queue: EngineQueue, now_s: f64) {
        self.accounts[slot.index()].truth.report(queue, now_s);
    }

    /// How full the worker at a dense position is: its prompts as its engine tells them, corrected by what it cannot have
    /// seen; with no fresh word as booked here. Empty for a position without a worker.
    pub fn pressure(&self, position: usize, now_s: f64) -> Pressure {
        let account = &self.accounts[position];
        let own = Prompts {
            count: account.requests.saturating_sub(account.decoding),
            tokens: account.prefill_tokens,
        };
        let told = account.truth.prompts(own, now_s);
        let prompts = told.unwrap_or(own);
        let backlog_s = if prompts.tokens == own.tokens {
            account.prefill_s
        } else {
            prompts.tokens as f64 * marginal_token_s(self.curves.of(position), account.chunk_tokens)
        };
        Pressure {
            is_reported: told.is_some(),
            backlog_s,
            prefills: prompts.count,
            prefill_tokens: prompts.tokens,
            chunk_tokens: account.chunk_tokens,
            requests: account.requests,
            max_requests: account.max_requests,
            kv_tokens: account.kv_tokens,
            kv_capacity_tokens: account.kv_capacity_tokens,
        }
    }

    /// A worker's cache stored and removed so many blocks in device memory.
    pub fn cache_changed(&mut self, slot: Slot, stored: usize, removed: usize) {
        self.accounts[slot.index()].churn.count(stored, removed);
        self.stand(slot);
    }

    /// Brings the rates to `now_s`; [`Ledger::seconds`] and [`Ledger::climate`] read them as of then. O(1) but for workers
    /// whose rates are young, and every half hour.
    pub fn advance(&mut self, now_s: f64) {
        if let Some(factor) = self.clock.advance(now_s) {
            self.arrivals.rebase(factor);
            self.prefill.rebase(factor);
            for account in &mut self.accounts {
                account.arrivals.rebase(factor);
                account.prefill.rebase(factor);
            }
            (0..self.accounts.len() as u32).for_each(|slot| self.stand(Slot(slot)));
        }
        self.unit = self.clock.weight();
        if now_s != self.seen_at_s {
            self.seen_at_s = now_s;
            let (accounts, standing) = (&self.accounts, &mut self.standing);
            self.young.retain(|slot| {
                let seen = accounts[slot.index()].arrivals.seen(now_s);
                standing.saw(slot.index(), seen);
                seen < 1.0
            });
        }
    }

    /// A request was placed; `kv_tokens` is the worker's distinct prompt tokens in flight with it. A second booking of
    /// the same request is ignored.
    pub fn book(&mut self, request: RequestId, slot: Slot, work: Work, kv_tokens: f64, times: (f64, f64)) {
        let (now_s, expires_at_s) = times;
        if self.entries.contains_key(&request) {
            return;
        }
        self.advance(now_s);
        let unit = self.unit;
        let curves = self.curves.of(slot.index());
        let prefill_s = curves.prefill_s(work.new_tokens, work.cached_tokens);
        let account = &mut self.accounts[slot.index()];
        account.advance(now_s);
        account.prefill_s += prefill_s;
        let due_s = now_s + account.prefill_s * (1.0 + account.shared_by_steps(curves));
        if work.new_tokens > 0 {
            account.due.push_back((due_s, request));
        }
        account.prefill_tokens += work.new_tokens;
        account.truth.sent(work.new_tokens, now_s);
        account.requests += 1;
        account.kv_tokens = kv_tokens;
        if account.arrivals.add(1.0, unit, now_s) {
            self.young.push(slot);
        }
        account.prefill.add(prefill_s, unit, now_s);
        self.reuse.add(work.cached_tokens, work.new_tokens);
        self.arrivals.add(1.0, unit, now_s);
        self.prefill.add(prefill_s, unit, now_s);
        self.booked.0 += 1;
        self.booked.1 += prefill_s;
        let entry = Entry {
            slot,
            work,
            prefill_s,
            sent_s: now_s,
            expires_at_s,
            due_s,
            in_one_piece: false,
            first: None,
        };
        self.entries.insert(request, entry);
        self.forget_due(slot);
        self.stand(slot);
        self.expiry.push_back((expires_at_s, request));
        if self.expiry.len() > 64 + 2 * self.entries.len() {
            let entries = &self.entries;
            self.expiry
                .retain(|&(at_s, request)| lives_until(entries, request, at_s));
        }
    }

    /// The answer of a request that was just booked comes in one piece, so its first token will not be told: its prefill counts
    /// as over when it is expected to be. O(log of those).
    pub fn in_one_piece(&mut self, request: RequestId) {
        if let Some(entry) = self.entries.get_mut(&request) {
            entry.in_one_piece = true;
            self.silent.insert((ordered(entry.due_s), request));
            let slot = entry.slot;
            let due = &mut self.accounts[slot.index()].due;
            if due.back().is_some_and(|&(_, last)| last == request) {
                due.pop_back();
            }
            self.stand(slot);
        }
    }

    /// The first token of a request came: its prefill no longer waits, and the prefill curve learns. Seconds since it was
    /// booked; `None` when it is not booked or had its first token before.
    pub fn prefill_done(&mut self, request: RequestId, now_s: f64) -> Option<f64> {
        let entry = self
            .entries
            .get_mut(&request)
            .filter(|entry| entry.first.is_none())?;
        let taken_s = now_s - entry.sent_s;
        let account = &mut self.accounts[entry.slot.index()];
        let memory_full = account.kv_tokens > account.kv_capacity_tokens;
        let (batch, kv_tokens) = (f64::from(account.decoding), account.kv_tokens);
        account.first_token(entry, now_s);
        let entry = *entry;
        let slot = entry.slot;
        self.forget_due(slot);
        let account = &self.accounts[slot.index()];
        // While KV blocks are short a prompt waits for them, which says nothing of prefill.
        if memory_full || entry.work.new_tokens == 0 {
            self.stand(slot);
            return Some(taken_s);
        }
        let curves = self.curves.of(slot.index());
        // Every chunk of a prompt shares its pass with one decode step of the batch.
        let chunks = entry.work.new_tokens.div_ceil(account.chunk_tokens) as f64;
        let shared_s = if batch > 0.0 {
            chunks * curves.step_s(batch, kv_tokens)
        } else {
            0.0
        };
        let work = (entry.work.new_tokens, entry.work.cached_tokens);
        self.curves
            .first_token(slot.index(), (entry.sent_s, now_s), work, shared_s);
        self.stand(slot);
        Some(taken_s)
    }

    /// Where a booking decodes from its start on, its answer begins later all the same, with its first token: what is learned of
    /// steps counts from there, and not the wait for the prompt's KV.
    pub fn answer_began(&mut self, request: RequestId, now_s: f64) {
        if let Some(entry) = self.entries.get_mut(&request)
            && let Some(first) = &mut entry.first
        {
            let account = &mut self.accounts[entry.slot.index()];
            account.advance(now_s);
            *first = (now_s, account.sums);
        }
    }

    /// A request ended; `kv_tokens` is the worker's distinct prompt tokens in flight without it. The step curve learns
    /// when the answer's length is known.
    pub fn release(&mut self, request: RequestId, kv_tokens: f64, outcome: Outcome, now_s: f64) {
        if let Some(entry) = self.entries.get(&request) {
            let truth = &mut self.accounts[entry.slot.index()].truth;
            if entry.first.is_some() {
                truth.seen();
            } else {
                truth.over(entry.sent_s, entry.work.new_tokens);
            }
        }
        self.end(request, kv_tokens, outcome, now_s);
    }

    fn end(&mut self, request: RequestId, kv_tokens: f64, outcome: Outcome, now_s: f64) {
        if let Some(entry) = self.entries.remove(&request) {
            self.settle(&entry, kv_tokens, outcome, now_s);
            if entry.in_one_piece {
                self.silent.remove(&(ordered(entry.due_s), request));
            }
            self.forget_due(entry.slot);
            self.stand(entry.slot);
        }
    }

    fn settle(&mut self, entry: &Entry, kv_tokens: f64, outcome: Outcome, now_s: f64) {
        let account = &mut self.accounts[entry.slot.index()];
        account.advance(now_s);
        account.requests = account.requests.saturating_sub(1);
        account.kv_tokens = kv_tokens;
        if let Some(tokens) = outcome.output_tokens {
            self.output_tokens.add(f64::from(tokens));
        }
        let told = f64::from(u8::from(entry.first.is_some()));
        if !entry.in_one_piece && entry.work.new_tokens > 0 {
            self.told += (told - self.told) / TOLD_OVER;
        }
        let Some((first_s, at_first)) = entry.first else {
            account.prefill_over(entry);
            return;
        };
        account.decoding = account.decoding.saturating_sub(1);
        if entry.in_one_piece {
            return; // when its first token came is a guess: it teaches nothing of steps
        }
        let span_s = now_s - first_s;
        let Some(gaps) = outcome
            .output_tokens
            .map(|tokens| tokens.saturating_sub(1))
            .filter(|&n| n >= 4)
        else {
            return;
        };
        if span_s <= 0.0 {
            return;
        }
        // Prompts that were computed meanwhile held this answer up; what is left is decoding.
        let stalled_s = (account.sums.prefill_s - at_first.prefill_s).min(0.8 * span_s);
        let batch = (account.sums.batch - at_first.batch) / span_s;
        let written = 0.5 * self.output_tokens.value() * batch;
        let kv_mean = (account.sums.kv_tokens - at_first.kv_tokens) / span_s + written;
        let step_s = (span_s - stalled_s) / f64::from(gaps);
        self.curves.step(entry.slot.index(), (batch, kv_mean), step_s);
    }

    /// Passes over expected first tokens that came, or never will.
    fn forget_due(&mut self, slot: Slot) {
        let entries = &self.entries;
        let waits = |request: RequestId| entries.get(&request).is_some_and(|entry| entry.first.is_none());
        let account = &mut self.accounts[slot.index()];
        while account.due.front().is_some_and(|&(_, request)| !waits(request)) {
            account.due.pop_front();
        }
        if account.due.len() > 64 + 2 * account.requests as usize {
            account.due.retain(|&(_, request)| waits(request));
        }
    }

    /// Drops entries whose booking expired at or before `now_s`. Returns those whose prefill counts as over from now on, because
    /// nobody will tell of their first token and it was expected by now.
    pub fn expire(&mut self, now_s: f64) -> Vec<RequestId> {
        let mut assumed = Vec::new();
        while let Some(&(due, request)) = self.silent.first()
            && due <= ordered(now_s)
        {
            self.silent.pop_first();
            assumed.extend(self.assume_prefill_done(request, now_s).then_some(request));
        }
        while self.expiry.front().is_some_and(|&(at_s, _)| at_s <= now_s) {
            if let Some((at_s, request)) = self.expiry.pop_front()
                && lives_until(&self.entries, request, at_s)
            {
                let entry = &self.entries[&request];
                let account = &mut self.accounts[entry.slot.index()];
                account.truth.expired();
                let kv_tokens = account.kv_tokens;
                self.end(request, kv_tokens, Outcome::default(), now_s);
            }
        }
        assumed
    }

    fn assume_prefill_done(&mut self, request: RequestId, now_s: f64) -> bool {
        let waiting = self.entries.get_mut(&request);
        let Some(entry) = waiting.filter(|entry| entry.first.is_none()) else {
            return false;
        };
        let slot = entry.slot;
        self.accounts[slot.index()].first_token(entry, now_s);
        self.stand(slot);
        true
    }

    /// Expiries that are remembered; at most 64 and twice the entries.
    #[cfg(test)]
    fn expiries(&self) -> usize {
        self.expiry.len()
    }

    /// Whether a request is booked whose first token has not come.
    pub fn waits(&self, request: RequestId) -> bool {
        self.entries
            .get(&request)
            .is_some_and(|entry| entry.first.is_none())
    }

    /// Entries whose request has not ended.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One candidate in seconds. `kv_tokens` is what the worker would have in flight with the request (distinct prompt
    /// tokens), `output_tokens` the expected answer. After [`Ledger::advance`] to the same time. O(1).
    pub fn seconds(
        &self,
        slot: Slot,
        work: Work,
        (kv_tokens, kv_tokens_with): (f64, f64),
        output_tokens: f64,
        now_s: f64,
    ) -> Seconds {
        let asked = Asked {
            new_tokens: work.new_tokens as f64,
            cached_tokens: work.cached_tokens as f64,
            kv_tokens,
            kv_tokens_with,
        };
        let stand = self.standing.lanes().at(slot.index());
        seconds_of(&self.climate(output_tokens, now_s), &stand, &asked)
    }

    /// What all candidates share at `now_s`. After [`Ledger::advance`] to the same time. O(1).
    pub fn climate(&self, output_tokens: f64, now_s: f64) -> Climate {
        let share = 1.0 / self.live.max(1) as f64;
        let of_fleet = |rate: &Rate| (1.0 - OWN_SHARE) * share * rate.per_s(self.unit, now_s);
        Climate {
            output_tokens,
            written_tokens: 0.5 * self.output_tokens.value(),
            per_rate: Rate::unit_per_s(self.unit),
            fleet_arrivals_per_s: of_fleet(&self.arrivals),
            fleet_utilisation: of_fleet(&self.prefill),
            reuse: self.reuse.share(),
            late_from_s: if self.told < TOLD_MIN {
                f64::NEG_INFINITY
            } else {
                now_s
            },
        }
    }

    /// How every worker stands, by slot.
    pub fn lanes(&self) -> Lanes<'_> {
        self.standing.lanes()
    }
}

/// Seconds per token in a full chunk.
fn marginal_token_s(curves: &WorkerCurves, chunk_tokens: u64) -> f64 {
    curves.prefill_s(chunk_tokens, 0) / chunk_tokens as f64
}

/// Whether this expiry is that of the request's present booking, and not of an earlier one under the same id.
fn lives_until(entries: &FxHashMap<RequestId, Entry>, request: RequestId, at_s: f64) -> bool {
    entries
        .get(&request)
        .is_some_and(|entry| entry.expires_at_s == at_s)
}
