//! The index of a pool over a restart of the gateway.
//!
//! The index is saved with the position of each worker's feed. After the restart it is taken over, and the first event of each worker
//! shows whether the blocks are still exact, see [`super::cursor`]. O(blocks).
//!
//! The control plane asks for a save at a stop and now and then, and for the restore once the
//! workers are registered.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use wardrop_core::{Error, KvEvent, WorkerId};

use super::WorkerPool;
use super::position::Coverage;
use super::saved::SavedPool;

/// Result of the restore of a saved pool, in workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RestoreReport {
    /// Workers whose blocks were taken over. Their first event or a dump confirms or replaces the blocks.
    pub taken_over: usize,
    /// Registered workers that restarted after the save: their feed has another publisher. They start empty.
    pub restarted: usize,
    /// Registered workers whose saved blocks were incomplete, or have no event id while no dump follows. They start empty.
    pub not_known: usize,
    /// Saved workers that are not registered.
    pub gone: usize,
    /// (worker, tier, block) triples that were taken over.
    pub blocks: u64,
}

impl WorkerPool {
    /// The blocks of all workers, with the position and the publisher of each feed; `None` without workers.
    ///
    /// Events wait while the index is written. Decisions do not wait.
    ///
    /// A worker without a complete index is saved without a position, and starts empty after the
    /// restart.
    pub(crate) fn save(&self) -> Option<SavedPool> {
        let positions: BTreeMap<WorkerId, _> = {
            let state = self.state.lock();
            let positions = state
                .workers
                .iter()
                .map(|(&id, worker)| (id, worker.position.clone()));
            positions.collect()
        };
        if positions.is_empty() {
            return None;
        }
        let publishers = RefCell::new(BTreeMap::new());
        let image = self.router.save_index(|id| {
            let position = positions.get(&id)?.get()?;
            publishers.borrow_mut().insert(id, position.publisher);
            position.event_id
        });
        Some(SavedPool {
            model: self.model.to_string(),
            role: self.role,
            workers: positions.len() as u64,
            publishers: publishers.into_inner(),
            image,
        })
    }

    /// (worker, tier, block) triples in the index. O(workers).
    pub(crate) fn held_blocks(&self) -> u64 {
        self.router.snapshot().index.holdings
    }

    /// The stores that give another index the blocks of this pool. Events wait meanwhile, decisions do not.
    pub(crate) fn stores(&self) -> Vec<(WorkerId, KvEvent)> {
        self.router.stores()
    }

    /// Takes over a saved index into an empty index. `publishers` are the publishers of the pool's feeds of KV events. With
    /// `dump_follows`, a dump will replace the blocks of workers whose events are missing.
    ///
    /// A worker is taken over when it is registered, its feed has the publisher of the save, and
    /// its position is usable. The blocks of all other workers are cleared at once.
    ///
    /// # Errors
    /// The fault of the image; the index then stays empty.
    pub(crate) fn restore(
        &self,
        saved: &SavedPool,
        publishers: &BTreeSet<u64>,
        dump_follows: bool,
    ) -> Result<RestoreReport, Error> {
        // This takes long with a large index. It takes the index's lock only, so decisions continue.
        let restored = self.router.restore_index(&saved.image)?;
        let mut report = RestoreReport {
            gone: (saved.workers as usize).saturating_sub(restored.len()),
            ..RestoreReport::default()
        };
        let mut state = self.state.lock();
        for found in restored {
            let Some(worker) = state.workers.get_mut(&found.worker) else {
                report.gone += 1;
                continue;
            };
            let publisher = saved.publishers.get(&found.worker);
            let is_known = publisher.is_some() && (found.position.is_some() || dump_follows);
            if let Some(&publisher) = publisher.filter(|&id| is_known && publishers.contains(id)) {
                worker.cursor.restore(publisher, found.position, dump_follows);
                let coverage = found.position.map_or(Coverage::Dumped, Coverage::UpTo);
                worker.position.record(publisher, coverage);
                report.taken_over += 1;
                report.blocks += found.blocks.iter().sum::<u64>();
            } else {
                let _ = state.router.apply(found.worker, &KvEvent::Cleared);
                report.restarted += usize::from(is_known);
                report.not_known += usize::from(!is_known);
            }
        }
        Ok(report)
    }
}
