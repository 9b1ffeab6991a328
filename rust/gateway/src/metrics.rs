//! Metrics of the HTTP door, on the same page as those of the service.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use wardrop_service::metrics::MetricBuilder;

/// Counters of requests, refusals, retries and broken answers.
pub struct HttpMetrics {
    /// Requests finished, by status.
    pub requests: IntCounterVec,
    /// Requests that the gateway answered with an error of its own, by code.
    pub refusals: IntCounterVec,
    /// Second attempts, by reason.
    pub retries: IntCounterVec,
    /// Answers that broke before their end, by code.
    pub broken_streams: IntCounterVec,
    /// Clients that left before the end.
    pub disconnects: IntCounter,
    /// Requests in flight.
    pub in_flight: IntGauge,
}

impl HttpMetrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A name or label that Prometheus does not take.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: builder.counters("requests_total", "Requests finished", &["code"])?,
            refusals: builder.counters(
                "refusals_total",
                "Requests that the gateway answered with an error of its own",
                &["code"],
            )?,
            retries: builder.counters(
                "retries_total",
                "Second attempts before any byte went to the client",
                &["reason"],
            )?,
            broken_streams: builder.counters(
                "broken_streams_total",
                "Answers that ended early",
                &["code"],
            )?,
            disconnects: builder.counter(
                "client_disconnects_total",
                "Clients that left before the end of their answer",
            )?,
            in_flight: builder.gauge("requests_in_flight", "Requests in flight")?,
        })
    }
}
