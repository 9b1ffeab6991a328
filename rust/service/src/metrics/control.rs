//! Metrics of the control plane, as it reports them: its figures, its settings, and which of its parts work.
//!
//! The control plane knows a figure by a short name, such as `regime`. Each figure has a metric of its own, so a metric
//! has one unit and one meaning. A figure that the control plane never reports has no series.
//! Nothing here is on the path of a request.

use std::collections::BTreeMap;

use prometheus::{GaugeVec, IntCounterVec};

use super::MetricBuilder;
use crate::service::PartState;

/// Prefix of the names of figures that hold a setting.
const SETTING_PREFIX: &str = "setting_";

/// Metrics that the control plane sets.
pub(crate) struct ControlMetrics {
    /// Present values, by the name of the figure. No gauge has a label.
    gauges: BTreeMap<&'static str, GaugeVec>,
    /// Counts since the start, by the name of the figure. No counter has a label.
    counters: BTreeMap<&'static str, IntCounterVec>,
    /// Settings in force, by name.
    setting: GaugeVec,
    /// 1 for each part that works, by name.
    part_up: GaugeVec,
    /// Failures of the parts, by name.
    part_failures: IntCounterVec,
    /// Up to when the source of a part is known to have answered, by name.
    part_answered: GaugeVec,
}

impl ControlMetrics {
    /// Registers the metrics, without a series.
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            gauges: gauges(builder)?,
            counters: counters(builder)?,
            setting: builder.gauges(
                "control_setting",
                "Settings in force, as the control plane reports them; the name of a setting ends with its unit",
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
            part_answered: builder.gauges(
                "control_part_answered_timestamp_seconds",
                "Time of the last answer of a part's source, such as an API server, in seconds since 1970",
                &["part"],
            )?,
        })
    }

    /// Whether a figure of this name has a metric.
    pub(crate) fn knows(&self, figure: &str) -> bool {
        figure.starts_with(SETTING_PREFIX)
            || self.gauges.contains_key(figure)
            || self.counters.contains_key(figure)
    }

    /// Names of the figures that are no settings, for the text of an error.
    pub(crate) fn figures(&self) -> String {
        let names: Vec<&str> = self.gauges.keys().chain(self.counters.keys()).copied().collect();
        names.join(", ")
    }

    /// Takes over figures of known names. Other figures stay, but settings are replaced as a whole: a setting of the former
    /// policy must not stay on the page.
    pub(super) fn set_figures(&self, figures: &BTreeMap<String, f64>) {
        if figures.keys().any(|name| name.starts_with(SETTING_PREFIX)) {
            self.setting.reset();
        }
        for (name, &value) in figures {
            if let Some(setting) = name.strip_prefix(SETTING_PREFIX) {
                self.setting.with_label_values(&[setting]).set(value);
            } else if let Some(gauge) = self.gauges.get(name.as_str()) {
                gauge.with_label_values::<&str>(&[]).set(value);
            } else if let Some(counter) = self.counters.get(name.as_str()) {
                let counter = counter.with_label_values::<&str>(&[]);
                let count = value as u64;
                if count < counter.get() {
                    // The control plane started again and counts from 0.
                    counter.reset();
                }
                counter.inc_by(count - counter.get());
            }
        }
    }

    /// Takes over the states of the parts. A part that is not named any more has no series.
    pub(super) fn set_parts(&self, parts: &BTreeMap<String, PartState>) {
        self.part_up.reset();
        self.part_failures.reset();
        self.part_answered.reset();
        for (name, part) in parts {
            let labels = [name.as_str()];
            self.part_up
                .with_label_values(&labels)
                .set(f64::from(u8::from(part.up)));
            self.part_failures
                .with_label_values(&labels)
                .inc_by(part.failures);
            if let Some(answered_unix_s) = part.answered_unix_s {
                self.part_answered.with_label_values(&labels).set(answered_unix_s);
            }
        }
    }
}

/// The gauge of each figure that is a present value.
fn gauges(builder: &MetricBuilder) -> Result<BTreeMap<&'static str, GaugeVec>, prometheus::Error> {
    let gauge = |name: &str, help: &str| builder.gauges(name, help, &[]);
    Ok(BTreeMap::from([
        (
            "regime",
            gauge(
                "control_regime",
                "Regime of the fleet: 0 below the knee, 1 in transition, 2 saturated",
            )?,
        ),
        (
            "ttft_smoothed_seconds",
            gauge(
                "control_ttft_smoothed_seconds",
                "Smoothed tail of the time to first token, which the regime is judged by",
            )?,
        ),
        (
            "ttft_baseline_seconds",
            gauge(
                "control_ttft_baseline_seconds",
                "Tail of the time to first token at low load; 0 until it is known",
            )?,
        ),
        (
            "knee_share",
            gauge(
                "control_knee_ratio",
                "Load of the fleet over the load at its knee; 1 is the knee",
            )?,
        ),
        (
            "utilisation",
            gauge(
                "control_utilisation_ratio",
                "Arriving prefill seconds per second and worker",
            )?,
        ),
        (
            "backlog_seconds",
            gauge(
                "control_backlog_seconds",
                "Mean prefill seconds ahead of a new request on a worker",
            )?,
        ),
        (
            "arrivals_per_second",
            gauge(
                "control_arrivals_per_second",
                "Requests that arrive per second, as the controller sees them",
            )?,
        ),
        (
            "controller",
            gauge(
                "control_acts",
                "1 when the controller changes settings, 0 when it only reports the regime",
            )?,
        ),
        (
            "on_trial",
            gauge(
                "control_change_on_trial",
                "1 while a change of a setting waits for the verdict of the guard",
            )?,
        ),
        (
            "guard_ready",
            gauge(
                "control_guard_ready",
                "1 when the guard has seen enough outcomes to judge a change",
            )?,
        ),
    ]))
}

/// The counter of each figure that only grows.
fn counters(builder: &MetricBuilder) -> Result<BTreeMap<&'static str, IntCounterVec>, prometheus::Error> {
    let counter = |name: &str, help: &str| builder.counters(name, help, &[]);
    Ok(BTreeMap::from([
        (
            "change_total",
            counter(
                "control_changes_total",
                "Changes of settings that the controller made",
            )?,
        ),
        (
            "kept_total",
            counter(
                "control_changes_kept_total",
                "Changes that the guard let stay, those made by hand included",
            )?,
        ),
        (
            "rolled_back_total",
            counter(
                "control_changes_rolled_back_total",
                "Changes that the guard took back",
            )?,
        ),
        (
            "calibrator_adopted_total",
            counter(
                "control_calibrator_adopted_total",
                "Settings of shadows that the calibrator put in force",
            )?,
        ),
        (
            "calibrator_rolled_back_total",
            counter(
                "control_calibrator_rolled_back_total",
                "Settings of shadows that were taken back after the calibrator had put them in force",
            )?,
        ),
    ]))
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use crate::models::Models;
    use std::collections::BTreeMap;

    fn set(metrics: &Metrics, figures: &[(&str, f64)]) -> String {
        let figures: BTreeMap<String, f64> = figures.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        metrics.set_figures(&figures);
        metrics.render(&Models::default(), 0.0)
    }

    #[test]
    fn each_figure_has_a_metric_of_its_own_and_only_after_its_first_report() {
        let metrics = Metrics::new("r").unwrap();
        assert!(!set(&metrics, &[]).contains("wardrop_control_regime"));
        let page = set(&metrics, &[("regime", 2.0), ("knee_share", 0.5)]);
        assert!(
            page.contains("wardrop_control_regime{router_id=\"r\"} 2"),
            "{page}"
        );
        assert!(
            page.contains("wardrop_control_knee_ratio{router_id=\"r\"} 0.5"),
            "{page}"
        );
        assert!(!page.contains("wardrop_control_backlog_seconds"));
    }

    #[test]
    fn a_counter_follows_its_figure_and_starts_again_with_the_control_plane() {
        let metrics = Metrics::new("r").unwrap();
        for (figure, shown) in [(2.0, "2"), (2.0, "2"), (5.0, "5"), (1.0, "1")] {
            let page = set(&metrics, &[("change_total", figure)]);
            let line = format!("wardrop_control_changes_total{{router_id=\"r\"}} {shown}\n");
            assert!(page.contains(&line), "{page}");
            assert!(page.contains("# TYPE wardrop_control_changes_total counter"));
        }
    }

    #[test]
    fn a_setting_of_the_former_policy_has_no_series() {
        let metrics = Metrics::new("r").unwrap();
        set(&metrics, &[("setting_kappa", 1.0), ("setting_backlog_s", 2.0)]);
        let page = set(&metrics, &[("setting_backlog_s", 2.0)]);
        assert!(page.contains("setting=\"backlog_s\""), "{page}");
        assert!(!page.contains("kappa"), "{page}");
        assert!(set(&metrics, &[("regime", 0.0)]).contains("setting=\"backlog_s\""));
    }
}
