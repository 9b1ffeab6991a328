//! Workers as a status report tells them.

use std::collections::BTreeMap;

use serde::Serialize;
use wardrop_core::predicted::PredictedSize;
use wardrop_core::{Snapshot, WorkerId};

use super::WorkerPool;
use super::anarchy::AnarchyReport;
use super::health::Fault;
use wardrop_engines::dynamo::ForwardPass;

/// Predicted against reported cached tokens, summed over finished requests.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Audit {
    requests: u64,
    predicted_tokens: u64,
    reported_tokens: u64,
    /// Σ |predicted − reported|.
    absolute_error_tokens: u64,
}

/// One worker in a status report.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is told by itself")]
pub(crate) struct WorkerReport {
    pub instance: u64,
    pub dp_rank: u32,
    pub available: bool,
    pub fault: Option<Fault>,
    pub failures: u64,
    pub synced: bool,
    /// Its blocks are from a saved index, and nothing has proved them yet.
    pub restored: bool,
    pub needs_resync: bool,
    pub last_event_id: Option<u64>,
    pub event_gaps: u64,
    pub events_lost: u64,
    pub event_duplicates: u64,
    pub incarnations: u64,
    pub event_age_s: Option<f64>,
    pub heartbeat_age_s: Option<f64>,
    pub prefill_tokens: u64,
    pub decode_blocks: u64,
    pub active_requests: u32,
    pub held_blocks: [u64; 3],
    pub audited_requests: u64,
    pub predicted_cached_tokens: u64,
    pub reported_cached_tokens: u64,
    pub cached_tokens_absolute_error: u64,
    pub forward_pass: Option<ForwardPass>,
}

impl WorkerPool {
    /// Compares predicted with reported cached tokens of a finished request.
    pub(crate) fn audit(&self, worker: WorkerId, predicted_tokens: u64, reported_tokens: u64) {
        if let Some(known) = self.state.lock().workers.get_mut(&worker) {
            known.audit.requests += 1;
            known.audit.predicted_tokens += predicted_tokens;
            known.audit.reported_tokens += reported_tokens;
            known.audit.absolute_error_tokens += predicted_tokens.abs_diff(reported_tokens);
        }
    }

    /// What is predicted of caches; `None` when nothing is.
    pub(crate) fn predicted(&self) -> Option<PredictedSize> {
        self.router.predicted()
    }

    /// The router's own view.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.router.snapshot()
    }

    /// What routing loses here, once there is something to tell.
    pub(crate) fn anarchy(&self) -> Option<AnarchyReport> {
        self.anarchy.report()
    }

    /// All workers for a status report.
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
                    restored: worker.cursor.is_restored(),
                    needs_resync: worker.cursor.needs_resync(),
                    last_event_id: worker.cursor.last_id(),
                    event_gaps: worker.cursor.gaps,
                    events_lost: worker.cursor.lost_events,
                    event_duplicates: worker.cursor.duplicates,
                    incarnations: worker.cursor.incarnations,
                    event_age_s: worker.health.event_age_s(now_s),
                    heartbeat_age_s: worker.health.heartbeat_age_s(now_s),
                    prefill_tokens: load.map_or(0, |l| l.prefill_tokens),
                    decode_blocks: load.map_or(0, |l| l.decode_blocks),
                    active_requests: load.map_or(0, |l| l.active_requests),
                    held_blocks: load.map_or([0; 3], |l| l.held_blocks),
                    audited_requests: worker.audit.requests,
                    predicted_cached_tokens: worker.audit.predicted_tokens,
                    reported_cached_tokens: worker.audit.reported_tokens,
                    cached_tokens_absolute_error: worker.audit.absolute_error_tokens,
                    forward_pass: worker.forward_pass.clone(),
                }
            })
            .collect()
    }
}
