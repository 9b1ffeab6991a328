//! The life of a request in the ledger: booked, first token, end or expiry.
//!
//! ```text
//! book ─▶ prefill_done ─▶ release        a streamed answer
//! book ─▶ expire (due) ─▶ release        an unstreamed answer: its first token counts as come when it is due
//! book ─▶ expire                         a booking whose end is never reported
//! book, prefill_done ─▶ answer_began     a pool that only decodes: steps count from the first token on
//! ```
//!
//! The prefill curve learns at the first token, the step curve at the end. Both learn nothing from guesses.

use rustc_hash::FxHashMap;

use super::account::{OpenRequest, mean_step, shared_steps_s};
use super::{CandidateInputs, Ledger, Outcome, REPORT_RATE_WINDOW, Work};
use crate::exact::ordered;
use crate::index::Slot;
use crate::latency::FirstToken;
use crate::price_guard::Observation;
use crate::request::{MAX_OUTPUT_TOKENS, RequestId};

/// A placed request. A struct, because several of its numbers could be swapped unseen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewBooking {
    /// Id of the request.
    pub request: RequestId,
    /// Worker that it is booked on.
    pub slot: Slot,
    /// What the worker has to compute of the prompt.
    pub work: Work,
    /// Distinct prompt tokens in flight on the worker, with this request.
    pub kv_tokens: f64,
    /// Whether the answer comes in one piece, so that no first token is reported.
    pub is_unstreamed: bool,
    /// Whether the index may misjudge `work`, because it misleads about the worker.
    pub is_unsure: bool,
    /// Whether another router made the booking. It is load, and teaches nothing.
    pub is_of_peer: bool,
    /// Time of the booking, seconds.
    pub now_s: f64,
    /// When the booking expires, seconds.
    pub expires_at_s: f64,
}

/// Entries of requests that ended which a list may hold beyond twice the open ones, before it is swept.
///
/// Sweeping at twice the open entries makes the sweep O(1) amortised per booking.
const SLACK: usize = 64;

impl Ledger {
    /// Books a placed request. A second booking of the same request is ignored.
    ///
    /// Its first token is due after the backlog ahead of it and its own prefill. Both are stretched by the decode steps
    /// that share their passes.
    ///
    /// O(1) amortised.
    pub(crate) fn book(&mut self, booking: &NewBooking) {
        let NewBooking {
            request,
            slot,
            work,
            now_s,
            ..
        } = *booking;
        if self.requests.contains_key(&request) {
            return;
        }
        self.advance(now_s);
        let predicted_s = self.predicted_first_token_s(booking);
        let weight = self.decay_weight;
        let curves = self.curves.of(slot.index());
        let prefill_s = curves.prefill_s(work.new_tokens, work.cached_tokens);
        let account = &mut self.accounts[slot.index()];
        account.advance(now_s);
        account.prefill_s += prefill_s;
        // The backlog includes this request, so the due time is after all prompts ahead of it.
        let due_s = now_s + account.prefill_s * (1.0 + account.steps_per_prefill(curves));
        // A prompt without a new token has its first token at once, and an unstreamed answer reports none. News of another
        // router's first token come late, so they are no sign of a slow worker.
        if work.new_tokens > 0 && !booking.is_unstreamed && !booking.is_of_peer {
            account.due.push_back((due_s, request));
        }
        account.prefill_tokens += work.new_tokens;
        account.queue.sent(work.new_tokens, now_s);
        account.requests += 1;
        account.kv_tokens = booking.kv_tokens;
        if account.arrivals.add(1.0, weight, now_s) {
            self.warming_up.push(slot);
        }
        account.prefill.add(prefill_s, weight, now_s);
        self.arrivals.add(1.0, weight, now_s);
        self.prefill.add(prefill_s, weight, now_s);
        if !booking.is_of_peer {
            self.reuse.add(work.cached_tokens, work.new_tokens);
            self.booked.requests += 1;
            self.booked.prefill_s += prefill_s;
        }
        let open = OpenRequest {
            slot,
            work,
            prefill_s,
            booked_at_s: now_s,
            expires_at_s: booking.expires_at_s,
            due_s,
            predicted_s,
            is_unstreamed: booking.is_unstreamed,
            is_unsure: booking.is_unsure,
            waiting_pass: None,
            is_of_peer: booking.is_of_peer,
            first_token: None,
        };
        self.requests.insert(request, open);
        if booking.is_unstreamed {
            self.unstreamed.insert((ordered(due_s), request));
        }
        self.sweep_due(slot);
        self.write_row(slot);
        self.expiry.push_back((booking.expires_at_s, request));
        self.shrink_expiry();
    }

    /// Seconds to the first token of a request that is about to be booked, by the model of the price. 0 where no report is
    /// expected. O(1).
    fn predicted_first_token_s(&self, booking: &NewBooking) -> f64 {
        let NewBooking {
            slot, work, now_s, ..
        } = *booking;
        if work.new_tokens == 0 || booking.is_unstreamed || booking.is_of_peer {
            return 0.0;
        }
        let kv_tokens = self.accounts[slot.index()].kv_tokens;
        let inputs = CandidateInputs {
            new_tokens: work.new_tokens as f64,
            cached_tokens: work.cached_tokens as f64,
            kv_tokens: kv_tokens.min(booking.kv_tokens),
            kv_tokens_with: booking.kv_tokens,
        };
        self.estimate(slot, &inputs, self.output_tokens.value(), now_s)
            .first_token_s()
    }

    /// Whether the first token of a request that ends now was reported. `None` for a request that says nothing of
    /// reports: its first token is not due yet, or no report of it is expected.
    pub fn was_reported(&self, request: RequestId, now_s: f64) -> Option<bool> {
        let open = self.requests.get(&request)?;
        if !open.expects_report() {
            return None;
        }
        if !open.is_prefilling() {
            return Some(true);
        }
        (now_s >= open.due_s).then_some(false)
    }

    /// The first token of a request came: its prompt waits no more, and the prefill curve learns. Returns the seconds
    /// since its booking beside the prediction, which is 0 where no report was expected. `None` for a request that is
    /// not booked, or that had its first token before.
    ///
    /// The time says how long prefill took only while the prompt did not wait for KV memory. Otherwise the
    /// curve learns nothing. On a worker whose index misleads, the curve learns at the end of the request, from the cached
    /// tokens that the engine reports.
    pub fn prefill_done(&mut self, request: RequestId, now_s: f64) -> Option<Observation> {
        let open = self.requests.get_mut(&request);
        let open = open.filter(|open| open.is_prefilling())?;
        let (slot, work, booked_at_s, is_unsure) = (open.slot, open.work, open.booked_at_s, open.is_unsure);
        let predicted_s = open.predicted_s;
        let account = &mut self.accounts[slot.index()];
        // While KV blocks are short a prompt waits for them, which says nothing of prefill. A prompt without a new token
        // says nothing either.
        let computes = work.new_tokens > 0 || is_unsure;
        let teaches = account.kv_tokens <= account.kv_capacity_tokens && computes && !open.is_of_peer;
        let shared_s = if teaches {
            shared_steps_s(account, &self.curves, slot, work)
        } else {
            0.0
        };
        account.first_token(open, now_s);
        self.sweep_due(slot);
        if teaches {
            let first = FirstToken {
                sent_s: booked_at_s,
                at_s: now_s,
                new_tokens: work.new_tokens,
                cached_tokens: work.cached_tokens,
                shared_s,
                is_unsure,
            };
            let waiting_pass = self.curves.first_token(slot.index(), &first);
            if let Some(open) = self.requests.get_mut(&request) {
                open.waiting_pass = waiting_pass;
            }
            self.write_followers();
        }
        self.write_row(slot);
        Some(Observation {
            predicted_s,
            observed_s: now_s - booked_at_s,
        })
    }

    /// The answer of a request began, in a pool that only decodes: its steps are counted from now on. Its
    /// booking decodes from its start, but until the first token it waits for the prompt's KV.
    ///
    /// Counted from the booking, the wait for the transfer would look like slow steps.
    pub fn answer_began(&mut self, request: RequestId, now_s: f64) {
        if let Some(open) = self.requests.get_mut(&request)
            && let Some(first) = &mut open.first_token
        {
            let account = &mut self.accounts[open.slot.index()];
            account.advance(now_s);
            first.at_s = now_s;
            first.integrals = account.integrals;
        }
    }

    /// A request ended. `kv_tokens` is what its worker has in flight without it, in distinct prompt tokens.
    /// The step curve learns when the length of the answer is known. O(log requests) for an unstreamed
    /// request, else O(1) amortised.
    pub fn release(
        &mut self,
        request: RequestId,
        kv_tokens: f64,
        outcome: Outcome,
        now_s: f64,
    ) -> Option<Observation> {
        if let Some(open) = self.requests.get(&request) {
            let queue = &mut self.accounts[open.slot.index()].queue;
            if open.is_prefilling() {
                queue.end(open.booked_at_s, open.work.new_tokens);
            } else if !open.is_of_peer {
                queue.count_outcome();
            }
        }
        self.end(request, kv_tokens, outcome, now_s)
    }

    /// Ends requests whose booking expired. Returns unstreamed requests whose first token was expected by now: their
    /// prefill counts as over.
    ///
    /// O(requests that end); O(1) when none does.
    pub fn expire(&mut self, now_s: f64) -> Vec<RequestId> {
        let mut assumed = Vec::new();
        while let Some(&(due, request)) = self.unstreamed.first()
            && due <= ordered(now_s)
        {
            self.unstreamed.pop_first();
            if self.assume_first_token(request, now_s) {
                assumed.push(request);
            }
        }
        while let Some(&(at_s, request)) = self.expiry.front()
            && at_s <= now_s
        {
            self.expiry.pop_front();
            if expires_at(&self.requests, request, at_s) {
                let open = &self.requests[&request];
                if open.expects_report() {
                    self.expired_reports.push(!open.is_prefilling());
                }
                let account = &mut self.accounts[open.slot.index()];
                if !open.is_of_peer {
                    account.queue.count_expiry();
                }
                let kv_tokens = account.kv_tokens;
                self.end(request, kv_tokens, Outcome::default(), now_s);
            }
        }
        assumed
    }

    /// Whether the first token was reported, for each booking that expired since the last call and expected a report.
    pub fn take_expired_reports(&mut self) -> Vec<bool> {
        std::mem::take(&mut self.expired_reports)
    }

    /// Moves the expiry of a booking to `expires_at_s`. A request that is not booked is ignored.
    pub fn renew(&mut self, request: RequestId, expires_at_s: f64) {
        let Some(open) = self.requests.get_mut(&request) else {
            return;
        };
        // The deque stays in order: with a clock that goes back, a booking expires a little later.
        let last_s = self.expiry.back().map_or(expires_at_s, |&(last_s, _)| last_s);
        open.expires_at_s = expires_at_s.max(last_s);
        self.expiry.push_back((open.expires_at_s, request));
        self.shrink_expiry();
    }

    /// Drops the expiries of ended and renewed bookings, when they are more than those in force. O(1) amortised.
    fn shrink_expiry(&mut self) {
        if self.expiry.len() > SLACK + 2 * self.requests.len() {
            let requests = &self.requests;
            self.expiry
                .retain(|&(at_s, request)| expires_at(requests, request, at_s));
        }
    }

    /// What the worker has to do for a booked request, as of the booking. O(1).
    pub fn booked_work(&self, request: RequestId) -> Option<Work> {
        Some(self.requests.get(&request)?.work)
    }

    /// Whether a request is booked and waits for its first token.
    pub fn is_prefilling(&self, request: RequestId) -> bool {
        self.requests
            .get(&request)
            .is_some_and(OpenRequest::is_prefilling)
    }

    /// Requests in flight.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Ends the prefill of an unstreamed request that is due. Returns false for a request that ended or whose prefill
    /// is over.
    fn assume_first_token(&mut self, request: RequestId, now_s: f64) -> bool {
        let open = self.requests.get_mut(&request);
        let Some(open) = open.filter(|open| open.is_prefilling()) else {
            return false;
        };
        let slot = open.slot;
        self.accounts[slot.index()].first_token(open, now_s);
        self.write_row(slot);
        true
    }

    /// Removes a request that ended or expired, from every list but `expiry`, which is swept. A request that
    /// is not booked changes nothing.
    fn end(
        &mut self,
        request: RequestId,
        kv_tokens: f64,
        outcome: Outcome,
        now_s: f64,
    ) -> Option<Observation> {
        let open = self.requests.remove(&request)?;
        let step = self.close(&open, kv_tokens, outcome, now_s);
        if open.is_unstreamed {
            self.unstreamed.remove(&(ordered(open.due_s), request));
        }
        self.sweep_due(open.slot);
        self.write_row(open.slot);
        step
    }

    /// Takes a request that ended out of the account of its worker, and teaches the step curve.
    ///
    /// Three kinds of ends teach nothing of steps: an end without a first token, an answer of unknown length,
    /// and an answer in one piece.
    fn close(
        &mut self,
        open: &OpenRequest,
        kv_tokens: f64,
        outcome: Outcome,
        now_s: f64,
    ) -> Option<Observation> {
        let account = &mut self.accounts[open.slot.index()];
        account.advance(now_s);
        account.requests = account.requests.saturating_sub(1);
        account.kv_tokens = kv_tokens;
        let output_tokens = outcome
            .output_tokens
            .filter(|&tokens| tokens <= MAX_OUTPUT_TOKENS && !open.is_of_peer);
        if let Some(tokens) = output_tokens {
            self.output_tokens.add(f64::from(tokens));
        }
        // A client that reports ends and no first tokens must not make its worker look stalled.
        if open.expects_report() && !outcome.is_refused {
            let reported = if open.is_prefilling() { 0.0 } else { 1.0 };
            self.report_rate += (reported - self.report_rate) / REPORT_RATE_WINDOW;
        }
        let Some(first) = &open.first_token else {
            account.end_prefill(open);
            return None;
        };
        if let Some(pass) = open.waiting_pass {
            let prompt_tokens = open.work.new_tokens + open.work.cached_tokens;
            let split = outcome.cached_tokens.map(|cached| {
                // An engine computes at least the last token of a prompt.
                let cached = u64::from(cached).min(prompt_tokens.saturating_sub(1));
                (prompt_tokens - cached, cached)
            });
            self.curves.prompt_ended(open.slot.index(), pass, split);
            self.write_followers();
        }
        let account = &mut self.accounts[open.slot.index()];
        account.decoding = account.decoding.saturating_sub(1);
        // The first token of an unstreamed request is a guess, which teaches nothing of steps.
        let tokens = output_tokens.filter(|_| !open.is_unstreamed)?;
        let written_tokens = 0.5 * self.output_tokens.value();
        let (load, step_s) = mean_step(account, first, tokens, written_tokens, now_s)?;
        let position = open.slot.index();
        let predicted_s = self.curves.of(position).step_s(load.batch, load.kv_tokens);
        self.curves.step(position, load, step_s);
        self.write_followers();
        Some(Observation {
            predicted_s,
            observed_s: step_s,
        })
    }

    /// Drops expected first tokens that came, or never will.
    ///
    /// The front decides how late a worker is, so it must be a request that waits. The others go when they are many.
    fn sweep_due(&mut self, slot: Slot) {
        let requests = &self.requests;
        let waits = |request: RequestId| requests.get(&request).is_some_and(OpenRequest::is_prefilling);
        let account = &mut self.accounts[slot.index()];
        while account.due.front().is_some_and(|&(_, request)| !waits(request)) {
            account.due.pop_front();
        }
        if account.due.len() > SLACK + 2 * account.requests as usize {
            account.due.retain(|&(_, request)| waits(request));
        }
    }

    /// Expiries that are remembered: at most 64 and twice the open requests.
    #[cfg(test)]
    pub(super) fn expiries(&self) -> usize {
        self.expiry.len()
    }
}

/// Whether this expiry is that of the present booking, and not of an earlier booking with the same id.
fn expires_at(requests: &FxHashMap<RequestId, OpenRequest>, request: RequestId, at_s: f64) -> bool {
    requests
        .get(&request)
        .is_some_and(|open| open.expires_at_s == at_s)
}
