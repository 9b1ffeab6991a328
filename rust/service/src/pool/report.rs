//! Workers of a pool in the status report.
//!
//! The control plane polls it, and the metrics page reads it. One report takes the pool's lock for
//! O(workers).

use std::collections::BTreeMap;

use serde::Serialize;
use wardrop_core::predicted::PredictedSize;
use wardrop_core::{Snapshot, Trust, TrustMode, WorkerId};

use super::WorkerPool;
use super::anarchy::AnarchyReport;
use super::cursor::StreamState;
use super::engine::EngineLoad;
use super::health::Fault;
use wardrop_engines::dynamo::ForwardPass;

/// One worker in a status report. The field names are the JSON keys.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a JSON key of its own")]
pub(crate) struct WorkerReport {
    /// Id of the instance.
    pub instance: u64,
    /// Rank of the instance.
    pub dp_rank: u32,
    /// Whether the router may choose the worker.
    pub available: bool,
    /// Reason why the worker is unavailable.
    pub fault: Option<Fault>,
    /// Failed requests and lost connections since the worker was registered.
    pub failures: u64,
    /// Whether the index holds every block that the worker holds.
    pub synced: bool,
    /// What the order of the worker's events says of its blocks in the index.
    pub feed_state: StreamState,
    /// What a price may believe of the worker's blocks.
    pub trust_mode: TrustMode,
    /// Agreement of the index with the engine and its feed, 0 to 1.
    pub trust_score: f64,
    /// Share of the listed tokens that the engine finds, 0 to 1.
    pub trust_found_share: f64,
    /// Part of the score that the state of the feed gives, 0 to 1.
    pub trust_feed_share: f64,
    /// Changes of the trust mode.
    pub trust_mode_changes: u64,
    /// Whether the worker's blocks come from a saved index that no event or dump has confirmed.
    pub restored: bool,
    /// Whether events are missing, so that the worker needs a dump.
    pub needs_resync: bool,
    /// Whether the worker's events ended, and a dump must confirm that none of them is lost.
    pub tail_unchecked: bool,
    /// Id of the last KV event; `None` before the first.
    pub last_event_id: Option<u64>,
    /// Gaps in the worker's event ids.
    pub event_gaps: u64,
    /// Events lost in gaps.
    pub events_lost: u64,
    /// Events dropped because they had the id of the event before them.
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
    /// Sum of the cached tokens that the index listed for the audited requests.
    pub predicted_cached_tokens: u64,
    /// Sum of the cached tokens that the engine reported for the audited requests.
    pub reported_cached_tokens: u64,
    /// Σ |predicted − reported| cached tokens over the audited requests.
    pub cached_tokens_absolute_error: u64,
    /// Last engine step that the worker reported.
    pub forward_pass: Option<ForwardPass>,
    /// Load that the engine's metrics reported last.
    pub engine_load: Option<EngineLoad>,
}

impl WorkerPool {
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
                let trust = load.map_or_else(Trust::default, |load| load.trust);
                WorkerReport {
                    instance: id.instance,
                    dp_rank: id.dp_rank,
                    available: worker.available,
                    fault: worker.fault,
                    failures: worker.health.failures,
                    synced: worker.cursor.is_synced(),
                    feed_state: worker.cursor.state(),
                    trust_mode: trust.mode,
                    trust_score: trust.score,
                    trust_found_share: trust.found_share,
                    trust_feed_share: trust.feed_share,
                    trust_mode_changes: trust.mode_changes,
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
                    audited_requests: trust.requests,
                    predicted_cached_tokens: trust.indexed_tokens,
                    reported_cached_tokens: trust.reported_tokens,
                    cached_tokens_absolute_error: trust.absolute_error_tokens,
                    forward_pass: worker.forward_pass.clone(),
                    engine_load: worker.engine_load,
                }
            })
            .collect()
    }
}
