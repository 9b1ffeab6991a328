//! The trace of one request: its server span and the span of its decision, made when the last handle is dropped.
//!
//! Facts are collected while the request is served, and the spans are made from them once, at the
//! end. Names of attributes: OpenTelemetry's conventions for generative AI and HTTP; the prefix
//! `wardrop.` for all others. Memory: two spans per sampled request.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, SpanData, SpanEvents, SpanLinks};
use parking_lot::Mutex;

use super::Tracing;
use crate::pool::Role;
use crate::receipts::{LegReceipt, ReceiptOutcome};

/// Lowest status of an answer that is an error of the server.
const SERVER_ERROR: u16 = 500;
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
    /// What became known so far; empty without a sample.
    facts: Mutex<Facts>,
}

/// What became known of a request with a sample.
#[derive(Default)]
struct Facts {
    /// Method of the request.
    method: String,
    /// Path of the request, at most [`MAX_PATH_BYTES`].
    path: String,
    /// Name of the model; `None` before the prompt is known.
    model: Option<String>,
    /// Status of the door's answer; `None` when the client left before it.
    status: Option<u16>,
    /// Attributes of the server span so far.
    attributes: Vec<KeyValue>,
    /// How an answer that began failed; a status of [`SERVER_ERROR`] or above replaces it.
    error: Option<&'static str>,
    /// The decision; `None` for a request that met none.
    decision: Option<Decision>,
}

/// The span of one decision.
struct Decision {
    /// Begin of the decision, before any wait in a queue.
    started: Instant,
    /// End of the latest placement or of the abstention.
    ended: Instant,
    /// Policy, chosen worker, costs and causes.
    attributes: Vec<KeyValue>,
}

impl RequestTrace {
    /// A trace whose server span begins now. Without a sample it keeps ids and no facts.
    pub(super) fn new(
        tracing: Arc<Tracing>,
        context: SpanContext,
        caller: Option<SpanContext>,
        start: &TraceStart<'_>,
    ) -> Self {
        let mut facts = Facts::default();
        if context.is_sampled() {
            start.method.clone_into(&mut facts.method);
            kept_path(start.path).clone_into(&mut facts.path);
        }
        Self {
            tracing,
            context,
            caller,
            started: Instant::now(),
            facts: Mutex::new(facts),
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
        if self.is_sampled() {
            self.facts.lock().status = Some(status);
        }
    }

    /// The prompt is known.
    pub(crate) fn prompt(&self, model: &str, input_tokens: u32) {
        let facts = &mut *self.facts.lock();
        facts.model = Some(model.to_owned());
        facts
            .attributes
            .push(KeyValue::new("gen_ai.request.model", model.to_owned()));
        facts
            .attributes
            .push(KeyValue::new("wardrop.input_tokens", i64::from(input_tokens)));
    }

    /// The choice of a worker begins.
    pub(crate) fn deciding(&self, policy: &'static str) {
        let now = Instant::now();
        self.facts.lock().decision = Some(Decision {
            started: now,
            ended: now,
            attributes: vec![KeyValue::new("wardrop.policy", policy)],
        });
    }

    /// A worker was chosen, with `block_size` tokens in a block.
    pub(crate) fn placed(&self, leg: &LegReceipt, block_size: u32) {
        if let Some(decision) = &mut self.facts.lock().decision {
            decision.ended = Instant::now();
            leg_attributes(&mut decision.attributes, leg, block_size);
        }
    }

    /// The choice was left to Dynamo.
    pub(crate) fn abstained(&self, reason: &'static str) {
        if let Some(decision) = &mut self.facts.lock().decision {
            decision.ended = Instant::now();
            decision
                .attributes
                .push(KeyValue::new("wardrop.abstained", reason));
        }
    }

    /// The request ended.
    pub(crate) fn ended(&self, outcome: &ReceiptOutcome) {
        let facts = &mut *self.facts.lock();
        let attributes = &mut facts.attributes;
        attributes.push(KeyValue::new("wardrop.outcome", outcome.how));
        let counts = [
            ("gen_ai.usage.input_tokens", outcome.input_tokens),
            ("gen_ai.usage.output_tokens", outcome.output_tokens.map(u64::from)),
            ("gen_ai.usage.cache_read.input_tokens", outcome.cached_tokens),
            (
                "wardrop.cached_tokens.predicted",
                Some(outcome.predicted_cached_tokens),
            ),
        ];
        for (name, count) in counts {
            if let Some(count) = count {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                attributes.push(KeyValue::new(name, count));
            }
        }
        if let Some(ttft_s) = outcome.ttft_s {
            attributes.push(KeyValue::new("wardrop.ttft_seconds", ttft_s));
        }
        if matches!(outcome.how, "broken" | "client_left") {
            facts.error = Some(outcome.how);
        }
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

/// Attributes of one placement. A split has two, with the role in their names.
fn leg_attributes(attributes: &mut Vec<KeyValue>, leg: &LegReceipt, block_size: u32) {
    let role = match leg.role {
        Role::Aggregated => "",
        Role::Prefill => "prefill.",
        Role::Decode => "decode.",
    };
    let name = |name: &str| format!("wardrop.{role}{name}");
    // An attribute is a signed number, and an instance has 64 bits.
    attributes.push(KeyValue::new(
        name("worker.instance"),
        leg.worker.instance.to_string(),
    ));
    attributes.push(KeyValue::new(
        name("worker.dp_rank"),
        i64::from(leg.worker.dp_rank),
    ));
    let cached = i64::from(leg.overlap_blocks) * i64::from(block_size);
    attributes.push(KeyValue::new(name("cached_tokens.predicted"), cached));
    let candidates = i64::try_from(leg.candidates_in_all).unwrap_or(i64::MAX);
    attributes.push(KeyValue::new(name("candidates"), candidates));
    attributes.push(KeyValue::new(name("cost"), leg.cost));
    if let Some(margin) = leg.margin {
        attributes.push(KeyValue::new(name("margin"), margin));
    }
    attributes.push(KeyValue::new(name("waited_seconds"), leg.waited_s));
    attributes.push(KeyValue::new(name("cause"), leg.cause));
    if let Some(gained_s) = leg.at_once.and_then(|at_once| at_once.gained_s) {
        attributes.push(KeyValue::new(name("gained_seconds"), gained_s));
    }
    let chosen = leg.candidates.iter().find(|one| one.worker == leg.worker);
    for (part, cost) in chosen.iter().flat_map(|chosen| chosen.parts.iter()) {
        let part = part
            .strip_suffix("_s")
            .map_or_else(|| part.to_owned(), |part| format!("{part}_seconds"));
        attributes.push(KeyValue::new(name(&format!("part.{part}")), cost));
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
        let operation = operation(&facts.path);
        let name: Cow<'static, str> = match (operation, &facts.model) {
            (Some(operation), Some(model)) => format!("{operation} {model}").into(),
            (Some(operation), None) => operation.into(),
            // A path is no name: it may hold ids, and names have to be few.
            (None, _) => facts.method.clone().into(),
        };
        let mut attributes = facts.attributes;
        if let Some(operation) = operation {
            attributes.push(KeyValue::new("gen_ai.operation.name", operation));
        }
        attributes.push(KeyValue::new("http.request.method", facts.method));
        attributes.push(KeyValue::new("url.path", facts.path));
        let mut error = facts.error.map(Cow::Borrowed);
        if let Some(status) = facts.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= SERVER_ERROR {
                error = Some(status.to_string().into());
            }
        } else {
            error = Some("client_left".into());
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
                    decision.attributes,
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
