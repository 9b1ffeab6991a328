//! The one path of a decision: match, price, pick and book under one hold of the state's lock.
//!
//! [`Decisions`] is that hold. [`Router::route`] makes one decision with it. A queue keeps it for one round
//! over its window: the fleet, the load and the prices of a round are then of one moment. The lock is taken
//! once per round, not per worker.
//!
//! A match is made before the lock where that is possible, since it is the long part of a decision. Under the
//! lock it is checked against the fleet, and made again when a worker joined, left or became unavailable in
//! between.
//!
//! ```text
//! without a lock   roster, index ─▶ overlaps, with a stamp of the fleet and the count of dropped caches
//! under the lock   stamp and count the same? ─▶ else read again
//!                  + predicted caches, blocks in flight, allowed workers ─▶ match
//!                  ─▶ price ─▶ pick ─▶ book
//! ```
//!
//! A decision in two steps under two locks was tried. A worker that left in between made the second step
//! panic, and a round of the queue locked two to four times per worker (`docs/adr/0011-one-decision-path.md`).

use std::sync::MutexGuard;

use super::Router;
use super::room_changes::RoomChanges;
use super::state::RouterState;
use crate::candidate_load::PendingLoad;
use crate::error::Error;
use crate::index::Slot;
use crate::ledger::{Occupancy, Work};
use crate::matched::{MatchSources, Matched};
use crate::overlaps::Overlaps;
use crate::price_guard::Misfit;
use crate::request::{Choice, Decision, RouteRequest, Stage};

/// The state of a router, locked for the decisions of one moment. Dropping it ends the moment.
pub(crate) struct Decisions<'a> {
    /// The router, for its roster and its index.
    router: &'a Router,
    /// The state, locked while this value lives.
    state: MutexGuard<'a, RouterState>,
}

impl Router {
    /// Locks the state for decisions. KV events and matches go on meanwhile.
    pub(crate) fn decisions(&self) -> Decisions<'_> {
        Decisions {
            router: self,
            state: self.state(),
        }
    }

    /// What the index and the roster say of a prompt, before the lock. Complete it with
    /// [`Decisions::complete_match`]. O(blocks / 64 + workers).
    ///
    /// The buffers belong to the calling thread. Hand them back with [`Overlaps::keep`].
    pub(crate) fn look_up(&self, request: &RouteRequest<'_>) -> Box<Overlaps> {
        let mut overlaps = Overlaps::take_kept();
        overlaps.read(&request.prompt(), &self.roster, &self.index);
        overlaps
    }
}

impl Decisions<'_> {
    /// Decides a request at once. `overlaps` is what was looked up before the lock. O(blocks / 64 + workers).
    ///
    /// `mark` is called at the end of each stage. After an error only the stages before it were marked.
    ///
    /// # Errors
    /// [`Error::NoWorker`], [`Error::RequestExists`], [`Error::TooManyBookings`], [`Error::Parameter`].
    /// Nothing is booked then.
    pub(super) fn route(
        &mut self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        now_s: f64,
        mark: &mut impl FnMut(Stage),
    ) -> Result<Decision, Error> {
        let now_s = self.state.clock.read(now_s);
        self.state.expire(now_s);
        self.state.check(request)?;
        // The match leaves the state for the call and comes back after it: the state cannot lend a part of
        // itself and change.
        let mut matched = self.state.matched.take().unwrap_or_default();
        let found = self.fill_match(request, overlaps, &mut matched);
        mark(Stage::Match);
        let decision = found.map(|()| {
            let choice = self
                .state
                .choose(&matched, None, request.explain, now_s, || mark(Stage::Price));
            self.state.commit(request, &matched, choice, now_s)
        });
        self.state.matched = Some(matched);
        if decision.is_ok() {
            mark(Stage::Pick);
        }
        decision
    }

    /// Matches a request against every candidate, for a queue that prices it several times.
    ///
    /// # Errors
    /// [`Error::NoWorker`] when no candidate is available, [`Error::Parameter`] for figures that cannot be true.
    pub fn complete_match(
        &self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
    ) -> Result<Matched, Error> {
        RouterState::check_figures(request)?;
        let mut matched = Matched::default();
        self.fill_match(request, overlaps, &mut matched)?;
        self.state.fill_work(&mut matched);
        Ok(matched)
    }

    /// As [`Decisions::complete_match`], looked up here, under the lock. For a request of a queue whose match
    /// grew old.
    pub fn match_again(&self, request: &RouteRequest<'_>) -> Result<Matched, Error> {
        let mut overlaps = self.router.look_up(request);
        let matched = self.complete_match(request, &mut overlaps);
        overlaps.keep();
        matched
    }

    /// The part of a match that needs the state. All of the match when the fleet changed since `overlaps` was looked
    /// up.
    fn fill_match(
        &self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        matched: &mut Matched,
    ) -> Result<(), Error> {
        let Router { roster, index, .. } = self.router;
        if !overlaps.is_current(roster, index) {
            overlaps.read(&request.prompt(), roster, index);
        }
        let sources = MatchSources {
            fleet: &self.state.fleet,
            index,
            predicted: &self.state.predicted,
            load: &self.state.load,
            trust: &self.state.trust,
        };
        matched.fill(request, overlaps, sources, roster.generation())?;
        if self.state.pricing.policy().needs_latency() {
            self.state.fill_work(matched);
        }
        Ok(())
    }

    /// Whether the candidates of a match are still those of the fleet. O(1): every change of the fleet has
    /// its own generation.
    pub fn is_current(&self, matched: &Matched) -> bool {
        matched.generation() == self.router.roster.generation()
    }

    /// Prices a match at the present load plus `pending` and picks a candidate. Nothing is booked.
    ///
    /// The match must be current: see [`Decisions::is_current`].
    pub fn choose(&mut self, matched: &Matched, pending: &PendingLoad, explain: bool, now_s: f64) -> Choice {
        debug_assert!(
            self.is_current(matched),
            "a match must be current when it is priced"
        );
        self.state.choose(matched, Some(pending), explain, now_s, || ())
    }

    /// Books the choice that [`Decisions::choose`] made of the same match under this lock.
    ///
    /// The request is checked again, since its id may have been booked while it waited.
    ///
    /// # Errors
    /// [`Error::RequestExists`] and [`Error::TooManyBookings`].
    pub fn place(
        &mut self,
        request: &RouteRequest<'_>,
        matched: &Matched,
        choice: Choice,
        now_s: f64,
    ) -> Result<Decision, Error> {
        debug_assert!(
            self.is_current(matched),
            "a match must be current when it is booked"
        );
        self.state.check(request)?;
        Ok(self.state.commit(request, matched, choice, now_s))
    }

    /// The error when no worker takes requests. `None` while one does.
    pub fn without_worker(&self) -> Option<Error> {
        let fleet = &self.state.fleet;
        let none = fleet.available().iter().all(|&word| word == 0);
        none.then(|| Error::NoWorker {
            registered: fleet.len(),
            available: 0,
            allowed: 0,
        })
    }

    /// What shows that the figures of the workers do not fit the fleet; `None` while they fit.
    pub fn misfit(&self) -> Option<Misfit> {
        self.state.price_guard.misfit()
    }

    /// What may have given a worker room so far.
    pub fn room_changes(&self) -> RoomChanges {
        self.state.room_changes
    }

    /// Positions of workers are below this.
    pub fn positions(&self) -> usize {
        self.state.fleet.slots()
    }

    /// Positions of the workers that take requests.
    pub fn available(&self) -> impl Iterator<Item = usize> + '_ {
        let fleet = &self.state.fleet;
        (0..fleet.slots()).filter(|&position| fleet.is_available(Slot(position as u32)))
    }

    /// How full the worker at a position is.
    pub fn occupancy(&self, position: usize, now_s: f64) -> Occupancy {
        self.state.ledger.occupancy(position, now_s)
    }

    /// Prefill seconds of `work` on the worker at a position, by its learned curve.
    pub fn prefill_s(&self, position: usize, work: Work) -> f64 {
        let curve = self.state.ledger.curves().of(position);
        curve.prefill_s(work.new_tokens, work.cached_tokens)
    }

    /// Prompt tokens that one block of each tier saves, where prices count the blocks in flight; otherwise `None`.
    pub fn tokens_of_block_in_time(&self) -> Option<[f64; 3]> {
        let counts = self.state.config.tracks_prefill && self.state.pricing.policy().needs_latency();
        counts.then(|| self.state.tokens_of_block())
    }

    /// Tokens per KV block.
    pub fn block_size(&self) -> u32 {
        self.state.config.block_size
    }

    /// Mean output tokens of the requests so far.
    pub fn mean_output_tokens(&self) -> f64 {
        self.state.ledger.mean_output_tokens()
    }
}

impl Router {
    /// Positions of workers are below this. A position is reused after its worker left.
    pub fn positions(&self) -> usize {
        self.roster.slots()
    }

    /// How full the worker at a position is.
    pub fn occupancy(&self, position: usize, now_s: f64) -> Occupancy {
        self.state().ledger.occupancy(position, now_s)
    }
}
