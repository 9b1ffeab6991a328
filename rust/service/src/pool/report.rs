//! Workers of a pool in the status report, and the comparison of predicted with reported cached tokens.

use std::collections::BTreeMap;

use serde::Serialize;
use wardrop_core::predicted::PredictedSize;
use wardrop_core::{Snapshot, WorkerId};

use super::WorkerPool;
use super::anarchy::AnarchyReport;
use super::cursor::Trust;
use super::engine::EngineLoad;
use super::health::Fault;
use wardrop_engines::dynamo::ForwardPass;

/// Sums of predicted and reported cached tokens over finished requests of one worker.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Audit {
    /// Requests with a reported count.
    requests: u64,
    predicted_tokens: u64,
    reported_tokens: u64,
    /// Σ |predicted − reported|, in tokens.
    absolute_error_tokens: u64,
    /// Requests of the current window, of which each had a predicted prefix.
    #[serde(skip)]
    window_requests: u32,
    /// Predicted tokens of the window.
    #[serde(skip)]
    window_predicted_tokens: u64,
    /// Σ max(predicted − reported, 0) of the window, in tokens.
    #[serde(skip)]
    window_excess_tokens: u64,
}

/// Requests with a predicted prefix after which the excess is judged.
const AUDIT_WINDOW: u32 = 8;

impl Audit {
    /// Adds a request to the window. Returns whether the window is full and the engine found less than half of the predicted
    /// tokens. Evictions between decision and prefill explain single misses, not most of them.
    fn over_predicts(&mut self, predicted_tokens: u64, reported_tokens: u64) -> bool {
        if predicted_tokens == 0 {
            return false;
        }
        self.window_requests += 1;
        self.window_predicted_tokens += predicted_tokens;
        self.window_excess_tokens += predicted_tokens.saturating_sub(reported_tokens);
        if self.window_requests < AUDIT_WINDOW {
            return false;
        }
        let excess = self.window_excess_tokens * 2 > self.window_predicted_tokens;
        self.window_requests = 0;
        self.window_predicted_tokens = 0;
        self.window_excess_tokens = 0;
        excess
    }
}

/// One worker in a status report. The field names are the JSON keys.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a JSON key of its own")]
pub(crate) struct WorkerReport {
    pub instance: u64,
    pub dp_rank: u32,
    /// Whether the router may choose the worker.
    pub available: bool,
    /// Reason why the worker is unavailable.
    pub fault: Option<Fault>,
    /// Failed requests and lost connections since the worker was registered.
    pub failures: u64,
    /// Whether the index holds every block that the worker holds.
    pub synced: bool,
    /// How far the index may be believed about the worker.
    pub trust: Trust,
    /// Whether the worker's blocks come from a saved index that no event or dump has confirmed.
    pub restored: bool,
    /// Whether events are missing, so that the worker needs a dump.
    pub needs_resync: bool,
    /// Whether the worker's events ended, and a dump must confirm that none of them is lost.
    pub tail_unchecked: bool,
    pub last_event_id: Option<u64>,
    /// Gaps in the worker's event ids.
    pub event_gaps: u64,
    /// Events lost in gaps.
    pub events_lost: u64,
    pub event_duplicates: u64,
    /// Events of a publisher of a former incarnation.
    pub events_superseded: u64,
    /// Times that the worker's suspect blocks were forgotten, because no dump replaced them.
    pub forgotten: u64,
    /// Restarts of the worker that its events showed.
    pub incarnations: u64,
    /// Seconds since the last KV event; `None` before the first.
    pub event_age_s: Option<f64>,
    /// Seconds since the last heartbeat; `None` before the first.
    pub heartbeat_age_s: Option<f64>,
    /// Booked prompt tokens whose prefill is not done.
    pub prefill_tokens: u64,
    /// KV blocks that booked requests hold.
    pub decode_blocks: u64,
    /// Booked requests.
    pub active_requests: u32,
    /// Blocks in the index, by memory tier.
    pub held_blocks: [u64; 3],
    /// KV blocks of the worker's device, as discovery reports them.
    pub total_kv_blocks: Option<u64>,
    /// Finished requests with a reported count of cached tokens.
    pub audited_requests: u64,
    pub predicted_cached_tokens: u64,
    pub reported_cached_tokens: u64,
    /// Σ |predicted − reported| cached tokens over the audited requests.
    pub cached_tokens_absolute_error: u64,
    /// Last engine step that the worker reported.
    pub forward_pass: Option<ForwardPass>,
    /// Load that the engine's metrics reported last.
    pub engine_load: Option<EngineLoad>,
}

impl WorkerPool {
    /// Adds predicted and reported cached tokens of one finished request to the worker's sums.
    pub(crate) fn audit(&self, worker: WorkerId, predicted_tokens: u64, reported_tokens: u64) {
        if let Some(known) = self.state.lock().workers.get_mut(&worker) {
            known.audit.requests += 1;
            known.audit.predicted_tokens += predicted_tokens;
            known.audit.reported_tokens += reported_tokens;
            known.audit.absolute_error_tokens += predicted_tokens.abs_diff(reported_tokens);
            if known.audit.over_predicts(predicted_tokens, reported_tokens) {
                tracing::info!(
                    worker_id = worker.instance,
                    dp_rank = worker.dp_rank,
                    "the engine finds far fewer cached tokens than the index predicts; the worker's blocks are suspect"
                );
                known.cursor.suspect();
                known.position.forget();
            }
        }
    }

    /// Size of the predicted index; `None` when prediction is off.
    pub(crate) fn predicted(&self) -> Option<PredictedSize> {
        self.router.predicted()
    }

    /// Snapshot of the router: policy, bookings, index and load.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.router.snapshot()
    }

    /// Reports of engines with figures that cannot be true.
    pub(crate) fn reports_refused(&self) -> u64 {
        self.router.reports_refused()
    }

    /// Price-of-anarchy figures of the pool; `None` before the first solved window.
    pub(crate) fn anarchy(&self) -> Option<AnarchyReport> {
        self.anarchy.report()
    }

    /// Reports all workers of the pool. O(workers).
    pub(crate) fn report(&self, now_s: f64) -> Vec<WorkerReport> {
        let state = self.state.lock();
        let snapshot = state.router.snapshot();
        let loads = snapshot.workers.iter().map(|worker| (worker.worker, worker));
        let loads: BTreeMap<WorkerId, _> = loads.collect();
        state
            .workers
            .iter()
            .map(|(id, worker)| {
                let load = loads.get(id);
                WorkerReport {
                    instance: id.instance,
                    dp_rank: id.dp_rank,
                    available: worker.available,
                    fault: worker.fault,
                    failures: worker.health.failures,
                    synced: worker.cursor.is_synced(),
                    trust: worker.cursor.trust(),
                    restored: worker.cursor.is_restored(),
                    needs_resync: worker.cursor.needs_resync(),
                    tail_unchecked: worker.cursor.tail_unchecked(),
                    last_event_id: worker.cursor.last_id(),
                    event_gaps: worker.cursor.gaps,
                    events_lost: worker.cursor.lost_events,
                    event_duplicates: worker.cursor.duplicates,
                    events_superseded: worker.cursor.superseded,
                    forgotten: worker.cursor.forgotten,
                    incarnations: worker.cursor.incarnations,
                    event_age_s: worker.health.event_age_s(now_s),
                    heartbeat_age_s: worker.health.heartbeat_age_s(now_s),
                    prefill_tokens: load.map_or(0, |l| l.prefill_tokens),
                    decode_blocks: load.map_or(0, |l| l.decode_blocks),
                    active_requests: load.map_or(0, |l| l.active_requests),
                    held_blocks: load.map_or([0; 3], |l| l.held_blocks),
                    total_kv_blocks: worker.spec.total_kv_blocks,
                    audited_requests: worker.audit.requests,
                    predicted_cached_tokens: worker.audit.predicted_tokens,
                    reported_cached_tokens: worker.audit.reported_tokens,
                    cached_tokens_absolute_error: worker.audit.absolute_error_tokens,
                    forward_pass: worker.forward_pass.clone(),
                    engine_load: worker.engine_load,
                }
            })
            .collect()
    }
}
