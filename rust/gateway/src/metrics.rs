//! Metrics of the HTTP door, on the same page as those of the service.
//!
//! Counters are atomic and grow where the event happens. Gauges are set when the page is rendered.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use wardrop_service::metrics::MetricBuilder;

/// Limits in force, each in its own unit. A limit is below its setting where the process lacks a resource.
pub struct LimitMetrics {
    /// Client connections at once.
    pub connections: IntGauge,
    /// Requests in flight.
    pub concurrent_requests: IntGauge,
    /// Bytes of request bodies in memory.
    pub all_bodies_bytes: IntGauge,
    /// Idle connections to all upstreams.
    pub all_idle_connections: IntGauge,
    /// Threads that serve requests.
    pub worker_threads: IntGauge,
}

/// Counters of requests, refusals, retries and broken answers.
///
/// Labels take values from fixed sets: statuses, codes of [`Refusal`](crate::Refusal), reasons and
/// names of settings. No label holds a value of a client.
pub struct HttpMetrics {
    /// Requests finished, by status.
    pub requests: IntCounterVec,
    /// Requests that the gateway answered with an error of its own, by code.
    pub refusals: IntCounterVec,
    /// Second attempts, by reason.
    pub retries: IntCounterVec,
    /// Requests to a fleet with prefill and decode workers, by the way that they took.
    pub splits: IntCounterVec,
    /// Answers that broke before their end, by code.
    pub broken_streams: IntCounterVec,
    /// TLS sessions with upstreams that did not begin.
    pub tls_failures: IntCounter,
    /// Clients that left before the end.
    pub disconnects: IntCounter,
    /// Requests in flight.
    pub in_flight: IntGauge,
    /// Open client connections.
    pub connections: IntGauge,
    /// Bytes of request bodies in memory.
    pub body_bytes: IntGauge,
    /// Limits in force.
    pub limits: LimitMetrics,
    /// Clients that were silent or did not read for too long, by the awaited event.
    pub client_timeouts: IntCounterVec,
    /// Idle connections that were closed for new clients.
    pub evictions: IntCounter,
    /// Connections that the operating system did not give.
    pub accept_errors: IntCounter,
    /// Panics that were caught, by part.
    pub panics: IntCounterVec,
}

impl HttpMetrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A name or label that Prometheus does not take.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: builder.counters("requests_total", "Requests finished, by HTTP status", &["code"])?,
            refusals: builder.counters(
                "refusals_total",
                "Requests that the gateway answered with an error of its own, by the code in the error's body",
                &["error_code"],
            )?,
            retries: builder.counters(
                "retries_total",
                "Second attempts before any byte went to the client",
                &["reason"],
            )?,
            splits: builder.counters(
                "split_requests_total",
                "Requests to prefill and decode workers without Dynamo, by way: split, without_transfer (the prefill worker kept no \
                 blocks), or whole (one worker for both)",
                &["way"],
            )?,
            broken_streams: builder.counters(
                "broken_streams_total",
                "Answers that ended early, by the code in the error's body",
                &["error_code"],
            )?,
            tls_failures: builder.counter(
                "upstream_tls_failures_total",
                "TLS sessions with https:// upstreams that did not begin, for example because a certificate is not believed",
            )?,
            disconnects: builder.counter(
                "client_disconnects_total",
                "Clients that left before the end of their answer",
            )?,
            in_flight: builder.gauge("requests_in_flight", "Requests in flight")?,
            connections: builder.gauge("client_connections", "Open client connections")?,
            body_bytes: builder.gauge("request_body_bytes", "Bytes of request bodies in memory")?,
            limits: LimitMetrics {
                connections: builder.gauge(
                    "limit_connections",
                    "Client connections that the router accepts at once; below limits.connections where descriptors or memory lack",
                )?,
                concurrent_requests: builder.gauge(
                    "limit_concurrent_requests",
                    "Requests in flight that the router accepts; below limits.concurrent_requests where descriptors or memory lack",
                )?,
                all_bodies_bytes: builder.gauge(
                    "limit_all_bodies_bytes",
                    "Bytes of request bodies that the router keeps; below limits.all_bodies_bytes where memory lacks",
                )?,
                all_idle_connections: builder.gauge(
                    "limit_all_idle_connections",
                    "Idle connections to upstreams that the router keeps; below upstream.all_idle_connections where descriptors lack",
                )?,
                worker_threads: builder.gauge(
                    "limit_worker_threads",
                    "Threads that serve requests; below worker_threads where the process may not have more",
                )?,
            },
            client_timeouts: builder.counters(
                "client_timeouts_total",
                "Client connections that missed a deadline, by what was awaited",
                &["wait"],
            )?,
            evictions: builder.counter(
                "client_evictions_total",
                "Idle client connections that were closed to make room for new clients",
            )?,
            accept_errors: builder.counter(
                "accept_errors_total",
                "Client connections that the operating system did not give, for example without free descriptors",
            )?,
            panics: builder.counters(
                "panics_total",
                "Panics that were caught, by the part that went on",
                &["part"],
            )?,
        })
    }
}
