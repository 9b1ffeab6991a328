//! The steps of a decision: price, pick, book.
//!
//! [`RouterState::choose`] prices and picks. [`RouterState::commit`] is the tail of every decision, immediate
//! or late: it counts the decision, records it for the price of anarchy, and opens the booking.
//!
//! ```text
//! choose   bring rates to now ─▶ fill the columns ─▶ Policy::price ─▶ pick   changes no load
//! commit   count ─▶ record for the meter ─▶ open the booking                 changes the load
//! ```
//!
//! Nothing happens between the two steps, since one lock covers both. The booking meets exactly the figures
//! that were priced.
//!
//! Cost: O(candidates), and no allocation in an immediate decision without `explain`.

use super::state::RouterState;
use crate::candidate_load::{PendingLoad, PoolFigures};
use crate::ledger::{LatencyView, Work};
use crate::matched::Matched;
use crate::pick::pick;
use crate::price::View;
use crate::request::{Candidate, Choice, Decision, RouteRequest};

impl RouterState {
    /// Prices every candidate of a match and picks one. `priced` is called in between.
    ///
    /// When no candidate has a finite cost, the least loaded one is chosen and the cost is infinite: a wrong figure
    /// of a worker, such as 0 KV blocks, must cost quality, not the request. [`Counters::unpriced`](crate::snapshot::Counters::unpriced)
    /// counts these decisions.
    pub(super) fn choose(
        &mut self,
        matched: &Matched,
        pending: Option<&PendingLoad>,
        explain: bool,
        now_s: f64,
        priced: impl FnOnce(),
    ) -> Choice {
        self.price(matched, pending, now_s);
        priced(); // the caller's clock: the stage of prices ends here
        // NaN counts as no cost: `pick` never returns a candidate without a finite cost.
        let costs = &self.columns.costs;
        let (chosen, cost) = match pick(costs, self.pricing.policy().temperature(), &mut self.rng) {
            Some(chosen) => (chosen, costs[chosen]),
            None => (self.least_loaded(), f64::INFINITY),
        };
        Choice {
            chosen,
            cost,
            candidates: self.candidates(matched, explain, now_s),
        }
    }

    /// The candidate with the fewest requests in flight, pending requests included. Ties are broken at random, so that
    /// requests without a booking spread too.
    ///
    /// Cold: a fleet whose figures are right never comes here.
    #[cold]
    fn least_loaded(&mut self) -> usize {
        let (_, _, requests) = self.columns.loads(&self.load);
        let requests: Vec<f64> = requests[..self.columns.costs.len()]
            .iter()
            .map(|&requests| f64::from(requests))
            .collect();
        pick(&requests, 0.0, &mut self.rng).unwrap_or(0)
    }

    /// The tail of every decision: counts it, keeps its placement and opens its booking.
    ///
    /// Called under the lock under which `choice` was made. The request was checked before, so opening the
    /// booking cannot fail.
    pub(super) fn commit(
        &mut self,
        request: &RouteRequest<'_>,
        matched: &Matched,
        choice: Choice,
        now_s: f64,
    ) -> Decision {
        let chosen = choice.chosen;
        self.counters.routed += 1;
        self.counters.unpriced += u64::from(!choice.cost.is_finite());
        let misfit = self.pricing.misfit(&self.price_guard);
        self.counters.decided_statically += u64::from(misfit.is_some());
        let work = self.work_of(matched, chosen);
        self.record(request, matched, chosen, now_s);
        if request.request_id.is_some() {
            let claim = matched.claim(chosen, &self.trust);
            self.open(request, matched.slots[chosen], (work, claim), now_s);
        }
        Decision {
            worker: matched.workers[chosen],
            overlap_blocks: matched.device_blocks[chosen],
            cost: choice.cost,
            misfit,
            candidates: choice.candidates,
        }
    }

    /// Writes the cost of every candidate into the columns.
    ///
    /// Polls of the regime and rebases of the rates that are due come first. The price is then as of `now_s`,
    /// regardless of when the last outcome came.
    fn price(&mut self, matched: &Matched, pending: Option<&PendingLoad>, now_s: f64) {
        self.pricing.advance(now_s);
        self.columns.fill(matched, &self.load, pending);
        if self.pricing.policy().needs_latency() {
            self.ledger.advance(now_s);
            self.columns
                .fill_latency(matched, &self.ledger.columns(), pending);
        }
        // Costs and generator leave the state for the call, since the view borrows the rest of it.
        let mut costs = std::mem::take(&mut self.columns.costs);
        let mut rng = self.rng.clone();
        self.pricing
            .policy()
            .price(&self.view(matched, now_s), &mut rng, &mut costs);
        self.rng = rng;
        self.columns.costs = costs;
    }

    /// The view of a price: slices, and no copy. The columns must have been filled for the same match and time.
    ///
    /// The columns of the load are borrowed where every slot is a candidate, which is the usual case.
    fn view<'a>(&'a self, matched: &'a Matched, now_s: f64) -> View<'a> {
        let columns = &self.columns;
        let (prefill_tokens, decode_blocks, active_requests) = columns.loads(&self.load);
        let output_tokens = self.output_tokens(matched);
        let latency = if self.pricing.policy().needs_latency() {
            let shared = self.ledger.shared_inputs(output_tokens, now_s);
            let pool = PoolFigures {
                block_size: self.config.block_size,
                handoff_s_per_token: self.handoff_s_per_token(),
            };
            columns.latency(matched, (self.ledger.columns(), &self.load), shared, &pool)
        } else {
            LatencyView::default()
        };
        View {
            block_size: self.config.block_size,
            input_tokens: matched.input_tokens,
            request_blocks: matched.request_blocks,
            expected_output_tokens: matched.expected_output_tokens,
            tracks_prefill: self.config.tracks_prefill,
            tracks_decode: self.config.tracks_decode,
            turn: self.counters.routed,
            prefix_key: matched.prefix_key,
            workers: &matched.workers,
            device_blocks: &matched.device_blocks,
            host_blocks: &matched.host_blocks,
            disk_blocks: &matched.disk_blocks,
            no_lower: matched.lower_is_zero,
            prefill_tokens,
            decode_blocks,
            shared_blocks: &matched.shared_blocks,
            active_requests,
            output_tokens,
            latency,
        }
    }

    /// Every candidate as it was just priced. Empty unless `explain`: the copy costs an allocation per decision.
    fn candidates(&self, matched: &Matched, explain: bool, now_s: f64) -> Vec<Candidate> {
        if !explain {
            return Vec::new();
        }
        let view = self.view(matched, now_s);
        let candidate = |i| {
            let parts = self.pricing.policy().parts(&view, i);
            self.columns
                .candidate(matched, (&self.load, &self.trust), parts, i)
        };
        (0..matched.workers.len()).map(candidate).collect()
    }

    /// Fills what each candidate would compute and find. Late decisions need it under every policy, since the
    /// queue reads it.
    ///
    /// Immediate decisions skip it unless the policy needs seconds: it is a loop over the candidates.
    pub(super) fn fill_work(&self, matched: &mut Matched) {
        if self.config.tracks_prefill {
            matched.fill_work(self.tokens_of_block(), self.pricing.policy().needs_latency());
        } else {
            matched.fill_no_work();
        }
    }

    /// What candidate `i` would compute of a matched prompt, and find in its cache.
    ///
    /// A price in seconds counts the prefix in flight on the worker beside the reported blocks. An engine computes
    /// prompts in order, so the prefix is in the cache when the request's turn comes. Other prices count reported
    /// blocks only, as their sources do.
    pub(super) fn work_of(&self, matched: &Matched, i: usize) -> Work {
        let overlap = if self.pricing.policy().needs_latency() {
            matched.overlap_in_time(i)
        } else {
            matched.overlap(i)
        };
        self.work(matched.input_tokens, overlap)
    }

    /// Expected output tokens of a request: its own figure, else the mean. 0 in a pool that does not decode.
    pub(super) fn output_tokens(&self, matched: &Matched) -> f64 {
        match matched.expected_output_tokens {
            _ if !self.config.tracks_decode => 0.0,
            Some(tokens) => f64::from(tokens),
            None => self.ledger.mean_output_tokens(),
        }
    }

    /// Seconds to transfer the KV of one token from the pool that computed it. 0 in a pool that prefills.
    const fn handoff_s_per_token(&self) -> f64 {
        if self.config.tracks_prefill {
            0.0
        } else {
            self.config.handoff_s_per_token
        }
    }
}
