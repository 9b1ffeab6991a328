//! The one object that owns state: apply KV events, decide, learn from outcomes.
//!
//! ```text
//! KV event ─▶ cache.rs ─▶ index                                          no state lock
//! request  ─▶ decisions.rs: match ─▶ price ─▶ pick ─▶ book               one step under one lock
//! outcome  ─▶ outcomes.rs ─▶ load, ledger, curves, regime                one lock
//! snapshot ◀─ inspect.rs
//! ```
//!
//! `state.rs` holds what a decision must see as a whole. Every decision takes its lock once, whether the
//! request is placed at once ([`Router::route`]) or by a queue ([`crate::queue::LateQueue`]).
//!
//! Two locks exist: that of the state, and that of the index's writer. A function that needs both takes the
//! state's lock first, or one after the other. The roster and the index are read without any lock, so a match
//! waits for no event and no other decision.
//!
//! The life of a worker spans both locks:
//!
//! ```text
//! add_worker     state: slot, load, ledger ─▶ index: register ─▶ roster: publish
//! remove_worker  state: forget, publish    ─▶ index: retire (no state lock) ─▶ state: the slot is free
//! ```
//!
//! The slot is reused only after the index holds nothing of the former worker. A match that began before sees
//! the changed roster and is made again.

mod cache;
mod choose;
mod config;
mod decisions;
mod inspect;
mod outcomes;
mod peers;
mod pricing;
mod record;
mod room_changes;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::config::RouterConfig;
pub(crate) use self::decisions::Decisions;
pub use self::inspect::FleetLoad;
pub use self::peers::PeerBooking;
use self::pricing::Pricing;
pub(crate) use self::room_changes::RoomChanges;
use self::state::RouterState;
use crate::error::Error;
use crate::hash::BlockHasher;
use crate::index::{Budget, Index};
use crate::overlaps::Overlaps;
use crate::price::PolicyConfig;
use crate::request::{Decision, RouteRequest, Stage};
use crate::roster::Roster;
use crate::worker::{WorkerId, WorkerSpec};

/// Routes the requests of one pool of workers. The crate's page shows the flow.
///
/// Any number of threads share it. A match of a prompt takes no lock and waits for no writer. KV events are applied one
/// at a time under the lock of the index. Price, pick and booking are one step under the lock of the state. With one
/// thread the same calls give the same answers.
///
/// ```
/// use wardrop_core::{RequestId, RouteRequest, Router, RouterConfig, WorkerId, WorkerSpec};
///
/// let router = Router::new(RouterConfig::new(16))?;
/// router.add_worker(WorkerId::new(1, 0), WorkerSpec::default())?;
/// router.add_worker(WorkerId::new(2, 0), WorkerSpec::default())?;
/// let request = |id| RouteRequest {
///     request_id: Some(RequestId(id)),
///     input_tokens: 100,
///     ..RouteRequest::default()
/// };
/// let first = router.route(&request(1), 0.0)?;
/// let second = router.route(&request(2), 0.1)?;
/// assert_ne!(first.worker, second.worker); // least loaded is the default policy
/// router.prefill_done(RequestId(1), 0.5)?; // its first token came
/// router.release(RequestId(1), 2.0)?; // its answer ended
/// assert_eq!(router.snapshot().bookings, 1);
/// # Ok::<(), wardrop_core::Error>(())
/// ```
pub struct Router {
    /// What the router was made with. Read without a lock, since it never changes.
    config: RouterConfig,
    /// The hash of blocks, prepared from the configuration.
    hasher: BlockHasher,
    /// Which worker holds which blocks. It has a lock of its own, for writers only.
    index: Index,
    /// A copy of the fleet for readers without the lock. Only the holder of the state's lock publishes to it.
    roster: Roster,
    /// A copy of [`RouterState::records_decisions`] that is read without the lock.
    records_decisions: AtomicBool,
    /// Whether the policy needs the eviction rate of each cache. If so, every stored or removed event locks the state
    /// briefly.
    counts_evictions: AtomicBool,
    /// Everything that a decision must see as of one moment.
    state: Mutex<RouterState>,
    /// How often the state was locked since the start.
    #[cfg(test)]
    pub(crate) locks: std::sync::atomic::AtomicU64,
}

impl Router {
    /// A router without workers.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the first value of `config` that is out of range.
    pub fn new(config: RouterConfig) -> Result<Self, Error> {
        config.validate()?;
        let state = RouterState::new(&config)?;
        Ok(Self {
            hasher: BlockHasher::new(config.hash.clone(), config.block_size),
            index: Index::with_budget(Budget {
                blocks: config.index_max_blocks,
                bytes: config.index_max_bytes,
            }),
            roster: Roster::default(),
            records_decisions: AtomicBool::new(false),
            counts_evictions: AtomicBool::new(state.pricing.configured().needs_latency()),
            state: Mutex::new(state),
            #[cfg(test)]
            locks: std::sync::atomic::AtomicU64::new(0),
            config,
        })
    }

    /// Locks the state. A thread that panicked under the lock does not stop the others.
    fn state(&self) -> MutexGuard<'_, RouterState> {
        #[cfg(test)]
        self.locks.fetch_add(1, Ordering::Relaxed);
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration that the router was made with. [`Router::set_policy`] does not change it.
    pub const fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// The hash of blocks. Prompts and KV events must be hashed with it, or nothing matches.
    pub const fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Registers a worker: available, idle, with an empty cache. Sizes of `spec` that cannot be true count as unknown.
    ///
    /// # Errors
    /// [`Error::WorkerExists`] and [`Error::TooManyWorkers`].
    #[allow(
        clippy::needless_pass_by_value,
        reason = "the router takes the description over"
    )]
    pub fn add_worker(&self, id: WorkerId, spec: WorkerSpec) -> Result<(), Error> {
        let state = &mut *self.state();
        state.room_changes.prefills += 1;
        let slot = state.fleet.add(id, spec.believable(), self.config.max_workers)?;
        let spec = state.fleet.spec(slot);
        state.load.ensure_slot(slot);
        state.predicted.add_worker(slot, spec.total_kv_blocks);
        state.trust.add_worker(slot);
        state.ledger.add_worker(slot, spec, self.config.block_size);
        self.index.register(id, slot);
        self.roster.publish(&state.fleet, slot);
        Ok(())
    }

    /// Replaces the reported sizes of a worker, which keeps its blocks, bookings and curves.
    ///
    /// # Errors
    /// [`Error::UnknownWorker`].
    pub fn set_spec(&self, id: WorkerId, spec: WorkerSpec) -> Result<(), Error> {
        let state = &mut *self.state();
        state.room_changes.prefills += 1;
        let slot = state.fleet.slot(id)?;
        state.fleet.set_spec(slot, spec);
        let spec = state.fleet.spec(slot);
        state.predicted.add_worker(slot, spec.total_kv_blocks);
        state.ledger.set_spec(slot, spec, self.config.block_size);
        Ok(())
    }

    /// Removes a worker with its blocks and its bookings. O(blocks + bookings of the worker).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`].
    pub fn remove_worker(&self, id: WorkerId) -> Result<(), Error> {
        let slot = {
            let state = &mut *self.state();
            state.room_changes.prefills += 1;
            let slot = state.fleet.remove(id)?;
            self.roster.publish(&state.fleet, slot);
            state.predicted.clear(slot);
            state.trust.remove_worker(slot);
            state.follow_trust(slot);
            let own = state.load.len();
            let dropped = state.load.remove_worker(slot);
            state.counters.dropped_with_worker += (own - state.load.len()) as u64;
            state.ledger.remove_worker(slot, &dropped);
            slot
        };
        // Blocks are removed without the lock, so that no decision waits. The slot is reused only after they are gone.
        self.index.retire(id, slot);
        self.state().fleet.free(slot);
        Ok(())
    }

    /// Sets whether a worker takes requests. An unavailable worker keeps its blocks and its bookings. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`].
    pub fn set_available(&self, id: WorkerId, available: bool) -> Result<(), Error> {
        let state = &mut *self.state();
        state.room_changes.prefills += 1;
        let slot = state.fleet.slot(id)?;
        state.fleet.set_available(slot, available);
        self.roster.publish(&state.fleet, slot);
        Ok(())
    }

    /// Whether the configured policy prices seconds, so that its predictions matter.
    pub fn prices_seconds(&self) -> bool {
        self.counts_evictions.load(Ordering::Relaxed)
    }

    /// Replaces the policy as a whole. What the previous policy learned is dropped.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range. The previous policy then stays in force.
    pub fn set_policy(&self, policy: PolicyConfig) -> Result<(), Error> {
        let mut pricing = Pricing::new(policy, self.config.tracks_prefill)?;
        let state = &mut *self.state();
        pricing.stand_in(state.price_guard.misfit().is_some());
        state.room_changes.prefills += 1;
        self.counts_evictions
            .store(pricing.configured().needs_latency(), Ordering::Relaxed);
        state.pricing = pricing;
        Ok(())
    }

    /// Chooses a worker and, when the request has an id, books it there. One atomic step, O(blocks / 64 + workers).
    ///
    /// Bookings that outlived their time end first.
    ///
    /// # Errors [`Error::NoWorker`], [`Error::RequestExists`], and [`Error::TooManyBookings`].
    /// [`Error::Parameter`] for sequence hashes of another length than the local hashes, or for a prompt of
    /// more than 2²⁷ tokens.
    pub fn route(&self, request: &RouteRequest<'_>, now_s: f64) -> Result<Decision, Error> {
        self.route_marked(request, now_s, |_| ())
    }

    /// As [`Router::route`]. `mark` is called at the end of each stage, so that a caller with a clock can time the
    /// stages.
    pub fn route_marked(
        &self,
        request: &RouteRequest<'_>,
        now_s: f64,
        mut mark: impl FnMut(Stage),
    ) -> Result<Decision, Error> {
        let mut overlaps = Overlaps::take_kept();
        overlaps.read(&request.prompt(), &self.roster, &self.index);
        let decision = self.decisions().route(request, &mut overlaps, now_s, &mut mark);
        overlaps.keep();
        decision
    }

    /// Ends bookings that outlived their time. Returns how many ended. O(1) when none did.
    ///
    /// Every decision does this first, so a router under traffic needs no call of it. An idle router does, or
    /// its load would show requests that ended.
    pub fn expire(&self, now_s: f64) -> usize {
        let state = &mut *self.state();
        let now_s = state.clock.read(now_s);
        state.expire(now_s)
    }
}
