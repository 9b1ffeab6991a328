//! Prometheus metrics: base units, `_total` on counters, labels from a small fixed set.
//!
//! Counters on the path of a request are atomic. Gauges of pools are read from the pools when a
//! page is rendered, so an idle service does no work for them. A page costs O(models × workers),
//! under a lock that requests do not take.

mod anarchy;
mod bound;
mod builder;
mod control;
mod feeds;
mod latencies;
mod predicted;
mod price_guard;
mod queue;
mod threads;
mod workers;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus::{Counter, HistogramVec, IntCounter, IntCounterVec, Registry, TextEncoder};

use self::anarchy::AnarchyGauges;
use self::bound::BoundGauges;
pub use self::builder::MetricBuilder;
use self::control::ControlMetrics;
use self::feeds::FeedMetrics;
pub(crate) use self::latencies::StreamHistograms;
use self::latencies::{ITL_BUCKETS_S, STAGE_BUCKETS_S, Stages, TTFT_BUCKETS_S};
use self::predicted::PredictedMetrics;
use self::price_guard::PriceGuardMetrics;
use self::queue::QueueMetrics;
pub use self::threads::THREAD_PREFIX;
use self::workers::WorkerMetrics;
use crate::models::Models;
use crate::pool::Role;
use crate::prompt::Abstention;
use crate::service::PartState;

/// Every metric of one service. Counters of requests grow where the request is handled; gauges of pools are set by each page.
pub(crate) struct Metrics {
    /// Registry behind all metrics.
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
    /// Bookings that expired by age.
    pub expired_bookings: IntCounter,
    /// Prompts whose length as reported by Dynamo differs from the service's count.
    pub length_mismatches: IntCounter,
    /// Reports of engines that were refused. Set from the pools when the page is rendered.
    reports_refused: IntCounterVec,
    /// Feeds of KV events and engine steps.
    pub feeds: FeedMetrics,
    /// The router's queues.
    pub queue: QueueMetrics,
    /// State and settings of the control plane.
    pub control: ControlMetrics,
    /// State of every worker. Set from the pools when the page is rendered.
    workers: WorkerMetrics,
    /// Price of anarchy of every pool. Set from the pools when the page is rendered.
    anarchy: AnarchyGauges,
    bound: BoundGauges,
    /// Predicted caches of every pool. Set from the pools when the page is rendered.
    predicted: PredictedMetrics,
    /// Evidence and state of the price guard of every pool. Set from the pools when the page is rendered.
    price_guard: PriceGuardMetrics,
    /// CPU time of the process's native threads, in seconds.
    cpu: Counter,
    /// Lock of the rendering: each page resets the gauges, so two pages must not render at once.
    rendering: Mutex<()>,
}

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
            expired_bookings: builder.counter("bookings_expired_total", "Bookings that expired by age")?,
            length_mismatches: builder.counter(
                "prompt_length_mismatches_total",
                "Prompts whose length as reported by Dynamo differs from the service's count",
            )?,
            feeds: FeedMetrics::new(&builder)?,
            queue: QueueMetrics::new(&builder)?,
            control: ControlMetrics::new(&builder)?,
            workers: WorkerMetrics::new(&builder)?,
            anarchy: AnarchyGauges::new(&builder)?,
            bound: BoundGauges::new(&builder)?,
            predicted: PredictedMetrics::new(&builder)?,
            price_guard: PriceGuardMetrics::new(&builder)?,
            cpu: builder.float_counter(
                "router_cpu_seconds_total",
                "CPU time of the gateway's own threads",
            )?,
            rendering: Mutex::new(()),
            builder,
        };
        // Every reason has a series from the start, so that a rate over its first abstention is not
        // lost.
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
        self.bound.reset();
        self.predicted.reset();
        self.price_guard.reset();
        self.queue.reset();
        self.workers.reset();
        self.reports_refused.reset();
        for model in models.all() {
            let name = model.spec.name.as_str();
            if let Some(meter) = &model.bound {
                self.bound.set(name, &meter.report(now_s));
            }
            for role in Role::ALL {
                let pool = model.pool(role);
                self.workers.set(name, role, &pool.report(now_s));
                if pool.size() > 0 {
                    self.reports_refused
                        .with_label_values(&[name, role.name()])
                        .inc_by(pool.reports_refused());
                    let (report, decided) = (pool.price_guard(), pool.decided_statically());
                    self.price_guard.set(name, role.name(), &report, decided);
                }
                if let Some(size) = pool.predicted() {
                    self.predicted.set(name, role.name(), &size);
                }
                if let Some(report) = pool.anarchy() {
                    self.anarchy.set(name, role.name(), &report);
                }
                if let Some(stats) = pool.queue_stats() {
                    self.queue.set(name, role, &stats);
                }
            }
        }
        // Threads that ended took their time with them, and a counter must not fall.
        self.cpu.inc_by((threads::cpu_s() - self.cpu.get()).max(0.0));
        TextEncoder::new()
            .encode_to_string(&self.builder.registry.gather())
            .unwrap_or_default()
    }

    /// Takes over figures of the control plane, all of known names.
    pub(crate) fn set_figures(&self, figures: &BTreeMap<String, f64>) {
        let _one_at_a_time = self.rendering.lock();
        self.control.set_figures(figures);
    }

    /// Takes over the states of the parts of the control plane. A part that is not named any more has no series.
    pub(crate) fn set_parts(&self, parts: &BTreeMap<String, PartState>) {
        let _one_at_a_time = self.rendering.lock();
        self.control.set_parts(parts);
    }

    /// Ends the series of a model and of its roles.
    ///
    /// Without it, the series of removed models would pile up in a fleet whose models change.
    pub(crate) fn forget_model(&self, model: &str) {
        let histograms = [&self.ttft, &self.itl];
        for histogram in histograms {
            // A series that no request has made is not there to be removed.
            let _ = histogram.remove_label_values(&[model]);
        }
        let _ = self.input_tokens.remove_label_values(&[model]);
        for role in Role::ALL {
            let _ = self.decisions.remove_label_values(&[model, role.name()]);
        }
        self.queue.forget_model(model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_the_convention() {
        let metrics = Metrics::new("r").unwrap();
        metrics.feeds.count_lost(1);
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
            "setting",
            "statistic",
            "figure",
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
