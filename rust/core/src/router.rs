//! The one object that owns state: apply, route, finish.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::event::KvEvent;
use crate::hash::{LocalHash, SequenceHash, sequence_hashes};
use crate::index::{ReferenceIndex, Refusal, Slot, TierOverlap, WorkerOverlap};
use crate::latency::{CurveView, FleetCurves, FleetRecord, Learning, Prior};
use crate::ledger::{Ledger, Outcome, Seconds, Work};
use crate::load::Load;
use crate::pick::pick;
use crate::price::{Policy, PolicyConfig, View};
use crate::rng::Rng;
use crate::snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
use crate::worker::{WorkerId, WorkerSpec};

/// A request's identity among the open bookings. Who calls maps its own ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// How a router is made. Validated by [`Router::new`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RouterConfig {
    /// Tokens per block, above 0.
    pub block_size: u32,
    /// Seed of ties and samples.
    pub seed: u64,
    /// The price in force.
    pub policy: PolicyConfig,
    /// Whether this pool prefills. A decode pool of a split does not: its bookings carry no prefill tokens.
    pub tracks_prefill: bool,
    /// Whether this pool decodes. A prefill pool of a split does not: no answer is priced there.
    pub tracks_decode: bool,
    /// Where the latency curves of a fleet that nothing is known of start.
    pub curves: Prior,
    /// Share of a block's prefill that a block in host memory, respectively on disk, saves: 0 to 1.
    pub reuse_weights: [f64; 2],
    /// Seconds until a booking that nobody released ends, above 0.
    pub booking_ttl_s: f64,
    /// Open bookings at most, above 0.
    pub max_bookings: usize,
    /// Workers at most, 1 to 65,536.
    pub max_workers: usize,
}

impl RouterConfig {
    /// Defaults: least loaded, seed 0, bookings of 600 s, a million bookings, 65,536 workers.
    pub fn new(block_size: u32) -> Self {
        Self {
            block_size,
            seed: 0,
            policy: PolicyConfig::default(),
            tracks_prefill: true,
            tracks_decode: true,
            curves: Prior::default(),
            reuse_weights: [0.75, 0.25],
            booking_ttl_s: 600.0,
            max_bookings: 1_000_000,
            max_workers: 65_536,
        }
    }

    /// With another seed.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With another policy.
    #[must_use]
    pub fn with_policy(mut self, policy: PolicyConfig) -> Self {
        self.policy = policy;
        self
    }

    /// For a pool that prefills (the default) or not.
    #[must_use]
    pub const fn with_prefill_tracking(mut self, tracks: bool) -> Self {
        self.tracks_prefill = tracks;
        self
    }

    /// For a pool that decodes (the default) or not.
    #[must_use]
    pub const fn with_decode_tracking(mut self, tracks: bool) -> Self {
        self.tracks_decode = tracks;
        self
    }

    /// With latency curves that start elsewhere, for instance at [`Prior::fit`] of a timing table.
    #[must_use]
    pub const fn with_curves(mut self, prior: Prior) -> Self {
        self.curves = prior;
        self
    }

    /// With other shares of a block's prefill that host memory and disk save.
    #[must_use]
    pub const fn with_reuse_weights(mut self, host: f64, disk: f64) -> Self {
        self.reuse_weights = [host, disk];
        self
    }

    /// With another life of bookings, seconds.
    #[must_use]
    pub const fn with_booking_ttl_s(mut self, ttl_s: f64) -> Self {
        self.booking_ttl_s = ttl_s;
        self
    }

    /// With another limit of open bookings.
    #[must_use]
    pub const fn with_max_bookings(mut self, bookings: usize) -> Self {
        self.max_bookings = bookings;
        self
    }

    /// With another limit of workers.
    #[must_use]
    pub const fn with_max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers;
        self
    }

    fn validate(&self) -> Result<(), Error> {
        let refuse = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        if self.block_size == 0 {
            return refuse("block_size", "0".to_owned(), "at least 1 token");
        }
        if !(self.booking_ttl_s > 0.0 && self.booking_ttl_s.is_finite()) {
            return refuse(
                "booking_ttl_s",
                self.booking_ttl_s.to_string(),
                "a finite number of seconds above 0",
            );
        }
        for (field, weight) in ["host reuse weight", "disk reuse weight"]
            .into_iter()
            .zip(self.reuse_weights)
        {
            if !(0.0..=1.0).contains(&weight) {
                return refuse(field, weight.to_string(), "a share from 0 to 1");
            }
        }
        if self.max_bookings == 0 {
            return refuse("max_bookings", "0".to_owned(), "at least 1");
        }
        if !(1..=65_536).contains(&self.max_workers) {
            return refuse("max_workers", self.max_workers.to_string(), "1 to 65536");
        }
        Ok(())
    }
}

/// One request to place.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteRequest<'a> {
    /// Books under this id when given; without it the decision leaves no trace.
    pub request_id: Option<RequestId>,
    /// Local hashes of the prompt's full blocks; empty when the prompt is not known (then only load counts).
    pub local_hashes: &'a [LocalHash],
    /// Sequence hashes of the same blocks, where the caller has them: a long match is then a few comparisons. May be empty.
    pub sequence_hashes: &'a [SequenceHash],
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Expected tokens of the answer.
    pub expected_output_tokens: Option<u32>,
    /// Only these workers; ids that are not registered are ignored.
    pub allowed: Option<&'a [WorkerId]>,
    /// Fill [`Decision::candidates`].
    pub explain: bool,
}

/// Where a request goes, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decision {
    /// The chosen worker.
    pub worker: WorkerId,
    /// Leading blocks of the prompt in its device memory.
    pub overlap_blocks: u32,
    /// Its cost, in the unit of the policy.
    pub cost: f64,
    /// Every candidate with its parts, when asked for.
    pub candidates: Vec<Candidate>,
}

/// One candidate of a decision, as it was priced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Candidate {
    /// Who.
    pub worker: WorkerId,
    /// Its cost.
    pub cost: f64,
    /// Leading prompt blocks in device memory.
    pub device_blocks: u32,
    /// Further blocks in host memory.
    pub host_blocks: u32,
    /// Further blocks on disk.
    pub disk_blocks: u32,
    /// Uncached prompt tokens that waited there for a first token.
    pub prefill_tokens: u64,
    /// Distinct blocks in flight there.
    pub decode_blocks: u64,
    /// Leading prompt blocks in flight there.
    pub shared_blocks: u32,
    /// Requests in flight there.
    pub active_requests: u32,
}

#[derive(Clone, Debug)]
struct WorkerState {
    slot: Slot,
    spec: WorkerSpec,
    available: bool,
}

/// Routes the requests of one pool of workers. See the crate's page for the flow.
pub struct Router {
    config: RouterConfig,
    policy: Box<dyn Policy>,
    rng: Rng,
    workers: BTreeMap<WorkerId, WorkerState>,
    free_slots: Vec<Slot>,
    slots: usize,
    index: ReferenceIndex,
    load: Load,
    ledger: Ledger,
    counters: Counters,
    matched: Matched,
    columns: Columns,
    generation: u64,
}

/// A request matched against every candidate: what of its price does not change with the load. One entry per candidate.
///
/// Valid while [`Router::generation`] stays; the overlaps age as the caches change.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    input_tokens: u32,
    request_blocks: u32,
    expected_output_tokens: Option<u32>,
    prefix_key: u64,
    generation: u64,
    workers: Vec<WorkerId>,
    slots: Vec<Slot>,
    device_blocks: Vec<u32>,
    host_blocks: Vec<u32>,
    disk_blocks: Vec<u32>,
    shared_blocks: Vec<u32>,
    work: Vec<Work>,
}

impl Matched {
    fn clear(&mut self) {
        self.workers.clear();
        self.slots.clear();
        self.device_blocks.clear();
        self.host_blocks.clear();
        self.disk_blocks.clear();
        self.shared_blocks.clear();
        self.work.clear();
    }

    /// The candidates.
    pub fn workers(&self) -> &[WorkerId] {
        &self.workers
    }

    /// Dense positions of the candidates, below [`Router::positions`].
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().map(|slot| slot.index())
    }

    /// Dense position of candidate `i`.
    pub fn position(&self, i: usize) -> usize {
        self.slots[i].index()
    }

    /// Prompt tokens that candidate `i` would compute and find.
    pub fn work(&self, i: usize) -> Work {
        self.work[i]
    }

    /// Blocks that candidate `i` would add to those in flight there.
    pub fn new_blocks(&self, i: usize) -> u64 {
        u64::from(self.request_blocks - self.shared_blocks[i])
    }

    /// The router's generation that it was matched in.
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

/// Load that a price must count although nothing is booked yet: requests that wait for a worker. By dense position.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// Prefill tokens.
    pub tokens: Vec<u64>,
    /// Their prefill seconds.
    pub prefill_s: Vec<f64>,
    /// Requests.
    pub requests: Vec<u32>,
}

/// How full a worker is: what a queue needs to know to hold a request back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Prefill seconds before first token.
    pub backlog_s: f64,
    /// Requests in flight.
    pub requests: u32,
    /// Distinct blocks in flight.
    pub active_blocks: u64,
    /// Blocks of its cache, when it says.
    pub total_blocks: Option<u64>,
    /// Sequences that it runs at once, when it says.
    pub max_num_seqs: Option<u32>,
}

/// The load of the candidates of the decision at hand, one entry each; kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
struct Columns {
    prefill_tokens: Vec<u64>,
    decode_blocks: Vec<u64>,
    active_requests: Vec<u32>,
    seconds: Vec<Seconds>,
    costs: Vec<f64>,
}

impl Columns {
    fn clear(&mut self) {
        self.prefill_tokens.clear();
        self.decode_blocks.clear();
        self.active_requests.clear();
        self.seconds.clear();
        self.costs.clear();
    }

    fn candidate(&self, matched: &Matched, i: usize) -> Candidate {
        Candidate {
            worker: matched.workers[i],
            cost: self.costs[i],
            device_blocks: matched.device_blocks[i],
            host_blocks: matched.host_blocks[i],
            disk_blocks: matched.disk_blocks[i],
            prefill_tokens: self.prefill_tokens[i],
            decode_blocks: self.decode_blocks[i],
            shared_blocks: matched.shared_blocks[i],
            active_requests: self.active_requests[i],
        }
    }
}

impl Router {
    /// A router without workers.
    pub fn new(config: RouterConfig) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            policy: config.policy.build()?,
            rng: Rng::new(config.seed),
            ledger: Ledger::new(&config.curves, Learning::default()),
            config,
            workers: BTreeMap::new(),
            free_slots: Vec::new(),
            slots: 0,
            index: ReferenceIndex::new(),
            load: Load::default(),
            counters: Counters::default(),
            matched: Matched::default(),
            columns: Columns::default(),
            generation: 0,
        })
    }

    /// The configuration in force.
    pub const fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// Register a worker: available, idle, with an empty cache.
    pub fn add_worker(&mut self, id: WorkerId, spec: WorkerSpec) -> Result<(), Error> {
        if self.workers.contains_key(&id) {
            return Err(Error::WorkerExists(id));
        }
        if self.workers.len() >= self.config.max_workers {
            return Err(Error::TooManyWorkers {
                limit: self.config.max_workers,
            });
        }
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            Slot(self.slots as u32 - 1)
        });
        self.load.ensure(slot);
        self.ledger.add_worker(slot, &spec, self.config.block_size);
        self.generation += 1;
        self.workers.insert(
            id,
            WorkerState {
                slot,
                spec,
                available: true,
            },
        );
        Ok(())
    }

    /// Forget a worker, its blocks and its bookings.
    pub fn remove_worker(&mut self, id: WorkerId) -> Result<(), Error> {
        let state = self.workers.remove(&id).ok_or(Error::UnknownWorker(id))?;
        self.index.remove_worker(state.slot);
        self.counters.dropped_with_worker += self.load.remove_worker(state.slot) as u64;
        self.ledger.remove_worker(state.slot);
        self.generation += 1;
        self.free_slots.push(state.slot);
        Ok(())
    }

    /// Whether a worker takes requests. One that does not keeps its blocks and its bookings.
    pub fn set_available(&mut self, id: WorkerId, available: bool) -> Result<(), Error> {
        let state = self.workers.get_mut(&id).ok_or(Error::UnknownWorker(id))?;
        state.available = available;
        self.generation += 1;
        Ok(())
    }

    /// Apply one KV event of a worker. On an error the feed may go on: the event was counted and, but for
    /// [`Error::UnknownBlocks`], left the index as it was up to the block that was refused.
    pub fn apply(&mut self, id: WorkerId, event: &KvEvent) -> Result<(), Error> {
        let Some(state) = self.workers.get(&id) else {
            self.counters.unknown_worker += 1;
            return Err(Error::UnknownWorker(id));
        };
        let outcome = self.index.apply(state.slot, event);
        self.count_event(event, outcome);
        outcome.map_err(|refusal| event_error(id, event, refusal))
    }

    fn count_event(&mut self, event: &KvEvent, outcome: Result<(), Refusal>) {
        let counters = &mut self.counters;
        match outcome {
            Ok(()) => counters.events_applied += 1,
            Err(Refusal::UnknownParent) => counters.unknown_parent += 1,
            Err(Refusal::UnknownBlocks(unknown)) => counters.unknown_block += unknown as u64,
            Err(Refusal::ConflictingBlock(_)) => counters.conflicting_block += 1,
            Err(Refusal::Full) => counters.index_full += 1,
        }
        match (event, outcome) {
            (KvEvent::Stored { blocks, .. }, Ok(())) => counters.blocks_stored += blocks.len() as u64,
            (KvEvent::Removed { blocks, .. }, Ok(())) => counters.blocks_removed += blocks.len() as u64,
            (KvEvent::Removed { blocks, .. }, Err(Refusal::UnknownBlocks(unknown))) => {
                counters.blocks_removed += (blocks.len() - unknown) as u64;
            }
            _ => {}
        }
    }

    /// What each worker holds of a prompt; workers that hold nothing are left out. In id order.
    pub fn find_matches(&self, locals: &[LocalHash]) -> Vec<WorkerOverlap> {
        let overlaps = self.index.find_matches(locals, self.slots);
        let overlap = |(&worker, state): (&WorkerId, &WorkerState)| {
            let [device, host, disk] = overlaps[state.slot.index()];
            WorkerOverlap {
                worker,
                device,
                host,
                disk,
            }
        };
        self.workers
            .iter()
            .map(overlap)
            .filter(|found| found.device + found.host + found.disk > 0)
            .collect()
    }

    /// Choose a worker and, when the request has an id, book it there: one atomic step.
    pub fn route(&mut self, request: &RouteRequest<'_>, now_s: f64) -> Result<Decision, Error> {
        self.check_booking(request, now_s)?;
        let mut matched = std::mem::take(&mut self.matched);
        let found = self.match_into(request, &mut matched);
        if let Err(error) = found {
            self.matched = matched;
            return Err(error);
        }
        self.price(&matched, None, now_s);
        let columns = &self.columns;
        let chosen = pick(&columns.costs, self.policy.temperature(), &mut self.rng);
        let chosen = chosen.expect("a price must leave one candidate with a finite cost");
        let decision = Decision {
            worker: matched.workers[chosen],
            overlap_blocks: matched.device_blocks[chosen],
            cost: columns.costs[chosen],
            candidates: if request.explain {
                (0..matched.workers.len())
                    .map(|i| columns.candidate(&matched, i))
                    .collect()
            } else {
                Vec::new()
            },
        };
        self.counters.routed += 1;
        self.open(request, matched.slots[chosen], matched.work[chosen], now_s);
        self.matched = matched;
        Ok(decision)
    }

    /// Matches a request against every candidate without choosing: for a queue, which prices it more than once.
    pub fn prepare(&self, request: &RouteRequest<'_>) -> Result<Matched, Error> {
        let mut matched = Matched::default();
        self.match_into(request, &mut matched)?;
        Ok(matched)
    }

    /// Prices a matched request at the present load plus what waits ahead of it. One cost per candidate.
    ///
    /// `matched` must be of the present [`Router::generation`].
    pub fn quote(&mut self, matched: &Matched, ahead: &Ahead, now_s: f64) -> &[f64] {
        debug_assert_eq!(
            matched.generation, self.generation,
            "a match must be of this generation"
        );
        self.price(matched, Some(ahead), now_s);
        &self.columns.costs
    }

    /// Counts changes of the set of candidates: a [`Matched`] is good for one.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Dense positions in use are below this.
    pub const fn positions(&self) -> usize {
        self.slots
    }

    /// How full the worker at a dense position is; `None` where there is none that takes requests.
    pub fn pressure(&self, worker: WorkerId) -> Option<Pressure> {
        let state = self.workers.get(&worker).filter(|state| state.available)?;
        let slot = state.slot.index();
        Some(Pressure {
            backlog_s: self.ledger.backlog_s(state.slot),
            requests: self.load.active_requests[slot],
            active_blocks: self.load.decode_blocks[slot],
            total_blocks: state.spec.total_kv_blocks,
            max_num_seqs: state.spec.max_num_seqs,
        })
    }

    /// Prefill seconds of `work` on the worker at a dense position, by its learned curve.
    pub fn prefill_s(&self, position: usize, work: Work) -> f64 {
        self.ledger
            .curves()
            .of(position)
            .prefill_s(work.new_tokens, work.cached_tokens)
    }

    /// Mean tokens of an answer so far.
    pub const fn mean_output_tokens(&self) -> f64 {
        self.ledger.mean_output_tokens()
    }

    /// The learned latency curves of every worker.
    pub fn curves(&self) -> Vec<CurveView> {
        self.ledger.curves().views(self.placed()).collect()
    }

    /// Everything learned of latency, for a file.
    pub fn curve_record(&self) -> FleetRecord {
        self.ledger.curves().record(self.placed())
    }

    /// Takes over learned curves; how many workers were known.
    pub fn restore_curves(&mut self, record: &FleetRecord) -> Result<usize, Error> {
        let workers = &self.workers;
        let position = |worker| workers.get(&worker).map(|state| state.slot.index());
        self.ledger.curves_mut().restore(record, position)
    }

    /// The curves, to teach them from engine metrics; with the dense position of `worker`.
    pub fn teach(&mut self, worker: WorkerId) -> Option<(&mut FleetCurves, usize)> {
        let position = self.workers.get(&worker)?.slot.index();
        Some((self.ledger.curves_mut(), position))
    }

    fn placed(&self) -> impl Iterator<Item = (WorkerId, usize)> + '_ {
        self.workers
            .iter()
            .map(|(&worker, state)| (worker, state.slot.index()))
    }

    fn price(&mut self, matched: &Matched, ahead: Option<&Ahead>, now_s: f64) {
        let block_tokens = f64::from(self.config.block_size);
        let output_tokens = match matched.expected_output_tokens {
            _ if !self.config.tracks_decode => 0.0,
            Some(tokens) => f64::from(tokens),
            None => self.ledger.mean_output_tokens(),
        };
        let columns = &mut self.columns;
        columns.clear();
        for (i, &slot) in matched.slots.iter().enumerate() {
            let at = slot.index();
            let held = self.load.decode_blocks[at];
            columns.decode_blocks.push(held);
            let (mut tokens, mut requests) = (self.load.prefill_tokens[at], self.load.active_requests[at]);
            if let Some(ahead) = ahead {
                tokens += ahead.tokens[at];
                requests += ahead.requests[at];
            }
            columns.prefill_tokens.push(tokens);
            columns.active_requests.push(requests);
            if self.policy.wants_seconds() {
                let kv = held as f64 * block_tokens;
                let with = kv + matched.new_blocks(i) as f64 * block_tokens;
                let mut seconds =
                    self.ledger
                        .seconds(slot, matched.work[i], (kv, with), output_tokens, now_s);
                if let Some(ahead) = ahead {
                    seconds.wait_s += ahead.prefill_s[at];
                    seconds.requests += f64::from(ahead.requests[at]);
                }
                columns.seconds.push(seconds);
            }
        }
        columns.costs.resize(matched.slots.len(), 0.0);
        let view = View {
            block_size: self.config.block_size,
            input_tokens: matched.input_tokens,
            request_blocks: matched.request_blocks,
            expected_output_tokens: matched.expected_output_tokens,
            tracks_prefill: self.config.tracks_prefill,
            turn: self.counters.routed,
            prefix_key: matched.prefix_key,
            workers: &matched.workers,
            device_blocks: &matched.device_blocks,
            host_blocks: &matched.host_blocks,
            disk_blocks: &matched.disk_blocks,
            prefill_tokens: &columns.prefill_tokens,
            decode_blocks: &columns.decode_blocks,
            shared_blocks: &matched.shared_blocks,
            active_requests: &columns.active_requests,
            output_tokens,
            seconds: &columns.seconds,
        };
        self.policy.price(&view, &mut self.rng, &mut columns.costs);
    }

    fn check_booking(&mut self, request: &RouteRequest<'_>, now_s: f64) -> Result<(), Error> {
        let Some(id) = request.request_id else {
            return Ok(());
        };
        if self.load.contains(id) {
            return Err(Error::RequestExists(id));
        }
        if self.load.len() >= self.config.max_bookings && self.expire(now_s) == 0 {
            self.counters.bookings_refused += 1;
            return Err(Error::TooManyBookings {
                limit: self.config.max_bookings,
            });
        }
        Ok(())
    }

    fn match_into(&self, request: &RouteRequest<'_>, matched: &mut Matched) -> Result<(), Error> {
        let overlaps = self.index.find_matches(request.local_hashes, self.slots);
        let chain = sequence_hashes(request.local_hashes);
        matched.clear();
        matched.input_tokens = request.input_tokens;
        matched.request_blocks = request.local_hashes.len() as u32;
        matched.expected_output_tokens = request.expected_output_tokens;
        matched.prefix_key = request.local_hashes.first().map_or(0, |hash| hash.0);
        matched.generation = self.generation;
        let mut available = 0;
        for (&worker, state) in self.workers.iter().filter(|(_, state)| state.available) {
            available += 1;
            if request.allowed.is_some_and(|allowed| !allowed.contains(&worker)) {
                continue;
            }
            let overlap = overlaps[state.slot.index()];
            matched.workers.push(worker);
            matched.slots.push(state.slot);
            matched.device_blocks.push(overlap[0]);
            matched.host_blocks.push(overlap[1]);
            matched.disk_blocks.push(overlap[2]);
            matched
                .shared_blocks
                .push(self.load.shared_blocks(state.slot, &chain));
            matched.work.push(self.work(request, overlap));
        }
        if matched.workers.is_empty() {
            return Err(Error::NoWorker {
                registered: self.workers.len(),
                available,
                allowed: 0,
            });
        }
        Ok(())
    }

    fn open(&mut self, request: &RouteRequest<'_>, slot: Slot, work: Work, now_s: f64) {
        let Some(id) = request.request_id else {
            return;
        };
        let expires_at_s = now_s + self.config.booking_ttl_s;
        self.load
            .book(id, slot, work.new_tokens, request.local_hashes, expires_at_s);
        self.ledger
            .book(id, slot, work, self.kv_tokens(slot), (now_s, expires_at_s));
        self.counters.booked += 1;
    }

    fn kv_tokens(&self, slot: Slot) -> f64 {
        self.load.decode_blocks[slot.index()] as f64 * f64::from(self.config.block_size)
    }

    /// What a worker with `overlap` would compute of a prompt, and what it would find; nothing in a pool that does not
    /// prefill.
    fn work(&self, request: &RouteRequest<'_>, [device, host, disk]: TierOverlap) -> Work {
        if !self.config.tracks_prefill {
            return Work::default();
        }
        let [host_weight, disk_weight] = self.config.reuse_weights;
        let cached_blocks = f64::from(device) + f64::from(host) * host_weight + f64::from(disk) * disk_weight;
        let cached_tokens = (cached_blocks * f64::from(self.config.block_size)).round() as u64;
        let input_tokens = u64::from(request.input_tokens);
        Work {
            new_tokens: input_tokens.saturating_sub(cached_tokens),
            cached_tokens: cached_tokens.min(input_tokens),
        }
    }

    /// Book a placement that somebody else made. The request must have an id.
    pub fn book(&mut self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        let slot = self
            .workers
            .get(&worker)
            .ok_or(Error::UnknownWorker(worker))?
            .slot;
        if request.request_id.is_none() {
            let expected = "an id to book under";
            return Err(Error::Parameter {
                field: "request_id",
                got: "none".to_owned(),
                expected,
            });
        }
        self.check_booking(request, now_s)?;
        let overlap = self.index.find_matches(request.local_hashes, self.slots)[slot.index()];
        let work = self.work(request, overlap);
        self.open(request, slot, work, now_s);
        Ok(())
    }

    /// The first token of a request is out. Its worker. Twice is harmless.
    pub fn prefill_done(&mut self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        let slot = self
            .load
            .prefill_done(request)
            .ok_or(Error::UnknownRequest(request))?;
        self.ledger.prefill_done(request, now_s);
        Ok(self.worker_at(slot))
    }

    /// The request ended, well or not. Its worker.
    pub fn release(&mut self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.finish(request, Outcome::default(), now_s)
    }

    /// As [`Router::release`], with what the request told: the latency curves learn from it.
    pub fn finish(&mut self, request: RequestId, outcome: Outcome, now_s: f64) -> Result<WorkerId, Error> {
        let slot = self.load.release(request).ok_or(Error::UnknownRequest(request))?;
        if !self.config.tracks_decode {
            // Where nothing is decoded the end is the first token.
            self.ledger.prefill_done(request, now_s);
        }
        self.ledger.release(request, self.kv_tokens(slot), outcome, now_s);
        self.counters.released += 1;
        Ok(self.worker_at(slot))
    }

    fn worker_at(&self, slot: Slot) -> WorkerId {
        let found = self.workers.iter().find(|(_, state)| state.slot == slot);
        *found.expect("a booking must belong to a registered worker").0
    }

    /// End the bookings that outlived their time; how many.
    pub fn expire(&mut self, now_s: f64) -> usize {
        let expired = self.load.expire(now_s);
        self.ledger.expire(now_s);
        self.counters.expired += expired as u64;
        expired
    }

    /// Put another policy in force, as a whole.
    pub fn set_policy(&mut self, policy: PolicyConfig) -> Result<(), Error> {
        self.policy = policy.build()?;
        self.config.policy = policy;
        Ok(())
    }

    /// Registered workers, in id order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.workers.keys().copied()
    }

    /// Everything the router knows, copied out. O(workers).
    pub fn snapshot(&self) -> Snapshot {
        let worker = |(&worker, state): (&WorkerId, &WorkerState)| WorkerSnapshot {
            worker,
            spec: state.spec.clone(),
            available: state.available,
            prefill_tokens: self.load.prefill_tokens[state.slot.index()],
            decode_blocks: self.load.decode_blocks[state.slot.index()],
            active_requests: self.load.active_requests[state.slot.index()],
            held_blocks: self.index.held_blocks(state.slot),
        };
        let workers: Vec<WorkerSnapshot> = self.workers.iter().map(worker).collect();
        let holdings = workers.iter().flat_map(|worker| worker.held_blocks).sum();
        Snapshot {
            workers,
            policy: self.policy.name().to_owned(),
            bookings: self.load.len(),
            index: IndexSize {
                blocks: self.index.blocks(),
                holdings,
                bytes: 0,
            },
            counters: self.counters,
        }
    }
}

fn event_error(worker: WorkerId, event: &KvEvent, refusal: Refusal) -> Error {
    match (refusal, event) {
        (
            Refusal::UnknownParent,
            KvEvent::Stored {
                parent: Some(parent), ..
            },
        ) => Error::UnknownParent {
            worker,
            parent: *parent,
        },
        (Refusal::UnknownBlocks(unknown), _) => Error::UnknownBlocks { worker, unknown },
        (Refusal::ConflictingBlock(engine), _) => Error::ConflictingBlock { worker, engine },
        (Refusal::Full, _) => Error::IndexFull { limit_blocks: 0 },
        (Refusal::UnknownParent, _) => unreachable!("only a stored event with a parent can lack it"),
    }
}
