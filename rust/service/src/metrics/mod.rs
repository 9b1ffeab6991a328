//! Prometheus metrics: base units, `_total` on counters, labels from a small fixed set.

mod anarchy;
mod builder;
mod predicted;

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, Registry, TextEncoder,
};

use self::anarchy::AnarchyGauges;
pub use self::builder::MetricBuilder;
use self::predicted::PredictedMetrics;
use crate::models::Models;
use crate::pool::{Role, Trust, WorkerReport};
use crate::prompt::Abstention;
use crate::service::PartState;

/// Every metric of one gateway.
pub(crate) struct Metrics {
    builder: MetricBuilder,
    /// Requests placed on a worker.
    pub decisions: IntCounterVec,
    /// Prompts handed over as token ids.
    pub handovers: IntCounter,
    /// Comparisons of token ids that ended a handover.
    pub handover_differences: IntCounter,
    /// Registrations of models that were refused because of a limit.
    pub models_refused: IntCounter,
    /// Requests left to Dynamo, by reason.
    pub abstentions: IntCounterVec,
    /// Time of a decision's stages.
    pub stages: Stages,
    /// Time from the whole request to the first byte of the answer's body, in seconds.
    pub ttft: HistogramVec,
    /// Time between two pieces of a streamed answer, in seconds.
    pub itl: HistogramVec,
    /// Prompt tokens of placed requests.
    pub input_tokens: IntCounterVec,
    /// KV events, by result: applied, refused, foreign or already seen.
    pub events: IntCounterVec,
    /// Workers of a saved index, by result of the restore.
    pub restored: IntCounterVec,
    /// Feed messages that were refused.
    pub malformed: IntCounterVec,
    /// Feed connections that were lost.
    pub reconnects: IntCounterVec,
    /// Replays of engines\' KV events, by result.
    pub replays: IntCounterVec,
    /// Bookings that expired by age.
    pub expired_bookings: IntCounter,
    /// Prompts whose length as reported by Dynamo differs from the service's count.
    pub length_mismatches: IntCounter,
    /// Time in the queue of requests that were placed from it.
    pub queue_time: HistogramVec,
    /// Requests placed from the queue, by reason.
    pub queue_placed: IntCounterVec,
    /// Requests that the queue refused, by the limit that refused them.
    pub queue_refused: IntCounterVec,
    /// State of the control plane, by quantity.
    pub control_state: GaugeVec,
    /// Settings in force, by name.
    pub control_setting: GaugeVec,
    /// 1 for each part of the control plane that works, by name.
    part_up: GaugeVec,
    /// Failures of the parts of the control plane, by name.
    part_failures: IntCounterVec,
    /// Predicted cached tokens of finished requests. Set from the workers when the page is rendered, so that a series ends with its worker.
    predicted_tokens: IntCounterVec,
    /// Reported cached tokens of finished requests, set in the same way.
    reported_tokens: IntCounterVec,
    /// Reports of engines that were refused, set in the same way.
    reports_refused: IntCounterVec,
    anarchy: AnarchyGauges,
    predicted: PredictedMetrics,
    queue_requests: GaugeVec,
    queue_prefill: GaugeVec,
    worker_load: GaugeVec,
    worker_up: GaugeVec,
    worker_gaps: GaugeVec,
    worker_blocks: GaugeVec,
    heartbeat_age: GaugeVec,
    event_age: GaugeVec,
    unavailable: GaugeVec,
    resync: GaugeVec,
    suspect: GaugeVec,
    cpu: Gauge,
    /// Lock of the rendering: each page resets the gauges, so two pages must not render at once.
    rendering: Mutex<()>,
}

/// The histograms of a decision's stages, looked up once.
pub(crate) struct Stages {
    /// Template and tokeniser.
    pub tokenise: Histogram,
    /// Block hashes.
    pub hash: Histogram,
    /// Overlap of the prompt with each candidate, with the wait for the router's lock.
    pub matching: Histogram,
    /// Cost of each candidate.
    pub price: Histogram,
    /// Choice and booking.
    pub pick: Histogram,
    /// From the whole body to the pin.
    pub total: Histogram,
}

impl Stages {
    fn new(all: &HistogramVec) -> Self {
        let stage = |name: &str| all.with_label_values(&[name]);
        Self {
            tokenise: stage("tokenise"),
            hash: stage("hash"),
            matching: stage("match"),
            price: stage("price"),
            pick: stage("pick"),
            total: stage("total"),
        }
    }
}

const STAGE_BUCKETS_S: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0, 10.0,
];
const TTFT_BUCKETS_S: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    60.0,
];
const ITL_BUCKETS_S: &[f64] = &[
    1e-5, 1e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A name or label that Prometheus does not take.
    pub fn new(router_id: &str) -> Result<Self, prometheus::Error> {
        let labels = [("router_id".to_string(), router_id.to_string())]
            .into_iter()
            .collect();
        let registry = Registry::new_custom(Some("wardrop".into()), Some(labels))?;
        let builder = MetricBuilder { registry };
        let metrics = Self {
            decisions: builder.counters(
                "decisions_total",
                "Requests placed on a worker",
                &["model", "worker_type"],
            )?,
            handovers: builder.counter("token_id_handovers_total", "Prompts handed over as token ids")?,
            handover_differences: builder.counter(
                "token_id_differences_total",
                "Comparisons with Dynamo's own token ids that ended the handover of a model",
            )?,
            models_refused: builder.counter(
                "models_refused_total",
                "Registrations of models that were refused, because the router had the most models or adapters that it may have",
            )?,
            abstentions: builder.counters(
                "abstentions_total",
                "Requests left to Dynamo's own router",
                &["reason"],
            )?,
            stages: Stages::new(&builder.histograms(
                "decision_seconds",
                "Time of the stages of a decision",
                &["stage"],
                STAGE_BUCKETS_S,
            )?),
            ttft: builder.histograms(
                "time_to_first_token_seconds",
                "Time from the whole request to the first byte of the answer's body",
                &["model"],
                TTFT_BUCKETS_S,
            )?,
            itl: builder.histograms(
                "inter_token_latency_seconds",
                "Time between pieces of a streamed answer",
                &["model"],
                ITL_BUCKETS_S,
            )?,
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
            reports_refused: builder.counters(
                "engine_reports_refused_total",
                "Reports of engines with figures that cannot be true, which teach nothing",
                &["model", "worker_type"],
            )?,
            input_tokens: builder.counters(
                "input_tokens_total",
                "Prompt tokens of placed requests",
                &["model"],
            )?,
            events: builder.counters("kv_events_total", "KV events, by what the service did with them", &["result"])?,
            restored: builder.counters(
                "index_restored_workers_total",
                "Workers of a saved index: taken over; restarted since (not taken over); and of those taken over, by their first event exact, outrun, restarted",
                &["result"],
            )?,
            malformed: builder.counters(
                "feed_malformed_total",
                "Feed messages that were refused",
                &["reason"],
            )?,
            reconnects: builder.counters(
                "feed_reconnects_total",
                "Feed connections that were lost",
                &["reason"],
            )?,
            replays: builder.counters(
                "feed_replays_total",
                "Replays of engines' KV events, by their result: complete, with holes, or failed",
                &["result"],
            )?,
            expired_bookings: builder.counter("bookings_expired_total", "Bookings that expired by age")?,
            length_mismatches: builder.counter(
                "prompt_length_mismatches_total",
                "Prompts whose length as reported by Dynamo differs from the service's count",
            )?,
            queue_time: builder.histograms(
                "queue_seconds",
                "Time in the router's queue, of requests placed from it",
                &["model", "worker_type"],
                TTFT_BUCKETS_S,
            )?,
            queue_placed: builder.counters(
                "queue_placed_total",
                "Requests placed from the queue: there was room, the window was full, or they had waited long enough",
                &["model", "worker_type", "reason"],
            )?,
            queue_refused: builder.counters(
                "queue_refused_total",
                "Requests refused by the queue, by the limit they met: requests, bytes, tenant_requests, tenant_bytes, deadline",
                &["model", "worker_type", "limit"],
            )?,
            control_state: builder.gauges(
                "control_state",
                "State of the control plane: regime, counts of looks and changes",
                &["quantity"],
            )?,
            control_setting: builder.gauges(
                "control_setting",
                "Settings in force, as the control plane reports them",
                &["setting"],
            )?,
            part_up: builder.gauges(
                "control_part_up",
                "1 when the part of the control plane works, 0 while it waits for its next attempt",
                &["part"],
            )?,
            part_failures: builder.counters(
                "control_part_failures_total",
                "Failures of a part of the control plane; each is followed by another attempt",
                &["part"],
            )?,
            anarchy: AnarchyGauges::new(&builder)?,
            predicted: PredictedMetrics::new(&builder)?,
            queue_requests: builder.gauges(
                "queue_requests",
                "Requests in the router's queue",
                &["model", "worker_type"],
            )?,
            queue_prefill: builder.gauges(
                "queue_prefill_seconds",
                "Prefill of the requests in the router's queue, each on its best worker",
                &["model", "worker_type"],
            )?,
            worker_load: builder.gauges(
                "worker_load",
                "Work in flight on a worker: prefill tokens, decode blocks, active requests",
                &["model", "worker_id", "dp_rank", "worker_type", "quantity"],
            )?,
            worker_up: builder.gauges(
                "worker_available",
                "1 when the worker may be chosen",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            worker_gaps: builder.gauges(
                "worker_event_gaps",
                "Gaps in the sequence of the worker's KV events",
                &["model", "worker_id", "dp_rank", "worker_type"],
            )?,
            worker_blocks: builder.gauges(
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
            cpu: builder.float(
                "router_cpu_seconds_total",
                "CPU time of the gateway's own threads",
            )?,
            rendering: Mutex::new(()),
            builder,
        };
        for reason in Abstention::ALL {
            metrics.abstentions.with_label_values(&[reason.name()]);
        }
        Ok(metrics)
    }

    /// Registers further metrics of this process: a door's own, or those of the shadows.
    pub fn builder(&self) -> &MetricBuilder {
        &self.builder
    }

    /// The text that Prometheus reads, with the workers' state of this moment.
    pub(crate) fn render(&self, models: &Models, now_s: f64) -> String {
        let _one_at_a_time = self.rendering.lock();
        self.anarchy.reset();
        self.predicted.reset();
        for gauges in [
            &self.worker_load,
            &self.worker_up,
            &self.worker_gaps,
            &self.worker_blocks,
            &self.heartbeat_age,
            &self.event_age,
            &self.unavailable,
            &self.resync,
            &self.suspect,
        ] {
            gauges.reset();
        }
        self.predicted_tokens.reset();
        self.reported_tokens.reset();
        self.reports_refused.reset();
        for model in models.all() {
            for role in Role::ALL {
                self.set_workers(&model.spec.name, role, &model.pool(role).report(now_s));
                if model.pool(role).size() > 0 {
                    self.reports_refused
                        .with_label_values(&[&model.spec.name, role.name()])
                        .inc_by(model.pool(role).reports_refused());
                }
                if let Some(size) = model.pool(role).predicted() {
                    self.predicted.set(&model.spec.name, role.name(), &size);
                }
                if let Some(report) = model.pool(role).anarchy() {
                    self.anarchy.set(&model.spec.name, role.name(), &report);
                }
                if let Some(stats) = model.pool(role).queue_stats() {
                    let labels = [model.spec.name.as_str(), role.name()];
                    self.queue_requests
                        .with_label_values(&labels)
                        .set(stats.waiting as f64);
                    self.queue_prefill.with_label_values(&labels).set(stats.prefill_s);
                }
            }
        }
        self.cpu.set(threads_cpu_s());
        TextEncoder::new()
            .encode_to_string(&self.builder.registry.gather())
            .unwrap_or_default()
    }

    /// Takes over the states of the parts of the control plane. A part that is not named any more has no series.
    pub(crate) fn set_parts(&self, parts: &BTreeMap<String, PartState>) {
        let _one_at_a_time = self.rendering.lock();
        self.part_up.reset();
        self.part_failures.reset();
        for (name, part) in parts {
            let labels = [name.as_str()];
            self.part_up
                .with_label_values(&labels)
                .set(f64::from(u8::from(part.up)));
            self.part_failures
                .with_label_values(&labels)
                .inc_by(part.failures);
        }
    }

    /// Ends the series of a model and of its roles.
    pub(crate) fn forget_model(&self, model: &str) {
        let histograms = [&self.ttft, &self.itl];
        for histogram in histograms {
            // A series that no request has made is not there to be removed.
            let _ = histogram.remove_label_values(&[model]);
        }
        let _ = self.input_tokens.remove_label_values(&[model]);
        for role in Role::ALL {
            let _ = self.decisions.remove_label_values(&[model, role.name()]);
            let _ = self.queue_time.remove_label_values(&[model, role.name()]);
        }
        let of_model = HashMap::from([("model", model)]);
        let _ = self.queue_placed.remove(&of_model);
        let _ = self.queue_refused.remove(&of_model);
    }

    fn set_workers(&self, model: &str, role: Role, workers: &[WorkerReport]) {
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
            .set(count(|w| w.trust == Trust::Suspect));
        for worker in workers {
            let instance = worker.instance.to_string();
            let rank = worker.dp_rank.to_string();
            let labels = [model, instance.as_str(), rank.as_str(), role.name()];
            self.worker_up
                .with_label_values(&labels)
                .set(f64::from(u8::from(worker.available)));
            self.worker_gaps
                .with_label_values(&labels)
                .set(worker.event_gaps as f64);
            self.worker_blocks
                .with_label_values(&labels)
                .set(worker.held_blocks[0] as f64);
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
                ("prefill_tokens", worker.prefill_tokens as f64),
                ("decode_blocks", worker.decode_blocks as f64),
                ("active_requests", f64::from(worker.active_requests)),
            ];
            for (kind, value) in load {
                let labels = [model, instance.as_str(), rank.as_str(), role.name(), kind];
                self.worker_load.with_label_values(&labels).set(value);
            }
        }
    }
}

/// Start of the names of the gateway's threads.
pub const THREAD_PREFIX: &str = "wardrop-";

/// CPU seconds of all threads whose name starts with [`THREAD_PREFIX`], from `/proc`; 0 where there is no `/proc`.
fn threads_cpu_s() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        if !name.starts_with(THREAD_PREFIX) {
            return None;
        }
        let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        times.split_whitespace().next()?.parse().ok()
    };
    tasks.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9
}

/// The histograms of one model, looked up once per request.
#[derive(Clone)]
pub(crate) struct StreamHistograms {
    /// Time to first token.
    pub ttft: Histogram,
    /// Inter-token latency.
    pub itl: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_the_convention() {
        let metrics = Metrics::new("r").unwrap();
        metrics.predicted_tokens.with_label_values(&["m", "1", "0"]).inc();
        let text = metrics.render(&Models::default(), 0.0);
        assert!(text.contains("wardrop_abstentions_total{reason=\"batch\",router_id=\"r\"} 0"));
        let allowed = [
            "model",
            "worker_id",
            "dp_rank",
            "worker_type",
            "router_id",
            "stage",
            "reason",
            "part",
            "result",
            "limit",
            "quantity",
            "setting",
            "statistic",
            "latency",
            "source",
            "policy",
            "le",
        ];
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let labels = line
                .split_once('{')
                .and_then(|(_, rest)| rest.rsplit_once('}'))
                .map_or("", |(l, _)| l);
            for label in labels.split("\",").filter(|l| !l.is_empty()) {
                let name = label.split('=').next().unwrap();
                assert!(allowed.contains(&name), "{line}");
            }
        }
    }
}
