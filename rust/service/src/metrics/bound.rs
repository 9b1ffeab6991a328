//! Gauges of the price of anarchy against the lower bound, by model. Each page sets them from the meters of the models.

use prometheus::{CounterVec, GaugeVec, IntCounterVec};

use super::MetricBuilder;
use crate::bound::{BoundFigure, BoundReport};

/// One gauge per figure. A model has a price after its first windows with enough requests.
pub(super) struct BoundGauges {
    price: GaugeVec,
    low: GaugeVec,
    high: GaugeVec,
    requests: GaugeVec,
    windows: GaugeVec,
    missing: GaugeVec,
    curve_error: GaugeVec,
    passed_over: IntCounterVec,
    restarts: IntCounterVec,
    cpu: CounterVec,
}

const MODEL: &[&str] = &["model"];
const BY_LATENCY: &[&str] = &["model", "latency"];

impl BoundGauges {
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            price: builder.gauges(
                "price_of_anarchy_bound",
                "Time that recent requests paid over the least time that any routing could have reached (ttft, e2e): the price of anarchy is at most this",
                BY_LATENCY,
            )?,
            low: builder.gauges(
                "price_of_anarchy_bound_low",
                "2.5 % point of the interval of price_of_anarchy_bound over windows",
                BY_LATENCY,
            )?,
            high: builder.gauges(
                "price_of_anarchy_bound_high",
                "97.5 % point of the interval of price_of_anarchy_bound over windows",
                BY_LATENCY,
            )?,
            requests: builder.gauges(
                "price_of_anarchy_bound_requests",
                "Finished requests behind price_of_anarchy_bound",
                BY_LATENCY,
            )?,
            windows: builder.gauges(
                "price_of_anarchy_bound_windows",
                "Windows behind price_of_anarchy_bound",
                MODEL,
            )?,
            missing: builder.gauges(
                "price_of_anarchy_bound_missing",
                "1 while price_of_anarchy_bound has no value: no window yet, few requests, few samples of the curves, no worker, or a fleet that the bound does not cover",
                &["model", "reason"],
            )?,
            curve_error: builder.gauges(
                "price_of_anarchy_bound_curve_error_ratio",
                "Mean relative error of the learned curves behind price_of_anarchy_bound, by stage (prefill, step)",
                &["model", "stage"],
            )?,
            passed_over: builder.counters(
                "price_of_anarchy_bound_requests_passed_over_total",
                "Requests that no window took, to keep the share of a core and the limit of memory",
                MODEL,
            )?,
            restarts: builder.counters(
                "price_of_anarchy_bound_history_restarts_total",
                "Times that the history of blocks began again, because requests were passed over",
                MODEL,
            )?,
            cpu: builder.float_counters(
                "price_of_anarchy_bound_cpu_seconds_total",
                "CPU time spent on price_of_anarchy_bound",
                MODEL,
            )?,
        })
    }

    /// Ends all series; [`BoundGauges::set`] starts the series of the present models again.
    pub fn reset(&self) {
        for gauges in [
            &self.price,
            &self.low,
            &self.high,
            &self.requests,
            &self.windows,
            &self.missing,
            &self.curve_error,
        ] {
            gauges.reset();
        }
        self.passed_over.reset();
        self.restarts.reset();
        self.cpu.reset();
    }

    /// Sets the series of one model.
    pub fn set(&self, model: &str, report: &BoundReport) {
        self.set_figure(model, "ttft", report.ttft.as_ref());
        self.set_figure(model, "e2e", report.e2e.as_ref());
        let of_model = |gauges: &GaugeVec, value: f64| gauges.with_label_values(&[model]).set(value);
        of_model(&self.windows, report.windows as f64);
        self.passed_over
            .with_label_values(&[model])
            .inc_by(report.passed_over);
        self.restarts
            .with_label_values(&[model])
            .inc_by(report.history_restarts);
        self.cpu.with_label_values(&[model]).inc_by(report.cpu_s);
        if let Some(missing) = report.missing {
            self.missing.with_label_values(&[model, missing.name()]).set(1.0);
        } else {
            let error = |stage, value| self.curve_error.with_label_values(&[model, stage]).set(value);
            error("prefill", report.curves.prefill_error);
            error("step", report.curves.step_error);
        }
    }

    fn set_figure(&self, model: &str, latency: &str, figure: Option<&BoundFigure>) {
        let Some(figure) = figure else { return };
        let set = |gauges: &GaugeVec, value: f64| gauges.with_label_values(&[model, latency]).set(value);
        set(&self.price, figure.value);
        set(&self.requests, figure.requests as f64);
        if let (Some(low), Some(high)) = (figure.low, figure.high) {
            set(&self.low, low);
            set(&self.high, high);
        }
    }
}
