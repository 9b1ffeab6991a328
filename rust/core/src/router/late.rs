//! What a queue in front of the router asks: match once, price often, place late.

use std::sync::atomic::Ordering;

use super::Router;
use crate::error::Error;
use crate::index::Slot;
use crate::ledger::{Pressure, Work};
use crate::matched::{Ahead, Matched, Overlaps};
use crate::pick::pick;
use crate::request::{Choice, RouteRequest};
use crate::worker::WorkerId;

/// Counts of what may give a worker room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomChanges {
    /// Prompts that no longer wait there (first tokens, ends before them, expiries), words of engines, workers that come or go,
    /// other policies.
    pub prompts: u64,
    /// Ends of requests after their first token: they give memory and a sequence back, of which there may be enough.
    pub ends: u64,
}

impl Router {
    /// Matches a request against every candidate without choosing: for a queue, which prices it more than once.
    pub fn prepare(&self, request: &RouteRequest<'_>) -> Result<Matched, Error> {
        let mut matched = Matched::default();
        let mut overlaps = Box::<Overlaps>::default();
        overlaps.look(&request.prompt(), &self.roster, &self.index);
        let desk = &*self.desk();
        self.complete(desk, request, &mut overlaps, &mut matched)?;
        desk.fill_work(&mut matched);
        Ok(matched)
    }

    /// Prices a matched request at the present load plus what waits ahead of it: the chosen candidate and its cost.
    ///
    /// `matched` must be of the present [`Router::generation`], and a price must leave one candidate a finite cost.
    pub fn choose(&self, matched: &Matched, ahead: &Ahead, now_s: f64) -> (usize, f64) {
        let choice = self.choose_explained(matched, (ahead, false), now_s);
        (choice.chosen, choice.cost)
    }

    /// As [`Router::choose`], with every candidate and its parts when `explain`.
    pub fn choose_explained(
        &self,
        matched: &Matched,
        (ahead, explain): (&Ahead, bool),
        now_s: f64,
    ) -> Choice {
        let desk = &mut *self.desk();
        self.assert_present(matched);
        desk.price(matched, Some(ahead), now_s);
        let chosen = pick(&desk.columns.costs, desk.policy.temperature(), &mut desk.rng);
        let chosen = chosen.expect("a price must leave one candidate with a finite cost");
        Choice {
            chosen,
            cost: desk.columns.costs[chosen],
            candidates: desk.candidates(matched, explain, now_s),
        }
    }

    fn assert_present(&self, matched: &Matched) {
        assert_eq!(
            matched.generation,
            self.roster.generation(),
            "a match must be of the present generation"
        );
    }

    /// Books a matched request on candidate `chosen`. The request must have an id.
    pub fn place(
        &self,
        request: &RouteRequest<'_>,
        matched: &Matched,
        chosen: usize,
        now_s: f64,
    ) -> Result<WorkerId, Error> {
        let desk = &mut *self.desk();
        self.assert_present(matched);
        desk.check(request)?;
        desk.counters.routed += 1;
        let work = desk.work_of(matched, chosen);
        desk.keep(request, matched, chosen, now_s);
        desk.open(request, matched.slots[chosen], work, now_s);
        Ok(matched.workers[chosen])
    }

    /// Counts changes of the set of candidates: a [`Matched`] is good for one.
    pub fn generation(&self) -> u64 {
        self.roster.generation()
    }

    /// What may have given a worker room so far. While it stays, a queue need not ask again those whom nobody had room for.
    pub fn room_changes(&self) -> RoomChanges {
        RoomChanges {
            prompts: self.prompts_over.load(Ordering::Relaxed),
            ends: self.ends.load(Ordering::Relaxed),
        }
    }

    /// Dense positions in use are below this.
    pub fn positions(&self) -> usize {
        self.roster.slots()
    }

    /// Whether a dense position has a worker that takes requests.
    pub fn serves(&self, position: usize) -> bool {
        let fleet = &self.desk().fleet;
        position < fleet.slots() && fleet.is_available(Slot(position as u32))
    }

    /// How full the worker at a dense position is.
    pub fn pressure(&self, position: usize, now_s: f64) -> Pressure {
        self.desk().ledger.pressure(position, now_s)
    }

    /// Prefill seconds of `work` on the worker at a dense position, by its learned curve.
    pub fn prefill_s(&self, position: usize, work: Work) -> f64 {
        let desk = &*self.desk();
        let curve = desk.ledger.curves().of(position);
        curve.prefill_s(work.new_tokens, work.cached_tokens)
    }

    /// Requests booked since the start, and the prefill seconds that they were expected to take.
    pub fn booked_prefill(&self) -> (u64, f64) {
        self.desk().ledger.booked()
    }
}
