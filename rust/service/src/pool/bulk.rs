//! Bulk changes of a worker's blocks: dumps, clears, and long events, in slices that never hold the pool's lock for long.
//!
//! ```text
//! begin (lock) ─▶ clear ─▶ join dump + kept events ─▶ slice (lock) … slice (lock) ─▶ kept events since ─▶ … ─▶ end (lock)
//! ```
//!
//! Decisions take the pool's lock briefly. A slice of [`SLICE_BLOCKS`] blocks holds the lock once. While the
//! blocks of a worker are replaced, its live events are kept in order and applied at the end. An epoch number in the cursor
//! ends a replacement that a later one, a restart or a removal of the worker overtakes.
//!
//! Complexity: O(blocks), in O(blocks / [`SLICE_BLOCKS`]) locks.
//!
//! The control plane loads dumps of Dynamo's workers. The pool itself clears blocks after a
//! restart, and the background thread reviews the feeds.

use std::collections::{BTreeMap, VecDeque};

use wardrop_core::{KvEvent, WorkerId};
use wardrop_engines::dynamo::WorkerEvent;

use super::WorkerPool;
use super::cursor::{StreamState, block_count};
use super::feed::ApplyCounts;
use super::held_blocks::HeldBlocks;

/// Highest number of blocks that one hold of the pool's lock applies.
pub(super) const SLICE_BLOCKS: usize = 256;

/// Splits an event into parts of at most [`SLICE_BLOCKS`] blocks, in order.
///
/// Each later part of a store names the last block of the part before it as its parent, so the
/// chain stays whole. O(blocks).
pub(super) fn slices(event: KvEvent) -> VecDeque<KvEvent> {
    if block_count(&event) <= SLICE_BLOCKS {
        return VecDeque::from([event]);
    }
    match event {
        KvEvent::Stored { parent, blocks, tier } => {
            let mut parent = parent;
            let parts = blocks.chunks(SLICE_BLOCKS).map(|part| {
                let stored = KvEvent::Stored {
                    parent,
                    blocks: part.to_vec(),
                    tier,
                };
                parent = part.last().map(|block| block.engine_hash);
                stored
            });
            parts.collect()
        }
        KvEvent::Removed { blocks, tier } => {
            let parts = blocks.chunks(SLICE_BLOCKS);
            parts
                .map(|part| KvEvent::Removed {
                    blocks: part.to_vec(),
                    tier,
                })
                .collect()
        }
        KvEvent::Cleared => VecDeque::from([KvEvent::Cleared]),
    }
}

impl WorkerPool {
    /// Begins to keep the events of workers that need a dump, before the dump is read. Returns the number of the workers.
    pub(crate) fn begin_dump(&self) -> usize {
        let state = &mut *self.state.lock();
        let workers = state.workers.values_mut();
        workers
            .filter_map(|worker| worker.cursor.begin_dump(&mut state.kept).then_some(()))
            .count()
    }

    /// Replaces the blocks of every worker for which [`WorkerPool::begin_dump`] began to keep events.
    ///
    /// Other workers keep their blocks, because live events are newer than any dump. A worker whose events have a gap since
    /// the start of the dump keeps its blocks as well, and needs another dump. Returns the number of replaced workers and the
    /// counts of events.
    pub(crate) fn load_dump(&self, dump: Vec<WorkerEvent>) -> (usize, ApplyCounts) {
        let mut counts = ApplyCounts::default();
        let mut per_worker: BTreeMap<WorkerId, Vec<KvEvent>> = BTreeMap::new();
        for WorkerEvent { worker, event, .. } in dump {
            match event {
                Some(event) => per_worker.entry(worker).or_default().push(event),
                None => counts.passed_over += 1,
            }
        }
        let ids: Vec<WorkerId> = {
            let state = self.state.lock();
            let known = state.workers.iter();
            known
                .filter(|(_, worker)| worker.cursor.awaits_dump())
                .map(|(&id, _)| id)
                .collect()
        };
        let mut replaced = 0;
        for id in ids {
            let blocks = per_worker.remove(&id).unwrap_or_default();
            replaced += usize::from(self.load_blocks(id, blocks, &mut counts));
        }
        let state = self.state.lock();
        counts.foreign += per_worker
            .keys()
            .filter(|id| !state.workers.contains_key(id))
            .count() as u64;
        (replaced, counts)
    }

    /// Workers whose index a dump has to complete or to confirm, in order. O(workers).
    pub(crate) fn needing_dump(&self) -> Vec<WorkerId> {
        let state = self.state.lock();
        let workers = state.workers.iter();
        let mut needing: Vec<WorkerId> = workers
            .filter(|(_, worker)| !worker.cursor.is_synced() || worker.cursor.tail_unchecked())
            .map(|(&id, _)| id)
            .collect();
        needing.sort_unstable();
        needing
    }

    /// [`WorkerPool::begin_dump`] for one worker. Returns whether the worker needs the dump.
    pub(crate) fn begin_worker_dump(&self, id: WorkerId) -> bool {
        let state = &mut *self.state.lock();
        let worker = state.workers.get_mut(&id);
        worker.is_some_and(|worker| worker.cursor.begin_dump(&mut state.kept))
    }

    /// [`WorkerPool::load_dump`] for one worker, whose [`WorkerPool::begin_worker_dump`] came before the dump.
    ///
    /// Returns the counts of events; `None` when the worker keeps its blocks.
    pub(crate) fn load_worker_dump(&self, id: WorkerId, dump: Vec<WorkerEvent>) -> Option<ApplyCounts> {
        let mut counts = ApplyCounts::default();
        let blocks = dump.into_iter().filter_map(|event| event.event).collect();
        self.load_blocks(id, blocks, &mut counts).then_some(counts)
    }

    /// Replaces a worker's blocks by a dump of it. Returns whether the blocks are complete.
    ///
    /// A dump of a worker that kept a broken copy of its events cannot be joined, and changes
    /// nothing.
    fn load_blocks(&self, id: WorkerId, blocks: Vec<KvEvent>, counts: &mut ApplyCounts) -> bool {
        let epoch = {
            let state = &mut *self.state.lock();
            let Some(worker) = state.workers.get_mut(&id) else {
                return false;
            };
            let Some(epoch) = worker.cursor.begin_load(!blocks.is_empty(), &mut state.kept) else {
                return false;
            };
            worker.position.forget();
            epoch
        };
        self.replace_blocks(id, epoch, blocks, counts)
    }

    /// Replaces a worker's blocks by `blocks` and the events that the cursor keeps meanwhile.
    ///
    /// Returns whether the replacement is complete. A later replacement ends this one.
    pub(super) fn replace_blocks(
        &self,
        id: WorkerId,
        epoch: u64,
        blocks: Vec<KvEvent>,
        counts: &mut ApplyCounts,
    ) -> bool {
        // The clear takes the index's lock only. Live events of the worker are kept, so none of them is lost.
        let _ = self.router.apply(id, &KvEvent::Cleared);
        let mut held = HeldBlocks::default();
        let mut next = Some(blocks);
        while let Some(events) = next {
            let mut joined = Vec::with_capacity(events.len());
            for event in events {
                held.apply(event, &mut joined);
            }
            for slice in joined.into_iter().flat_map(slices) {
                let state = &mut *self.state.lock();
                let is_current =
                    |worker: &super::Worker| worker.cursor.is_loading() && worker.cursor.epoch() == epoch;
                if !state.workers.get(&id).is_some_and(is_current) {
                    return false;
                }
                // A refused slice leaves later slices without a parent, and each of them is refused
                // and counted as well.
                match state.router.apply(id, &slice) {
                    Ok(()) => counts.applied += 1,
                    Err(_) => counts.refused += 1,
                }
            }
            // Take events that arrived meanwhile. Without any, the replacement ends in the same
            // hold of the lock, so no event is lost between.
            let state = &mut *self.state.lock();
            let Some(worker) = state.workers.get_mut(&id) else {
                return false;
            };
            if worker.cursor.epoch() != epoch {
                return false;
            }
            next = worker.cursor.take_kept(&mut state.kept);
            if next.is_none() {
                worker.finish_load();
            }
        }
        true
    }

    /// Clears the blocks of workers whose cursors already began it. Events that arrive meanwhile follow in order.
    pub(super) fn clear_blocks(&self, cleared: Vec<(WorkerId, u64)>, counts: &mut ApplyCounts) {
        for (id, epoch) in cleared {
            self.replace_blocks(id, epoch, Vec::new(), counts);
        }
    }

    /// Forgets the blocks of workers that have been suspect for too long, and drops dumps that did not come in time.
    ///
    /// O(workers) under one hold of the lock, once per sweep. The blocks are then cleared in
    /// slices.
    pub(super) fn review_feeds(&self, now_s: f64) {
        let cleared: Vec<(WorkerId, u64)> = {
            let state = &mut *self.state.lock();
            let mut cleared = Vec::new();
            for (&id, worker) in &mut state.workers {
                // One check per silence: the time of the last event is remembered, so a silent
                // worker is not checked again and again.
                if worker
                    .health
                    .event_age_s(now_s)
                    .is_some_and(|age_s| age_s > self.options.trust.tail_check_s)
                    && worker.tail_event_s != worker.health.last_event_s()
                {
                    worker.tail_event_s = worker.health.last_event_s();
                    worker.cursor.check_tail();
                }
                if worker.cursor.review(now_s, self.options.trust, &mut state.kept) {
                    worker.cursor.forgotten += 1;
                    worker.position.forget();
                    cleared.push((
                        id,
                        worker.cursor.begin_clear(StreamState::Partial, &mut state.kept),
                    ));
                    tracing::warn!(
                        worker_id = id.instance,
                        dp_rank = id.dp_rank,
                        "no dump replaced the suspect blocks of a worker in time; its blocks are forgotten"
                    );
                }
            }
            cleared
        };
        self.clear_blocks(cleared, &mut ApplyCounts::default());
    }
}
