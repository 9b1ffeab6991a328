//! What a decision changes or must see as a whole, and the steps of a decision over it.
//!
//! [`RouterState::choose`] prices and picks; [`RouterState::commit`] is the one tail of every decision: it counts, keeps the
//! placement for the price of anarchy, and opens the booking.

use super::RouterConfig;
use super::decisions::RoomChanges;
use super::inspect::MAX_KEPT;
use super::pricing::Pricing;
use crate::anarchy::{DecisionCosts, RecordedDecision};
use crate::error::Error;
use crate::fleet::Fleet;
use crate::index::{Index, Prompt, Slot, TierOverlap};
use crate::latency::Learning;
use crate::ledger::{CandidateInputs, LatencyView, Ledger, NewBooking, Work};
use crate::load::Load;
use crate::matched::{Columns, Matched, PendingLoad, PoolFigures, cached_tokens_of};
use crate::pick::pick;
use crate::predicted::Predicted;
use crate::price::{LeastLoaded, Policy, View};
use crate::request::{Candidate, Choice, Decision, RequestId, RouteRequest};
use crate::rng::Rng;
use crate::snapshot::Counters;
use crate::worker::WorkerId;

/// Everything of a router that changes under its lock.
pub(super) struct RouterState {
    pub(super) config: RouterConfig,
    pub(super) pricing: Pricing,
    pub(super) rng: Rng,
    pub(super) fleet: Fleet,
    pub(super) predicted: Predicted,
    pub(super) load: Load,
    pub(super) ledger: Ledger,
    pub(super) counters: Counters,
    pub(super) room_changes: RoomChanges,
    pub(super) matched: Matched,
    pub(super) columns: Columns,
    pub(super) keeps_placements: bool,
    pub(super) kept: Vec<RecordedDecision>,
}

impl RouterState {
    /// The state of a router without workers.
    pub(super) fn new(config: &RouterConfig) -> Result<Self, Error> {
        Ok(Self {
            pricing: Pricing::new(config.policy.clone())?,
            rng: Rng::new(config.seed),
            fleet: Fleet::default(),
            predicted: Predicted::new(config.predicted),
            load: Load::default(),
            ledger: Ledger::new(&config.curves, Learning::default()),
            counters: Counters::default(),
            room_changes: RoomChanges::default(),
            matched: Matched::default(),
            columns: Columns::default(),
            keeps_placements: false,
            kept: Vec::new(),
            config: config.clone(),
        })
    }

    /// Fills what each candidate would compute and find. Late decisions need it under every policy, since the queue reads it.
    pub(super) fn fill_work(&self, matched: &mut Matched) {
        if self.config.tracks_prefill {
            matched.fill_work(self.tokens_of_block(), self.pricing.policy().needs_latency());
        } else {
            matched.fill_no_work();
        }
    }

    /// Prompt tokens that a block saves, by tier: device, host, disk.
    fn tokens_of_block(&self) -> [f64; 3] {
        let [host, disk] = self
            .pricing
            .policy()
            .reuse_weights()
            .unwrap_or(self.config.reuse_weights);
        [1.0, host, disk].map(|weight| weight * f64::from(self.config.block_size))
    }

    /// Prices every candidate of a match and picks one. `priced` is called in between.
    ///
    /// When no candidate has a finite cost, the least loaded one is chosen and the cost is infinite: a wrong figure of a worker,
    /// such as 0 KV blocks, must cost quality, not the request. [`Counters::unpriced`] counts these decisions.
    pub(super) fn choose(
        &mut self,
        matched: &Matched,
        pending: Option<&PendingLoad>,
        explain: bool,
        now_s: f64,
        priced: impl FnOnce(),
    ) -> Choice {
        self.price(matched, pending, now_s);
        priced();
        let costs = &self.columns.costs;
        let (chosen, cost) = match pick(costs, self.pricing.policy().temperature(), &mut self.rng) {
            Some(chosen) => (chosen, costs[chosen]),
            None => (self.least_loaded(matched, now_s), f64::INFINITY),
        };
        Choice {
            chosen,
            cost,
            candidates: self.candidates(matched, explain, now_s),
        }
    }

    /// The candidate with the fewest requests in flight. Ties are broken at random.
    fn least_loaded(&mut self, matched: &Matched, now_s: f64) -> usize {
        let mut requests = vec![0.0; matched.workers.len()];
        let mut rng = self.rng.clone();
        LeastLoaded.price(&self.view(matched, now_s), &mut rng, &mut requests);
        pick(&requests, 0.0, &mut self.rng).unwrap_or(0)
    }

    /// The tail of every decision: counts it, keeps its placement and opens its booking.
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
        let work = self.work_of(matched, chosen);
        self.keep(request, matched, chosen, now_s);
        self.open(request, matched.slots[chosen], work, now_s);
        Decision {
            worker: matched.workers[chosen],
            overlap_blocks: matched.device_blocks[chosen],
            cost: choice.cost,
            candidates: choice.candidates,
        }
    }

    /// Keeps what each candidate would have cost in seconds, where somebody measures the price of anarchy.
    fn keep(&mut self, request: &RouteRequest<'_>, matched: &Matched, chosen: usize, now_s: f64) {
        if self.keeps_placements
            && self.kept.len() < MAX_KEPT
            && let Some(id) = request.request_id
        {
            let placed = self.placed_of(id, matched, chosen, now_s);
            self.kept.push(placed);
        }
    }

    fn placed_of(
        &mut self,
        request: RequestId,
        matched: &Matched,
        chosen: usize,
        now_s: f64,
    ) -> RecordedDecision {
        self.ledger.advance(now_s);
        let output_tokens = self.output_tokens(matched);
        let block_tokens = f64::from(self.config.block_size);
        let count = matched.slots.len();
        let mut placement = DecisionCosts {
            at_s: now_s,
            chosen,
            prefill_s: Vec::with_capacity(count),
            decode_s: Vec::with_capacity(count),
            wait_s: Vec::with_capacity(count),
        };
        let mut peer_decode_s = Vec::with_capacity(count);
        let mut step_s = 0.0;
        for (i, &slot) in matched.slots.iter().enumerate() {
            let work = self.work_of(matched, i);
            let kv_tokens = self.kv_tokens(slot);
            let inputs = CandidateInputs {
                new_tokens: work.new_tokens as f64,
                cached_tokens: work.cached_tokens as f64,
                kv_tokens,
                kv_tokens_with: kv_tokens + matched.new_blocks(i) as f64 * block_tokens,
            };
            let found = self.ledger.estimate(slot, &inputs, output_tokens, now_s);
            placement.prefill_s.push(found.prefill_s);
            placement.decode_s.push(output_tokens * found.step_with_s);
            placement.wait_s.push(found.wait_s);
            peer_decode_s.push(output_tokens * (found.step_with_s - found.step_s).max(0.0));
            if i == chosen {
                step_s = found.step_with_s;
            }
        }
        RecordedDecision {
            request,
            placement,
            peer_decode_s,
            step_s,
            generation: matched.generation,
        }
    }

    /// Expected output tokens of a request: its own figure, else the mean. 0 in a pool that does not decode.
    fn output_tokens(&self, matched: &Matched) -> f64 {
        match matched.expected_output_tokens {
            _ if !self.config.tracks_decode => 0.0,
            Some(tokens) => f64::from(tokens),
            None => self.ledger.mean_output_tokens(),
        }
    }

    /// What each slot holds of a prompt, by KV events and by prediction.
    pub(super) fn overlaps_of(&self, prompt: &Prompt<'_>, index: &Index) -> Vec<TierOverlap> {
        let mut overlaps = index.find_matches(prompt, self.fleet.slots());
        if !self.predicted.is_off() {
            self.predicted.raise_overlaps(prompt, index, &mut overlaps);
        }
        overlaps
    }

    /// Ends bookings that outlived their time, and prefills whose first token nobody reports and that are due. Returns how many
    /// bookings ended.
    pub(super) fn expire(&mut self, now_s: f64) -> usize {
        let expired = self.load.expire(now_s);
        let assumed = self.ledger.expire(now_s);
        for &request in &assumed {
            let _ = self.load.prefill_done(request);
        }
        self.predicted.expire(now_s);
        self.counters.expired += expired as u64;
        self.room_changes.prefills += u64::from(expired > 0 || !assumed.is_empty());
        expired
    }

    /// Registered workers with their positions, in id order.
    pub(super) fn positions(&self) -> impl Iterator<Item = (WorkerId, usize)> + '_ {
        self.fleet
            .sorted()
            .into_iter()
            .map(|(id, slot)| (id, slot.index()))
    }

    /// The first token of a booked request came: the ledger and, in a pool that prefills, the regime learn from it.
    pub(super) fn first_token(&mut self, request: RequestId, now_s: f64) {
        let taken_s = self.ledger.prefill_done(request, now_s);
        if taken_s.is_none() && !self.config.tracks_prefill {
            self.ledger.answer_began(request, now_s);
        }
        // In a pool that only decodes, a booking starts long after its request. `Router::observe_first_token` reports its TTFT.
        if let Some(taken_s) = taken_s.filter(|_| self.config.tracks_prefill) {
            self.pricing.first_token(taken_s, now_s);
        }
    }

    /// Writes the cost of every candidate into the columns.
    fn price(&mut self, matched: &Matched, pending: Option<&PendingLoad>, now_s: f64) {
        self.pricing.advance(now_s);
        self.columns.fill(matched, &self.load, pending);
        if self.pricing.policy().needs_latency() {
            self.ledger.advance(now_s);
            self.columns
                .fill_latency(matched, &self.ledger.columns(), pending);
        }
        let mut costs = std::mem::take(&mut self.columns.costs);
        let mut rng = self.rng.clone();
        self.pricing
            .policy()
            .price(&self.view(matched, now_s), &mut rng, &mut costs);
        self.rng = rng;
        self.columns.costs = costs;
    }

    /// The view of a price. The columns must have been filled for the same match and time.
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

    /// Every candidate as it was just priced. Empty unless `explain`.
    fn candidates(&self, matched: &Matched, explain: bool, now_s: f64) -> Vec<Candidate> {
        if !explain {
            return Vec::new();
        }
        let view = self.view(matched, now_s);
        let candidate = |i| {
            let parts = self.pricing.policy().parts(&view, i);
            self.columns.candidate(matched, &self.load, parts, i)
        };
        (0..matched.workers.len()).map(candidate).collect()
    }

    /// Seconds to transfer the KV of one token from the pool that computed it. 0 in a pool that prefills.
    const fn handoff_s_per_token(&self) -> f64 {
        if self.config.tracks_prefill {
            0.0
        } else {
            self.config.handoff_s_per_token
        }
    }

    /// Refuses a request that cannot be booked.
    pub(super) fn check(&mut self, request: &RouteRequest<'_>) -> Result<(), Error> {
        let (locals, sequence) = (request.local_hashes.len(), request.sequence_hashes.len());
        if sequence != 0 && sequence != locals {
            let got = format!("{sequence} for {locals} local hashes");
            return Err(Error::Parameter {
                field: "sequence_hashes",
                got,
                expected: "none, or one per local hash",
            });
        }
        let Some(id) = request.request_id else {
            return Ok(());
        };
        if self.load.contains(id) {
            return Err(Error::RequestExists(id));
        }
        if self.load.len() >= self.config.max_bookings {
            self.counters.bookings_refused += 1;
            return Err(Error::TooManyBookings {
                limit: self.config.max_bookings,
            });
        }
        Ok(())
    }

    /// Opens the booking of a placed request. A request without an id leaves no trace.
    pub(super) fn open(&mut self, request: &RouteRequest<'_>, slot: Slot, work: Work, now_s: f64) {
        let Some(id) = request.request_id else {
            return;
        };
        let prompt = request.prompt();
        let expires_at_s = now_s + self.config.booking_ttl_s;
        self.load.book(id, slot, work.new_tokens, &prompt, expires_at_s);
        self.predicted.insert(slot, &prompt, Some(id), now_s);
        self.ledger.book(&NewBooking {
            request: id,
            slot,
            work,
            kv_tokens: self.kv_tokens(slot),
            is_unstreamed: request.in_one_piece,
            now_s,
            expires_at_s,
        });
        self.counters.booked += 1;
    }

    /// Distinct prompt tokens in flight on a worker.
    pub(super) fn kv_tokens(&self, slot: Slot) -> f64 {
        self.load.decode_blocks[slot.index()] as f64 * f64::from(self.config.block_size)
    }

    /// What candidate `i` would compute of a matched prompt, and find in its cache.
    ///
    /// A price in seconds counts the prefix in flight on the worker beside the reported blocks. An engine computes prompts in order, so the
    /// prefix is in the cache when the request's turn comes. Other prices count reported blocks only, as their sources do.
    fn work_of(&self, matched: &Matched, i: usize) -> Work {
        let overlap = if self.pricing.policy().needs_latency() {
            matched.overlap_in_time(i)
        } else {
            matched.overlap(i)
        };
        self.work(matched.input_tokens, overlap)
    }

    /// What a worker with this overlap would compute of a prompt, and find in its cache. Nothing in a pool that does not prefill.
    pub(super) fn work(&self, input_tokens: u32, overlap: TierOverlap) -> Work {
        if !self.config.tracks_prefill {
            return Work::default();
        }
        let cached_tokens = cached_tokens_of(overlap, self.tokens_of_block()) as u64;
        let input_tokens = u64::from(input_tokens);
        Work {
            new_tokens: input_tokens.saturating_sub(cached_tokens),
            cached_tokens: cached_tokens.min(input_tokens),
        }
    }
}
