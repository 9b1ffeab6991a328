//! Frames of engines without Dynamo: one feed per worker, with sequence numbers that begin at 0 with each start of the engine.
//!
//! The feed task keeps the order, so each frame arrives once and in sequence. A frame holds several changes of the worker's cache
//! under one number. [`EventCursor`](super::cursor::EventCursor) counts from 1, so its event id is the sequence plus 1.
//!
//! Complexity: O(blocks of the frame), in slices of at most [`SLICE_BLOCKS`](super::bulk::SLICE_BLOCKS) blocks per lock.
//!
//! Who calls: [`crate::feed`] with frames, and the control plane with reports of load that it read
//! from the engines' metrics.

use serde::{Deserialize, Serialize};
use wardrop_core::ledger::EngineQueue;
use wardrop_core::{BlockHasher, KvEvent, WorkerId};
use wardrop_engines::CacheChange;

use super::bulk::slices;
use super::cursor::{Step, StreamState};
use super::feed::ApplyCounts;
use super::{Role, WorkerPool};

/// What the control plane read from one instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineReport {
    /// Name of the model that the instance serves.
    pub model: String,
    /// Role of the instance.
    pub role: Role,
    /// Id of the instance.
    pub instance: u64,
    /// Whether the instance answers.
    pub is_reachable: bool,
    /// Load by rank; empty where the instance reports none.
    #[serde(default)]
    pub ranks: Vec<EngineLoad>,
}

/// Load that an engine reports of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineLoad {
    /// Rank of the instance.
    #[serde(default)]
    pub dp_rank: u32,
    /// Requests that the engine computes.
    pub running_requests: u32,
    /// Requests that wait in the engine.
    pub waiting_requests: u32,
    /// Share of the KV cache that running requests use, 0 to 1; `None` where not reported.
    #[serde(default)]
    pub kv_usage: Option<f64>,
}

/// One frame of an engine's feed.
pub(crate) struct EngineFrame {
    /// Id of the feed, never 0.
    pub publisher: u64,
    /// Number of the frame, from 0 at each start of the engine.
    pub sequence: u64,
    /// Changes of the worker's cache, in order.
    pub changes: Vec<CacheChange>,
}

impl WorkerPool {
    /// Hashes blocks as the index of this pool does.
    pub(crate) fn hasher(&self) -> BlockHasher {
        self.router.hasher().clone()
    }

    /// What the order of a worker's events says of its blocks; `None` for an unknown worker.
    pub(crate) fn feed_state(&self, worker: WorkerId) -> Option<StreamState> {
        let state = self.state.lock();
        state.workers.get(&worker).map(|worker| worker.cursor.state())
    }

    /// Number of ranks of a worker's instance; 0 for an unknown worker.
    pub(crate) fn ranks(&self, worker: WorkerId) -> u32 {
        let state = self.state.lock();
        state.workers.get(&worker).map_or(0, |worker| worker.ranks)
    }

    /// Applies one frame of a worker's feed.
    ///
    /// A frame of a restarted engine first clears the worker's blocks. Frames of one worker come
    /// from one task, so two calls for a worker never overlap.
    pub(crate) fn apply_frame(&self, worker: WorkerId, frame: EngineFrame, now_s: f64) -> ApplyCounts {
        let mut counts = ApplyCounts::default();
        let mut cleared = Vec::new();
        {
            let state = &mut *self.state.lock();
            let Some(known) = state.workers.get_mut(&worker) else {
                // The worker was removed while its feed's task still ran.
                counts.foreign += frame.changes.len() as u64;
                return counts;
            };
            let followed = known.position.publisher();
            let step = known
                .cursor
                .advance(frame.publisher, frame.sequence + 1, followed);
            match step {
                Step::Apply => {}
                Step::NewIncarnation | Step::Forget => {
                    if step == Step::NewIncarnation {
                        let _ = state.router.begin_incarnation(worker);
                    }
                    known.position.forget();
                    let state_after = known.cursor.state();
                    cleared.push((worker, known.cursor.begin_clear(state_after, &mut state.kept)));
                }
                Step::Duplicate => {
                    counts.duplicates += 1;
                    return counts;
                }
                Step::Superseded => {
                    counts.superseded += 1;
                    return counts;
                }
            }
            known.health.event(now_s);
            known.trust.heard();
            state.review(worker, now_s, self.options);
        }
        self.clear_blocks(cleared, &mut counts);
        for change in frame.changes {
            match change {
                CacheChange::Event(event) => self.apply_sliced(worker, event, &mut counts),
                copy @ CacheChange::Copied { .. } => match copy.apply(&self.router, worker) {
                    Ok(()) => counts.applied += 1,
                    Err(_) => counts.refused += 1,
                },
            }
        }
        let state = self.state.lock();
        if let Some(known) = state.workers.get(&worker) {
            known.record(frame.publisher);
        }
        counts
    }

    /// Applies an event in slices, so that no decision waits for a long event.
    ///
    /// An event counts once, as applied or as refused, regardless of its slices.
    fn apply_sliced(&self, worker: WorkerId, event: KvEvent, counts: &mut ApplyCounts) {
        let is_removal = matches!(event, KvEvent::Removed { .. });
        let mut refused = false;
        for slice in slices(event) {
            let _slice_of_the_lock = self.state.lock();
            refused |= self.router.apply(worker, &slice).is_err();
            // Unknown blocks in one slice say nothing of the next. A store without its parent ends the chain.
            if refused && !is_removal {
                break;
            }
        }
        if refused {
            counts.refused += 1;
        } else {
            counts.applied += 1;
        }
    }

    /// Takes what the control plane read from an instance: whether it answers, and where it does, its load.
    ///
    /// Returns whether the instance is registered.
    ///
    /// A load report replaces the one before it. The queue is pumped afterwards, because less
    /// waiting in an engine may mean room.
    pub(crate) fn engine_report(&self, report: &EngineReport, now_s: f64) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        let ids = state.ranks_of(report.instance);
        for &id in &ids {
            if let Some(known) = state.workers.get_mut(&id) {
                known.health.reached(report.is_reachable, now_s);
            }
            state.review(id, now_s, self.options);
        }
        for load in &report.ranks {
            let id = WorkerId::new(report.instance, load.dp_rank);
            if ids.contains(&id) {
                let queue = EngineQueue {
                    waiting_prompts: load.waiting_requests,
                    waiting_tokens: self.waiting_tokens(id, load.waiting_requests, now_s),
                    // The metrics count a prompt in computation and a decode alike, so the router's own count is the lower bound.
                    computed_prompts: u32::from(load.running_requests > 0),
                };
                state.router.report_engine_queue(id, queue, now_s);
                if let Some(known) = state.workers.get_mut(&id) {
                    known.engine_load = Some(*load);
                }
            }
        }
        state.pump(now_s);
        self.unlock(guard);
        !ids.is_empty()
    }

    /// Tokens of the prompts that wait in an engine. Metrics count prompts, so the mean of the prompts booked on the worker stands
    /// for each, or without any the tokens of one block.
    fn waiting_tokens(&self, id: WorkerId, waiting_requests: u32, now_s: f64) -> u64 {
        if waiting_requests == 0 {
            return 0;
        }
        let block_tokens = u64::from(self.router.config().block_size);
        let mean_tokens = match self.router.occupancy_of(id, now_s) {
            Some(occupancy) if occupancy.prefills > 0 => {
                (occupancy.prefill_tokens / u64::from(occupancy.prefills)).max(block_tokens)
            }
            _ => block_tokens,
        };
        mean_tokens * u64::from(waiting_requests)
    }

    /// Empties a worker's blocks and forgets its place in the feed. The next frame starts anew. `restarted` counts a restart of the
    /// engine.
    pub(crate) fn start_worker_anew(&self, worker: WorkerId, restarted: bool) {
        let epoch = {
            let state = &mut *self.state.lock();
            let Some(known) = state.workers.get_mut(&worker) else {
                return;
            };
            known.position.forget();
            known.cursor.start_anew(restarted);
            if restarted {
                let _ = state.router.begin_incarnation(worker);
            }
            known.cursor.begin_clear(StreamState::Partial, &mut state.kept)
        };
        self.clear_blocks(vec![(worker, epoch)], &mut ApplyCounts::default());
    }

    /// A replay proved that nothing is missing in a worker's feed, so its blocks are as `state` says.
    pub(crate) fn confirm_feed(&self, worker: WorkerId, state: StreamState) {
        if let Some(known) = self.state.lock().workers.get_mut(&worker) {
            known.cursor.confirm(state);
        }
    }
}
