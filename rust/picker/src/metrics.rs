//! Metrics of the picker, on the same page as those of the service.
//!
//! Counters grow where the event happens; gauges are set when the page is rendered.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use wardrop_service::metrics::MetricBuilder;

/// Counters of streams, answers, refusals and departures.
pub(crate) struct PickerMetrics {
    /// Answers of workers, by status.
    pub answers: IntCounterVec,
    /// Requests that the picker answered with an error of its own, by code.
    pub refusals: IntCounterVec,
    /// Streams that Envoy ended before the end of the answer.
    pub disconnects: IntCounter,
    /// Streams that broke the protocol, by cause.
    pub protocol_errors: IntCounterVec,
    /// Requests that Envoy answered because it did not reach the worker.
    pub unreached: IntCounter,
    /// Requests in flight.
    pub in_flight: IntGauge,
    /// Bytes of request bodies in memory.
    pub body_bytes: IntGauge,
    /// Endpoints that a decision may name.
    pub endpoints: IntGauge,
    /// Panics that were caught, by part.
    pub panics: IntCounterVec,
}

impl PickerMetrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A name or label that Prometheus does not take.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            answers: builder.counters(
                "picker_answers_total",
                "Answers that passed the picker, by status",
                &["code"],
            )?,
            refusals: builder.counters(
                "refusals_total",
                "Requests that the picker answered with an error of its own, by the code in the error's body",
                &["error_code"],
            )?,
            disconnects: builder.counter(
                "client_disconnects_total",
                "Streams that the proxy ended before the end of their answer",
            )?,
            protocol_errors: builder.counters(
                "picker_protocol_errors_total",
                "Streams that did not follow external processing, by what was wrong",
                &["reason"],
            )?,
            unreached: builder.counter(
                "picker_unreached_total",
                "Requests that the proxy answered itself because it did not reach the worker",
            )?,
            in_flight: builder.gauge("requests_in_flight", "Requests in flight")?,
            body_bytes: builder.gauge("request_body_bytes", "Bytes of request bodies in memory")?,
            endpoints: builder.gauge("picker_endpoints", "Endpoints that a decision may name")?,
            panics: builder.counters(
                "panics_total",
                "Panics that were caught, by the part that went on",
                &["part"],
            )?,
        })
    }
}
