//! The index of a pool over a restart of the gateway: saved with where each feed stands, taken over, and judged by what comes.

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
    /// Workers whose blocks were taken over, until their first event or a dump tells more.
    pub taken_over: usize,
    /// Workers that are here but started anew since: their feed has another publisher. They start empty.
    pub restarted: usize,
    /// Workers that are here, but were not known as a whole, or how far and no dump follows. They start empty.
    pub not_known: usize,
    /// Saved workers that are not registered now.
    pub gone: usize,
    /// (worker, tier, block) triples that were taken over.
    pub blocks: u64,
}

impl WorkerPool {
    /// Who holds which blocks, with where each feed stands and whose it is; `None` without workers.
    ///
    /// Events wait while the index is written, decisions do not.
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

    /// Takes a saved index over, into one that no event has reached yet. `publishers` are the feeds of KV events that the pool
    /// has now; `dump_follows`: blocks of workers whose events are missing will be read again.
    ///
    /// # Errors
    /// What is wrong with the image; the index is empty then, as before.
    pub(crate) fn restore(
        &self,
        saved: &SavedPool,
        publishers: &BTreeSet<u64>,
        dump_follows: bool,
    ) -> Result<RestoreReport, Error> {
        // Long with a large index, and it needs the index's lock only: decisions go on.
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
