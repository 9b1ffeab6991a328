//! Wardrop's decision as a span below Dynamo's own span of the request, exported by Dynamo's exporter.
//!
//! Dynamo registers its exporter for every maker of spans in the process. A request without a sample, or a process without an export, has
//! no span. The span of a decision carries the outcome as well, because Dynamo owns the span of the request.

use std::time::{Instant, SystemTime};

use dynamo_runtime::config::{env_is_truthy, environment_names::logging::otlp::OTEL_EXPORT_ENABLED};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue, global};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use wardrop_service::{Attribute, AttributeValue, DoorTrace, TraceFacts};

/// Name of the span, as in Wardrop's other doors.
const SPAN_NAME: &str = "wardrop.decide";
/// Name of the instrumentation.
const SCOPE_NAME: &str = "wardrop";

/// Whether Dynamo exports spans, as its own variable says.
pub fn are_exported() -> bool {
    env_is_truthy(OTEL_EXPORT_ENABLED)
}

/// The trace of the request whose span is entered now; `None` without a sample.
pub fn begin() -> Option<DoorTrace> {
    let context = tracing::Span::current().context();
    if !context.span().span_context().is_sampled() {
        return None;
    }
    let (system, monotonic) = (SystemTime::now(), Instant::now());
    // The decision begins after this moment, so the difference is not negative.
    let time_of = move |moment: Instant| system + moment.saturating_duration_since(monotonic);
    Some(DoorTrace::new(move |facts| export(facts, &context, time_of)))
}

fn export(facts: TraceFacts, parent: &Context, time_of: impl Fn(Instant) -> SystemTime) {
    let Some(decision) = facts.decision else { return };
    let attributes = decision.attributes.into_iter().chain(facts.attributes);
    let tracer = global::tracer(SCOPE_NAME);
    let mut span = tracer
        .span_builder(SPAN_NAME)
        .with_kind(SpanKind::Internal)
        .with_start_time(time_of(decision.started))
        .with_attributes(attributes.map(key_value))
        .start_with_context(&tracer, parent);
    if let Some(error) = facts.error {
        span.set_attribute(KeyValue::new("error.type", error));
        span.set_status(Status::error(error));
    }
    span.end_with_timestamp(time_of(decision.ended));
}

fn key_value(attribute: Attribute) -> KeyValue {
    let Attribute { name, value } = attribute;
    match value {
        AttributeValue::Text(text) => KeyValue::new(name, text),
        AttributeValue::Int(count) => KeyValue::new(name, count),
        AttributeValue::Float(measure) => KeyValue::new(name, measure),
    }
}
