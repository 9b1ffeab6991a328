//! Gauges of the price of anarchy, labelled by model and worker type. Each page sets them from the meters of the pools.
//!
//! The help texts below define the estimators; `wardrop_core::anarchy` computes them.
//!
//! Cost: a page with P pools sets about 20 series for each; the estimators themselves run on a
//! background thread with a bounded share of a core.

use prometheus::{CounterVec, GaugeVec, IntCounterVec};
use wardrop_core::anarchy::ModelError;

use super::MetricBuilder;
use crate::pool::AnarchyReport;

/// One gauge per estimator. A pool has series after its first solved window.
pub(super) struct AnarchyGauges {
    /// Loss of a decision as a ratio, at least 1 up to rounding.
    poa: GaugeVec,
    /// Lower end of the 95 % interval of `poa`.
    low: GaugeVec,
    /// Upper end of the 95 % interval of `poa`.
    high: GaugeVec,
    /// Parts of the loss as shares of the placements' cost, by source.
    loss: GaugeVec,
    /// The paper's estimator on windows of any length.
    paper: GaugeVec,
    /// The paper's estimator on windows with as many arrivals as workers, by statistic.
    square: GaugeVec,
    /// Mean regret, in seconds.
    regret: GaugeVec,
    /// Mean absolute error of predicted latencies, as a share of the observed ones.
    error: GaugeVec,
    /// Sum of predicted latencies over the sum of observed ones.
    bias: GaugeVec,
    /// Solved windows behind the figures.
    windows: GaugeVec,
    /// Decisions that entered a window since the start.
    decisions: IntCounterVec,
    /// Windows without a solution in time since the start.
    dropped: IntCounterVec,
    /// CPU time of the estimators since the start, in seconds.
    cpu: CounterVec,
}

/// Labels of a gauge with one series per pool.
const POOL: &[&str] = &["model", "worker_type"];
const POOL_SOURCE: &[&str] = &["model", "worker_type", "source"];
const POOL_STATISTIC: &[&str] = &["model", "worker_type", "statistic"];
const POOL_LATENCY: &[&str] = &["model", "worker_type", "latency"];

impl AnarchyGauges {
    /// Registers all gauges.
    ///
    /// # Errors
    /// A name that is registered already.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        let of_pool = |name: &str, help: &str| builder.gauges(name, help, POOL);
        let count = |name: &str, help: &str| builder.counters(name, help, POOL);
        let seconds = |name: &str, help: &str| builder.float_counters(name, help, POOL);
        let by_source = |name: &str, help: &str| builder.gauges(name, help, POOL_SOURCE);
        let by_statistic = |name: &str, help: &str| builder.gauges(name, help, POOL_STATISTIC);
        let by_latency = |name: &str, help: &str| builder.gauges(name, help, POOL_LATENCY);
        Ok(Self {
            poa: of_pool(
                "decision_loss",
                "Loss of a decision: cost of recent placements over that of the best assignment in the state that they met; 1 is optimal; ranks no routers",
            )?,
            low: of_pool(
                "decision_loss_low",
                "2.5 % point of the bootstrap interval of decision_loss over windows",
            )?,
            high: of_pool(
                "decision_loss_high",
                "97.5 % point of the bootstrap interval of decision_loss over windows",
            )?,
            loss: by_source(
                "decision_loss_ratio",
                "Share of the placements' cost: prefill computed again (cache) and waiting (load) that another placement would have saved; what none could save (split)",
            )?,
            paper: of_pool(
                "price_of_anarchy_paper",
                "The paper's estimator on costs frozen at a window's start: about requests over workers, regardless of the router",
            )?,
            square: by_statistic(
                "price_of_anarchy_square",
                "The paper's estimator on windows of as many arrivals as workers: ratio of sums, median, p90, largest",
            )?,
            regret: of_pool(
                "regret_mean_seconds",
                "Mean cost of the chosen worker minus the cost of the cheapest worker at the decision, in seconds",
            )?,
            error: by_latency(
                "model_error_ratio",
                "Mean absolute error of the predicted time to first token (ttft) and between tokens (itl), as a share of the observed",
            )?,
            bias: by_latency(
                "model_bias_ratio",
                "Predicted over observed, sums: above 1 the curves are too slow (ttft, itl)",
            )?,
            windows: of_pool("decision_loss_windows", "Windows of decisions behind the figures")?,
            decisions: count(
                "decision_loss_decisions_total",
                "Decisions taken into a window; the others were passed over to keep the share of a core",
            )?,
            dropped: count(
                "decision_loss_windows_dropped_total",
                "Windows dropped because none was solved in time",
            )?,
            cpu: seconds(
                "decision_loss_cpu_seconds_total",
                "CPU time spent on the loss of a decision",
            )?,
        })
    }

    /// Ends all series; [`AnarchyGauges::set`] starts the series of the present pools again.
    pub fn reset(&self) {
        for gauges in [
            &self.poa,
            &self.low,
            &self.high,
            &self.loss,
            &self.paper,
            &self.square,
            &self.regret,
            &self.error,
            &self.bias,
            &self.windows,
        ] {
            gauges.reset();
        }
        self.decisions.reset();
        self.dropped.reset();
        self.cpu.reset();
    }

    /// Sets the series of one pool.
    pub fn set(&self, model: &str, worker_type: &str, report: &AnarchyReport) {
        let pool = |gauges: &GaugeVec, value: f64| {
            gauges.with_label_values(&[model, worker_type]).set(value);
        };
        let labelled = |gauges: &GaugeVec, label: &str, value: f64| {
            gauges.with_label_values(&[model, worker_type, label]).set(value);
        };
        let meter = &report.meter;
        pool(&self.poa, meter.poa);
        if let Some(interval) = meter.poa_interval {
            pool(&self.low, interval.low);
            pool(&self.high, interval.high);
        }
        let loss = &meter.loss;
        let total_s = loss.total_s().max(f64::MIN_POSITIVE);
        labelled(&self.loss, "cache", loss.cache_s / total_s);
        labelled(&self.loss, "load", loss.load_s / total_s);
        labelled(&self.loss, "split", loss.split_s / total_s);
        pool(&self.paper, meter.poa_paper);
        labelled(&self.square, "sums", meter.poa_square);
        labelled(&self.square, "median", meter.poa_square_median);
        labelled(&self.square, "p90", meter.poa_square_p90);
        labelled(&self.square, "largest", meter.poa_square_max);
        pool(&self.regret, meter.regret_mean_s);
        // Without a sample there is no series: a 0 would read as a perfect model.
        let known = |name: &str, error: &ModelError| {
            if error.samples > 0 {
                labelled(&self.error, name, error.mean_absolute_share);
                labelled(&self.bias, name, error.bias);
            }
        };
        known("ttft", &meter.model_error);
        known("itl", &report.itl_error);
        pool(&self.windows, meter.windows as f64);
        let labels = [model, worker_type];
        self.decisions.with_label_values(&labels).inc_by(report.recorded);
        self.dropped
            .with_label_values(&labels)
            .inc_by(meter.dropped_windows);
        self.cpu
            .with_label_values(&labels)
            .inc_by(report.spent_s.max(0.0));
    }
}
