//! Placing what can be placed: rounds over the window, each under one lock of the router's state.
//!
//! ```text
//! pump ─▶ drop missed deadlines ─▶ place overdue requests at once
//!      ─▶ nothing can have changed since the last round? place the new arrivals that find room
//!         else rounds, each up to one placement, until a round places nothing
//!      ─▶ nothing placed and a window of requests waits? place the lowest key at once
//! ```
//!
//! A placement ends its round, since it changes every price. A round ends early when no worker with room is
//! left that no request of the round has chosen: the requests behind could only add to a backlog.
//!
//! Example of a round. Worker 1 has room, worker 2 has none. Requests a, b and c wait in this order. Request a
//! chooses worker 2, where its prefix is: it waits, and its load counts there. Request b would choose worker
//! 2 as well, but the load of a makes worker 1 cheaper: b is placed on worker 1. The next round begins again
//! with a. It ends at once, because no worker has room.
//!
//! Three other forms were tried and lost. A choice among the workers with room only makes the mean TTFT 6.5
//! times as long: requests leave their prefixes. A limit on the requests that a round looks at costs 24 % in
//! mean TTFT where memory binds. Without the last line of the flow, a small window starves idle workers.
//!
//! Cost: O(window · workers) per round at worst, and O(workers) when no worker has room.

use super::LateQueue;
use super::request::{Cause, Dispatch, Entry, Limit};
use super::room::{Demand, RoomRule};
use crate::error::Error;
use crate::exact::ordered;
use crate::ledger::Occupancy;
use crate::request::{Choice, RequestId};
use crate::router::{Decisions, RoomChanges, Router};

/// A match older than this is made again before it is acted on, seconds: KV events changed the caches
/// meanwhile.
///
/// Matching is the long part of a decision, so a match is kept while requests only wait.
const FRESH_S: f64 = 0.25;

/// A request that a round left waiting, with the load that it would put on the worker it would choose.
///
/// Requests behind it count that load, so that they do not choose the worker as if no request waited for it.
/// The list outlives the round: a later arrival is priced with the requests of lower keys in front of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockedRequest {
    /// Place in the order, seconds.
    key_s: f64,
    /// Position of the worker that the request would choose.
    position: usize,
    /// Prompt tokens to compute there.
    tokens: u64,
    /// Prefill seconds there, by the worker's curve.
    prefill_s: f64,
}

/// What a later pump must know of a round that could place nothing more.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastRound {
    /// What had given room so far when the round began.
    changes: RoomChanges,
    /// When the round began, seconds.
    at_s: f64,
    /// Whether a worker lacked memory or sequences. Then the end of any request may give it room.
    saw_full_worker: bool,
    /// Whether prompts of the round may share an engine pass. Only then it is worth sparing whole rounds.
    may_share: bool,
}

/// One hold of the router's state, for one round or one placement. Dropping it lets other decisions and
/// outcomes in.
struct Turn<'a> {
    /// The router's state, locked while the turn lives.
    decisions: Decisions<'a>,
    /// Time of the pump, seconds. All rounds of a pump see the same time.
    now_s: f64,
    /// Placements of the pump so far.
    placed: &'a mut Vec<Dispatch>,
}

impl<'a> Turn<'a> {
    /// Locks the state of the router.
    fn new(router: &'a Router, now_s: f64, placed: &'a mut Vec<Dispatch>) -> Self {
        Self {
            decisions: router.decisions(),
            now_s,
            placed,
        }
    }
}

/// What became of the match of a waiting request. Only the first two may be priced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    /// The match is recent, and its candidates are those of the fleet.
    Kept,
    /// The request was matched again.
    Renewed,
    /// No worker that the request allows takes requests, so that the old match must not be priced.
    Impossible,
}

/// The rule of room with what a round saw of the workers.
///
/// A reason for missing room is recorded while a worker is asked: the next pump must know which changes
/// matter.
struct Survey {
    /// The rule, with the mean answer as of the round.
    rule: RoomRule,
    /// What was seen so far.
    seen: LastRound,
}

impl Survey {
    /// Whether a worker takes a prompt now. Also records whether the worker lacks memory or sequences.
    fn has_room(&mut self, worker: &Occupancy, demand: Demand) -> bool {
        self.seen.saw_full_worker |= self.rule.is_full(worker, demand);
        self.rule.admits(worker, demand)
    }
}

impl LateQueue {
    /// Places what can be placed. Each placed request is booked in `router` and appended to `placed`.
    ///
    /// A request whose allowed workers all left waits for one of them to come back. It never holds up the requests
    /// behind it, and is dropped once it waited `max_wait_s`.
    ///
    /// # Errors
    /// [`Error::NoWorker`] when no worker takes requests, [`Error::TooManyBookings`] when the booking table is full.
    /// Requests that were not placed wait for the next pump.
    pub fn pump(&mut self, router: &Router, now_s: f64, placed: &mut Vec<Dispatch>) -> Result<(), Error> {
        if self.entries.is_empty() {
            self.arrivals.clear();
            return Ok(());
        }
        let now_s = self.clock.read(now_s);
        self.drop_missed_deadlines(now_s);
        while let Some(id) = self.overdue(now_s) {
            let mut turn = Turn::new(router, now_s, placed);
            if let Some(error) = turn.decisions.without_worker() {
                return Err(error);
            }
            if !self.place_at_once(&mut turn, id, Cause::Age)? {
                self.drop_unplaceable(id, Limit::Deadline);
            }
        }
        let before = placed.len();
        self.place_with_room(router, now_s, placed)?;
        if placed.len() == before && self.entries.len() >= self.config.window {
            let window: Vec<RequestId> = self.order.window().iter().map(|&(_, id)| id).collect();
            let mut turn = Turn::new(router, now_s, placed);
            for id in window {
                if self.place_at_once(&mut turn, id, Cause::Overflow)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Places every request whose worker has room: by whole rounds, or the new arrivals only when nothing else can
    /// have changed.
    fn place_with_room(
        &mut self,
        router: &Router,
        now_s: f64,
        placed: &mut Vec<Dispatch>,
    ) -> Result<(), Error> {
        let mut turn = Turn::new(router, now_s, placed);
        if let Some(error) = turn.decisions.without_worker() {
            return Err(error);
        }
        let changes = turn.decisions.room_changes();
        if let Some(last) = self
            .last_round
            .filter(|last| self.is_unchanged(last, changes, now_s))
        {
            return self.place_arrivals(&mut turn, last);
        }
        let mut seen = LastRound {
            changes,
            at_s: now_s,
            saw_full_worker: false,
            may_share: false,
        };
        self.last_round = None;
        while self.round(&mut turn, &mut seen)? {
            // Each round locks the state anew, so that other decisions get between the rounds of a long pump.
            drop(turn);
            turn = Turn::new(router, now_s, placed);
        }
        self.last_round = Some(seen);
        self.arrivals.clear();
        Ok(())
    }

    /// Drops requests whose first token would miss the deadline on every worker. O(log n) per dropped request.
    fn drop_missed_deadlines(&mut self, now_s: f64) {
        while let Some(&(last_chance, id)) = self.deadlines.first()
            && last_chance < ordered(now_s)
        {
            self.deadlines.pop_first();
            self.drop_unplaceable(id, Limit::Deadline);
        }
    }

    /// Drops a request that no placement can serve, for the caller to hear of.
    fn drop_unplaceable(&mut self, id: RequestId, limit: Limit) {
        if self.remove(id).is_some() {
            self.stats.refused[limit as usize] += 1;
            self.too_late.push(id);
        }
    }

    /// The oldest request, if it waited too long.
    ///
    /// An age counts only with the arrival of the waiting request: the id may have left and come again.
    fn overdue(&mut self, now_s: f64) -> Option<RequestId> {
        while let Some(&(arrived_s, id)) = self.ages.front() {
            if self
                .entries
                .get(&id)
                .is_some_and(|entry| entry.arrived_s == arrived_s)
            {
                return (now_s - arrived_s > self.config.max_wait_s).then_some(id);
            }
            self.ages.pop_front();
        }
        None
    }

    /// Whether no worker can have got room since the last round, so that the requests it left waiting wait on.
    ///
    /// A first token frees an engine pass, so any change of prefills counts. The end of a request frees memory and a
    /// sequence, which matters only where a worker lacked one of them. An old round is not trusted: caches changed.
    fn is_unchanged(&self, last: &LastRound, now: RoomChanges, now_s: f64) -> bool {
        last.may_share
            && self.arrivals.len() <= self.config.window
            && last.changes.prefills == now.prefills
            && (last.changes.releases == now.releases || !last.saw_full_worker)
            && now_s - last.at_s <= FRESH_S
    }

    /// Places the new arrivals that find room, each behind the blocked requests of lower keys.
    ///
    /// The blocked requests are not asked again: nothing that could give them room has changed. O(arrivals ·
    /// workers).
    fn place_arrivals(&mut self, turn: &mut Turn<'_>, last: LastRound) -> Result<(), Error> {
        let mut survey = Survey {
            rule: RoomRule::new(&self.config, &turn.decisions),
            seen: last,
        };
        for id in std::mem::take(&mut self.arrivals) {
            if !self.order.is_in_window(id) {
                continue;
            }
            if self.refresh(turn, id, f64::INFINITY)? == Match::Impossible {
                continue;
            }
            let key_s = self.entries[&id].key_s;
            self.pending.reset(turn.decisions.positions());
            for blocked in self.blocked.iter().filter(|blocked| blocked.key_s <= key_s) {
                self.pending
                    .add(blocked.position, blocked.tokens, blocked.prefill_s);
            }
            let choice = self.choose(turn, id);
            if self.admits(turn, &mut survey, id, choice.chosen) {
                self.place(turn, id, choice, Cause::Room)?;
            } else {
                self.block(turn, id, choice.chosen);
            }
            self.last_round = Some(survey.seen);
        }
        Ok(())
    }

    /// One round over the window, up to the first request that is placed. Returns whether one was.
    fn round(&mut self, turn: &mut Turn<'_>, seen: &mut LastRound) -> Result<bool, Error> {
        let mut survey = Survey {
            rule: RoomRule::new(&self.config, &turn.decisions),
            seen: *seen,
        };
        let placed = self.survey_and_place(turn, &mut survey);
        *seen = survey.seen;
        placed
    }

    /// The body of a round. `survey` keeps what was seen, also when the round places a request.
    ///
    /// A match is made again before it is acted on when it is old. The new match may choose another worker, which must
    /// have room too.
    fn survey_and_place(&mut self, turn: &mut Turn<'_>, survey: &mut Survey) -> Result<bool, Error> {
        self.pending.reset(turn.decisions.positions());
        self.blocked.clear();
        let decisions = &turn.decisions;
        let any = Demand::default();
        if !decisions
            .available()
            .any(|position| survey.has_room(&decisions.occupancy(position, turn.now_s), any))
        {
            return Ok(false);
        }
        // A worker whose engine pass is nearly full counts as free only if the smallest prompt fits. Otherwise a round
        // would go on to the end of the window for room that no request can use.
        let least = Demand {
            prefill_tokens: self.least_tokens(),
            ..any
        };
        // Workers with room that no request of this round has chosen yet.
        let mut free = 0;
        for position in decisions.available() {
            let worker = decisions.occupancy(position, turn.now_s);
            free += usize::from(survey.has_room(&worker, least));
            survey.seen.may_share |= survey.rule.may_share(least.prefill_tokens, worker.chunk_tokens);
        }
        let mut at = 0;
        while free > 0
            && let Some(&(_, id)) = self.order.window().get(at)
        {
            at += 1;
            if self.refresh(turn, id, f64::INFINITY)? == Match::Impossible {
                continue;
            }
            let mut choice = self.choose(turn, id);
            // The match may be old, so it is trusted for waiting and made again before a placement.
            let mut admitted = self.admits(turn, survey, id, choice.chosen);
            if admitted && self.refresh(turn, id, FRESH_S)? == Match::Renewed {
                choice = self.choose(turn, id);
                admitted = self.admits(turn, survey, id, choice.chosen);
            }
            if admitted {
                self.place(turn, id, choice, Cause::Room)?;
                return Ok(true);
            }
            let position = self.entries[&id].matched.position(choice.chosen);
            let had_room = self.pending.requests[position] == 0
                && survey.has_room(&turn.decisions.occupancy(position, turn.now_s), least);
            free -= usize::from(had_room);
            self.block(turn, id, choice.chosen);
        }
        Ok(false)
    }

    /// Tokens to compute of the smallest prompt in the window, on its best worker. O(window). No prompt of
    /// the window fits where this one does not.
    fn least_tokens(&self) -> u64 {
        let window = self.order.window().iter();
        let tokens = window.filter_map(|(_, id)| Some(self.entries.get(id)?.least_tokens));
        tokens.min().unwrap_or(0)
    }

    /// What a waiting request would choose at the present load and the load of the requests before it.
    fn choose(&self, turn: &mut Turn<'_>, id: RequestId) -> Choice {
        let Entry { matched, request, .. } = &self.entries[&id];
        turn.decisions
            .choose(matched, &self.pending, request.explain, turn.now_s)
    }

    /// Whether candidate `chosen` has room for the request, and no request before it chose the same worker.
    ///
    /// Requests leave a worker's line in the order of their keys: the first one to choose it goes first.
    fn admits(&self, turn: &Turn<'_>, survey: &mut Survey, id: RequestId, chosen: usize) -> bool {
        let matched = &self.entries[&id].matched;
        let position = matched.position(chosen);
        let demand = Demand {
            prefill_tokens: matched.work(chosen).new_tokens,
            kv_tokens: matched.new_blocks(chosen) as f64 * f64::from(turn.decisions.block_size()),
        };
        self.pending.requests[position] == 0
            && survey.has_room(&turn.decisions.occupancy(position, turn.now_s), demand)
    }

    /// The request waits for candidate `chosen`. Requests behind it count its load there.
    fn block(&mut self, turn: &Turn<'_>, id: RequestId, chosen: usize) {
        let entry = &self.entries[&id];
        let (position, work) = (entry.matched.position(chosen), entry.matched.work(chosen));
        let blocked = BlockedRequest {
            key_s: entry.key_s,
            position,
            tokens: work.new_tokens,
            prefill_s: turn.decisions.prefill_s(position, work),
        };
        self.pending.add(position, blocked.tokens, blocked.prefill_s);
        self.blocked.push(blocked);
    }

    /// Matches a waiting request again when the set of workers changed or its match is older than `age_s`.
    fn refresh(&mut self, turn: &Turn<'_>, id: RequestId, age_s: f64) -> Result<Match, Error> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(Match::Impossible);
        };
        if turn.decisions.is_current(&entry.matched) && turn.now_s - entry.matched_at_s <= age_s {
            return Ok(Match::Kept);
        }
        match turn.decisions.match_again(&entry.request.route_request()) {
            Ok(matched) => {
                entry.matched = matched;
                entry.least_tokens = entry.matched.least_tokens();
                entry.matched_at_s = turn.now_s;
                Ok(Match::Renewed)
            }
            Err(Error::NoWorker { .. }) => Ok(Match::Impossible),
            Err(error) => Err(error),
        }
    }

    /// Places a request by price alone, regardless of room. Returns false for a request without a candidate. The next
    /// pump makes a whole round, since the placement changed the load that the blocked requests saw.
    fn place_at_once(&mut self, turn: &mut Turn<'_>, id: RequestId, cause: Cause) -> Result<bool, Error> {
        self.last_round = None;
        self.pending.reset(turn.decisions.positions());
        if self.refresh(turn, id, FRESH_S)? == Match::Impossible {
            return Ok(false);
        }
        let choice = self.choose(turn, id);
        self.place(turn, id, choice, cause)?;
        Ok(true)
    }

    /// Books the choice of a waiting request, which leaves the queue.
    ///
    /// A request whose id was booked elsewhere meanwhile is dropped: it would fail again in every later pump and hold
    /// up the requests behind it.
    fn place(
        &mut self,
        turn: &mut Turn<'_>,
        id: RequestId,
        choice: Choice,
        cause: Cause,
    ) -> Result<(), Error> {
        let Entry { matched, request, .. } = &self.entries[&id];
        let position = matched.position(choice.chosen);
        let placed = turn
            .decisions
            .place(&request.route_request(), matched, choice, turn.now_s);
        let decision = match placed {
            Ok(decision) => decision,
            Err(Error::RequestExists(_)) => {
                self.drop_unplaceable(id, Limit::Requests);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(entry) = self.remove(id) else {
            return Ok(());
        };
        self.share_prefix(&turn.decisions, &entry, position);
        let waited_s = turn.now_s - entry.arrived_s;
        self.stats.placed[cause as usize] += 1;
        self.stats.waited_s += waited_s;
        self.pace.count(waited_s + entry.prefill_s, turn.now_s);
        turn.placed.push(Dispatch {
            id,
            worker: decision.worker,
            cost: decision.cost,
            overlap_blocks: decision.overlap_blocks,
            misfit: decision.misfit,
            waited_s,
            cause,
            candidates: decision.candidates,
        });
        Ok(())
    }
}
