//! Late binding: while the worker that a request would choose has no room, the request waits here, and the later it is
//! bound, the better it is placed.
//!
//! ```text
//! room(j)  no prefill in flight on j, or (this one is at most a quarter of an engine pass, the pass holds it beside them, their backlog <
//!          backlog_s and requests of j < its sequences);
//!          and, unless j is empty: KV in flight + own new + (n_j + 1)·(mean answer + a block) ≤ capacity of j
//! key(r)   arrival_r + κ·s_r·b/(κ·s_r + b),  s_r = prefill seconds of r on its best-overlap worker,
//!          b = patience · mean of wait + s of those placed of late
//! pump     V = N = 0; for r of the oldest K, by key:
//!              j* = argmin of the price over ALL workers with backlog W + V and requests n + N
//!              room(j*) and N_j* = 0: place r on j*, start again;   else V_j* += s(r, j*), N_j* += 1
//!              stop when no worker with room has N = 0
//!          nothing placed and K or more wait: place the smallest key by price at once (overflow)
//! ```
//!
//! What is in flight is what the engine itself tells of its queue, corrected by what it cannot have seen yet; when its last word
//! is stale, the router's own count; and when that cannot be believed either, a worker always has room.
//!
//! Pump on arrival, first token and end. Pure: no clock, no I/O; the simulator and the gateway run this same code in front
//! of any policy. The rule and its pitfalls are measured in `docs/pricing.md`: choosing among free workers only ruins the
//! tail, and without overflow a small window starves idle workers.
//!
//! * **Nothing starves**: r is overtaken only by requests that arrive within `κ·(s_r − s_other)` of it and less than `patience`
//!   times what all took of late, and what waited `max_wait_s` goes at once.
//! * **Nothing is lost**: a request is waiting, placed, cancelled or refused, exactly one of them.
//! * **Bounded** in requests, bytes, both per tenant too, tenants and time. A request whose deadline cannot be met any more is
//!   taken out.
//! * **Not wedged**: a lost completion ends with its booking's expiry in the router, and no wait is longer than
//!   `max_wait_s`.
//! * Cost: O(K·workers) per pump at worst, O(workers) when nobody has room, and one match per request, as without it. Where small
//!   prompts share passes, those who come while no worker got room are asked alone, and only what may give room asks all again.

mod config;
mod order;
mod waiting;

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

pub use config::QueueConfig;
use order::Order;
use waiting::Entry;
pub use waiting::{Cause, Dispatch, Limit, Offer, QueuedRequest, Tenant};

use crate::error::Error;
use crate::exact::ordered;
use crate::ledger::Pressure;
use crate::matched::{Ahead, Matched};
use crate::request::{Choice, RequestId};
use crate::router::{RoomChanges, Router};

/// Placed requests that the mean of late is of.
const MEAN_OVER: f64 = 64.0;

/// Counts since the start, and the state now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueStats {
    /// Waiting now.
    pub waiting: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Prefill seconds of them, on their best workers.
    pub prefill_s: f64,
    /// Taken.
    pub taken: u64,
    /// Placed because of room, overflow and age.
    pub placed: [u64; 3],
    /// Cancelled while waiting.
    pub cancelled: u64,
    /// Refused, by [`Limit`].
    pub refused: [u64; 5],
    /// Seconds waited by all that were placed.
    pub waited_s: f64,
}

/// A prompt of more than this part of an engine pass goes alone: the others of its pass would wait for it.
const SHARED_PART: u64 = 4;

/// A match is made again before it is acted on when it is older than this, seconds.
const FRESH_S: f64 = 0.25;

/// See the module.
#[derive(Debug)]
pub struct LateQueue {
    config: QueueConfig,
    entries: FxHashMap<RequestId, Entry>,
    order: Order,
    /// By arrival; those that left are skipped when they come first.
    ages: VecDeque<(f64, RequestId)>,
    per_tenant: FxHashMap<Tenant, TenantState>,
    /// Until when a request must be placed to meet its deadline, of those that have one.
    deadlines: BTreeSet<(u64, RequestId)>,
    /// Those that were not, until they are taken.
    too_late: Vec<RequestId>,
    ahead: Ahead,
    /// Those whom nobody had room for at the last walk and since, with what each of them would choose.
    line: Vec<Stood>,
    /// What room was like at the last walk, after which nobody more could be placed, and when. Who came since is asked alone.
    settled: Option<(RoomChanges, f64)>,
    /// Whether that walk met a worker that lacked memory or sequences: then the end of any request counts.
    met_full: Cell<bool>,
    /// Whether that walk had prompts that may share a pass. Then some worker nearly always has room that nobody wants, and it
    /// went on to the window's end: the one kind that is worth sparing.
    may_share: bool,
    /// Taken since that walk; with more than a window of them the next walk is a whole one.
    fresh: Vec<RequestId>,
    stats: QueueStats,
    /// When requests were placed last, for the rate of draining: (time, mean gap).
    drain: Option<(f64, f64)>,
    /// Mean of wait and own prefill of those placed of late, seconds.
    mean_s: f64,
}

/// A request that waits for a worker.
#[derive(Clone, Copy, Debug)]
struct Stood {
    key_s: f64,
    position: usize,
    tokens: u64,
    prefill_s: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct TenantState {
    waiting: usize,
    bytes: u64,
    /// Where its next request is dated at the earliest.
    next_start_s: f64,
}

impl LateQueue {
    /// An empty queue.
    pub fn new(config: QueueConfig) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            config,
            entries: FxHashMap::default(),
            order: Order::default(),
            ages: VecDeque::new(),
            per_tenant: FxHashMap::default(),
            deadlines: BTreeSet::new(),
            too_late: Vec::new(),
            ahead: Ahead::default(),
            line: Vec::new(),
            settled: None,
            met_full: Cell::new(false),
            may_share: false,
            fresh: Vec::new(),
            stats: QueueStats::default(),
            drain: None,
            mean_s: 0.0,
        })
    }

    /// The configuration in force.
    pub const fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Puts another configuration in force; those that wait keep their keys.
    pub fn set_config(&mut self, config: QueueConfig) -> Result<(), Error> {
        config.validate()?;
        self.config = config;
        self.settled = None;
        Ok(())
    }

    /// Requests waiting.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tenants that are told apart now; at most `max_tenants`, and the others together.
    pub fn tenants(&self) -> usize {
        self.per_tenant.len()
    }

    /// Counts, and the state now.
    pub const fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Takes a request in. It is placed by the pump that must follow.
    ///
    /// Errors: those of [`Router::prepare`], and [`Error::RequestExists`] for an id that waits or is booked.
    pub fn offer(&mut self, router: &Router, mut request: QueuedRequest, now_s: f64) -> Result<Offer, Error> {
        if self.entries.contains_key(&request.id) || router.is_booked(request.id) {
            return Err(Error::RequestExists(request.id));
        }
        request.tenant = self.billed(request.tenant, now_s);
        if let Some(limit) = self.limit(&request) {
            return Ok(self.refuse(limit));
        }
        let matched = router.prepare(&request.question())?;
        let (prefill_s, soonest_s) = best(router, &matched, now_s);
        if request
            .deadline_s
            .is_some_and(|deadline_s| now_s + soonest_s > deadline_s)
        {
            return Ok(self.refuse(Limit::Deadline));
        }
        let start_s = self.start_s(&request, prefill_s, now_s);
        let key_s = start_s + self.handicap_s(prefill_s);
        self.order.insert(start_s, key_s, request.id, self.config.window);
        self.ages.push_back((now_s, request.id));
        let tenant = self.per_tenant.entry(request.tenant).or_default();
        tenant.waiting += 1;
        tenant.bytes += request.bytes;
        let last_chance_s = request.deadline_s.map(|deadline_s| deadline_s - prefill_s);
        if let Some(last_chance_s) = last_chance_s {
            self.deadlines.insert((ordered(last_chance_s), request.id));
        }
        self.stats.taken += 1;
        self.stats.waiting += 1;
        self.stats.bytes += request.bytes;
        self.stats.prefill_s += prefill_s;
        let entry = Entry {
            least_tokens: matched.least_tokens(),
            matched,
            matched_at_s: now_s,
            arrived_s: now_s,
            start_s,
            key_s,
            prefill_s,
            last_chance_s,
            request,
        };
        self.fresh.push(entry.request.id);
        self.entries.insert(entry.request.id, entry);
        Ok(Offer::Taken)
    }

    /// The client left. False when the request does not wait (any more).
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let found = self.remove(id).is_some();
        self.stats.cancelled += u64::from(found);
        found
    }

    /// Requests that were taken out since the last call because their deadline cannot be met any more.
    pub fn take_too_late(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.too_late)
    }

    /// Takes out those whose first token cannot be in time wherever they go.
    fn give_up(&mut self, now_s: f64) {
        while let Some(&(last_chance, id)) = self.deadlines.first()
            && last_chance < ordered(now_s)
        {
            self.deadlines.pop_first();
            if self.remove(id).is_some() {
                self.stats.refused[Limit::Deadline as usize] += 1;
                self.too_late.push(id);
            }
        }
    }

    /// Places what can be placed; each is booked in `router` and appended to `placed`.
    ///
    /// Errors: those of [`Router::place`] (a full booking table) and [`Error::NoWorker`] when nobody is available: all wait
    /// for the next pump.
    pub fn pump(&mut self, router: &Router, now_s: f64, placed: &mut Vec<Dispatch>) -> Result<(), Error> {
        if self.entries.is_empty() {
            self.fresh.clear();
            return Ok(());
        }
        self.give_up(now_s);
        while let Some(id) = self.overdue(now_s) {
            self.settled = None;
            self.ahead.clear(router.positions());
            self.place_now(router, id, Cause::Age, now_s, placed)?;
        }
        let before = placed.len();
        let changes = router.room_changes();
        if self.is_settled(changes, now_s) {
            self.ask_fresh(router, now_s, placed)?;
        } else {
            self.settled = None;
            self.met_full.set(false);
            self.may_share = false;
            while self.pass(router, now_s, placed)? {}
            self.settled = Some((changes, now_s));
            self.fresh.clear();
        }
        if placed.len() == before
            && self.entries.len() >= self.config.window
            && let Some(id) = self.order.window().first().map(|&(_, id)| id)
        {
            self.settled = None;
            self.ahead.clear(router.positions());
            self.place_now(router, id, Cause::Overflow, now_s, placed)?;
        }
        Ok(())
    }

    /// Whether no worker got room since the last walk: those who waited then wait on.
    fn is_settled(&self, now: RoomChanges, now_s: f64) -> bool {
        let is_same = |then: RoomChanges| {
            then.prompts == now.prompts && (then.ends == now.ends || !self.met_full.get())
        };
        self.may_share
            && self.fresh.len() <= self.config.window
            && self
                .settled
                .is_some_and(|(then, at_s)| is_same(then) && now_s - at_s <= FRESH_S)
    }

    /// Asks those who came since the last walk, each where it stands in line.
    fn ask_fresh(&mut self, router: &Router, now_s: f64, placed: &mut Vec<Dispatch>) -> Result<(), Error> {
        let answer_tokens = router.mean_output_tokens() + f64::from(router.config().block_size);
        for id in std::mem::take(&mut self.fresh) {
            if !self.entries.contains_key(&id) || !self.order.window().iter().any(|&(_, of)| of == id) {
                continue;
            }
            self.refresh(router, id, now_s, f64::INFINITY)?;
            let entry = &self.entries[&id];
            self.ahead.clear(router.positions());
            let before = self.line.iter().filter(|stood| stood.key_s <= entry.key_s);
            before.for_each(|stood| self.ahead.add(stood));
            let choice = self.choose(router, entry, now_s);
            if self.admits(router, entry, choice.chosen, (answer_tokens, now_s)) {
                self.place(router, id, choice, Cause::Room, now_s, placed)?;
            } else {
                self.stand(router, id, choice.chosen);
            }
        }
        Ok(())
    }

    /// A request waits for candidate `chosen`: those behind it count it there.
    fn stand(&mut self, router: &Router, id: RequestId, chosen: usize) {
        let entry = &self.entries[&id];
        let (position, work) = (entry.matched.position(chosen), entry.matched.work(chosen));
        let stood = Stood {
            key_s: entry.key_s,
            position,
            tokens: work.new_tokens,
            prefill_s: router.prefill_s(position, work),
        };
        self.ahead.add(&stood);
        self.line.push(stood);
    }

    /// One walk over the window; true when a request was placed.
    fn pass(&mut self, router: &Router, now_s: f64, placed: &mut Vec<Dispatch>) -> Result<bool, Error> {
        let positions = router.positions();
        self.ahead.clear(positions);
        self.line.clear();
        let answer_tokens = router.mean_output_tokens() + f64::from(router.config().block_size);
        let room_for = |queue: &Self, j: usize, tokens: u64| {
            queue.has_room(&router.pressure(j, now_s), tokens, 0.0, answer_tokens)
        };
        if !(0..positions).any(|j| router.serves(j) && room_for(self, j, 0)) {
            return Ok(false);
        }
        // A pass that is nearly full has room for nobody here: without this the walk would go on to the window's end.
        let least = self.least_tokens();
        // Workers with room that nobody of this walk has chosen yet.
        let mut free = 0;
        for j in (0..positions).filter(|&j| router.serves(j)) {
            let pressure = router.pressure(j, now_s);
            free += usize::from(self.has_room(&pressure, least, 0.0, answer_tokens));
            self.may_share |= self.shares(least, pressure.chunk_tokens);
        }
        let mut at = 0;
        while free > 0 && at < self.order.window().len() {
            let id = self.order.window()[at].1;
            at += 1;
            self.refresh(router, id, now_s, f64::INFINITY)?;
            let mut entry = &self.entries[&id];
            let mut choice = self.choose(router, entry, now_s);
            if self.admits(router, entry, choice.chosen, (answer_tokens, now_s))
                && now_s - entry.matched_at_s > FRESH_S
            {
                self.refresh(router, id, now_s, FRESH_S)?;
                entry = &self.entries[&id];
                choice = self.choose(router, entry, now_s);
            }
            let chosen = choice.chosen;
            if self.admits(router, entry, chosen, (answer_tokens, now_s)) {
                self.place(router, id, choice, Cause::Room, now_s, placed)?;
                return Ok(true);
            }
            let position = entry.matched.position(chosen);
            let had_room = self.ahead.requests[position] == 0 && room_for(self, position, least);
            free -= usize::from(had_room);
            self.stand(router, id, chosen);
        }
        Ok(false)
    }

    /// Tokens to compute of the window's smallest prompt, on its best worker. O(window).
    fn least_tokens(&self) -> u64 {
        let window = self.order.window().iter();
        let tokens = window.filter_map(|(_, id)| Some(self.entries.get(id)?.least_tokens));
        tokens.min().unwrap_or(0)
    }

    fn choose(&self, router: &Router, entry: &Entry, now_s: f64) -> Choice {
        router.choose_explained(&entry.matched, (&self.ahead, entry.request.explain), now_s)
    }

    fn admits(
        &self,
        router: &Router,
        entry: &Entry,
        chosen: usize,
        (answer_tokens, now_s): (f64, f64),
    ) -> bool {
        let position = entry.matched.position(chosen);
        let new_tokens = entry.matched.new_blocks(chosen) as f64 * f64::from(router.config().block_size);
        self.ahead.requests[position] == 0
            && self.has_room(
                &router.pressure(position, now_s),
                entry.matched.work(chosen).new_tokens,
                new_tokens,
                answer_tokens,
            )
    }

    /// Whether a worker takes a prompt of `prefill_tokens` to compute and `new_tokens` to keep; 0 of both asks for any room.
    ///
    /// Small prompts that fit into one engine pass together hold nobody up, and an engine that gets them one by one computes
    /// half-empty passes. A prompt that does not fit waits: who goes next is decided when the pass is over.
    fn has_room(&self, p: &Pressure, prefill_tokens: u64, new_tokens: f64, answer_tokens: f64) -> bool {
        let shares_pass = self.shares(prefill_tokens, p.chunk_tokens)
            && p.prefill_tokens + prefill_tokens <= p.chunk_tokens;
        let takes_prefill = p.prefills == 0
            || (shares_pass && p.backlog_s < self.config.backlog_s && p.requests < p.max_requests);
        let needed = p.kv_tokens + new_tokens + f64::from(p.requests + 1) * answer_tokens;
        let is_full = p.requests > 0 && (needed > p.kv_capacity_tokens || p.requests >= p.max_requests);
        self.met_full.set(self.met_full.get() || is_full);
        !p.is_told || takes_prefill && (p.requests == 0 || needed <= p.kv_capacity_tokens)
    }

    /// Whether a prompt may share an engine pass with others.
    const fn shares(&self, prefill_tokens: u64, chunk_tokens: u64) -> bool {
        self.config.share_passes && SHARED_PART.saturating_mul(prefill_tokens) <= chunk_tokens
    }

    /// Matches a request again when the set of workers changed or its match is older than `age_s`.
    fn refresh(&mut self, router: &Router, id: RequestId, now_s: f64, age_s: f64) -> Result<(), Error> {
        let entry = self
            .entries
            .get_mut(&id)
            .expect("a request in order must be waiting");
        if entry.matched.generation() != router.generation() || now_s - entry.matched_at_s > age_s {
            entry.matched = router.prepare(&entry.request.question())?;
            entry.least_tokens = entry.matched.least_tokens();
            entry.matched_at_s = now_s;
        }
        Ok(())
    }

    fn place_now(
        &mut self,
        router: &Router,
        id: RequestId,
        cause: Cause,
        now_s: f64,
        placed: &mut Vec<Dispatch>,
    ) -> Result<(), Error> {
        self.refresh(router, id, now_s, FRESH_S)?;
        let choice = self.choose(router, &self.entries[&id], now_s);
        self.place(router, id, choice, cause, now_s, placed)
    }

    fn place(
        &mut self,
        router: &Router,
        id: RequestId,
        choice: Choice,
        cause: Cause,
        now_s: f64,
        placed: &mut Vec<Dispatch>,
    ) -> Result<(), Error> {
        let entry = &self.entries[&id];
        let chosen = choice.chosen;
        let worker = router.place(&entry.request.question(), &entry.matched, chosen, now_s)?;
        let overlap_blocks = entry.matched.overlap_blocks(chosen);
        let entry = self.remove(id).expect("a placed request must have been waiting");
        let waited_s = now_s - entry.arrived_s;
        self.stats.placed[cause as usize] += 1;
        self.stats.waited_s += waited_s;
        let seen = self.stats.placed.iter().sum::<u64>() as f64;
        self.mean_s += (waited_s + entry.prefill_s - self.mean_s) / seen.min(MEAN_OVER);
        self.drain = Some(match self.drain {
            None => (now_s, 1.0),
            Some((last_s, gap_s)) => (now_s, gap_s + 0.05 * ((now_s - last_s) - gap_s)),
        });
        placed.push(Dispatch {
            id,
            worker,
            cost: choice.cost,
            overlap_blocks,
            waited_s,
            cause,
            candidates: choice.candidates,
        });
        Ok(())
    }

    fn remove(&mut self, id: RequestId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.order.remove(entry.start_s, entry.key_s, id);
        if let Some(last_chance_s) = entry.last_chance_s {
            self.deadlines.remove(&(ordered(last_chance_s), id));
        }
        let keys = |id| self.entries.get(&id).map_or(0.0, |entry| entry.key_s);
        self.order.refill(self.config.window, keys);
        if let Some(tenant) = self.per_tenant.get_mut(&entry.request.tenant) {
            tenant.waiting -= 1;
            tenant.bytes -= entry.request.bytes;
            if tenant.waiting == 0 && !self.config.fair {
                self.per_tenant.remove(&entry.request.tenant);
            }
        }
        self.stats.waiting -= 1;
        self.stats.bytes -= entry.request.bytes;
        self.stats.prefill_s = (self.stats.prefill_s - entry.prefill_s).max(0.0);
        Some(entry)
    }

    /// The oldest request that waited too long.
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

    fn limit(&self, request: &QueuedRequest) -> Option<Limit> {
        let of_tenant = self.per_tenant.get(&request.tenant).copied().unwrap_or_default();
        if self.entries.len() >= self.config.max_requests {
            Some(Limit::Requests)
        } else if self.stats.bytes.saturating_add(request.bytes) > self.config.max_bytes {
            Some(Limit::Bytes)
        } else if of_tenant.waiting >= self.config.max_requests_per_tenant {
            Some(Limit::Tenant)
        } else if of_tenant.bytes.saturating_add(request.bytes) > self.config.max_bytes_per_tenant {
            Some(Limit::TenantBytes)
        } else {
            None
        }
    }

    /// Who a request counts for: its tenant, or [`Tenant::OTHERS`] while as many are known as may be.
    fn billed(&mut self, tenant: Tenant, now_s: f64) -> Tenant {
        let is_full = |queue: &Self| queue.per_tenant.len() >= queue.config.max_tenants;
        if self.per_tenant.contains_key(&tenant) || !is_full(self) {
            return tenant;
        }
        // Tenants whose date has passed owe nothing and are forgotten.
        self.per_tenant
            .retain(|_, tenant| tenant.waiting > 0 || tenant.next_start_s > now_s);
        if is_full(self) { Tenant::OTHERS } else { tenant }
    }

    fn refuse(&mut self, limit: Limit) -> Offer {
        self.stats.refused[limit as usize] += 1;
        Offer::Refused {
            limit,
            retry_after_s: self.retry_after_s(),
        }
    }

    /// Seconds in which a window of requests has been placed of late; 1 to 60.
    pub fn retry_after_s(&self) -> f64 {
        let gap_s = self.drain.map_or(0.0, |(_, gap_s)| gap_s);
        (gap_s * self.config.window as f64).clamp(1.0, 60.0)
    }

    /// What a request's own length costs it in line: κ·s while that is little beside `patience` times what all took of late, and
    /// never more than that. It grows with s all the way, so the shorter of two that came together goes first.
    fn handicap_s(&self, prefill_s: f64) -> f64 {
        let by_length_s = self.config.kappa * prefill_s;
        let most_s = self.config.patience * self.mean_s;
        if self.config.patience == 0.0 || by_length_s == 0.0 {
            return by_length_s;
        }
        by_length_s * most_s / (by_length_s + most_s)
    }

    /// Where a request stands in line: its arrival, less its head start, and behind its tenant's share.
    fn start_s(&mut self, request: &QueuedRequest, prefill_s: f64, now_s: f64) -> f64 {
        let start_s = now_s - self.config.priority_s * f64::from(request.priority);
        if !self.config.fair {
            return start_s;
        }
        let tenant = self.per_tenant.entry(request.tenant).or_default();
        let start_s = start_s.max(tenant.next_start_s);
        let weight = if request.weight > 0.0 { request.weight } else { 1.0 };
        tenant.next_start_s = start_s + prefill_s / weight;
        start_s
    }
}

/// Prefill seconds on the best-overlap worker, and the soonest first token anywhere.
fn best(router: &Router, matched: &Matched, now_s: f64) -> (f64, f64) {
    let (mut own_s, mut soonest_s) = (f64::INFINITY, f64::INFINITY);
    for (i, position) in matched.positions().enumerate() {
        let prefill_s = router.prefill_s(position, matched.work(i));
        own_s = own_s.min(prefill_s);
        soonest_s = soonest_s.min(prefill_s + router.pressure(position, now_s).backlog_s);
    }
    (own_s, soonest_s)
}

impl Ahead {
    fn add(&mut self, stood: &Stood) {
        self.tokens[stood.position] += stood.tokens;
        self.prefill_s[stood.position] += stood.prefill_s;
        self.requests[stood.position] += 1;
    }

    fn clear(&mut self, positions: usize) {
        self.tokens.clear();
        self.tokens.resize(positions, 0);
        self.prefill_s.clear();
        self.prefill_s.resize(positions, 0.0);
        self.requests.clear();
        self.requests.resize(positions, 0);
    }
}
