//! Which slots take requests and who is in them: what readers without a lock need of the fleet.
//!
//! A copy of [`crate::fleet::Fleet`] in words that never move, as a whole under one [`seqlock`]. Its version is the generation of
//! the router: a match of one generation says nothing of the workers of another, since slots are used again.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fleet::Fleet;
use crate::index::Slot;
use crate::index::arena::{Arena, get, set};
use crate::index::seqlock::{self, Stamp};
use crate::worker::WorkerId;

/// Times that a reader tries.
const TRIES: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Roster {
    version: AtomicU64,
    slots: AtomicU64,
    available: Arena<1>,
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
    /// How often the fleet changed, for who holds the lock under which it changes.
    pub fn generation(&self) -> u64 {
        get(&self.version) / 2
    }

    /// Slots in use.
    pub fn slots(&self) -> usize {
        self.slots.load(Ordering::Acquire) as usize
    }

    /// Takes over what became of one slot. One caller at a time.
    pub fn publish(&self, fleet: &Fleet, slot: Slot) {
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

    /// Slots in use and a stamp of them, with who of them takes requests in `active`. `None`: the fleet is being changed.
    pub fn read(&self, active: &mut Vec<u64>) -> Option<(usize, Stamp)> {
        for _ in 0..TRIES {
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

    /// Who is in a slot that was in use. To be believed if the stamp is valid afterwards.
    pub fn id(&self, slot: Slot) -> WorkerId {
        let words = self.ids.unit(slot.0);
        WorkerId::new(get(&words[0]), get(&words[1]) as u32)
    }

    /// Whether nothing changed since the stamp was taken.
    pub fn is_valid(&self, stamp: Stamp) -> bool {
        seqlock::is_valid(&self.version, stamp)
    }
}
