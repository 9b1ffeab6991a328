//! The one object that owns state: apply, route, finish.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::event::KvEvent;
use crate::hash::{LocalHash, SequenceHash, sequence_hashes};
use crate::index::{ReferenceIndex, Refusal, Slot, TierOverlap, WorkerOverlap};
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
    counters: Counters,
    columns: Columns,
}

/// The candidates of the decision at hand, one entry each; kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
struct Columns {
    workers: Vec<WorkerId>,
    slots: Vec<Slot>,
    device_blocks: Vec<u32>,
    host_blocks: Vec<u32>,
    disk_blocks: Vec<u32>,
    prefill_tokens: Vec<u64>,
    decode_blocks: Vec<u64>,
    shared_blocks: Vec<u32>,
    active_requests: Vec<u32>,
    costs: Vec<f64>,
}

impl Columns {
    fn clear(&mut self) {
        self.workers.clear();
        self.slots.clear();
        self.device_blocks.clear();
        self.host_blocks.clear();
        self.disk_blocks.clear();
        self.prefill_tokens.clear();
        self.decode_blocks.clear();
        self.shared_blocks.clear();
        self.active_requests.clear();
    }

    fn candidate(&self, i: usize) -> Candidate {
        Candidate {
            worker: self.workers[i],
            cost: self.costs[i],
            device_blocks: self.device_blocks[i],
            host_blocks: self.host_blocks[i],
            disk_blocks: self.disk_blocks[i],
            prefill_tokens: self.prefill_tokens[i],
            decode_blocks: self.decode_blocks[i],
            shared_blocks: self.shared_blocks[i],
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
            config,
            workers: BTreeMap::new(),
            free_slots: Vec::new(),
            slots: 0,
            index: ReferenceIndex::new(),
            load: Load::default(),
            counters: Counters::default(),
            columns: Columns::default(),
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
        self.free_slots.push(state.slot);
        Ok(())
    }

    /// Whether a worker takes requests. One that does not keeps its blocks and its bookings.
    pub fn set_available(&mut self, id: WorkerId, available: bool) -> Result<(), Error> {
        let state = self.workers.get_mut(&id).ok_or(Error::UnknownWorker(id))?;
        state.available = available;
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
        let overlaps = self.index.find_matches(request.local_hashes, self.slots);
        self.gather(request, &overlaps)?;
        let columns = &mut self.columns;
        let view = View {
            block_size: self.config.block_size,
            input_tokens: request.input_tokens,
            request_blocks: request.local_hashes.len() as u32,
            expected_output_tokens: request.expected_output_tokens,
            tracks_prefill: self.config.tracks_prefill,
            turn: self.counters.routed,
            prefix_key: request.local_hashes.first().map_or(0, |hash| hash.0),
            workers: &columns.workers,
            device_blocks: &columns.device_blocks,
            host_blocks: &columns.host_blocks,
            disk_blocks: &columns.disk_blocks,
            prefill_tokens: &columns.prefill_tokens,
            decode_blocks: &columns.decode_blocks,
            shared_blocks: &columns.shared_blocks,
            active_requests: &columns.active_requests,
        };
        columns.costs.clear();
        columns.costs.resize(view.len(), 0.0);
        self.policy.price(&view, &mut self.rng, &mut columns.costs);
        let chosen = pick(&columns.costs, self.policy.temperature(), &mut self.rng);
        let chosen = chosen.expect("a price must leave one candidate with a finite cost");
        let slot = columns.slots[chosen];
        let decision = Decision {
            worker: columns.workers[chosen],
            overlap_blocks: columns.device_blocks[chosen],
            cost: columns.costs[chosen],
            candidates: if request.explain {
                (0..columns.workers.len()).map(|i| columns.candidate(i)).collect()
            } else {
                Vec::new()
            },
        };
        self.counters.routed += 1;
        self.open(request, slot, overlaps[slot.index()], now_s);
        Ok(decision)
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

    fn gather(&mut self, request: &RouteRequest<'_>, overlaps: &[TierOverlap]) -> Result<(), Error> {
        let chain = sequence_hashes(request.local_hashes);
        let columns = &mut self.columns;
        columns.clear();
        let mut available = 0;
        for (&worker, state) in self.workers.iter().filter(|(_, state)| state.available) {
            available += 1;
            if request.allowed.is_some_and(|allowed| !allowed.contains(&worker)) {
                continue;
            }
            let slot = state.slot.index();
            columns.workers.push(worker);
            columns.slots.push(state.slot);
            columns.device_blocks.push(overlaps[slot][0]);
            columns.host_blocks.push(overlaps[slot][1]);
            columns.disk_blocks.push(overlaps[slot][2]);
            columns.prefill_tokens.push(self.load.prefill_tokens[slot]);
            columns.decode_blocks.push(self.load.decode_blocks[slot]);
            columns
                .shared_blocks
                .push(self.load.shared_blocks(state.slot, &chain));
            columns.active_requests.push(self.load.active_requests[slot]);
        }
        if columns.workers.is_empty() {
            return Err(Error::NoWorker {
                registered: self.workers.len(),
                available,
                allowed: 0,
            });
        }
        Ok(())
    }

    fn open(&mut self, request: &RouteRequest<'_>, slot: Slot, overlap: TierOverlap, now_s: f64) {
        let Some(id) = request.request_id else {
            return;
        };
        let uncached = if self.config.tracks_prefill {
            self.uncached_tokens(request, overlap)
        } else {
            0
        };
        self.load.book(
            id,
            slot,
            uncached,
            request.local_hashes,
            now_s + self.config.booking_ttl_s,
        );
        self.counters.booked += 1;
    }

    fn uncached_tokens(&self, request: &RouteRequest<'_>, [device, host, disk]: TierOverlap) -> u64 {
        let [host_weight, disk_weight] = self.config.reuse_weights;
        let cached_blocks = f64::from(device) + f64::from(host) * host_weight + f64::from(disk) * disk_weight;
        let cached_tokens = (cached_blocks * f64::from(self.config.block_size)).round() as u64;
        u64::from(request.input_tokens).saturating_sub(cached_tokens)
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
        self.open(request, slot, overlap, now_s);
        Ok(())
    }

    /// The first token of a request is out. Its worker. Twice is harmless.
    pub fn prefill_done(&mut self, request: RequestId, _now_s: f64) -> Result<WorkerId, Error> {
        let slot = self
            .load
            .prefill_done(request)
            .ok_or(Error::UnknownRequest(request))?;
        Ok(self.worker_at(slot))
    }

    /// The request ended, well or not. Its worker.
    pub fn release(&mut self, request: RequestId, _now_s: f64) -> Result<WorkerId, Error> {
        let slot = self.load.release(request).ok_or(Error::UnknownRequest(request))?;
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
