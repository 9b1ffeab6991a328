//! The one object that owns state: apply, route, finish.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::event::{KvEvent, Tier};
use crate::fleet::Fleet;
use crate::game::{Placed, Placement};
use crate::hash::{BlockHasher, HashMode, LocalHash};
use crate::index::{Budget, Index, Prompt, Refusal, RestoredWorker, Slot, TierOverlap, WorkerOverlap};
use crate::latency::{CurveView, FleetCurves, FleetRecord, Learning, WorkerCurves};
use crate::ledger::{Books, EngineQueue, Ledger, Outcome, Pressure, Work};
use crate::load::Load;
pub use crate::matched::{Ahead, Matched};
use crate::matched::{Columns, Overlaps, cached_tokens_of};
use crate::pick::pick;
use crate::predicted::{Predicted, PredictedSize, PredictedUse};
use crate::price::{Policy, PolicyConfig, RegimeChange, View};
pub use crate::request::{Candidate, Choice, Decision, RequestId, RouteRequest, Stage};
use crate::rng::Rng;
use crate::roster::Roster;
pub use crate::router_config::RouterConfig;
use crate::snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
use crate::worker::{WorkerId, WorkerSpec};

/// Decisions that are kept until they are taken.
pub const MAX_KEPT: usize = 256;

/// Times that a search tries without a lock while the fleet changes.
const FIND_TRIES: usize = 8;

/// Routes the requests of one pool of workers. See the crate's page for the flow.
///
/// Shared by any number of threads. A match takes no lock and waits for no writer; events are applied one at a time under the
/// index's own; to price, pick and book is one step under that of the desk. With one thread all is as if there were no locks:
/// the same calls give the same answers.
pub struct Router {
    config: RouterConfig,
    hasher: BlockHasher,
    index: Index,
    roster: Roster,
    keeps_placements: AtomicBool,
    /// Whether the policy asks what a cache evicts: then every event of blocks takes the desk's lock for a moment.
    follows_churn: AtomicBool,
    /// See [`RoomChanges`].
    prompts_over: AtomicU64,
    ends: AtomicU64,
    desk: Mutex<Desk>,
}

/// Counts of what may give a worker room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomChanges {
    /// Prompts that no longer wait there (first tokens, ends before them, expiries), words of engines, workers that come or go,
    /// other policies.
    pub prompts: u64,
    /// Ends of requests after their first token: they give memory and a sequence back, of which there may be enough.
    pub ends: u64,
}

/// What a decision changes or must see as a whole.
struct Desk {
    config: RouterConfig,
    policy: Box<dyn Policy>,
    rng: Rng,
    fleet: Fleet,
    predicted: Predicted,
    load: Load,
    ledger: Ledger,
    counters: Counters,
    matched: Matched,
    columns: Columns,
    keeps_placements: bool,
    kept: Vec<Placed>,
}

impl Router {
    /// A router without workers.
    pub fn new(config: RouterConfig) -> Result<Self, Error> {
        config.validate()?;
        let desk = Desk {
            policy: config.policy.build()?,
            rng: Rng::new(config.seed),
            fleet: Fleet::default(),
            predicted: Predicted::new(config.predicted),
            load: Load::default(),
            ledger: Ledger::new(&config.curves, Learning::default()),
            counters: Counters::default(),
            matched: Matched::default(),
            columns: Columns::default(),
            keeps_placements: false,
            kept: Vec::new(),
            config: config.clone(),
        };
        Ok(Self {
            hasher: BlockHasher::new(config.hash.clone(), config.block_size),
            index: Index::with_budget(Budget {
                blocks: config.index_max_blocks,
                bytes: config.index_max_bytes,
            }),
            roster: Roster::default(),
            keeps_placements: AtomicBool::new(false),
            follows_churn: AtomicBool::new(desk.policy.wants_seconds()),
            prompts_over: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            desk: Mutex::new(desk),
            config,
        })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration that it was made with; [`Router::set_policy`] does not change it.
    pub const fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// How the blocks of its prompts and feeds must be hashed: it cannot tell other hashes from these.
    pub const fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Register a worker: available, idle, with an empty cache.
    pub fn add_worker(&self, id: WorkerId, spec: WorkerSpec) -> Result<(), Error> {
        self.room_changed();
        let desk = &mut *self.desk();
        let slot = desk.fleet.add(id, spec, self.config.max_workers)?;
        let spec = desk.fleet.spec(slot);
        desk.load.ensure(slot);
        desk.predicted.add_worker(slot, spec.total_kv_blocks);
        desk.ledger.add_worker(slot, spec, self.config.block_size);
        self.index.register(id, slot);
        self.roster.publish(&desk.fleet, slot);
        Ok(())
    }

    /// Forget a worker, its blocks and its bookings. O(its blocks + its bookings).
    pub fn remove_worker(&self, id: WorkerId) -> Result<(), Error> {
        self.room_changed();
        let slot = {
            let desk = &mut *self.desk();
            let slot = desk.fleet.remove(id)?;
            self.roster.publish(&desk.fleet, slot);
            desk.predicted.clear(slot);
            let dropped = desk.load.remove_worker(slot);
            desk.counters.dropped_with_worker += dropped.len() as u64;
            desk.ledger.remove_worker(slot, &dropped);
            slot
        };
        // Nobody gets the slot before nothing is left of it, and no decision waits for that.
        self.index.retire(id, slot);
        self.desk().fleet.free(slot);
        Ok(())
    }

    /// Whether a worker takes requests. One that does not keeps its blocks and its bookings.
    pub fn set_available(&self, id: WorkerId, available: bool) -> Result<(), Error> {
        self.room_changed();
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(id)?;
        desk.fleet.set_available(slot, available);
        self.roster.publish(&desk.fleet, slot);
        Ok(())
    }

    /// Apply one KV event of a worker. On an error the feed may go on: the event was counted and, but for
    /// [`Error::UnknownBlocks`], left the index as it was up to the block that was refused. O(blocks of the event).
    pub fn apply(&self, id: WorkerId, event: &KvEvent) -> Result<(), Error> {
        let outcome = self.index.apply_from(id, event);
        if matches!(event, KvEvent::Cleared) && outcome.is_ok() {
            let desk = &mut *self.desk();
            if let Ok(slot) = desk.fleet.slot(id) {
                desk.predicted.clear(slot);
            }
        }
        if self.follows_churn.load(Ordering::Relaxed) {
            self.count_churn(id, event);
        }
        outcome.map_err(|refusal| event_error(id, event, refusal, self.config.index_max_blocks))
    }

    /// What a worker's own events say of how much its cache evicts.
    fn count_churn(&self, id: WorkerId, event: &KvEvent) {
        let (stored, removed) = match event {
            KvEvent::Stored {
                blocks,
                tier: Tier::Device,
                ..
            } => (blocks.len(), 0),
            KvEvent::Removed {
                blocks,
                tier: Tier::Device,
            } => (0, blocks.len()),
            _ => return,
        };
        let desk = &mut *self.desk();
        if let Ok(slot) = desk.fleet.slot(id) {
            desk.ledger.cache_changed(slot, stored, removed);
        }
    }

    /// The index as bytes, for a restart; `position` tells where a worker's feed stands. O(blocks + holders).
    ///
    /// Bookings, predictions and curves are not in it. Events wait meanwhile, decisions do not.
    pub fn save_index(&self, position: impl Fn(WorkerId) -> Option<u64>) -> Vec<u8> {
        self.index.image(self.hashing(), position)
    }

    /// Takes over what [`Router::save_index`] gave, of those workers that are registered; what of each.
    ///
    /// The index must be empty: restore before the first event. What is restored is of the incarnation that was saved. Who
    /// feeds it must know that it is still the same one and that the feed goes on where it stood (`position`), or apply
    /// [`KvEvent::Cleared`] and start it anew.
    pub fn restore_index(&self, image: &[u8]) -> Result<Vec<RestoredWorker>, Error> {
        Ok(self.index.restore(image, self.hashing())?)
    }

    /// Names the way in which blocks are hashed.
    fn hashing(&self) -> u64 {
        let key = match &self.config.hash {
            HashMode::Xxh3 => 0,
            HashMode::Keyed(key) => key.fingerprint(),
        };
        key ^ u64::from(self.config.block_size)
    }

    /// What each worker holds of a prompt; workers that hold nothing are left out. In id order.
    pub fn find_matches(&self, locals: &[LocalHash]) -> Vec<WorkerOverlap> {
        let prompt = Prompt {
            locals,
            sequence: &[],
        };
        if self.config.predicted.used == PredictedUse::Off {
            for _ in 0..FIND_TRIES {
                let Some((slots, stamp)) = self.roster.read(&mut Vec::new()) else {
                    continue;
                };
                let clears = self.index.clears();
                let overlaps = self.index.find_matches(&prompt, slots);
                let found = Self::named(&overlaps, |slot| self.roster.id(slot));
                if self.roster.is_valid(stamp) && self.index.clears() == clears {
                    return found;
                }
            }
        }
        let desk = &*self.desk();
        let overlaps = desk.overlaps_of(&prompt, &self.index);
        Self::named(&overlaps, |slot| desk.fleet.ids()[slot.index()])
    }

    fn named(overlaps: &[TierOverlap], id: impl Fn(Slot) -> WorkerId) -> Vec<WorkerOverlap> {
        let holders = (0..).map(Slot).zip(overlaps);
        let holders = holders.filter(|(_, overlap)| **overlap != [0; 3]);
        let overlap = |(slot, &[device, host, disk]): (Slot, &TierOverlap)| WorkerOverlap {
            worker: id(slot),
            device,
            host,
            disk,
        };
        let mut found: Vec<WorkerOverlap> = holders.map(overlap).collect();
        found.sort_unstable_by_key(|overlap| overlap.worker);
        found
    }

    /// Choose a worker and, when the request has an id, book it there: one atomic step.
    ///
    /// Bookings whose time is over end first. O(blocks / 64 + workers).
    pub fn route(&self, request: &RouteRequest<'_>, now_s: f64) -> Result<Decision, Error> {
        self.route_marked(request, now_s, |_| ())
    }

    /// As [`Router::route`]; `mark` is told the end of each stage, so that who has a clock can time them.
    pub fn route_marked(
        &self,
        request: &RouteRequest<'_>,
        now_s: f64,
        mut mark: impl FnMut(Stage),
    ) -> Result<Decision, Error> {
        let mut overlaps = Overlaps::taken();
        overlaps.look(&request.prompt(), &self.roster, &self.index);
        let decision = {
            let desk = &mut *self.desk();
            if desk.expire(now_s) > 0 {
                self.room_changed();
            }
            desk.check(request).and_then(|()| {
                let mut matched = std::mem::take(&mut desk.matched);
                let found = self.complete(desk, request, &mut overlaps, &mut matched);
                mark(Stage::Match);
                let decision = found.map(|()| desk.decide(request, &matched, now_s, &mut mark));
                desk.matched = matched;
                decision
            })
        };
        overlaps.keep();
        decision
    }

    /// The part of a match that needs the desk; all of it when the fleet changed since the index was looked at.
    fn complete(
        &self,
        desk: &Desk,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        matched: &mut Matched,
    ) -> Result<(), Error> {
        if !overlaps.is_current(&self.roster, &self.index) {
            overlaps.look(&request.prompt(), &self.roster, &self.index);
        }
        let state = (&desk.fleet, &self.index, &desk.predicted, &desk.load);
        matched.fill(request, overlaps, state, self.roster.generation())?;
        if desk.policy.wants_seconds() {
            desk.fill_work(matched);
        }
        Ok(())
    }

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

    /// Keep each booked decision, or stop, for [`Router::take_placements`]. Keeping one is O(candidates); at most
    /// [`MAX_KEPT`] wait to be taken, and what comes beyond is passed over.
    pub fn keep_placements(&self, keep: bool) {
        if self.keeps_placements.swap(keep, Ordering::Relaxed) != keep {
            self.desk().keeps_placements = keep;
        }
    }

    /// The decisions kept since the last call, oldest first. Those that were kept before it was stopped are taken once it
    /// goes on.
    pub fn take_placements(&self) -> Vec<Placed> {
        if !self.keeps_placements.load(Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut self.desk().kept)
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

    fn room_changed(&self) {
        self.prompts_over.fetch_add(1, Ordering::Relaxed);
    }

    /// Dense positions in use are below this.
    pub fn positions(&self) -> usize {
        self.roster.slots()
    }

    /// Whether a booking with this id is open.
    pub fn is_booked(&self, request: RequestId) -> bool {
        self.desk().load.contains(request)
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

    /// The curves of the fleet as a whole.
    pub fn fleet_curves(&self) -> WorkerCurves {
        *self.desk().ledger.curves().fleet()
    }

    /// Mean tokens of an answer so far.
    pub fn mean_output_tokens(&self) -> f64 {
        self.desk().ledger.mean_output_tokens()
    }

    /// The learned latency curves of every worker.
    pub fn curves(&self) -> Vec<CurveView> {
        let desk = &*self.desk();
        desk.ledger.curves().views(desk.placed()).collect()
    }

    /// Everything learned of latency, for a file.
    pub fn curve_record(&self) -> FleetRecord {
        let desk = &*self.desk();
        desk.ledger.curves().record(desk.placed())
    }

    /// Takes over learned curves; how many workers were known.
    pub fn restore_curves(&self, record: &FleetRecord) -> Result<usize, Error> {
        self.room_changed();
        let Desk { fleet, ledger, .. } = &mut *self.desk();
        let position = |worker| fleet.slot(worker).ok().map(Slot::index);
        ledger.restore_curves(record, position)
    }

    /// The curves and the dense position of `worker`, to teach them from engine metrics. `None`: nobody has this id.
    pub fn teach<T>(&self, worker: WorkerId, lesson: impl FnOnce(&mut FleetCurves, usize) -> T) -> Option<T> {
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(worker).ok()?;
        Some(desk.ledger.teach(slot, lesson))
    }

    /// An engine told what waits in it: a queue in front of this router knows its room by that. False: nobody has this id.
    pub fn engine_queue(&self, worker: WorkerId, queue: EngineQueue, now_s: f64) -> bool {
        self.room_changed();
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(worker);
        slot.map(|slot| desk.ledger.engine_queue(slot, queue, now_s))
            .is_ok()
    }

    /// Book a placement that somebody else made. The request must have an id.
    pub fn book(&self, request: &RouteRequest<'_>, worker: WorkerId, now_s: f64) -> Result<(), Error> {
        let desk = &mut *self.desk();
        let slot = desk.fleet.slot(worker)?;
        if request.request_id.is_none() {
            let expected = "an id to book under";
            return Err(Error::Parameter {
                field: "request_id",
                got: "none".to_owned(),
                expected,
            });
        }
        desk.expire(now_s);
        desk.check(request)?;
        let overlap = desk.overlaps_of(&request.prompt(), &self.index)[slot.index()];
        let work = desk.work(request.input_tokens, overlap);
        desk.open(request, slot, work, now_s);
        Ok(())
    }

    /// The first token of a request is out. Its worker. Twice is harmless; in a pool that only decodes, where a booking waits for
    /// nothing and may be told so at once, the second time is that of the first token.
    pub fn prefill_done(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.room_changed();
        let desk = &mut *self.desk();
        let slot = desk
            .load
            .prefill_done(request)
            .ok_or(Error::UnknownRequest(request))?;
        desk.first_token(request, now_s);
        desk.predicted.first_token(request, now_s);
        Ok(desk.fleet.ids()[slot.index()])
    }

    /// The request ended, well or not. Its worker.
    pub fn release(&self, request: RequestId, now_s: f64) -> Result<WorkerId, Error> {
        self.finish(request, Outcome::default(), now_s)
    }

    /// As [`Router::release`], with what the request told: the latency curves learn from it.
    pub fn finish(&self, request: RequestId, outcome: Outcome, now_s: f64) -> Result<WorkerId, Error> {
        let desk = &mut *self.desk();
        let slot = desk.load.release(request).ok_or(Error::UnknownRequest(request))?;
        if desk.ledger.waits(request) {
            self.room_changed();
        }
        self.ends.fetch_add(1, Ordering::Relaxed);
        if outcome.at_first_token {
            desk.first_token(request, now_s);
        }
        desk.ledger.release(request, desk.kv_tokens(slot), outcome, now_s);
        desk.predicted.finished(request, now_s);
        desk.counters.released += 1;
        Ok(desk.fleet.ids()[slot.index()])
    }

    /// A first token came, `ttft_s` after its request: for the policy of a pool that only decodes, which sees no prefill. A pool
    /// that prefills hears it by [`Router::prefill_done`] or [`Router::finish`].
    pub fn observe_first_token(&self, ttft_s: f64, now_s: f64) {
        let desk = &mut *self.desk();
        if !desk.config.tracks_prefill {
            desk.policy.first_token(ttft_s, now_s);
        }
    }

    /// Changes of regime by a policy that has regimes, oldest first; bounded.
    pub fn regime_changes(&self) -> Vec<RegimeChange> {
        self.desk().policy.regime_changes()
    }

    /// End the bookings that outlived their time; how many.
    pub fn expire(&self, now_s: f64) -> usize {
        let expired = self.desk().expire(now_s);
        if expired > 0 {
            self.room_changed();
        }
        expired
    }

    /// Put another policy in force, as a whole.
    pub fn set_policy(&self, policy: PolicyConfig) -> Result<(), Error> {
        let built = policy.build()?;
        let desk = &mut *self.desk();
        self.room_changed();
        self.follows_churn.store(built.wants_seconds(), Ordering::Relaxed);
        desk.policy = built;
        desk.config.policy = policy;
        Ok(())
    }

    /// Registered workers, in id order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        self.desk().fleet.sorted().into_iter().map(|(id, _)| id)
    }

    /// What happened since the router was made.
    pub fn counters(&self) -> Counters {
        let desk = self.desk().counters;
        Counters {
            reads_given_up: self.index.reads_given_up(),
            ..desk.with_events(&self.index.counters())
        }
    }

    /// What is predicted of caches; `None` when nothing is.
    pub fn predicted(&self) -> Option<PredictedSize> {
        let is_off = self.config.predicted.used == PredictedUse::Off;
        (!is_off).then(|| self.desk().predicted.size())
    }

    /// Everything the router knows, copied out. O(workers).
    pub fn snapshot(&self) -> Snapshot {
        let counters = self.counters();
        let held = self.index.held();
        let desk = &*self.desk();
        let worker = |(worker, slot): (WorkerId, Slot)| WorkerSnapshot {
            worker,
            spec: desk.fleet.spec(slot).clone(),
            available: desk.fleet.is_available(slot),
            prefill_tokens: desk.load.prefill_tokens[slot.index()],
            decode_blocks: desk.load.decode_blocks[slot.index()],
            active_requests: desk.load.active_requests[slot.index()],
            held_blocks: held.get(slot.index()).copied().unwrap_or_default(),
        };
        let workers: Vec<WorkerSnapshot> = desk.fleet.sorted().into_iter().map(worker).collect();
        let holdings = workers.iter().flat_map(|worker| worker.held_blocks).sum();
        Snapshot {
            workers,
            policy: desk.policy.name().to_owned(),
            bookings: desk.load.len(),
            index: IndexSize {
                blocks: self.index.blocks(),
                holdings,
                bytes: self.index.bytes(),
            },
            predicted: desk.predicted.size(),
            counters,
        }
    }
}

impl Desk {
    fn fill_work(&self, matched: &mut Matched) {
        if self.config.tracks_prefill {
            matched.fill_work(self.tokens_of_block(), self.policy.wants_seconds());
        } else {
            matched.fill_no_work();
        }
    }

    /// Prompt tokens that a block saves, by tier.
    fn tokens_of_block(&self) -> [f64; 3] {
        let [host, disk] = self.policy.reuse_weights().unwrap_or(self.config.reuse_weights);
        [1.0, host, disk].map(|weight| weight * f64::from(self.config.block_size))
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
        let decision = Decision {
            worker: matched.workers[chosen],
            overlap_blocks: matched.device_blocks[chosen],
            cost: columns.costs[chosen],
            candidates: self.candidates(matched, request.explain, now_s),
        };
        self.counters.routed += 1;
        let work = self.work_of(matched, chosen);
        self.keep(request, matched, chosen, now_s);
        self.open(request, matched.slots[chosen], work, now_s);
        mark(Stage::Pick);
        decision
    }

    /// The candidates as they were priced a moment ago, when `explain`.
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
            let work = self.work_of(matched, i);
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
            generation: matched.generation,
        }
    }

    fn output_tokens(&self, matched: &Matched) -> f64 {
        match matched.expected_output_tokens {
            _ if !self.config.tracks_decode => 0.0,
            Some(tokens) => f64::from(tokens),
            None => self.ledger.mean_output_tokens(),
        }
    }

    /// What each slot holds of a prompt, by its events and by prediction.
    fn overlaps_of(&self, prompt: &Prompt<'_>, index: &Index) -> Vec<TierOverlap> {
        let mut overlaps = index.find_matches(prompt, self.fleet.slots());
        if !self.predicted.is_off() {
            self.predicted.raise_all(prompt, index, &mut overlaps);
        }
        overlaps
    }

    fn expire(&mut self, now_s: f64) -> usize {
        let expired = self.load.expire(now_s);
        self.ledger.expire(now_s);
        self.predicted.expire(now_s);
        self.counters.expired += expired as u64;
        expired
    }

    fn placed(&self) -> impl Iterator<Item = (WorkerId, usize)> + '_ {
        self.fleet
            .sorted()
            .into_iter()
            .map(|(id, slot)| (id, slot.index()))
    }

    fn first_token(&mut self, request: RequestId, now_s: f64) {
        let taken_s = self.ledger.prefill_done(request, now_s);
        if taken_s.is_none() && !self.config.tracks_prefill {
            self.ledger.answer_began(request, now_s);
        }
        // In a pool that only decodes a booking begins long after its request: see `Router::observe_first_token`.
        if let Some(taken_s) = taken_s.filter(|_| self.config.tracks_prefill) {
            self.policy.first_token(taken_s, now_s);
        }
    }

    fn price(&mut self, matched: &Matched, ahead: Option<&Ahead>, now_s: f64) {
        self.policy.advance(now_s);
        self.columns.fill(matched, &self.load, ahead);
        if self.policy.wants_seconds() {
            self.ledger.advance(now_s);
            self.columns.fill_seconds(matched, &self.ledger.lanes(), ahead);
        }
        let mut costs = std::mem::take(&mut self.columns.costs);
        let mut rng = self.rng.clone();
        self.policy
            .price(&self.view(matched, now_s), &mut rng, &mut costs);
        self.rng = rng;
        self.columns.costs = costs;
    }

    /// What a price reads: after the columns were filled for the same candidates and time.
    fn view<'a>(&'a self, matched: &'a Matched, now_s: f64) -> View<'a> {
        let columns = &self.columns;
        let (prefill_tokens, decode_blocks, active_requests) = columns.loads(&self.load);
        let output_tokens = self.output_tokens(matched);
        let books = if self.policy.wants_seconds() {
            let climate = self.ledger.climate(output_tokens, now_s);
            let pool = (self.config.block_size, self.handoff_s_per_token());
            columns.books(matched, (self.ledger.lanes(), &self.load), climate, pool)
        } else {
            Books::default()
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
            books,
        }
    }

    /// Every candidate as it was just priced, when asked for.
    fn candidates(&self, matched: &Matched, explain: bool, now_s: f64) -> Vec<Candidate> {
        if !explain {
            return Vec::new();
        }
        let view = self.view(matched, now_s);
        let candidate = |i| {
            let parts = self.policy.parts(&view, i);
            self.columns.candidate(matched, &self.load, parts, i)
        };
        (0..matched.workers.len()).map(candidate).collect()
    }

    /// What a candidate waits for the KV of each token that another pool computed and that it does not hold. 0 in a pool that
    /// prefills itself.
    const fn handoff_s_per_token(&self) -> f64 {
        if self.config.tracks_prefill {
            0.0
        } else {
            self.config.handoff_s_per_token
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
        let prompt = request.prompt();
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

    /// What candidate `i` would compute of a matched prompt, and what it would find. A price in seconds counts the prefix in
    /// flight there beside what events told: an engine computes prompts in order, so it is there by this one's turn. The
    /// other prices keep to the events, as their sources do.
    fn work_of(&self, matched: &Matched, i: usize) -> Work {
        let overlap = if self.policy.wants_seconds() {
            matched.overlap_in_time(i)
        } else {
            matched.overlap(i)
        };
        self.work(matched.input_tokens, overlap)
    }

    /// What a worker with this overlap would compute of a prompt, and what it would find; nothing in a pool that does not
    /// prefill.
    fn work(&self, input_tokens: u32, overlap: TierOverlap) -> Work {
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
        (Refusal::UnknownWorker, _) => Error::UnknownWorker(worker),
        (Refusal::Full, _) => Error::IndexFull { limit_blocks },
        (Refusal::UnknownParent, _) => unreachable!("only a stored event with a parent can lack it"),
    }
}
