//! Event streams of a pool's workers: KV events, engine steps, interruptions and dumps.
//!
//! A feed task decodes a message and calls the pool. The pool orders the events with the worker's cursor and passes them to
//! the router. The event is applied before the feed position moves, see [`FeedPosition`](super::position::FeedPosition).

use std::collections::BTreeMap;

use wardrop_core::latency::Pass;
use wardrop_core::ledger::EngineQueue;
use wardrop_core::{KvEvent, Router, WorkerId};

use super::cursor::{RestoreVerdict, Step};
use super::{State, WorkerPool};
use wardrop_engines::dynamo::{ForwardPass, WorkerEvent};

/// Origin of a list of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventSource {
    /// Id of the publisher, never 0.
    pub publisher: u64,
    /// Instance that the feed belongs to. `None` accepts events of every instance.
    pub owner: Option<u64>,
}

/// One event with its place in the publisher's stream.
struct PublishedEvent {
    publisher: u64,
    event_id: u64,
    /// Change of the worker's cache; `None` for an event about memory that is not the worker's own.
    event: Option<KvEvent>,
}

/// Counts of events by their result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ApplyCounts {
    /// Events that the router applied.
    pub applied: u64,
    /// Events that the router refused, for example with an unknown parent or block.
    pub refused: u64,
    /// Events of workers that are not registered or do not belong to the feed's instance.
    pub foreign: u64,
    /// Events dropped as duplicates.
    pub duplicates: u64,
    /// Events about memory that is not the worker's own.
    pub passed_over: u64,
    /// Workers with restored blocks by [`RestoreVerdict`]: exact, outrun, restarted.
    pub restored: [u64; 3],
}

impl WorkerPool {
    /// Applies events of one feed in order. O(blocks in the events).
    ///
    /// Events of unknown workers, and of workers outside the feed's instance, are counted as foreign.
    pub(crate) fn apply(&self, events: Vec<WorkerEvent>, source: EventSource, now_s: f64) -> ApplyCounts {
        let mut counts = ApplyCounts::default();
        let mut state = self.state.lock();
        for WorkerEvent {
            worker,
            event_id,
            event,
        } in events
        {
            if source.owner.is_some_and(|owner| owner != worker.instance)
                || !state.workers.contains_key(&worker)
            {
                counts.foreign += 1;
                continue;
            }
            let event = PublishedEvent {
                publisher: source.publisher,
                event_id,
                event,
            };
            state.apply(worker, event, now_s, &mut counts);
            state.review(worker, now_s, self.options);
        }
        counts
    }

    /// Records an engine step or heartbeat. Returns whether the worker is registered and belongs to instance `owner`.
    pub(crate) fn forward_pass(&self, step: ForwardPass, owner: Option<u64>, now_s: f64) -> bool {
        let Some(worker) = step.worker() else { return false };
        if owner.is_some_and(|owner| owner != worker.instance) {
            return false;
        }
        let mut state = self.state.lock();
        let Some(known) = state.workers.get_mut(&worker) else {
            return false;
        };
        known.health.heartbeat(now_s);
        teach(&state.router, worker, &step);
        state.router.report_engine_queue(worker, waiting(&step), now_s);
        let Some(known) = state.workers.get_mut(&worker) else {
            return false;
        };
        known.forward_pass = Some(step);
        state.review(worker, now_s, self.options);
        true
    }

    /// Sets the publisher of an instance's KV events, before the first event arrives.
    pub(crate) fn feed_followed(&self, instance: u64, publisher: u64) {
        for (id, worker) in &self.state.lock().workers {
            if id.instance == instance {
                worker.position.followed(publisher);
            }
        }
    }

    /// Marks the streams of an instance as incomplete after a disconnect; `None` marks every worker of the pool.
    pub(crate) fn feed_interrupted(&self, owner: Option<u64>) {
        for (id, worker) in &mut self.state.lock().workers {
            if owner.is_none_or(|owner| owner == id.instance) {
                worker.cursor.miss(0);
                worker.position.forget();
            }
        }
    }

    /// Replaces the blocks of every worker that is not synced by the blocks in the dump.
    ///
    /// Synced workers keep their blocks, because live events are newer than any dump. Returns the number of replaced
    /// workers and the counts of events.
    pub(crate) fn load_dump(&self, dump: Vec<WorkerEvent>) -> (usize, ApplyCounts) {
        let mut counts = ApplyCounts::default();
        let mut per_worker: BTreeMap<WorkerId, Vec<KvEvent>> = BTreeMap::new();
        for WorkerEvent { worker, event, .. } in dump {
            match event {
                Some(event) => per_worker.entry(worker).or_default().push(event),
                None => counts.passed_over += 1,
            }
        }
        let mut state = self.state.lock();
        let ids: Vec<WorkerId> = state.workers.keys().copied().collect();
        let mut replaced = 0;
        for id in ids {
            let blocks = per_worker.remove(&id).unwrap_or_default();
            let Some(worker) = state.workers.get_mut(&id) else {
                continue;
            };
            if worker.cursor.is_synced() {
                continue;
            }
            replaced += 1;
            worker.position.forget();
            let events = worker.cursor.load_dump(blocks);
            let (position, coverage) = (worker.position.clone(), worker.cursor.coverage());
            let _ = state.router.apply(id, &KvEvent::Cleared);
            for event in events {
                match state.router.apply(id, &event) {
                    Ok(()) => counts.applied += 1,
                    Err(_) => counts.refused += 1,
                }
            }
            position.set(coverage);
        }
        counts.foreign += per_worker.len() as u64;
        (replaced, counts)
    }
}

impl State {
    /// Applies one event of a registered worker and records the new feed position.
    fn apply(&mut self, id: WorkerId, published: PublishedEvent, now_s: f64, counts: &mut ApplyCounts) {
        let PublishedEvent {
            publisher,
            event_id,
            event,
        } = published;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.health.event(now_s);
        let same_publisher = worker.position.publisher() == Some(publisher);
        let step = match worker.cursor.check_restored(event_id, same_publisher) {
            Some((verdict, step)) => {
                counts.restored[verdict as usize] += 1;
                if verdict != RestoreVerdict::Exact {
                    tracing::info!(
                        worker_id = id.instance,
                        dp_rank = id.dp_rank,
                        ?verdict,
                        "restored blocks of a worker are out of date"
                    );
                }
                step
            }
            None => worker.cursor.advance(event_id),
        };
        match step {
            Step::Duplicate => {
                counts.duplicates += 1;
                return;
            }
            Step::NewIncarnation | Step::Forget => {
                worker.position.forget();
                let _ = self.router.apply(id, &KvEvent::Cleared);
            }
            Step::Apply => {}
        }
        match event {
            None => counts.passed_over += 1,
            Some(event) => {
                worker.cursor.keep(&event);
                match self.router.apply(id, &event) {
                    Ok(()) => counts.applied += 1,
                    Err(_) => counts.refused += 1,
                }
            }
        }
        worker.position.record(publisher, worker.cursor.coverage());
    }
}

/// Updates the worker's latency curves from one reported engine step.
fn teach(router: &Router, worker: WorkerId, step: &ForwardPass) {
    let ran = &step.scheduled_requests;
    let pass = Pass {
        prefills: ran.num_prefill_requests,
        prefill_tokens: ran.sum_prefill_tokens,
        prefill_kv_tokens: ran.sum_prefill_kv_tokens,
        decodes: ran.num_decode_requests,
        decode_kv_tokens: ran.sum_decode_kv_tokens,
        seconds: step.wall_time,
    };
    router.report_pass(worker, &pass);
}

/// Converts the reported engine queue; counts above `u32::MAX` saturate.
fn waiting(step: &ForwardPass) -> EngineQueue {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    EngineQueue {
        waiting_prompts: count(step.queued_requests.num_prefill_requests),
        waiting_tokens: step.queued_requests.sum_prefill_tokens,
        computed_prompts: count(step.scheduled_requests.num_prefill_requests),
    }
}
