//! The one object that owns state: apply, route, finish.
//!
//! Here is who it is made of and the one step of a decision; beside it what caches hold ([`Router::apply`], `cache.rs`), what a queue
//! asks ([`Router::prepare`], `late.rs`), what requests and engines tell ([`Router::finish`], `outcomes.rs`) and what can be looked
//! at ([`Router::snapshot`], `inspect.rs`). The state that a decision must see as a whole is the desk's (`desk.rs`).

mod cache;
mod config;
mod desk;
mod inspect;
mod late;
mod outcomes;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::config::RouterConfig;
use self::desk::Desk;
pub use self::inspect::MAX_KEPT;
pub use self::late::RoomChanges;
use crate::error::Error;
use crate::hash::BlockHasher;
use crate::index::{Budget, Index};
use crate::matched::{Matched, Overlaps};
use crate::price::PolicyConfig;
use crate::request::{Decision, RouteRequest, Stage};
use crate::roster::Roster;
use crate::worker::{WorkerId, WorkerSpec};

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

impl Router {
    /// A router without workers.
    pub fn new(config: RouterConfig) -> Result<Self, Error> {
        config.validate()?;
        let desk = Desk::new(&config)?;
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

    /// See [`RoomChanges`].
    fn room_changed(&self) {
        self.prompts_over.fetch_add(1, Ordering::Relaxed);
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
        desk.load.ensure_slot(slot);
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
            if desk.expire(now_s).1 {
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

    /// End the bookings that outlived their time; how many.
    pub fn expire(&self, now_s: f64) -> usize {
        let (expired, gave_room) = self.desk().expire(now_s);
        if gave_room {
            self.room_changed();
        }
        expired
    }
}
