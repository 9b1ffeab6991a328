//! The caches of the workers: KV events in, matches out, and the index as a file.
//!
//! Events go to the index alone. The state's lock is taken only where the event concerns it too: a cleared
//! cache ends its predictions, and a price of evictions counts stored and removed blocks.

use std::sync::atomic::Ordering;

use super::Router;
use crate::error::Error;
use crate::event::{KvEvent, Tier};
use crate::hash::{EngineHash, HashMode, LocalHash};
use crate::index::{Prompt, Refusal, RestoredWorker, Slot, TierOverlap, WorkerOverlap};
use crate::predicted::PredictedUse;
use crate::worker::WorkerId;

/// Tries of a search without a lock while the fleet changes. After them the search locks the state, so it
/// always ends.
const FIND_TRIES: usize = 8;

impl Router {
    /// Applies one KV event of a worker. O(blocks of the event).
    ///
    /// The feed may continue after an error. Blocks of a stored event before the refused block stay stored, and the
    /// known blocks of a removed event are removed.
    ///
    /// # Errors
    /// [`Error::UnknownWorker`], [`Error::UnknownParent`], [`Error::UnknownBlocks`], [`Error::ConflictingBlock`],
    /// [`Error::IndexFull`].
    pub fn apply(&self, id: WorkerId, event: &KvEvent) -> Result<(), Error> {
        let outcome = self.index.apply_from(id, event);
        if matches!(event, KvEvent::Cleared) && outcome.is_ok() {
            let state = &mut *self.state();
            if let Ok(slot) = state.fleet.slot(id) {
                state.predicted.clear(slot);
                state.trust.forget_blocks(slot);
            }
        }
        if self.counts_evictions.load(Ordering::Relaxed) {
            self.count_evictions(id, event);
        }
        outcome.map_err(|refusal| event_error(id, event, refusal, self.config.index_max_blocks))
    }

    /// Adds copies, in `tier`, of blocks that a worker holds in any tier. O(blocks).
    ///
    /// Engines with an offload connector announce such copies by engine hash alone. Unknown blocks are skipped.
    ///
    /// # Errors
    /// [`Error::UnknownWorker`], [`Error::UnknownBlocks`], [`Error::ConflictingBlock`], [`Error::IndexFull`].
    pub fn copy_blocks(&self, id: WorkerId, blocks: &[EngineHash], tier: Tier) -> Result<(), Error> {
        let outcome = self.index.copy_from(id, blocks, tier);
        // `event_error` reads the event only for a missing parent, and copies have none.
        let without_parent = KvEvent::Cleared;
        outcome.map_err(|refusal| event_error(id, &without_parent, refusal, self.config.index_max_blocks))
    }

    /// Counts what a KV event says of how much a worker's cache evicts. Only device memory counts: that is
    /// where a new block evicts another.
    fn count_evictions(&self, id: WorkerId, event: &KvEvent) {
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

    /// The index as bytes, for a restart. `position` is where the feed of a worker stands. O(blocks +
    /// holders).
    ///
    /// Bookings, predictions and curves are not included. KV events wait meanwhile, decisions do not.
    /// `position` runs under the lock of the index, so it must not call this router.
    pub fn save_index(&self, position: impl Fn(WorkerId) -> Option<u64>) -> Vec<u8> {
        self.index.image(self.hashing(), position)
    }

    /// The index as KV events: the stores that give another index the same blocks, each parent before its children.
    /// A second copy of a block is not included. KV events wait meanwhile, decisions do not. O(blocks · holders).
    pub fn stores(&self) -> Vec<(WorkerId, KvEvent)> {
        self.index.stores()
    }

    /// Restores an index that [`Router::save_index`] saved, for the workers that are registered. Returns what was
    /// restored of each.
    ///
    /// The index must be empty, so restore before the first event. The blocks are those of the saved incarnation of a
    /// worker. The caller must know that the worker is still the same incarnation and that its feed continues at
    /// `position`. Otherwise apply [`KvEvent::Cleared`] and restart the feed.
    ///
    /// # Errors
    /// [`Error::Image`] for bytes that this router cannot restore.
    pub fn restore_index(&self, image: &[u8]) -> Result<Vec<RestoredWorker>, Error> {
        Ok(self.index.restore(image, self.hashing())?)
    }

    /// A fingerprint of how blocks are hashed.
    fn hashing(&self) -> u64 {
        let key = match &self.config.hash {
            HashMode::Xxh3 => 0,
            HashMode::Keyed(key) => key.fingerprint(),
        };
        key ^ u64::from(self.config.block_size)
    }

    /// Leading blocks of a prompt that each worker holds, in id order. Workers without any are left out.
    /// O(blocks / 64 + workers · log workers).
    ///
    /// No lock is taken, except where caches are predicted or the fleet keeps changing.
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

    /// Overlaps by slot as overlaps by worker, in id order, without workers at 0.
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

/// The error of a refused event, with the worker and what a caller can do.
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
