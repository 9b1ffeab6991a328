//! The trace of one request: its server span and the span of its decision, made when the last handle is dropped.
//!
//! [`facts`](super::facts) collects while the request is served, and the spans are made from it once, at the end. This module adds the
//! attributes of HTTP, by OpenTelemetry's conventions. Memory: two spans per sampled request.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, SpanData, SpanEvents, SpanLinks};
use parking_lot::Mutex;

use super::Tracing;
use super::facts::{Attribute, AttributeValue, CollectsFacts, TraceFacts};

/// Lowest status of an answer that is an error of the server.
const SERVER_ERROR: u16 = 500;
/// In place of a status while the door has not answered.
const NO_STATUS: u16 = 0;
/// Longest path that a span keeps, in bytes.
const MAX_PATH_BYTES: usize = 256;

/// What a door knows when a request begins.
#[derive(Clone, Copy, Debug)]
pub struct TraceStart<'a> {
    /// Header `traceparent` of the client.
    pub traceparent: Option<&'a str>,
    /// Header `tracestate` of the client.
    pub tracestate: Option<&'a str>,
    /// Method of the request.
    pub method: &'a str,
    /// Path of the request, without its query.
    pub path: &'a str,
}

/// The trace of one request. The request and its answer share it, and its spans end with the last handle.
pub struct RequestTrace {
    /// Sampler, clock and export of the spans.
    tracing: Arc<Tracing>,
    /// Ids and flags of the server span.
    context: SpanContext,
    /// The caller's span; `None` when the request begins a trace.
    caller: Option<SpanContext>,
    /// Begin of the server span.
    started: Instant,
    /// Method of the request; empty without a sample.
    method: String,
    /// Path of the request, at most [`MAX_PATH_BYTES`]; empty without a sample.
    path: String,
    /// Status of the door's answer; [`NO_STATUS`] before it, and when the client left before it.
    status: AtomicU16,
    /// What became known so far; empty without a sample.
    facts: Mutex<TraceFacts>,
}

impl RequestTrace {
    /// A trace whose server span begins now. Without a sample it keeps ids and no facts.
    pub(super) fn new(
        tracing: Arc<Tracing>,
        context: SpanContext,
        caller: Option<SpanContext>,
        start: &TraceStart<'_>,
    ) -> Self {
        let is_sampled = context.is_sampled();
        let kept = |text: &str| {
            if is_sampled {
                text.to_owned()
            } else {
                String::new()
            }
        };
        Self {
            tracing,
            context,
            caller,
            started: Instant::now(),
            method: kept(start.method),
            path: kept(kept_path(start.path)),
            status: AtomicU16::new(NO_STATUS),
            facts: Mutex::default(),
        }
    }

    /// Header `traceparent` for the upstream: this server span as the parent.
    pub fn traceparent(&self) -> String {
        let (trace, span) = (self.context.trace_id(), self.context.span_id());
        format!("00-{trace}-{span}-{:02x}", self.context.trace_flags().to_u8())
    }

    /// Whether the client's `tracestate` belongs to this trace, so that it goes on to the upstream.
    pub fn continues_a_trace(&self) -> bool {
        self.caller.is_some()
    }

    /// Whether the request has spans.
    pub(crate) fn is_sampled(&self) -> bool {
        self.context.is_sampled()
    }

    /// The door's answer began with this status.
    pub fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

impl CollectsFacts for RequestTrace {
    fn facts(&self) -> &Mutex<TraceFacts> {
        &self.facts
    }
}

/// The start of a path, at most [`MAX_PATH_BYTES`]; a character at the limit is left out whole.
fn kept_path(path: &str) -> &str {
    let mut end = path.len().min(MAX_PATH_BYTES);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

/// An attribute in the types of OpenTelemetry.
fn key_value(attribute: Attribute) -> KeyValue {
    let Attribute { name, value } = attribute;
    match value {
        AttributeValue::Text(text) => KeyValue::new(name, text),
        AttributeValue::Int(count) => KeyValue::new(name, count),
        AttributeValue::Float(measure) => KeyValue::new(name, measure),
    }
}

/// Name of the operation in the conventions for generative AI; `None` for a path that generates nothing.
fn operation(path: &str) -> Option<&'static str> {
    match path {
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" => Some("chat"),
        "/v1/completions" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        if !self.is_sampled() {
            return;
        }
        let facts = std::mem::take(self.facts.get_mut());
        let ended = Instant::now();
        let operation = operation(&self.path);
        let name: Cow<'static, str> = match (operation, &facts.model) {
            (Some(operation), Some(model)) => format!("{operation} {model}").into(),
            (Some(operation), None) => operation.into(),
            // A path is no name: it may hold ids, and names have to be few.
            (None, _) => self.method.clone().into(),
        };
        let mut attributes: Vec<KeyValue> = facts.attributes.into_iter().map(key_value).collect();
        if let Some(operation) = operation {
            attributes.push(KeyValue::new("gen_ai.operation.name", operation));
        }
        attributes.push(KeyValue::new(
            "http.request.method",
            std::mem::take(&mut self.method),
        ));
        attributes.push(KeyValue::new("url.path", std::mem::take(&mut self.path)));
        let mut error = facts.error.map(Cow::Borrowed);
        let status = *self.status.get_mut();
        if status == NO_STATUS {
            error = Some("client_left".into());
        } else {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= SERVER_ERROR {
                error = Some(status.to_string().into());
            }
        }
        let status = error.as_ref().map_or(Status::Unset, |error| {
            attributes.push(KeyValue::new("error.type", error.clone()));
            Status::error(error.clone())
        });
        let tracing = &self.tracing;
        let caller = self.caller.as_ref();
        let server = SpanData {
            parent_span_id: caller.map_or(SpanId::INVALID, SpanContext::span_id),
            parent_span_is_remote: caller.is_some(),
            span_kind: SpanKind::Server,
            status,
            ..span(
                self.context.clone(),
                name,
                [self.started, ended].map(|moment| tracing.time_of(moment)),
                attributes,
            )
        };
        let decision = facts.decision.map(|decision| {
            let own = SpanContext::new(
                self.context.trace_id(),
                tracing.ids.new_span_id(),
                self.context.trace_flags(),
                false,
                self.context.trace_state().clone(),
            );
            SpanData {
                parent_span_id: self.context.span_id(),
                ..span(
                    own,
                    "wardrop.decide".into(),
                    [decision.started, decision.ended].map(|moment| tracing.time_of(moment)),
                    decision.attributes.into_iter().map(key_value).collect(),
                )
            }
        });
        let spans: Vec<SpanData> = std::iter::once(server).chain(decision).collect();
        if tracing.outbox.put(spans.into_iter()) {
            tracing.exporter.wake();
        }
    }
}

/// An internal span without a parent.
fn span(
    span_context: SpanContext,
    name: Cow<'static, str>,
    [start_time, end_time]: [SystemTime; 2],
    attributes: Vec<KeyValue>,
) -> SpanData {
    let scope = InstrumentationScope::builder("wardrop").with_version(env!("CARGO_PKG_VERSION"));
    SpanData {
        span_context,
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name,
        start_time,
        end_time,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PATH_BYTES, kept_path};

    #[test]
    fn a_path_is_cut_at_its_limit_even_inside_a_character() {
        assert_eq!(kept_path("/v1/models"), "/v1/models");
        assert_eq!(kept_path(&"a".repeat(1000)).len(), MAX_PATH_BYTES);
        let wide = format!("{}\u{e4}{}", "a".repeat(MAX_PATH_BYTES - 1), "b".repeat(1000));
        assert_eq!(kept_path(&wide).len(), MAX_PATH_BYTES - 1);
    }
}
