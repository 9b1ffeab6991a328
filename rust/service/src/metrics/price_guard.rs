//! Metrics of the price guard of each pool, set from the pools when the page is rendered.

use prometheus::{GaugeVec, IntCounterVec};
use wardrop_core::{Misfit, PriceGuardReport};

use super::MetricBuilder;

/// Every series is set anew for each page, so a series ends with its pool.
pub(super) struct PriceGuardMetrics {
    misfit: GaugeVec,
    falls: IntCounterVec,
    decided_statically: IntCounterVec,
    error_factor: GaugeVec,
    reference_factor: GaugeVec,
}

impl PriceGuardMetrics {
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            misfit: builder.gauges(
                "price_misfit",
                "1 while a static rule decides for this reason, else 0: first_tokens_unreported, first_tokens_unpredicted, \
                 steps_unpredicted",
                &["model", "worker_type", "misfit"],
            )?,
            falls: builder.counters(
                "price_falls_total",
                "Falls from the price to a static rule",
                &["model", "worker_type"],
            )?,
            decided_statically: builder.counters(
                "static_decisions_total",
                "Decisions that a static rule made in place of the policy",
                &["model", "worker_type"],
            )?,
            error_factor: builder.gauges(
                "prediction_error_factor",
                "Typical factor between predicted and observed time, 1 to 8, of first tokens and decode steps",
                &["model", "worker_type", "time"],
            )?,
            reference_factor: builder.gauges(
                "prediction_reference_factor",
                "Typical factor between the recent mean and the observed time, 1 to 8: the error of a prediction without a model",
                &["model", "worker_type", "time"],
            )?,
        })
    }

    /// Ends all series; [`PriceGuardMetrics::set`] starts the series of the present pools again.
    pub(super) fn reset(&self) {
        for gauges in [&self.misfit, &self.error_factor, &self.reference_factor] {
            gauges.reset();
        }
        self.falls.reset();
        self.decided_statically.reset();
    }

    /// Sets the series of a pool.
    pub(super) fn set(
        &self,
        model: &str,
        worker_type: &str,
        report: &PriceGuardReport,
        decided_statically: u64,
    ) {
        for misfit in Misfit::ALL {
            self.misfit
                .with_label_values(&[model, worker_type, misfit.name()])
                .set(f64::from(u8::from(report.misfit == Some(misfit))));
        }
        let pool = [model, worker_type];
        self.falls.with_label_values(&pool).inc_by(report.falls);
        self.decided_statically
            .with_label_values(&pool)
            .inc_by(decided_statically);
        for (time, fit) in [("first_token", &report.first_tokens), ("step", &report.steps)] {
            let labels = [model, worker_type, time];
            self.error_factor.with_label_values(&labels).set(fit.error_factor);
            self.reference_factor
                .with_label_values(&labels)
                .set(fit.reference_factor);
        }
    }
}
