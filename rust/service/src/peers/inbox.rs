//! What peers have in flight: bookings by peer, applied to the pools of this router.
//!
//! A booking whose worker this router does not know waits without its hashes, and is tried again: discovery may be slower here
//! than at the peer. A booking that the pool dropped with its worker, or by its time to live, ends there without harm.
//!
//! Bounded per peer and in sum. O(blocks / 64) per change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use wardrop_core::ledger::Work;
use wardrop_core::{Error, LocalHash, PeerBooking, RequestId, WorkerId};

use super::metrics::{PeerMetrics, Refused};
use super::proto::change::Kind;
use super::proto::{Booked, Change};
use super::{Shared, messages};
use crate::Clock;
use crate::config::PeerOptions;
use crate::models::Models;
use crate::pool::{Role, WorkerPool};

/// Bit of the ids of peers' bookings, which no request of this router has.
const PEER_BIT: u64 = 1 << 63;
/// Longest name of a model, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// Hashes that a received booking may have: the most that `peers.hash_blocks` allows.
const MAX_HASHES: usize = 16_384;

/// What the bookings of all peers share.
pub(super) struct Inbox {
    models: Arc<Models>,
    clock: Clock,
    per_peer: usize,
    limit: i64,
    /// Bookings of all peers.
    held: AtomicI64,
    /// Bookings among them that wait for their worker.
    waiting: AtomicI64,
    next_request: AtomicU64,
    metrics: PeerMetrics,
}

impl Inbox {
    /// An empty inbox for the pools of `models`.
    pub fn new(models: Arc<Models>, clock: Clock, options: &PeerOptions, metrics: PeerMetrics) -> Self {
        Self {
            models,
            clock,
            per_peer: options.max_bookings_per_peer,
            limit: i64::try_from(options.max_bookings).unwrap_or(i64::MAX),
            held: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            next_request: AtomicU64::new(1),
            metrics,
        }
    }

    /// Sets the gauges before a page of metrics.
    pub fn update_metrics(&self) {
        self.metrics.bookings.set(self.held.load(Ordering::Relaxed));
        self.metrics.waiting.set(self.waiting.load(Ordering::Relaxed));
    }

    fn pool(&self, model: &str, role: Role) -> Option<Arc<WorkerPool>> {
        let (found, adapter) = self.models.find(model)?;
        adapter.is_none().then(|| found.pool(role).clone())
    }
}

/// One booking of a peer.
struct Held {
    place: Place,
    is_prefill_done: bool,
    /// The snapshot that named the booking last.
    snapshot: u64,
}

/// Where a booking of a peer counts.
enum Place {
    /// In this pool, under this id.
    Pool(Arc<WorkerPool>, RequestId),
    /// Nowhere yet: this router does not know the worker.
    Waiting(Box<Waiting>),
}

/// A booking without a worker.
struct Waiting {
    model: String,
    role: Role,
    worker: WorkerId,
    work: Work,
    blocks: u32,
    is_unstreamed: bool,
}

/// The bookings of one peer. Dropping them ends their load.
pub(super) struct PeerBookings {
    shared: Arc<Shared>,
    by_id: HashMap<u64, Held>,
    waiting: HashSet<u64>,
    /// Incarnation of the peer; 0 before the first stream.
    incarnation: u64,
    /// Number of the last snapshot.
    snapshot: u64,
}

impl PeerBookings {
    /// No bookings.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            by_id: HashMap::default(),
            waiting: HashSet::default(),
            incarnation: 0,
            snapshot: 0,
        }
    }

    fn inbox(&self) -> &Inbox {
        &self.shared.inbox
    }

    /// Bookings that are held.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// A stream of this incarnation begins with a snapshot. Bookings of another incarnation end at once.
    pub fn begin(&mut self, incarnation: u64) {
        if self.incarnation != incarnation {
            self.clear();
            self.incarnation = incarnation;
        }
        self.snapshot += 1;
    }

    /// The snapshot is complete: bookings that it did not name ended meanwhile.
    pub fn end_snapshot(&mut self) {
        let snapshot = self.snapshot;
        let ended: Vec<u64> = self
            .by_id
            .iter()
            .filter(|(_, held)| held.snapshot != snapshot)
            .map(|(&id, _)| id)
            .collect();
        for id in ended {
            self.release(id);
        }
    }

    /// Applies a change. Changes of bookings that are not held change nothing.
    pub fn apply(&mut self, change: Change) {
        self.inbox().metrics.received.inc();
        match change.kind {
            Some(Kind::Booked(booked)) => self.book(booked),
            Some(Kind::PrefillDone(id)) => self.prefill_done(id),
            Some(Kind::Renewed(id)) => {
                if let Some(Held {
                    place: Place::Pool(pool, request),
                    ..
                }) = self.by_id.get(&id)
                {
                    pool.renew(*request, self.inbox().clock.now_s());
                }
            }
            Some(Kind::Released(id)) => self.release(id),
            // A later version may report more.
            None => {}
        }
    }

    fn book(&mut self, booked: Booked) {
        if let Some(held) = self.by_id.get_mut(&booked.id) {
            held.snapshot = self.snapshot;
            if booked.is_prefill_done {
                self.prefill_done(booked.id);
            }
            return;
        }
        let role = messages::role(&booked);
        let Some(role) =
            role.filter(|_| booked.model.len() <= MAX_NAME_BYTES && booked.local_hashes.len() <= MAX_HASHES)
        else {
            self.inbox().metrics.count_refused(Refused::Impossible);
            return;
        };
        if self.by_id.len() >= self.inbox().per_peer {
            self.inbox().metrics.count_refused(Refused::PeerFull);
            return;
        }
        if self.inbox().held.load(Ordering::Relaxed) >= self.inbox().limit {
            self.inbox().metrics.count_refused(Refused::Full);
            return;
        }
        let worker = WorkerId::new(booked.worker_id, booked.dp_rank);
        let work = Work {
            new_tokens: booked.new_tokens.into(),
            cached_tokens: booked.cached_tokens.into(),
        };
        let hashes: Vec<LocalHash> = booked.local_hashes.iter().copied().map(LocalHash).collect();
        let booking = PeerBooking {
            worker,
            work,
            local_hashes: &hashes,
            further_blocks: booked.further_blocks,
            is_unstreamed: booked.is_unstreamed,
        };
        let place = match self.place(&booked.model, role, &booking) {
            Ok(Some(place)) => place,
            Ok(None) => {
                self.waiting.insert(booked.id);
                self.inbox().waiting.fetch_add(1, Ordering::Relaxed);
                Place::Waiting(Box::new(Waiting {
                    model: booked.model,
                    role,
                    worker,
                    work,
                    blocks: booked.further_blocks.saturating_add(hashes.len() as u32),
                    is_unstreamed: booked.is_unstreamed,
                }))
            }
            Err(_) => {
                self.inbox().metrics.count_refused(Refused::Impossible);
                return;
            }
        };
        self.inbox().held.fetch_add(1, Ordering::Relaxed);
        let held = Held {
            place,
            is_prefill_done: false,
            snapshot: self.snapshot,
        };
        self.by_id.insert(booked.id, held);
        if booked.is_prefill_done {
            self.prefill_done(booked.id);
        }
    }

    /// Counts a booking in its pool; `None` while this router does not know the worker.
    fn place(&self, model: &str, role: Role, booking: &PeerBooking<'_>) -> Result<Option<Place>, Error> {
        let inbox = self.inbox();
        let Some(pool) = inbox.pool(model, role) else {
            return Ok(None);
        };
        let number = inbox.next_request.fetch_add(1, Ordering::Relaxed);
        let request = RequestId(PEER_BIT | number);
        match pool.book_for_peer(request, booking, inbox.clock.now_s()) {
            Ok(()) => Ok(Some(Place::Pool(pool, request))),
            Err(Error::UnknownWorker(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tries bookings again whose worker was not known. O(waiting bookings).
    pub fn place_waiting(&mut self) {
        let ids: Vec<u64> = self.waiting.iter().copied().collect();
        for id in ids {
            let Some(Held {
                place: Place::Waiting(waiting),
                ..
            }) = self.by_id.get(&id)
            else {
                continue;
            };
            let booking = PeerBooking {
                worker: waiting.worker,
                work: waiting.work,
                local_hashes: &[],
                further_blocks: waiting.blocks,
                is_unstreamed: waiting.is_unstreamed,
            };
            match self.place(&waiting.model, waiting.role, &booking) {
                Ok(Some(Place::Pool(pool, request))) => {
                    self.forget_waiting(id);
                    let now_s = self.inbox().clock.now_s();
                    if let Some(held) = self.by_id.get_mut(&id) {
                        if held.is_prefill_done {
                            pool.prefill_done_for_peer(request, now_s);
                        }
                        held.place = Place::Pool(pool, request);
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    self.inbox().metrics.count_refused(Refused::Impossible);
                    self.release(id);
                }
            }
        }
    }

    fn prefill_done(&mut self, id: u64) {
        let now_s = self.inbox().clock.now_s();
        if let Some(held) = self.by_id.get_mut(&id)
            && !std::mem::replace(&mut held.is_prefill_done, true)
            && let Place::Pool(pool, request) = &held.place
        {
            pool.prefill_done_for_peer(*request, now_s);
        }
    }

    fn release(&mut self, id: u64) {
        let Some(held) = self.by_id.remove(&id) else {
            return;
        };
        self.forget_waiting(id);
        self.inbox().held.fetch_sub(1, Ordering::Relaxed);
        if let Place::Pool(pool, request) = held.place {
            pool.release_for_peer(request, self.inbox().clock.now_s());
        }
    }

    fn forget_waiting(&mut self, id: u64) {
        if self.waiting.remove(&id) {
            self.inbox().waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends every booking; their number.
    pub fn clear(&mut self) -> usize {
        let ids: Vec<u64> = self.by_id.keys().copied().collect();
        for &id in &ids {
            self.release(id);
        }
        ids.len()
    }
}

impl Drop for PeerBookings {
    fn drop(&mut self) {
        self.clear();
    }
}
