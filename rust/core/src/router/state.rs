//! Everything of a router that changes under its lock, with the life of a booking.
//!
//! `choose.rs` has the steps of a decision over it, `record.rs` what is kept for the price of anarchy.
//!
//! A booking is in three places: [`Load`] counts it in tokens and blocks, [`Ledger`] in seconds, and
//! [`Predicted`] remembers its prompt. [`RouterState::open`] and the functions of `outcomes.rs` change all
//! three in one call, so that no decision sees them apart.

use super::RouterConfig;
use super::pricing::Pricing;
use super::room_changes::RoomChanges;
use crate::anarchy::RecordedDecision;
use crate::candidate_load::Columns;
use crate::clock::Clock;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::index::{Index, Prompt, Scratch, Slot, TierOverlap, all_slots};
use crate::latency::Learning;
use crate::ledger::{Ledger, NewBooking, Outcome, Work};
use crate::load::{Expired, Load, Placed};
use crate::matched::{Matched, cached_tokens_of};
use crate::predicted::Predicted;
use crate::price_guard::PriceGuard;
use crate::request::{MAX_INPUT_TOKENS, RequestId, RouteRequest};
use crate::rng::Rng;
use crate::snapshot::Counters;
use crate::trust::{Claim, IndexTrust, TrustMode};
use crate::worker::WorkerId;

/// Everything of a router that changes under its lock.
pub(super) struct RouterState {
    /// The configuration that the router was made with. Its policy is the first one: [`RouterState::pricing`] holds the
    /// policy in force.
    pub(super) config: RouterConfig,
    /// The policy in force, with its controller.
    pub(super) pricing: Pricing,
    /// Every time that a caller gives passes through it.
    pub(super) clock: Clock,
    /// The only source of randomness: random ties, samples of the pick, and policies that draw candidates.
    pub(super) rng: Rng,
    /// Registered workers. Every change is published to the roster, which readers without the lock see.
    pub(super) fleet: Fleet,
    /// Blocks that are predicted from where requests were sent.
    pub(super) predicted: Predicted,
    /// Trust in the index about each worker.
    pub(super) trust: IndexTrust,
    /// Whether the predictions of the price fit this fleet.
    pub(super) price_guard: PriceGuard,
    /// Bookings in tokens and blocks. It decides which requests are booked: the ledger follows it.
    pub(super) load: Load,
    /// Bookings in seconds, with the latency curves.
    pub(super) ledger: Ledger,
    /// Counts of decisions and bookings. The index counts events.
    pub(super) counters: Counters,
    /// What may have given a worker room. It changes under the same lock as the room, so that a queue that read it
    /// before a round cannot miss a change.
    pub(super) room_changes: RoomChanges,
    /// The match of the last immediate decision, kept to spare the allocations. It is boxed, since a decision takes it out
    /// and puts it back.
    pub(super) matched: Option<Box<Matched>>,
    /// The columns of the last decision, kept to spare the allocations.
    pub(super) columns: Columns,
    /// Whether booked decisions are recorded.
    pub(super) records_decisions: bool,
    /// Recorded decisions, oldest first, at most [`super::inspect::MAX_KEPT`].
    pub(super) kept: Vec<RecordedDecision>,
}

impl RouterState {
    /// The state of a router without workers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a parameter of the policy that is out of range. The rest of `config` was
    /// checked before.
    pub(super) fn new(config: &RouterConfig) -> Result<Self, Error> {
        Ok(Self {
            pricing: Pricing::new(config.policy.clone(), config.tracks_prefill)?,
            clock: Clock::default(),
            rng: Rng::new(config.seed),
            fleet: Fleet::default(),
            predicted: Predicted::new(config.predicted),
            trust: IndexTrust::new(config.measures_trust),
            price_guard: PriceGuard::new(config.guards_price),
            load: Load::default(),
            ledger: Ledger::new(&config.curves, Learning::default()),
            counters: Counters::default(),
            room_changes: RoomChanges::default(),
            matched: None,
            columns: Columns::default(),
            records_decisions: false,
            kept: Vec::new(),
            config: config.clone(),
        })
    }

    /// What each slot holds of a prompt, by KV events and by prediction.
    ///
    /// For calls that need every slot at once. A decision reads into buffers of its own
    /// ([`crate::overlaps`]).
    pub(super) fn overlaps_of(&self, prompt: &Prompt<'_>, index: &Index) -> Vec<TierOverlap> {
        let mut overlaps = index.find_matches(prompt, self.fleet.slots());
        if !self.predicted.is_off() {
            self.predicted.raise_overlaps(prompt, index, &mut overlaps);
        }
        overlaps
    }

    /// Lets the prediction stand in for the index of a worker that is not exact.
    pub(super) fn follow_trust(&mut self, slot: Slot) {
        let is_exact = self.trust.mode(slot) == TrustMode::Exact;
        self.predicted.set_alone(slot, !is_exact);
    }

    /// Compares the cached tokens that an engine reported of a booked request with what was said of its cache.
    pub(super) fn audit(&mut self, request: RequestId, slot: Slot, outcome: Outcome) {
        // A pool that does not prefill finds no prompt in its caches.
        let audits = self.config.tracks_prefill && !outcome.is_refused;
        if let Some(tokens) = outcome.cached_tokens.filter(|_| audits)
            && let Some(claim) = self.load.claim(request)
            && self
                .trust
                .observe(slot, &claim, u64::from(tokens), self.config.block_size)
        {
            self.follow_trust(slot);
        }
    }

    /// Registered workers with their positions, in id order.
    pub(super) fn positions(&self) -> impl Iterator<Item = (WorkerId, usize)> + '_ {
        self.fleet
            .sorted()
            .into_iter()
            .map(|(id, slot)| (id, slot.index()))
    }

    /// Ends bookings that outlived their time, and unstreamed prefills that are due.
    /// Returns how many bookings of this router ended.
    ///
    /// O(1) when nothing is due: each list keeps its times in order.
    pub(super) fn expire(&mut self, now_s: f64) -> usize {
        let expired = self.load.expire(now_s);
        // The ledger keeps its own expiries of the same bookings. Both use the same times, so they end together.
        let assumed = self.ledger.expire(now_s);
        for &request in &assumed {
            let _ = self.load.prefill_done(request);
        }
        for was_reported in self.ledger.take_expired_reports() {
            let changed = self.price_guard.ended(was_reported);
            self.follow_price_guard(changed);
        }
        self.predicted.expire(now_s);
        self.counters.expired += expired.own as u64;
        self.room_changes.prefills += u64::from(expired != Expired::default() || !assumed.is_empty());
        expired.own
    }

    /// The first token of a booked request came: the ledger and, in a pool that prefills, the regime learn from it.
    pub(super) fn first_token(&mut self, request: RequestId, now_s: f64) {
        let seen = self.ledger.prefill_done(request, now_s);
        if let Some(seen) = &seen {
            let changed = self.price_guard.first_token(seen);
            self.follow_price_guard(changed);
        }
        if seen.is_none() && !self.config.tracks_prefill {
            self.ledger.answer_began(request, now_s);
        }
        // In a pool that only decodes, a booking starts long after its request. `Router::observe_first_token` reports
        // its TTFT.
        if let Some(seen) = seen.filter(|_| self.config.tracks_prefill) {
            self.pricing.first_token(seen.observed_s, now_s);
        }
    }

    /// A request is about to end: the price guard counts whether its first token was reported.
    ///
    /// An end before the first token was due is a client that left or a failure, and says nothing.
    pub(super) fn count_report(&mut self, request: RequestId, outcome: Outcome, now_s: f64) {
        let reported = self.ledger.was_reported(request, now_s);
        if let Some(reported) = reported.filter(|_| !outcome.is_refused) {
            let changed = self.price_guard.ended(reported);
            self.follow_price_guard(changed);
        }
    }

    /// Lets the static rule decide while the price guard finds a misfit. Does nothing unless `changed`.
    /// A queue then looks at every waiting request anew.
    pub(super) fn follow_price_guard(&mut self, changed: bool) {
        if changed {
            self.pricing.stand_in(self.price_guard.misfit().is_some());
            self.room_changes.prefills += 1;
        }
    }

    /// Refuses a request whose figures cannot be true.
    ///
    /// # Errors
    /// [`Error::Parameter`] for sequence hashes of another number than the local hashes, and for a prompt
    /// beyond 2²⁷ tokens.
    pub(super) fn check_figures(request: &RouteRequest<'_>) -> Result<(), Error> {
        let (locals, sequence) = (request.local_hashes.len(), request.sequence_hashes.len());
        if sequence != 0 && sequence != locals {
            let got = format!("{sequence} for {locals} local hashes");
            return Err(Error::Parameter {
                field: "sequence_hashes",
                got,
                expected: "none, or one per local hash",
            });
        }
        if request.input_tokens > MAX_INPUT_TOKENS {
            return Err(Error::Parameter {
                field: "input_tokens",
                got: request.input_tokens.to_string(),
                expected: "at most 134,217,728 tokens",
            });
        }
        Ok(())
    }

    /// Refuses a request that cannot be booked. A request without an id books nothing, so only its figures
    /// are checked.
    ///
    /// # Errors
    /// As [`RouterState::check_figures`], and [`Error::RequestExists`] or [`Error::TooManyBookings`].
    pub(super) fn check(&mut self, request: &RouteRequest<'_>) -> Result<(), Error> {
        Self::check_figures(request)?;
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

    /// Opens the booking of a placed request. A request without an id leaves no trace. `claim` is what was said of the
    /// worker's cache.
    ///
    /// The load comes first: the ledger reads the blocks in flight with the request among them.
    pub(super) fn open(
        &mut self,
        request: &RouteRequest<'_>,
        slot: Slot,
        (work, claim): (Work, Claim),
        now_s: f64,
    ) {
        let Some(id) = request.request_id else {
            return;
        };
        let prompt = request.prompt();
        let expires_at_s = now_s + self.config.booking_ttl_s;
        let placed = Placed {
            slot,
            prefill_tokens: work.new_tokens,
            expires_at_s,
            claim,
            further_blocks: 0,
            is_of_peer: false,
        };
        self.load.book(id, placed, &prompt);
        self.predicted.insert(slot, &prompt, Some(id), now_s);
        self.ledger.book(&NewBooking {
            request: id,
            slot,
            work,
            kv_tokens: self.kv_tokens(slot),
            is_unstreamed: request.is_unstreamed,
            is_unsure: self.trust.mode(slot) != TrustMode::Exact,
            is_of_peer: false,
            now_s,
            expires_at_s,
        });
        self.counters.booked += 1;
    }

    /// Leading blocks of a prompt in flight on a worker.
    pub(super) fn in_flight_blocks(&self, request: &RouteRequest<'_>, slot: Slot) -> u32 {
        let mut depth = vec![0; self.fleet.slots()];
        let everyone = all_slots(depth.len());
        self.load
            .shared_blocks(&request.prompt(), &everyone, &mut depth, &mut Scratch::default());
        depth[slot.index()]
    }

    /// Distinct prompt tokens in flight on a worker.
    pub(super) fn kv_tokens(&self, slot: Slot) -> f64 {
        self.load.decode_blocks[slot.index()] as f64 * f64::from(self.config.block_size)
    }

    /// What a worker with this overlap would compute of a prompt, and find in its cache. Nothing in a pool that does
    /// not prefill.
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

    /// Prompt tokens that a block saves, by tier: device, host, disk. A block in a lower tier saves less,
    /// since reading it back takes time.
    pub(super) fn tokens_of_block(&self) -> [f64; 3] {
        let [host, disk] = self
            .pricing
            .policy()
            .reuse_weights()
            .unwrap_or(self.config.reuse_weights);
        [1.0, host, disk].map(|weight| weight * f64::from(self.config.block_size))
    }
}
