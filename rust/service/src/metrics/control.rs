//! Metrics of the control plane, as it reports them: its state, its settings, and which of its parts work.

use std::collections::BTreeMap;

use prometheus::{GaugeVec, IntCounterVec};

use super::MetricBuilder;
use crate::service::PartState;

/// Metrics that the control plane sets.
pub(crate) struct ControlMetrics {
    /// State of the control plane, by quantity.
    pub state: GaugeVec,
    /// Settings in force, by name.
    pub setting: GaugeVec,
    /// 1 for each part that works, by name.
    part_up: GaugeVec,
    /// Failures of the parts, by name.
    part_failures: IntCounterVec,
    /// Up to when the source of a part is known to have answered, by name.
    part_answered: GaugeVec,
}

impl ControlMetrics {
    pub(super) fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            state: builder.gauges(
                "control_state",
                "State of the control plane: regime, counts of looks and changes",
                &["quantity"],
            )?,
            setting: builder.gauges(
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
            part_answered: builder.gauges(
                "control_part_answered_timestamp_seconds",
                "Time of the last answer of a part's source, such as an API server, in seconds since 1970",
                &["part"],
            )?,
        })
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
