//! Metrics of the shadow fleets; the figures are absent while a model has no shadows.

use prometheus::{CounterVec, GaugeVec, IntCounterVec, Opts};
use wardrop_sim::shadow::{ArmReport, Estimate};

use super::report::ModelShadowReport;
use crate::metrics::MetricBuilder;

/// Metrics of the shadow fleets, labelled by model, policy and statistic.
pub(super) struct ShadowMetrics {
    requests: IntCounterVec,
    cpu: CounterVec,
    seconds: GaugeVec,
    shares: GaugeVec,
    difference: GaugeVec,
    low: GaugeVec,
    high: GaugeVec,
    trusted: GaugeVec,
    clock: GaugeVec,
    ticks: GaugeVec,
    age: GaugeVec,
}

const MODEL: &[&str] = &["model"];
const POLICY_STATISTIC: &[&str] = &["model", "policy", "statistic"];

impl ShadowMetrics {
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        let of_model = |name: &str, help: &str| builder.gauges(name, help, MODEL);
        let of_policy = |name: &str, help: &str| builder.gauges(name, help, POLICY_STATISTIC);
        Ok(Self {
            requests: builder.counters(
                "shadow_requests_total",
                "Requests by result in the shadows: simulated (fed), queue full (dropped), skipped to keep the share of a core (passed_over)",
                &["model", "result"],
            )?,
            cpu: builder.keep(CounterVec::new(
                Opts::new("shadow_cpu_seconds_total", "CPU time of the shadows"),
                MODEL,
            )?)?,
            seconds: of_policy(
                "shadow_seconds",
                "Simulated latency of a policy: mean and p99 time to first token (ttft, ttft_p99), mean time between tokens (itl), end-to-end time (e2e)",
            )?,
            shares: of_policy(
                "shadow_share_ratio",
                "Simulated shares of a policy: prompt tokens from caches (reuse), requests within both limits (goodput)",
            )?,
            difference: of_policy(
                "shadow_difference_ratio",
                "Paired difference from the policy in force as a share of its figure: -0.2 is 20 % less",
            )?,
            low: of_policy("shadow_difference_ratio_low", "2.5 % point of the interval of shadow_difference_ratio")?,
            high: of_policy("shadow_difference_ratio_high", "97.5 % point of the interval of shadow_difference_ratio")?,
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

    pub(super) fn set(&self, reports: &[ModelShadowReport]) {
        for gauges in [
            &self.seconds,
            &self.shares,
            &self.difference,
            &self.low,
            &self.high,
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
        }
    }

    fn set_arm(&self, model: &str, arm: &ArmReport, has_goodput: bool) {
        let set = |gauges: &GaugeVec, statistic: &str, value: f64| {
            let labels = [model, arm.name.as_str(), statistic];
            gauges.with_label_values(&labels).set(value);
        };
        let goodput = |figure: Option<Estimate>| figure.filter(|_| has_goodput);
        let seconds = [
            ("ttft", arm.ttft_s),
            ("ttft_p99", arm.ttft_p99_s),
            ("itl", arm.itl_s),
            ("e2e", arm.e2e_s),
        ];
        let shares = [("reuse", arm.cached_share), ("goodput", goodput(arm.goodput))];
        for (gauges, figures) in [(&self.seconds, &seconds[..]), (&self.shares, &shares[..])] {
            for (statistic, figure) in figures {
                if let Some(figure) = figure {
                    set(gauges, statistic, figure.value);
                }
            }
        }
        let ratios = [
            ("ttft", arm.ttft_ratio),
            ("ttft_p99", arm.ttft_p99_ratio),
            ("itl", arm.itl_ratio),
            ("e2e", arm.e2e_ratio),
            ("reuse", arm.cached_share_ratio),
            ("goodput", goodput(arm.goodput_ratio)),
        ];
        for (statistic, ratio) in ratios {
            if let Some(ratio) = ratio {
                set(&self.difference, statistic, ratio.value - 1.0);
                set(&self.low, statistic, ratio.low - 1.0);
                set(&self.high, statistic, ratio.high - 1.0);
            }
        }
    }
}
