//! Roster: a copy of the fleet that matches read without a lock.
//!
//! It copies [`crate::fleet::Fleet`] into words that never move, all under one [`seqlock`]. The version of
//! the seqlock gives the generation of the router. A match of one generation is invalid in another, because
//! slots are reused.
//!
//! A fleet changes rarely and is read at each decision, so one seqlock over all of it serves. A change copies
//! one slot, not the fleet. A read copies the set of available slots: one word per 64 workers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fleet::Fleet;
use crate::index::Slot;
use crate::index::arena::{Arena, get, set};
use crate::index::seqlock::{self, Stamp};
use crate::worker::WorkerId;

/// Attempts of a reader before it gives up. The match is then made under the lock, where nothing changes.
const READ_ATTEMPTS: usize = 64;

/// Available slots and worker ids, as readers see them.
#[derive(Debug)]
pub(crate) struct Roster {
    /// Version of the seqlock over the whole roster.
    version: AtomicU64,
    /// Slots ever used.
    slots: AtomicU64,
    /// Bit per slot: the worker takes requests.
    available: Arena<1>,
    /// Worker ids by slot: instance and rank.
    ids: Arena<2>,
}

impl Default for Roster {
    fn default() -> Self {
        Self {
            version: AtomicU64::new(0),
            slots: AtomicU64::new(0),
            available: Arena::new(3),
            ids: Arena::new(6),
        }
    }
}

impl Roster {
    /// Number of changes of the fleet. The caller must hold the lock under which the fleet changes.
    ///
    /// Each change is one write section, and a section adds 2 to the version.
    pub(crate) fn generation(&self) -> u64 {
        get(&self.version) / 2
    }

    /// Slots ever used.
    pub(crate) fn slots(&self) -> usize {
        self.slots.load(Ordering::Acquire) as usize
    }

    /// Copies the state of one slot. One caller at a time.
    pub(crate) fn publish(&self, fleet: &Fleet, slot: Slot) {
        let slots = fleet.slots() as u32;
        self.available.reserve(slots.div_ceil(64));
        self.ids.reserve(slots);
        seqlock::begin_write(&self.version);
        set(
            &self.available.unit(slot.0 / 64)[0],
            fleet.available()[slot.index() / 64],
        );
        let id = fleet.ids()[slot.index()];
        let words = self.ids.unit(slot.0);
        set(&words[0], id.instance);
        set(&words[1], u64::from(id.dp_rank));
        self.slots.store(u64::from(slots), Ordering::Release);
        seqlock::end_write(&self.version, false);
    }

    /// Copies the available slots into `active`; the number of slots, and a stamp of this state. `None`: the
    /// fleet was changing in every attempt.
    pub(crate) fn read(&self, active: &mut Vec<u64>) -> Option<(usize, Stamp)> {
        for _ in 0..READ_ATTEMPTS {
            if let Some(stamp) = seqlock::begin_read(&self.version) {
                let slots = self.slots.load(Ordering::Acquire) as usize;
                let words = 0..slots.div_ceil(64) as u32;
                active.clear();
                active.extend(words.map(|at| get(&self.available.unit(at)[0])));
                if seqlock::is_valid(&self.version, stamp) {
                    return Some((slots, stamp));
                }
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Worker of a used slot. Valid only if the stamp is valid afterwards.
    pub(crate) fn id(&self, slot: Slot) -> WorkerId {
        let words = self.ids.unit(slot.0);
        WorkerId::new(get(&words[0]), get(&words[1]) as u32)
    }

    /// Whether the fleet is unchanged since the stamp was taken.
    pub(crate) fn is_valid(&self, stamp: Stamp) -> bool {
        seqlock::is_valid(&self.version, stamp)
    }
}
