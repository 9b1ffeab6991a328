//! The one object that owns state: apply, route, finish.

use crate::error::Error;
use crate::event::KvEvent;
use crate::fleet::Fleet;
use crate::game::{Placed, Placement};
use crate::hash::{BlockHasher, LocalHash};
use crate::index::{Index, Prompt, Refusal, Slot, TierOverlap, WorkerOverlap};
use crate::latency::{CurveView, FleetCurves, FleetRecord, Learning};
use crate::ledger::{Ledger, Outcome, Pressure, Work};
use crate::load::Load;
pub use crate::matched::{Ahead, Matched};
use crate::matched::{Columns, Overlaps};
use crate::pick::pick;
use crate::predicted::Predicted;
use crate::price::{Policy, PolicyConfig, View};
pub use crate::request::{Candidate, Decision, RequestId, RouteRequest, Stage};
use crate::rng::Rng;
pub use crate::router_config::RouterConfig;
use crate::snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
use crate::worker::{WorkerId, WorkerSpec};

/// Decisions that are kept until they are taken.
pub const MAX_KEPT: usize = 256;

/// Routes the requests of one pool of workers. See the crate's page for the flow.
pub struct Router {
    config: RouterConfig,
    hasher: BlockHasher,
    policy: Box<dyn Policy>,
    rng: Rng,
    fleet: Fleet,
    index: Index,
    predicted: Predicted,
    load: Load,
    ledger: Ledger,
    counters: Counters,
    overlaps: Overlaps,
    matched: Matched,
    columns: Columns,
    generation: u64,
    keeps_placements: bool,
    kept: Vec<Placed>,
}

impl Router {
    /// A router without workers.
    pub fn new(config: RouterConfig) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            hasher: BlockHasher::new(config.hash.clone(), config.block_size),
            policy: config.policy.build()?,
            rng: Rng::new(config.seed),
            fleet: Fleet::default(),
            index: Index::new(config.index_max_blocks),
            predicted: Predicted::new(config.predicted),
            load: Load::default(),
            ledger: Ledger::new(&config.curves, Learning::default()),
            counters: Counters::default(),
            overlaps: Overlaps::default(),
            matched: Matched::default(),
            columns: Columns::default(),
            generation: 0,
            keeps_placements: false,
            kept: Vec::new(),
            config,
        })
    }

    /// The configuration in force.
    pub const fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// How the blocks of its prompts and feeds must be hashed: it cannot tell other hashes from these.
    pub const fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Register a worker: available, idle, with an empty cache.
    pub fn add_worker(&mut self, id: WorkerId, spec: WorkerSpec) -> Result<(), Error> {
        let slot = self.fleet.add(id, spec, self.config.max_workers)?;
        self.load.ensure(slot);
        self.predicted
            .add_worker(slot, self.fleet.spec(slot).total_kv_blocks);
        self.ledger
            .add_worker(slot, self.fleet.spec(slot), self.config.block_size);
        self.generation += 1;
        Ok(())
    }

    /// Forget a worker, its blocks and its bookings. O(its blocks + open bookings).
    pub fn remove_worker(&mut self, id: WorkerId) -> Result<(), Error> {
        let slot = self.fleet.remove(id)?;
        self.index.remove_worker(slot);
        self.predicted.clear(slot);
        self.counters.dropped_with_worker += self.load.remove_worker(slot) as u64;
        self.ledger.remove_worker(slot);
        self.generation += 1;
        Ok(())
    }

    /// Whether a worker takes requests. One that does not keeps its blocks and its bookings.
    pub fn set_available(&mut self, id: WorkerId, available: bool) -> Result<(), Error> {
        let slot = self.fleet.slot(id)?;
        self.fleet.set_available(slot, available);
        self.generation += 1;
        Ok(())
    }

    /// Apply one KV event of a worker. On an error the feed may go on: the event was counted and, but for
    /// [`Error::UnknownBlocks`], left the index as it was up to the block that was refused. O(blocks of the event).
    pub fn apply(&mut self, id: WorkerId, event: &KvEvent) -> Result<(), Error> {
        let slot = self
            .fleet
            .slot(id)
            .inspect_err(|_| self.counters.unknown_worker += 1)?;
        let outcome = self.index.apply(slot, event);
        if matches!(event, KvEvent::Cleared) {
            self.predicted.clear(slot);
        }
        self.counters.count_event(event, outcome);
        outcome.map_err(|refusal| event_error(id, event, refusal, self.config.index_max_blocks))
    }

    /// What each worker holds of a prompt; workers that hold nothing are left out. In id order.
    pub fn find_matches(&self, locals: &[LocalHash]) -> Vec<WorkerOverlap> {
        let overlaps = self.overlaps_of(&Prompt {
            locals,
            sequence: &[],
        });
        let overlap = |(worker, slot): (WorkerId, Slot)| {
            let [device, host, disk] = overlaps[slot.index()];
            WorkerOverlap {
                worker,
                device,
                host,
                disk,
            }
        };
        let found = self.fleet.sorted().into_iter().map(overlap);
        found
            .filter(|found| found.device + found.host + found.disk > 0)
            .collect()
    }

    /// What each slot holds of a prompt, by its events and by prediction.
    fn overlaps_of(&self, prompt: &Prompt<'_>) -> Vec<TierOverlap> {
        let mut overlaps = self.index.find_matches(prompt, self.fleet.slots());
        if !self.predicted.is_off() {
            self.predicted.raise_all(prompt, &self.index, &mut overlaps);
        }
        overlaps
    }

    /// Choose a worker and, when the request has an id, book it there: one atomic step.
    ///
    /// Bookings whose time is over end first. O(blocks / 64 + workers).
    pub fn route(&mut self, request: &RouteRequest<'_>, now_s: f64) -> Result<Decision, Error> {
        self.route_marked(request, now_s, |_| ())
    }

    /// As [`Router::route`]; `mark` is told the end of each stage, so that who has a clock can time them.
    pub fn route_marked(
        &mut self,
        request: &RouteRequest<'_>,
        now_s: f64,
        mut mark: impl FnMut(Stage),
    ) -> Result<Decision, Error> {
        self.expire(now_s);
        self.check(request)?;
        let mut matched = std::mem::take(&mut self.matched);
        let found = self.match_into(request, &mut matched);
        mark(Stage::Match);
        let decision = found.map(|()| self.decide(request, &matched, now_s, &mut mark));
        self.matched = matched;
        decision
    }

    fn match_into(&mut self, request: &RouteRequest<'_>, matched: &mut Matched) -> Result<(), Error> {
        let state = (&self.fleet, &self.index, &self.predicted, &self.load);
        matched.fill(request, &mut self.overlaps, state, self.generation)?;
        if self.policy.wants_seconds() {
            self.fill_work(matched);
        }
        Ok(())
    }

    fn fill_work(&self, matched: &mut Matched) {
        let work = |i| self.work(matched.input_tokens, matched.overlap(i));
        matched.work = (0..matched.slots.len()).map(work).collect();
    }

    fn decide(
        &mut self,
        request: &RouteRequest<'_>,
        matched: &Matched,
        now_s: f64,
        mark: &mut impl FnMut(Stage),
    ) -> Decision {
        self.price(matched, None, now_s);
        mark(Stage::Price);
        let columns = &self.columns;
        let chosen = pick(&columns.costs, self.policy.temperature(), &mut self.rng);
        let chosen = chosen.expect("a price must leave one candidate with a finite cost");
        let explained = if request.explain { matched.workers.len() } else { 0 };
        let decision = Decision {
            worker: matched.workers[chosen],
            overlap_blocks: matched.device_blocks[chosen],
            cost: columns.costs[chosen],
            candidates: (0..explained)
                .map(|i| columns.candidate(matched, &self.load, i))
                .collect(),
        };
        self.counters.routed += 1;
        let work = self.work(request.input_tokens, matched.overlap(chosen));
        self.keep(request, matched, chosen, now_s);
        self.open(request, matched.slots[chosen], work, now_s);
        mark(Stage::Pick);
        decision
    }

    /// Matches a request against every candidate without choosing: for a queue, which prices it more than once.
    pub fn prepare(&self, request: &RouteRequest<'_>) -> Result<Matched, Error> {
        let mut matched = Matched::default();
        let state = (&self.fleet, &self.index, &self.predicted, &self.load);
        matched.fill(request, &mut Overlaps::default(), state, self.generation)?;
        self.fill_work(&mut matched);
        Ok(matched)
    }

    /// Prices a matched request at the present load plus what waits ahead of it: the chosen candidate and its cost.
    ///
    /// `matched` must be of the present [`Router::generation`], and a price must leave one candidate a finite cost.
    pub fn choose(&mut self, matched: &Matched, ahead: &Ahead, now_s: f64) -> (usize, f64) {
        assert_eq!(
            matched.generation, self.generation,
            "a match must be of the present generation"
        );
        self.price(matched, Some(ahead), now_s);
        let chosen = pick(&self.columns.costs, self.policy.temperature(), &mut self.rng);
        let chosen = chosen.expect("a price must leave one candidate with a finite cost");
        (chosen, self.columns.costs[chosen])
    }

    /// Books a matched request on candidate `chosen`. The request must have an id.
    pub fn place(
        &mut self,
        request: &RouteRequest<'_>,
        matched: &Matched,
        chosen: usize,
        now_s: f64,
    ) -> Result<WorkerId, Error> {
        assert_eq!(
            matched.generation, self.generation,
            "a match must be of the present generation"
        );
        self.check(request)?;
        self.counters.routed += 1;
        let work = self.work(request.input_tokens, matched.overlap(chosen));
        self.keep(request, matched, chosen, now_s);
        self.open(request, matched.slots[chosen], work, now_s);
        Ok(matched.workers[chosen])
    }

    /// Keep each booked decision, or stop, for [`Router::take_placements`]. Keeping one is O(candidates); at most
    /// [`MAX_KEPT`] wait to be taken, and what comes beyond is passed over.
    pub const fn keep_placements(&mut self, keep: bool) {
        self.keeps_placements = keep;
    }

    /// The decisions kept since the last call, oldest first.
    pub fn take_placements(&mut self) -> Vec<Placed> {
        std::mem::take(&mut self.kept)
    }

    fn keep(&mut self, request: &RouteRequest<'_>, matched: &Matched, chosen: usize, now_s: f64) {
        if self.keeps_placements
            && self.kept.len() < MAX_KEPT
            && let Some(id) = request.request_id
        {
            let placed = self.placed_of(id, matched, chosen, now_s);
            self.kept.push(placed);
        }
    }

    fn placed_of(&mut self, request: RequestId, matched: &Matched, chosen: usize, now_s: f64) -> Placed {
        self.ledger.advance(now_s);
        let output_tokens = self.output_tokens(matched);
        let block_tokens = f64::from(self.config.block_size);
        let count = matched.slots.len();
        let mut placement = Placement {
            at_s: now_s,
            chosen,
            prefill_s: Vec::with_capacity(count),
            decode_s: Vec::with_capacity(count),
            wait_s: Vec::with_capacity(count),
        };
        let mut peer_decode_s = Vec::with_capacity(count);
        let mut step_s = 0.0;
        for (i, &slot) in matched.slots.iter().enumerate() {
            let work = self.work(matched.input_tokens, matched.overlap(i));
            let kv = self.load.decode_blocks[slot.index()] as f64 * block_tokens;
            let with = kv + matched.new_blocks(i) as f64 * block_tokens;
            let seconds = self.ledger.seconds(slot, work, (kv, with), output_tokens, now_s);
            placement.prefill_s.push(seconds.prefill_s);
            placement.decode_s.push(output_tokens * seconds.step_with_s);
            placement.wait_s.push(seconds.wait_s);
            peer_decode_s.push(output_tokens * (seconds.step_with_s - seconds.step_s).max(0.0));
            if i == chosen {
                step_s = seconds.step_with_s;
            }
        }
        Placed {
            request,
            placement,
            peer_decode_s,
            step_s,
            generation: self.generation,
        }
    }

    fn output_tokens(&self, matched: &Matched) -> f64 {
        match matched.expected_output_tokens {
            _ if !self.config.tracks_decode => 0.0,
            Some(tokens) => f64::from(tokens),
            None => self.ledger.mean_output_tokens(),
        }
    }

    /// Counts changes of the set of candidates: a [`Matched`] is good for one.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Dense positions in use are below this.
    pub const fn positions(&self) -> usize {
        self.fleet.slots()
    }

    /// Whether a booking with this id is open.
    pub fn is_booked(&self, request: RequestId) -> bool {
        self.load.contains(request)
    }

    /// Whether a dense position has a worker that takes requests.
    pub fn serves(&self, position: usize) -> bool {
        position < self.fleet.slots() && self.fleet.is_available(Slot(position as u32))
    }

    /// How full the worker at a dense position is.
    pub fn pressure(&self, position: usize) -> Pressure {
        self.ledger.pressure(position)
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
        let fleet = &self.fleet;
        let position = |worker| fleet.slot(worker).ok().map(Slot::index);
        self.ledger.curves_mut().restore(record, position)
    }

    /// The curves, to teach them from engine metrics; with the dense position of `worker`.
    pub fn teach(&mut self, worker: WorkerId) -> Option<(&mut FleetCurves, usize)> {
        let position = self.fleet.slot(worker).ok()?.index();
        Some((self.ledger.curves_mut(), position))
    }

    fn placed(&self) -> impl Iterator<Item = (WorkerId, usize)> + '_ {
        self.fleet
            .sorted()
            .into_iter()
            .map(|(id, slot)| (id, slot.index()))
    }

    fn price(&mut self, matched: &Matched, ahead: Option<&Ahead>, now_s: f64) {
        self.columns.fill(matched, &self.load, ahead);
        let output_tokens = self.output_tokens(matched);
        if self.policy.wants_seconds() {
            self.ledger.advance(now_s);
            self.fill_seconds(matched, ahead, output_tokens, now_s);
        }
        let mut costs = std::mem::take(&mut self.columns.costs);
        let columns = &self.columns;
        let (prefill_tokens, decode_blocks, active_requests) = columns.loads(&self.load);
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
            prefill_tokens,
            decode_blocks,
            shared_blocks: &matched.shared_blocks,
            active_requests,
            output_tokens,
            seconds: &columns.seconds,
        };
        self.policy.price(&view, &mut self.rng, &mut costs);
        self.columns.costs = costs;
    }

    fn fill_seconds(&mut self, matched: &Matched, ahead: Option<&Ahead>, output_tokens: f64, now_s: f64) {
        let block_tokens = f64::from(self.config.block_size);
        for (i, &slot) in matched.slots.iter().enumerate() {
            let kv = self.load.decode_blocks[slot.index()] as f64 * block_tokens;
            let with = kv + matched.new_blocks(i) as f64 * block_tokens;
            let mut seconds = self
                .ledger
                .seconds(slot, matched.work[i], (kv, with), output_tokens, now_s);
            if let Some(ahead) = ahead {
                seconds.wait_s += ahead.prefill_s[slot.index()];
                seconds.requests += f64::from(ahead.requests[slot.index()]);
            }
            self.columns.seconds.push(seconds);
        }
    }

    fn check(&mut self, request: &RouteRequest<'_>) -> Result<(), Error> {
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

    fn open(&mut self, request: &RouteRequest<'_>, slot: Slot, work: Work, now_s: f64) {
        let Some(id) = request.request_id else {
            return;
        };
        let prompt = Prompt {
            locals: request.local_hashes,
            sequence: request.sequence_hashes,
        };
        let expires_at_s = now_s + self.config.booking_ttl_s;
        self.load.book(id, slot, work.new_tokens, &prompt, expires_at_s);
        self.predicted.insert(slot, &prompt, Some(id), now_s);
        self.ledger
            .book(id, slot, work, self.kv_tokens(slot), (now_s, expires_at_s));
        self.counters.booked += 1;
    }

    fn kv_tokens(&self, slot: Slot) -> f64 {
        self.load.decode_blocks[slot.index()] as f64 * f64::from(self.config.block_size)
    }

    /// What a worker with this overlap would compute of a prompt, and what it would find; nothing in a pool that does not
    /// prefill.
    fn work(&self, input_tokens: u32, [device, host, disk]: TierOverlap) -> Work {
        if !self.config.tracks_prefill {
            return Work::default();
        }
        let [host_weight, disk_weight] = self.policy.reuse_weights().unwrap_or(self.config.reuse_weights);
        let cached_blocks = f64::from(device) + f64::from(host) * host_weight + f64::from(disk) * disk_weight;
        let cached_tokens = (cached_blocks * f64::from(self.config.block_size)).round() as u64;
        let input_tokens = u64::from(input_tokens);
        Work {
            new_tokens: input_tokens.saturating_sub(cached_tokens),
            cached_tokens: cached_tokens.min(input_tokens),
        }
    }

    /// Book a placement that somebody else made. The request must have an id.
    pub fn book(&mut self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        let slot = self.fleet.slot(worker)?;
        if request.request_id.is_none() {
            let expected = "an id to book under";
            return Err(Error::Parameter {
                field: "request_id",
                got: "none".to_owned(),
                expected,
            });
        }
        self.expire(now_s);
        self.check(request)?;
        let prompt = Prompt {
            locals: request.local_hashes,
            sequence: request.sequence_hashes,
        };
        let overlap = self.overlaps_of(&prompt)[slot.index()];
        let work = self.work(request.input_tokens, overlap);
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
        self.predicted.first_token(request, now_s);
        Ok(self.fleet.ids()[slot.index()])
    }

    /// The request ended, well or not. Its worker.
    pub fn release(&mut self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.finish(request, Outcome::default(), now_s)
    }

    /// As [`Router::release`], with what the request told: the latency curves learn from it.
    pub fn finish(&mut self, request: RequestId, outcome: Outcome, now_s: f64) -> Result<WorkerId, Error> {
        let slot = self.load.release(request).ok_or(Error::UnknownRequest(request))?;
        if outcome.at_first_token {
            self.ledger.prefill_done(request, now_s);
        }
        self.ledger.release(request, self.kv_tokens(slot), outcome, now_s);
        self.predicted.finished(request, now_s);
        self.counters.released += 1;
        Ok(self.fleet.ids()[slot.index()])
    }

    /// End the bookings that outlived their time; how many.
    pub fn expire(&mut self, now_s: f64) -> usize {
        let expired = self.load.expire(now_s);
        self.ledger.expire(now_s);
        self.predicted.expire(now_s);
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
        self.fleet.sorted().into_iter().map(|(id, _)| id)
    }

    /// What happened since the router was made.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Everything the router knows, copied out. O(workers).
    pub fn snapshot(&self) -> Snapshot {
        let worker = |(worker, slot): (WorkerId, Slot)| WorkerSnapshot {
            worker,
            spec: self.fleet.spec(slot).clone(),
            available: self.fleet.is_available(slot),
            prefill_tokens: self.load.prefill_tokens[slot.index()],
            decode_blocks: self.load.decode_blocks[slot.index()],
            active_requests: self.load.active_requests[slot.index()],
            held_blocks: self.index.held_blocks(slot),
        };
        let workers: Vec<WorkerSnapshot> = self.fleet.sorted().into_iter().map(worker).collect();
        let holdings = workers.iter().flat_map(|worker| worker.held_blocks).sum();
        Snapshot {
            workers,
            policy: self.policy.name().to_owned(),
            bookings: self.load.len(),
            index: IndexSize {
                blocks: self.index.blocks(),
                holdings,
                bytes: self.index.bytes(),
            },
            predicted: self.predicted.size(),
            counters: self.counters,
        }
    }
}

fn event_error(worker: WorkerId, event: &KvEvent, refusal: Refusal, limit_blocks: u64) -> Error {
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
        (Refusal::Full, _) => Error::IndexFull { limit_blocks },
        (Refusal::UnknownParent, _) => unreachable!("only a stored event with a parent can lack it"),
    }
}
