//! What caches hold: events in, matches out, the index as a file.

use std::sync::atomic::Ordering;

use super::Router;
use crate::error::Error;
use crate::event::{KvEvent, Tier};
use crate::hash::{HashMode, LocalHash};
use crate::index::{Prompt, Refusal, RestoredWorker, Slot, TierOverlap, WorkerOverlap};
use crate::predicted::PredictedUse;
use crate::worker::WorkerId;

/// Times that a search tries without a lock while the fleet changes.
const FIND_TRIES: usize = 8;

impl Router {
    /// Apply one KV event of a worker. On an error the feed may go on: the event was counted and, but for
    /// [`Error::UnknownBlocks`], left the index as it was up to the block that was refused. O(blocks of the event).
    pub fn apply(&self, id: WorkerId, event: &KvEvent) -> Result<(), Error> {
        let outcome = self.index.apply_from(id, event);
        if matches!(event, KvEvent::Cleared) && outcome.is_ok() {
            let state = &mut *self.state();
            if let Ok(slot) = state.fleet.slot(id) {
                state.predicted.clear(slot);
            }
        }
        if self.counts_evictions.load(Ordering::Relaxed) {
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
        let state = &mut *self.state();
        if let Ok(slot) = state.fleet.slot(id) {
            state.ledger.cache_changed(slot, stored, removed);
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
        let state = &*self.state();
        let overlaps = state.overlaps_of(&prompt, &self.index);
        Self::named(&overlaps, |slot| state.fleet.ids()[slot.index()])
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
