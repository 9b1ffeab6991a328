//! Event streams of a pool's workers: KV events, engine steps, interruptions and dumps.
//!
//! A feed task decodes a message and calls the pool. The pool orders the events with the worker's cursor and passes them to
//! the router. [`super::bulk`] replaces whole caches. The event is applied before the feed position moves, see [`FeedPosition`](super::position::FeedPosition).
//!
//! Complexity: O(workers) per event for the review of health, O(blocks) for the event itself, in
//! slices under the lock.

use std::collections::VecDeque;

use wardrop_core::latency::Pass;
use wardrop_core::ledger::EngineQueue;
use wardrop_core::{KvEvent, Router, WorkerId};

use super::bulk::{SLICE_BLOCKS, slices};
use super::cursor::{RestoreVerdict, Step, StreamState, block_count};
use super::{State, Worker, WorkerPool};
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
    /// Id of the publisher that sent the event.
    publisher: u64,
    /// Place in the stream of the publisher about this worker; each event has the next id.
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
    /// Events dropped because a publisher of a former incarnation sent them.
    pub superseded: u64,
    /// Events about memory that is not the worker's own.
    pub passed_over: u64,
    /// Workers with restored blocks by [`RestoreVerdict`]: exact, outrun, restarted.
    pub restored: [u64; 3],
}

/// The rest of an event whose first slices are applied.
struct RestOfEvent {
    /// Worker of the event.
    worker: WorkerId,
    /// Publisher whose position moves when the last slice is applied.
    publisher: u64,
    /// Epoch of the worker's cursor at the first slice. Another epoch makes the rest obsolete.
    epoch: u64,
    /// Parts that are not applied yet, in order.
    slices: VecDeque<KvEvent>,
}

impl WorkerPool {
    /// Applies events of one feed in order. O(blocks in the events), in slices of at most [`SLICE_BLOCKS`] blocks per lock.
    ///
    /// Events of unknown workers, and of workers outside the feed's instance, are counted as foreign.
    pub(crate) fn apply(&self, events: Vec<WorkerEvent>, source: EventSource, now_s: f64) -> ApplyCounts {
        let mut counts = ApplyCounts::default();
        let mut events = VecDeque::from(events);
        let mut rest: Option<RestOfEvent> = None;
        while rest.is_some() || !events.is_empty() {
            let mut cleared = Vec::new();
            let mut blocks = 0;
            let mut state = self.state.lock();
            while blocks < SLICE_BLOCKS && cleared.is_empty() {
                // One slice fills a hold of the lock. The next slice waits for the next hold, and
                // decisions pass in between.
                if let Some(event) = rest.take() {
                    blocks += SLICE_BLOCKS;
                    rest = state.apply_rest(event, &mut counts);
                    continue;
                }
                let Some(WorkerEvent {
                    worker,
                    event_id,
                    event,
                }) = events.pop_front()
                else {
                    break;
                };
                if source.owner.is_some_and(|owner| owner != worker.instance)
                    || !state.workers.contains_key(&worker)
                {
                    counts.foreign += 1;
                    // Many foreign events must not hold the lock for long either.
                    blocks += 1;
                    continue;
                }
                blocks += event.as_ref().map_or(1, |event| block_count(event).max(1));
                let event = PublishedEvent {
                    publisher: source.publisher,
                    event_id,
                    event,
                };
                rest = state.apply(worker, event, now_s, &mut counts, &mut cleared);
                state.review(worker, now_s, self.options);
            }
            drop(state);
            self.clear_blocks(cleared, &mut counts);
        }
        counts
    }

    /// Records an engine step or heartbeat. Returns whether the worker is registered and belongs to instance `owner`.
    ///
    /// The step teaches the worker's latency curves, replaces the reported queue, and counts as a
    /// heartbeat.
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
    ///
    /// A publisher that discovery lists may write again, even if it was taken for one of a former
    /// incarnation.
    pub(crate) fn feed_followed(&self, instance: u64, publisher: u64) {
        for (id, worker) in &mut self.state.lock().workers {
            if id.instance == instance {
                worker.position.followed(publisher);
                worker.cursor.allow(publisher);
            }
        }
    }

    /// Marks the blocks of workers as suspect after their feed was left. Workers that never had an event are not concerned.
    pub(crate) fn feed_ended(&self, owner: Option<u64>, publisher: Option<u64>) {
        for (id, worker) in &mut self.state.lock().workers {
            let is_owned = owner.is_none_or(|owner| owner == id.instance);
            let known = worker.cursor.publisher().or_else(|| worker.position.publisher());
            if is_owned && known.is_some() && (publisher.is_none() || known == publisher) {
                worker.cursor.miss(0);
                worker.position.forget();
            }
        }
    }

    /// Marks the blocks of one worker as suspect after its own feed lost the connection.
    pub(crate) fn doubt_feed(&self, worker: WorkerId) {
        if let Some(known) = self.state.lock().workers.get_mut(&worker) {
            known.cursor.miss(0);
            known.position.forget();
        }
    }

    /// Marks the blocks of workers as suspect after a feed lost its connection or messages.
    ///
    /// The workers are those of `owner`, or those about which `publisher` sent the last event. `None` stands for every
    /// instance, and for every publisher. Workers without an event may belong to the feed as well.
    pub(crate) fn feed_interrupted(&self, owner: Option<u64>, publisher: Option<u64>) {
        for (id, worker) in &mut self.state.lock().workers {
            let is_owned = owner.is_none_or(|owner| owner == id.instance);
            let known = worker.cursor.publisher();
            let is_published = publisher.is_none() || known.is_none() || known == publisher;
            if is_owned && is_published {
                worker.cursor.miss(0);
                worker.position.forget();
            }
        }
    }
}

impl State {
    /// Applies the first slice of an event of a registered worker. Returns the rest of the event.
    ///
    /// A worker whose blocks must be cleared goes into `cleared`; its events are kept until the caller has cleared it.
    fn apply(
        &mut self,
        id: WorkerId,
        published: PublishedEvent,
        now_s: f64,
        counts: &mut ApplyCounts,
        cleared: &mut Vec<(WorkerId, u64)>,
    ) -> Option<RestOfEvent> {
        let PublishedEvent {
            publisher,
            event_id,
            event,
        } = published;
        let worker = self.workers.get_mut(&id)?;
        let followed = worker.position.publisher();
        let cursor = &mut worker.cursor;
        let step = match cursor.check_restored(publisher, event_id) {
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
            None => cursor.advance(publisher, event_id, followed),
        };
        match step {
            Step::Duplicate => {
                counts.duplicates += 1;
                return None;
            }
            Step::Superseded => {
                counts.superseded += 1;
                worker.position.forget();
                return None;
            }
            Step::NewIncarnation | Step::Forget => {
                if step == Step::NewIncarnation {
                    let _ = self.router.begin_incarnation(id);
                }
                worker.position.forget();
                let outcome = if step == Step::Forget {
                    StreamState::Partial
                } else {
                    cursor.state()
                };
                cleared.push((id, cursor.begin_clear(outcome, &mut self.kept)));
            }
            Step::Apply => {}
        }
        worker.health.event(now_s);
        worker.trust.heard();
        let Some(event) = event else {
            counts.passed_over += 1;
            worker.record(publisher);
            return None;
        };
        // While a dump is read, the event goes into the index as well as into the copy. While
        // blocks are replaced, it goes into the copy alone.
        worker.cursor.keep(&event, &mut self.kept);
        if worker.cursor.is_loading() {
            worker.record(publisher);
            return None;
        }
        let rest = RestOfEvent {
            worker: id,
            publisher,
            epoch: worker.cursor.epoch(),
            slices: slices(event),
        };
        self.apply_rest(rest, counts)
    }

    /// Applies the next slice of an event. Returns the rest, unless the worker's blocks were replaced meanwhile.
    fn apply_rest(&mut self, mut rest: RestOfEvent, counts: &mut ApplyCounts) -> Option<RestOfEvent> {
        let worker = self.workers.get(&rest.worker)?;
        if worker.cursor.epoch() != rest.epoch {
            return None;
        }
        let slice = rest.slices.pop_front()?;
        let outcome = self.router.apply(rest.worker, &slice);
        if outcome.is_ok() && !rest.slices.is_empty() {
            return Some(rest);
        }
        match outcome {
            Ok(()) => counts.applied += 1,
            Err(_) => counts.refused += 1,
        }
        if let KvEvent::Removed { .. } = slice
            && !rest.slices.is_empty()
        {
            return Some(rest); // unknown blocks in one slice say nothing of the next
        }
        worker.record(rest.publisher);
        None
    }
}

impl Worker {
    /// Records the position of the worker's feed, after the index holds the event.
    pub(super) fn record(&self, publisher: u64) {
        self.position.record(publisher, self.cursor.coverage());
    }

    /// Records the position of the worker's feed after a dump or a clear.
    pub(super) fn finish_load(&self) {
        match self.cursor.publisher() {
            Some(publisher) => self.position.record(publisher, self.cursor.coverage()),
            None => self.position.set(self.cursor.coverage()),
        }
    }
}

/// Updates the worker's latency curves from one reported engine step.
///
/// The router refuses figures that cannot be true and counts the refusal; see
/// `Router::report_pass`.
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
