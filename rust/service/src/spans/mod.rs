//! OpenTelemetry spans: one server span per request and below it one span of the decision, exported over OTLP.
//!
//! ```text
//! door ─▶ Service::begin_trace (caller's context, sampler) ─▶ RequestTrace ─ last handle dropped ─▶ Outbox ─▶ export thread ─▶ collector
//! ```
//!
//! Spans are made when the request ends, from facts that are there anyway. A request without a sample pays two random ids and a header.
//! Spans wait in a bounded list. A collector that is slow or away costs dropped spans, which are counted, and no time of any request.
//!
//! Sources: W3C Trace Context; OpenTelemetry semantic conventions for generative AI and for HTTP.

mod door;
mod export;
pub(crate) mod facts;
mod metrics;
mod outbox;
mod request;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanKind, TraceContextExt, TraceFlags};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample};

pub use self::door::DoorTrace;
use self::export::Exporter;
pub use self::facts::{Attribute, AttributeValue, DecisionFacts, TraceFacts};
use self::outbox::Outbox;
pub use self::request::{RequestTrace, TraceStart};
use crate::ServiceError;
use crate::config::{SamplerName, TracingOptions};
use crate::metrics::MetricBuilder;

/// Name of the server span until the model is known. Samplers see it.
const FIRST_NAME: &str = "request";

/// Makes and exports the spans of one service.
pub(crate) struct Tracing {
    /// Rule that chooses the requests with spans.
    sampler: Box<dyn ShouldSample>,
    /// Generator of trace and span ids.
    ids: RandomIdGenerator,
    /// Reader of `traceparent` and `tracestate`.
    propagator: TraceContextPropagator,
    /// Spans that wait for the export.
    outbox: Arc<Outbox>,
    /// Export thread.
    exporter: Exporter,
    /// System time and monotonic time of one moment, so that spans have times of both clocks.
    origin: (SystemTime, Instant),
}

/// The headers of W3C Trace Context.
struct CallerHeaders<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for CallerHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Tracing {
    /// Starts the export thread.
    ///
    /// # Errors
    /// An address that is no URL, a metric name that is taken, or no thread.
    pub fn start(options: &TracingOptions, builder: &MetricBuilder) -> Result<Self, ServiceError> {
        let outbox = Outbox::new(builder)
            .map_err(|error| ServiceError::Config(format!("metrics of the spans: {error}")))?;
        let outbox = Arc::new(outbox);
        Ok(Self {
            sampler: sampler(options),
            ids: RandomIdGenerator::default(),
            propagator: TraceContextPropagator::new(),
            exporter: Exporter::start(options, outbox.clone())?,
            outbox,
            origin: (SystemTime::now(), Instant::now()),
        })
    }

    /// Begins the trace of a request.
    ///
    /// A request without a sample has ids as well, so that the upstream's spans keep the caller's
    /// trace. A malformed `traceparent` counts as none, as W3C Trace Context demands.
    pub fn begin(self: &Arc<Self>, start: &TraceStart<'_>) -> Arc<RequestTrace> {
        let headers = CallerHeaders {
            traceparent: start.traceparent,
            tracestate: start.tracestate,
        };
        let parent = self.propagator.extract_with_context(&Context::new(), &headers);
        let caller = Some(parent.span().span_context().clone()).filter(SpanContext::is_valid);
        let trace_id = caller
            .as_ref()
            .map_or_else(|| self.ids.new_trace_id(), SpanContext::trace_id);
        let context = caller.is_some().then_some(&parent);
        let kind = SpanKind::Server;
        let chosen = self
            .sampler
            .should_sample(context, trace_id, FIRST_NAME, &kind, &[], &[]);
        let is_sampled = chosen.decision == SamplingDecision::RecordAndSample;
        let flags = TraceFlags::default().with_sampled(is_sampled);
        let own = SpanContext::new(trace_id, self.ids.new_span_id(), flags, false, chosen.trace_state);
        Arc::new(RequestTrace::new(self.clone(), own, caller, start))
    }

    /// System time of a moment.
    fn time_of(&self, moment: Instant) -> SystemTime {
        let (system, monotonic) = self.origin;
        system + moment.saturating_duration_since(monotonic)
    }

    /// Exports what waits and ends the export thread. A second call does nothing.
    pub fn stop(&self) {
        self.outbox.close();
        self.exporter.stop();
    }
}

/// The sampler that the options name.
fn sampler(options: &TracingOptions) -> Box<dyn ShouldSample> {
    let ratio = Sampler::TraceIdRatioBased(options.ratio);
    Box::new(match options.sampler {
        SamplerName::AlwaysOn => Sampler::AlwaysOn,
        SamplerName::AlwaysOff => Sampler::AlwaysOff,
        SamplerName::Ratio => ratio,
        SamplerName::ParentOrAll => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        SamplerName::ParentOrNone => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
        SamplerName::ParentOrRatio => Sampler::ParentBased(Box::new(ratio)),
    })
}
