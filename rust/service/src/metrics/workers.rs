//! Gauges of each worker and of each pool's workers, set from the pools when the page is rendered.
//!
//! Counters here are reset and set to the pool's own totals on each page, which leaves their values
//! rising from page to page.

use prometheus::{GaugeVec, IntCounterVec};
use wardrop_core::TrustMode;

use super::MetricBuilder;
use crate::pool::{Role, StreamState, WorkerReport};

/// Metrics of all workers. Every series is set anew for each page, so a series ends with its worker.
pub(super) struct WorkerMetrics {
    /// Predicted cached tokens of finished requests.
    predicted_tokens: IntCounterVec,
    /// Cached tokens of finished requests, as the engine reported them.
    reported_tokens: IntCounterVec,
    /// Prefill tokens in flight.
    prefill_tokens: GaugeVec,
    /// Distinct KV blocks of the prompts in flight.
    decode_blocks: GaugeVec,
    /// Requests in flight.
    active_requests: GaugeVec,
    /// 1 for a worker that may be chosen, otherwise 0.
    up: GaugeVec,
    /// Gaps in the numbers of the worker's KV events.
    event_gaps: IntCounterVec,
    /// Blocks in device memory that the index lists.
    held_blocks: GaugeVec,
    /// Seconds since the last heartbeat; no series before the first.
    heartbeat_age: GaugeVec,
    /// Seconds since the last KV event; no series before the first.
    event_age: GaugeVec,
    /// Workers of a pool that may not be chosen.
    unavailable: GaugeVec,
    /// Workers of a pool with missing events.
    resync: GaugeVec,
    /// Workers of a pool with suspect blocks.
    suspect: GaugeVec,
    /// Trust in the index, 0 to 1.
    trust: GaugeVec,
    /// 1 for the mode in force of each worker, 0 for its other modes.
    trust_mode: GaugeVec,
    /// Changes of the mode since the worker was registered.
    trust_changes: IntCounterVec,
}

impl WorkerMetrics {
    /// Registers the metrics, without a series.
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            predicted_tokens: builder.counters(
                "cached_tokens_predicted_total",
                "Cached prompt tokens predicted, of requests whose engine reported them",
                &["model", "worker_id", "dp_rank"],
            )?,
            reported_tokens: builder.counters(
                "cached_tokens_reported_total",
                "Cached prompt tokens that the engine reported",
                &["model", "worker_id", "dp_rank"],
            )?,
            prefill_tokens: builder.gauges(
                "worker_prefill_tokens",
                "Prompt tokens to compute of requests in flight on a worker, before their first token",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            decode_blocks: builder.gauges(
                "worker_decode_blocks",
                "Distinct KV blocks of the prompts in flight on a worker",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            active_requests: builder.gauges(
                "worker_active_requests",
                "Requests in flight on a worker",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            up: builder.gauges(
                "worker_available",
                "1 when the worker may be chosen",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            event_gaps: builder.counters(
                "worker_event_gaps_total",
                "Gaps in the sequence of the worker's KV events",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            held_blocks: builder.gauges(
                "worker_held_blocks",
                "Device blocks that the worker is known to hold",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            heartbeat_age: builder.gauges(
                "worker_heartbeat_age_seconds",
                "Time since the worker's last heartbeat",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            event_age: builder.gauges(
                "worker_event_age_seconds",
                "Time since the worker's last KV event",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            unavailable: builder.gauges(
                "workers_unavailable",
                "Workers that may not be chosen",
                &["model", "worker_type"],
            )?,
            resync: builder.gauges(
                "workers_needing_resync",
                "Workers with events known to be missing",
                &["model", "worker_type"],
            )?,
            suspect: builder.gauges(
                "workers_suspect",
                "Workers whose blocks in the index may be stale",
                &["model", "worker_type"],
            )?,
            trust: builder.gauges(
                "worker_trust_ratio",
                "Trust in the index about a worker, 0 to 1: agreement of listed with reported cached tokens, times the share that the feed gives",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            trust_mode: builder.gauges(
                "worker_trust_mode",
                "1 for the mode of the trust in the index about a worker, 0 for the others: exact, degraded, predicted, load_only",
                &["model", "worker_id", "dp_rank", "worker_type", "mode"],
            )?,
            trust_changes: builder.counters(
                "worker_trust_mode_changes_total",
                "Changes of the mode of the trust in the index about a worker",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
        })
    }

    /// Ends all series; [`WorkerMetrics::set`] starts those of the present workers again.
    pub(super) fn reset(&self) {
        for gauges in [
            &self.prefill_tokens,
            &self.decode_blocks,
            &self.active_requests,
            &self.up,
            &self.held_blocks,
            &self.heartbeat_age,
            &self.event_age,
            &self.unavailable,
            &self.resync,
            &self.suspect,
            &self.trust,
            &self.trust_mode,
        ] {
            gauges.reset();
        }
        self.predicted_tokens.reset();
        self.reported_tokens.reset();
        self.trust_changes.reset();
        self.event_gaps.reset();
    }

    /// Sets the series of a pool from its workers.
    pub(super) fn set(&self, model: &str, role: Role, workers: &[WorkerReport]) {
        if workers.is_empty() {
            return;
        }
        let count = |take: fn(&WorkerReport) -> bool| workers.iter().filter(|w| take(w)).count() as f64;
        self.unavailable
            .with_label_values(&[model, role.name()])
            .set(count(|w| !w.available));
        self.resync
            .with_label_values(&[model, role.name()])
            .set(count(|w| w.needs_resync));
        self.suspect
            .with_label_values(&[model, role.name()])
            .set(count(|w| w.feed_state == StreamState::Suspect));
        for worker in workers {
            let instance = worker.instance.to_string();
            let rank = worker.dp_rank.to_string();
            let labels = [model, instance.as_str(), rank.as_str(), role.name()];
            self.up
                .with_label_values(&labels)
                .set(f64::from(u8::from(worker.available)));
            self.event_gaps
                .with_label_values(&labels)
                .inc_by(worker.event_gaps);
            self.held_blocks
                .with_label_values(&labels)
                .set(worker.held_blocks[0] as f64);
            self.trust.with_label_values(&labels).set(worker.trust_score);
            self.trust_changes
                .with_label_values(&labels)
                .inc_by(worker.trust_mode_changes);
            for mode in TrustMode::ALL {
                let labels = [model, instance.as_str(), rank.as_str(), role.name(), mode.name()];
                let is_set = mode == worker.trust_mode;
                self.trust_mode
                    .with_label_values(&labels)
                    .set(f64::from(u8::from(is_set)));
            }
            if let Some(age) = worker.heartbeat_age_s {
                self.heartbeat_age.with_label_values(&labels).set(age);
            }
            if let Some(age) = worker.event_age_s {
                self.event_age.with_label_values(&labels).set(age);
            }
            if worker.audited_requests > 0 {
                let labels = [model, instance.as_str(), rank.as_str()];
                let counts = [
                    (&self.predicted_tokens, worker.predicted_cached_tokens),
                    (&self.reported_tokens, worker.reported_cached_tokens),
                ];
                for (counter, tokens) in counts {
                    counter.with_label_values(&labels).inc_by(tokens);
                }
            }
            let load = [
                (&self.prefill_tokens, worker.prefill_tokens as f64),
                (&self.decode_blocks, worker.decode_blocks as f64),
                (&self.active_requests, f64::from(worker.active_requests)),
            ];
            for (gauge, value) in load {
                gauge.with_label_values(&labels).set(value);
            }
        }
    }
}
