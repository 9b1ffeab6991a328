//! Metrics of the shadow fleets; the figures are absent while a model has no shadows.

use prometheus::{CounterVec, GaugeVec, IntCounterVec};
use wardrop_sim::shadow::{ArmReport, Estimate, LimitReport};

use super::report::ModelShadowReport;
use crate::metrics::MetricBuilder;

/// Metrics of the shadow fleets, labelled by model and policy.
pub(super) struct ShadowMetrics {
    /// Requests by what the shadows did with them.
    requests: IntCounterVec,
    /// CPU time of the shadows, in seconds.
    cpu: CounterVec,
    /// Simulated time to first token, in seconds, by policy and statistic.
    ttft: GaugeVec,
    itl: GaugeVec,
    e2e: GaugeVec,
    reuse: GaugeVec,
    goodput: GaugeVec,
    /// Relative difference from the policy in force; 0 is equal.
    difference: GaugeVec,
    /// Lower end of the difference's 95 % interval.
    low: GaugeVec,
    /// Upper end of the difference's 95 % interval.
    high: GaugeVec,
    /// Share of a mean time in force that relaxing one limit of the fleet saves.
    saving: GaugeVec,
    /// Lower end of the saving's 95 % interval.
    saving_low: GaugeVec,
    /// Upper end of the saving's 95 % interval.
    saving_high: GaugeVec,
    /// 1 when the simulated clock agrees with measurements, otherwise 0.
    trusted: GaugeVec,
    /// Simulated over measured TTFT.
    clock: GaugeVec,
    /// Ticks behind the figures.
    ticks: GaugeVec,
    /// Seconds between the simulated moment and now.
    age: GaugeVec,
}

/// Label of a metric with one series per model.
const MODEL: &[&str] = &["model"];
const POLICY: &[&str] = &["model", "policy"];
/// Labels of a latency: `statistic` is `mean` or `p99`.
const POLICY_STATISTIC: &[&str] = &["model", "policy", "statistic"];
const POLICY_FIGURE: &[&str] = &["model", "policy", "figure"];
/// Labels of a saving: `relaxed` is one of the seven names of a limit, `figure` is `ttft` or `e2e`.
const RELAXED_FIGURE: &[&str] = &["model", "relaxed", "figure"];

impl ShadowMetrics {
    /// Registers the metrics, without a series.
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        let of_model = |name: &str, help: &str| builder.gauges(name, help, MODEL);
        let of_policy = |name: &str, help: &str| builder.gauges(name, help, POLICY);
        let statistic = |name: &str, help: &str| builder.gauges(name, help, POLICY_STATISTIC);
        let of_limit = |name: &str, help: &str| builder.gauges(name, help, RELAXED_FIGURE);
        let of_figure = |name: &str, help: &str| builder.gauges(name, help, POLICY_FIGURE);
        Ok(Self {
            requests: builder.counters(
                "shadow_requests_total",
                "Requests by result in the shadows: simulated (fed), queue full (dropped), skipped to keep the share of a core (passed_over)",
                &["model", "result"],
            )?,
            cpu: builder.float_counters("shadow_cpu_seconds_total", "CPU time of the shadows", MODEL)?,
            ttft: statistic(
                "shadow_time_to_first_token_seconds",
                "Simulated time to first token of a policy: mean and p99",
            )?,
            itl: statistic(
                "shadow_inter_token_latency_seconds",
                "Simulated time between two tokens of a policy: mean",
            )?,
            e2e: statistic(
                "shadow_end_to_end_seconds",
                "Simulated time from a request to its last token of a policy: mean",
            )?,
            reuse: of_policy(
                "shadow_reuse_ratio",
                "Simulated share of prompt tokens that a policy finds in caches",
            )?,
            goodput: of_policy(
                "shadow_goodput_ratio",
                "Simulated share of requests that keep both limits under a policy",
            )?,
            difference: of_figure(
                "shadow_difference_ratio",
                "Paired difference from the policy in force as a share of its figure: -0.2 is 20 % less",
            )?,
            low: of_figure("shadow_difference_ratio_low", "2.5 % point of the interval of shadow_difference_ratio")?,
            high: of_figure("shadow_difference_ratio_high", "97.5 % point of the interval of shadow_difference_ratio")?,
            saving: of_limit(
                "shadow_limit_saving_ratio",
                "Share of a mean time under the policy in force that relaxing one limit of the fleet saves: 0.2 is 20 % less",
            )?,
            saving_low: of_limit("shadow_limit_saving_ratio_low", "2.5 % point of the interval of shadow_limit_saving_ratio")?,
            saving_high: of_limit("shadow_limit_saving_ratio_high", "97.5 % point of the interval of shadow_limit_saving_ratio")?,
            trusted: of_model(
                "shadow_trusted",
                "1 when the simulated clock agrees with what was measured, 0 in doubt",
            )?,
            clock: of_model(
                "shadow_clock_ratio",
                "Simulated over measured time to first token, of the same requests under the policy in force",
            )?,
            ticks: of_model("shadow_ticks", "Number of ticks in the shadow figures")?,
            age: of_model(
                "shadow_age_seconds",
                "Time from the last simulated moment to now: the lag, and more while the share of a core is used up",
            )?,
        })
    }

    /// Adds `more` requests with this result.
    pub fn count(&self, model: &str, result: &str, more: u64) {
        self.requests.with_label_values(&[model, result]).inc_by(more);
    }

    /// Counts CPU seconds of a model's shadows.
    pub fn count_cpu(&self, model: &str, more_s: f64) {
        self.cpu.with_label_values(&[model]).inc_by(more_s.max(0.0));
    }

    /// Replaces all gauges by the figures of the reports. A model without shadows has only the
    /// series `shadow_trusted`, with 0.
    pub(super) fn set(&self, reports: &[ModelShadowReport]) {
        for gauges in [
            &self.ttft,
            &self.itl,
            &self.e2e,
            &self.reuse,
            &self.goodput,
            &self.difference,
            &self.low,
            &self.high,
            &self.saving,
            &self.saving_low,
            &self.saving_high,
            &self.trusted,
            &self.clock,
            &self.ticks,
            &self.age,
        ] {
            gauges.reset();
        }
        for report in reports {
            let model = report.model.as_str();
            let of_model = |gauges: &GaugeVec, value: f64| gauges.with_label_values(&[model]).set(value);
            let Some(fleets) = &report.fleets else {
                of_model(&self.trusted, 0.0);
                continue;
            };
            of_model(&self.trusted, f64::from(u8::from(fleets.trust.trusted)));
            of_model(&self.ticks, fleets.ticks as f64);
            if let Some(ratio) = fleets.trust.clock_ratio {
                of_model(&self.clock, ratio);
            }
            if let Some(age_s) = report.age_s {
                of_model(&self.age, age_s);
            }
            for arm in &fleets.arms {
                self.set_arm(model, arm, report.has_goodput);
            }
            for limit in &fleets.limits {
                self.set_limit(model, limit);
            }
        }
    }

    /// Sets what relaxing one limit saves.
    fn set_limit(&self, model: &str, limit: &LimitReport) {
        for (figure, saving) in [("ttft", limit.ttft_saving), ("e2e", limit.e2e_saving)] {
            let Some(saving) = saving else { continue };
            let labels = [model, limit.limit.name(), figure];
            self.saving.with_label_values(&labels).set(saving.value);
            self.saving_low.with_label_values(&labels).set(saving.low);
            self.saving_high.with_label_values(&labels).set(saving.high);
        }
    }

    /// Sets the figures of one arm. Goodput is left out where no limits are set.
    fn set_arm(&self, model: &str, arm: &ArmReport, has_goodput: bool) {
        let policy = arm.name.as_str();
        let set = |gauges: &GaugeVec, last: &[&str], figure: Option<Estimate>| {
            if let Some(figure) = figure {
                let labels = [&[model, policy], last].concat();
                gauges.with_label_values(&labels).set(figure.value);
            }
        };
        let goodput = |figure: Option<Estimate>| figure.filter(|_| has_goodput);
        set(&self.ttft, &["mean"], arm.ttft_s);
        set(&self.ttft, &["p99"], arm.ttft_p99_s);
        set(&self.itl, &["mean"], arm.itl_s);
        set(&self.e2e, &["mean"], arm.e2e_s);
        set(&self.reuse, &[], arm.cached_share);
        set(&self.goodput, &[], goodput(arm.goodput));
        let ratios = [
            ("ttft", arm.ttft_ratio),
            ("ttft_p99", arm.ttft_p99_ratio),
            ("itl", arm.itl_ratio),
            ("e2e", arm.e2e_ratio),
            ("reuse", arm.cached_share_ratio),
            ("goodput", goodput(arm.goodput_ratio)),
        ];
        for (figure, ratio) in ratios {
            let Some(ratio) = ratio else { continue };
            let labels = [model, policy, figure];
            self.difference.with_label_values(&labels).set(ratio.value - 1.0);
            self.low.with_label_values(&labels).set(ratio.low - 1.0);
            self.high.with_label_values(&labels).set(ratio.high - 1.0);
        }
    }
}
