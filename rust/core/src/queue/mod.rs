//! Late binding: a request waits here while the worker that it would choose has no room. The later it is bound, the
//! more is known of the load when its worker is chosen.
//!
//! ```text
//! key(r)   start_r + κ·s_r·b/(κ·s_r + b),  s_r = prefill seconds of r on its best worker,
//!          b = patience · recent mean of wait and own prefill
//! pump     V = N = 0; for r of the K requests with the earliest start, by key:
//!              j* = argmin of the price over ALL workers with backlog W + V and requests n + N
//!              room(j*) and N_j* = 0: place r on j*, start again;   else V_j* += s(r, j*), N_j* += 1
//!              stop when no worker with room has N = 0
//!          nothing placed and K or more wait: place the request with the lowest key by price alone (overflow)
//! ```
//!
//! `room.rs` has the rule for room(j). What is in flight on j is what its engine reports of its queue, corrected by the
//! prompts that the report cannot have seen. When the report is stale, it is the router's own count. When the worker's
//! requests end by expiry alone, the worker always has room.
//!
//! The caller pumps on every arrival, first token and end. The queue is pure: no clock, no I/O. The simulator and the
//! gateway run it in front of any policy. `docs/reports/pricing.md` has the measurements. Choosing among the workers
//! with room only ruins the tail: a request then leaves its prefix for any idle worker. Without overflow a small
//! window starves idle workers.
//!
//! * **Nothing starves**: r is overtaken only by requests that arrive within `κ·(s_r − s_other)` of it and within
//!   `patience` times the recent mean. A request that waited `max_wait_s` is placed at once.
//! * **Nothing is lost**: a request is waiting, placed, cancelled or refused, and exactly one of them.
//! * **Bounded** in requests, bytes, both per tenant, tenants and time. A request that cannot meet its deadline is
//!   dropped.
//! * **Never stuck**: a lost completion ends with the expiry of its booking, and no wait exceeds `max_wait_s`.
//! * Cost: one match per request as without the queue, O(K·workers) per pump at worst, O(workers) when no worker has
//!   room. The router's state is locked once per round, regardless of the number of workers
//!   (`docs/adr/0011-one-decision-path.md`).
//!
//! Where small prompts share engine passes, some worker nearly always has room that no waiting request wants.
//! Rounds would then go through the whole window. Newer arrivals are then evaluated individually until
//! something may give room (`pump.rs`).

mod config;
mod order;
mod pace;
mod prefix;
mod pump;
mod request;
mod room;
mod tenants;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

pub use config::QueueConfig;
use order::Order;
use pace::Pace;
use pump::{BlockedRequest, LastRound};
use request::Entry;
pub use request::{Cause, Dispatch, Limit, Offer, QueuedRequest, Tenant};
use tenants::Tenants;

use crate::candidate_load::PendingLoad;
use crate::clock::Clock;
use crate::error::Error;
use crate::exact::ordered;
use crate::matched::Matched;
use crate::request::RequestId;
use crate::router::{Decisions, Router};

/// Counts since the start, and the present state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueStats {
    /// Requests that wait now.
    pub waiting: usize,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Sum of their prefill seconds, each on its best worker.
    pub prefill_s: f64,
    /// Requests accepted.
    pub taken: u64,
    /// Requests placed, by [`Cause`].
    pub placed: [u64; 3],
    /// Requests cancelled while they waited.
    pub cancelled: u64,
    /// Requests refused, by [`Limit`].
    pub refused: [u64; 5],
    /// Sum of the waits of all placed requests, seconds.
    pub waited_s: f64,
}

/// Ages of requests that left which may be kept beyond twice the waiting requests, before they are swept.
const AGES_SLACK: usize = 64;

/// A queue in front of one router. The module's page has the rule and its guarantees.
#[derive(Debug)]
pub struct LateQueue {
    config: QueueConfig,
    entries: FxHashMap<RequestId, Entry>,
    order: Order,
    /// Arrivals, oldest first. Requests that left are skipped when they reach the front, and swept when they are too
    /// many. Invariant: at most 64 and twice the waiting requests.
    ages: VecDeque<(f64, RequestId)>,
    tenants: Tenants,
    /// Requests with a deadline, by the latest time of a placement that meets it.
    deadlines: BTreeSet<(u64, RequestId)>,
    /// Requests that no placement can serve any more, awaiting `take_too_late`.
    too_late: Vec<RequestId>,
    /// Load of the requests that the present round left waiting, by the worker that each would choose.
    pending: PendingLoad,
    /// The same requests, of the last round and since.
    blocked: Vec<BlockedRequest>,
    /// The last round that could place nothing more. `None` when the next round must be a whole one.
    last_round: Option<LastRound>,
    /// Requests that arrived since the last round.
    arrivals: Vec<RequestId>,
    stats: QueueStats,
    pace: Pace,
    /// Every time that a caller gives passes through it.
    clock: Clock,
}

impl LateQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: QueueConfig) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            config,
            entries: FxHashMap::default(),
            order: Order::default(),
            ages: VecDeque::new(),
            tenants: Tenants::default(),
            deadlines: BTreeSet::new(),
            too_late: Vec::new(),
            pending: PendingLoad::default(),
            blocked: Vec::new(),
            last_round: None,
            arrivals: Vec::new(),
            stats: QueueStats::default(),
            pace: Pace::default(),
            clock: Clock::default(),
        })
    }

    /// The configuration in force.
    pub const fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Replaces the configuration as a whole. Waiting requests keep their keys.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range. The previous configuration then stays in force.
    pub fn set_config(&mut self, config: QueueConfig) -> Result<(), Error> {
        config.validate()?;
        self.config = config;
        self.last_round = None;
        Ok(())
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tenants that are accounted for: at most `max_tenants`, and the overflow account.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// Counts since the start, and the present state.
    pub const fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Seconds in which a window of requests is placed at the recent rate, 1 to 60.
    pub fn retry_after_s(&self) -> f64 {
        self.pace.retry_after_s(self.config.window)
    }

    /// Accepts or refuses a request. An accepted request is placed by the pump that must follow.
    ///
    /// # Errors [`Error::NoWorker`] when no candidate is available. [`Error::RequestExists`] for an id that
    /// waits or is booked. [`Error::Parameter`] for a prompt that is too long or a deadline that is no
    /// number.
    pub fn offer(&mut self, router: &Router, mut request: QueuedRequest, now_s: f64) -> Result<Offer, Error> {
        if self.entries.contains_key(&request.id) || router.is_booked(request.id) {
            return Err(Error::RequestExists(request.id));
        }
        if let Some(deadline_s) = request.deadline_s.filter(|deadline_s| deadline_s.is_nan()) {
            return Err(Error::Parameter {
                field: "deadline_s",
                got: deadline_s.to_string(),
                expected: "a number of seconds",
            });
        }
        let now_s = self.clock.read(now_s);
        request.tenant = self
            .tenants
            .account(request.tenant, self.config.max_tenants, now_s);
        if let Some(limit) = self.exceeded_limit(&request) {
            return Ok(self.refuse(limit));
        }
        let (matched, best) = match_and_estimate(router, &request, now_s)?;
        let prefill_s = best.prefill_s;
        if request
            .deadline_s
            .is_some_and(|deadline_s| now_s + best.first_token_s > deadline_s)
        {
            return Ok(self.refuse(Limit::Deadline));
        }
        let start_s = self.start_s(&request, prefill_s, now_s);
        let entry = Entry {
            least_tokens: matched.least_tokens(),
            matched,
            matched_at_s: now_s,
            arrived_s: now_s,
            start_s,
            key_s: start_s + self.length_cost_s(prefill_s),
            prefill_s,
            last_chance_s: request.deadline_s.map(|deadline_s| deadline_s - prefill_s),
            request,
        };
        self.insert(entry);
        Ok(Offer::Taken)
    }

    /// Removes a waiting request whose client left. Returns false for a request that does not wait.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let found = self.remove(id).is_some();
        self.stats.cancelled += u64::from(found);
        found
    }

    /// Requests that were dropped since the last call because no placement can serve them: their deadline passed, their
    /// allowed workers stayed away for `max_wait_s`, or their id was booked elsewhere.
    pub fn take_too_late(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.too_late)
    }

    /// Adds an accepted request to every list.
    fn insert(&mut self, entry: Entry) {
        let id = entry.request.id;
        self.order
            .insert(entry.start_s, entry.key_s, id, self.config.window);
        self.ages.push_back((entry.arrived_s, id));
        self.tenants.add(entry.request.tenant, entry.request.bytes);
        if let Some(last_chance_s) = entry.last_chance_s {
            self.deadlines.insert((ordered(last_chance_s), id));
        }
        self.stats.taken += 1;
        self.stats.waiting += 1;
        self.stats.bytes += entry.request.bytes;
        self.stats.prefill_s += entry.prefill_s;
        // Beyond the window the next pump makes a whole round and needs no list of arrivals.
        if self.arrivals.len() <= self.config.window {
            self.arrivals.push(id);
        }
        self.entries.insert(id, entry);
        if self.ages.len() > AGES_SLACK + 2 * self.entries.len() {
            // One request that waits long would otherwise keep the age of every later request that came and went.
            let entries = &self.entries;
            self.ages.retain(|&(arrived_s, id)| {
                entries.get(&id).is_some_and(|entry| entry.arrived_s == arrived_s)
            });
        }
    }

    /// Takes a request out of every list. Only `ages` keeps it until it reaches the front.
    fn remove(&mut self, id: RequestId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.order.remove(entry.start_s, entry.key_s, id);
        if let Some(last_chance_s) = entry.last_chance_s {
            self.deadlines.remove(&(ordered(last_chance_s), id));
        }
        let key_of = |id| self.entries.get(&id).map_or(0.0, |entry| entry.key_s);
        self.order.refill(self.config.window, key_of);
        // A fair queue remembers the next start of an idle tenant, or leaving would clear its account.
        self.tenants
            .remove(entry.request.tenant, entry.request.bytes, !self.config.fair);
        self.stats.waiting -= 1;
        self.stats.bytes -= entry.request.bytes;
        self.stats.prefill_s = (self.stats.prefill_s - entry.prefill_s).max(0.0);
        Some(entry)
    }

    /// The first bound that the request would exceed.
    fn exceeded_limit(&self, request: &QueuedRequest) -> Option<Limit> {
        let tenant = self.tenants.state(request.tenant);
        if self.entries.len() >= self.config.max_requests {
            Some(Limit::Requests)
        } else if self.stats.bytes.saturating_add(request.bytes) > self.config.max_bytes {
            Some(Limit::Bytes)
        } else if tenant.waiting >= self.config.max_requests_per_tenant {
            Some(Limit::Tenant)
        } else if tenant.bytes.saturating_add(request.bytes) > self.config.max_bytes_per_tenant {
            Some(Limit::TenantBytes)
        } else {
            None
        }
    }

    /// Counts a refusal.
    fn refuse(&mut self, limit: Limit) -> Offer {
        self.stats.refused[limit as usize] += 1;
        Offer::Refused {
            limit,
            retry_after_s: self.retry_after_s(),
        }
    }

    /// What its own length costs a request in the order, seconds: `κ·s·b/(κ·s + b)`.
    ///
    /// The cost is about κ·s while that is small beside the bound b, and never above b. It grows with s all the way,
    /// so the shorter of two requests that arrive together goes first.
    fn length_cost_s(&self, prefill_s: f64) -> f64 {
        let by_length_s = self.config.kappa * prefill_s;
        let bound_s = self.config.patience * self.pace.mean_s();
        if self.config.patience == 0.0 || by_length_s == 0.0 {
            return by_length_s;
        }
        by_length_s * bound_s / (by_length_s + bound_s)
    }

    /// Start of a request, seconds: its arrival less its head start, and in a fair queue no earlier than its tenant's
    /// turn.
    fn start_s(&mut self, request: &QueuedRequest, prefill_s: f64, now_s: f64) -> f64 {
        let start_s = now_s - self.config.priority_s * f64::from(request.priority);
        if self.config.fair {
            self.tenants
                .start(request.tenant, start_s, prefill_s, request.weight)
        } else {
            start_s
        }
    }
}

/// The best that any candidate offers.
#[derive(Clone, Copy, Debug)]
struct Best {
    /// Prefill seconds on the candidate that computes the prompt fastest.
    prefill_s: f64,
    /// Seconds to the earliest first token: backlog and prefill of one candidate.
    first_token_s: f64,
}

/// Matches a request and finds the best candidate. One look at the index without a lock, then one lock of the state.
fn match_and_estimate(
    router: &Router,
    request: &QueuedRequest,
    now_s: f64,
) -> Result<(Matched, Best), Error> {
    let question = request.route_request();
    let mut overlaps = router.look_up(&question);
    let decisions = router.decisions();
    let found = decisions.complete_match(&question, &mut overlaps);
    overlaps.keep();
    let matched = found?;
    let best = best(&decisions, &matched, now_s);
    Ok((matched, best))
}

/// The best of every candidate. O(candidates).
fn best(decisions: &Decisions<'_>, matched: &Matched, now_s: f64) -> Best {
    let mut best = Best {
        prefill_s: f64::INFINITY,
        first_token_s: f64::INFINITY,
    };
    for (i, position) in matched.positions().enumerate() {
        let prefill_s = decisions.prefill_s(position, matched.work(i));
        let backlog_s = decisions.occupancy(position, now_s).backlog_s;
        best.prefill_s = best.prefill_s.min(prefill_s);
        best.first_token_s = best.first_token_s.min(prefill_s + backlog_s);
    }
    best
}
