//! The answer of a worker on its way through Envoy, and what the service learns from it.
//!
//! Envoy sends the answer here while it passes to the client, so this module decides nothing about
//! its bytes. O(bytes).

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use prost_types::Struct;
use prost_types::value::Kind;
use wardrop_service::{ActiveRequest, Answer, AnswerReading};

use super::BodyMode;
use super::placing::Chosen;
use crate::headers::{EXPLAIN_OVERLAP, EXPLAIN_WORKER, TEST_SERVED, find};
use crate::messages::{self, Headers, LB_NAMESPACE};
use crate::proto::ext_proc::{HttpBody, HttpHeaders, Metadata, ProcessingResponse};
use crate::shared::Shared;

/// Key of the endpoint that answered, in the metadata of an answer.
const SERVED_KEY: &str = "x-gateway-destination-endpoint-served";
/// Header that Envoy adds to an answer of a worker, and not to its own answers.
const UPSTREAM_TIME: &str = "x-envoy-upstream-service-time";
/// Attribute that names the maker of an answer.
const CODE_DETAILS: &str = "response.code_details";
/// Value of the attribute for an answer of a worker.
const VIA_UPSTREAM: &str = "via_upstream";

/// The answer's part of a stream.
pub(super) struct AnswerSide {
    /// State of the picker.
    shared: Arc<Shared>,
    /// How Envoy sends the body of the answer.
    mode: BodyMode,
    /// Headers to add to the answer.
    added: Headers,
    /// The placed request, until the headers of its answer come.
    request: Option<ActiveRequest>,
    /// The service's view of the answer, from its headers to its end.
    answer: Option<Answer>,
    /// Reader of progress and usage.
    reading: AnswerReading,
    /// The headers of an answer came, from a worker or from Envoy itself.
    has_begun: bool,
    /// Status of the answer; 0 before its headers.
    status: u16,
}

impl AnswerSide {
    /// The state before an answer.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            mode: BodyMode::Duplex,
            added: Headers::default(),
            request: None,
            answer: None,
            reading: AnswerReading::new(false),
            has_begun: false,
            status: 0,
        }
    }

    /// How Envoy sends the body of the answer.
    pub fn set_mode(&mut self, mode: BodyMode) {
        self.mode = mode;
    }

    /// Adds a header to the answer.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "callers pass numbers and texts alike"
    )]
    pub fn add_header(&mut self, name: &'static str, value: impl Display) {
        self.added.set(name, value);
    }

    /// Records that the request is on its way, and that its answer follows.
    pub fn expect(&mut self, chosen: Chosen) {
        let Chosen::Active(request) = chosen else { return };
        let first = request.booking().and_then(|booking| booking.legs().next());
        if let Some(leg) = first.filter(|_| self.shared.config.service.routing.explain_headers) {
            self.added.set(EXPLAIN_WORKER, leg.worker);
            self.added.set(EXPLAIN_OVERLAP, leg.overlap_blocks);
        }
        self.request = Some(*request);
    }

    /// Status of the answer; 0 before its headers.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the headers of an answer arrived.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Records that the picker answers in place of a worker.
    pub fn refused(&mut self) {
        self.has_begun = true;
    }

    /// Takes the headers of the answer.
    pub fn headers(
        &mut self,
        headers: &HttpHeaders,
        context: Option<&Metadata>,
        attributes: &HashMap<String, Struct>,
    ) -> ProcessingResponse {
        self.has_begun = true;
        let map = headers.headers.clone().unwrap_or_default();
        let status: u16 = find(&map, ":status")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        self.status = status;
        let answers = &self.shared.metrics.answers;
        answers.with_label_values(&[&status.to_string()]).inc();
        let served = context.and_then(served);
        // A 502 to 504 without a worker behind it is Envoy's own: the worker was not reached, which
        // is a fault of the worker.
        let is_own = served.is_none()
            && matches!(status, 502..=504)
            && details(attributes).map_or_else(
                || find(&map, UPSTREAM_TIME).is_none(),
                |details| details != VIA_UPSTREAM,
            );
        let is_events = find(&map, "content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        self.reading = AnswerReading::new(is_events);
        if let Some(mut request) = self.request.take() {
            if is_own {
                self.shared.metrics.unreached.inc();
                if let Some(booking) = request.take_booking() {
                    booking.fail();
                }
                request.unanswered(status);
            } else if (200..300).contains(&status) {
                self.answer = Some(request.answer(status));
            } else {
                request.answered_with_error(status);
            }
        }
        if let Some(served) = served.filter(|_| self.shared.config.conformance_headers) {
            self.added.set(TEST_SERVED, served);
        }
        // Without the body, the end of the answer is unknown, so the booking ends with the headers.
        if headers.end_of_stream || self.mode == BodyMode::Absent {
            self.end();
        }
        messages::response_headers(std::mem::take(&mut self.added))
    }

    /// Takes a piece of the answer.
    pub fn piece(&mut self, body: HttpBody) -> ProcessingResponse {
        let progress = self.reading.feed(&body.body);
        if progress.has_token
            && !body.body.is_empty()
            && let Some(answer) = &mut self.answer
        {
            answer.piece(Instant::now());
        }
        if progress.has_failed
            && let Some(mut answer) = self.answer.take()
        {
            answer.reached(self.reading.outcome().output_tokens);
            answer.broken();
        }
        if progress.is_complete || body.end_of_stream {
            self.end();
        }
        messages::response_piece(body.body, body.end_of_stream, self.mode == BodyMode::Duplex)
    }

    /// Records the end of the answer. A second call does nothing.
    pub fn end(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer.finished(self.reading.outcome());
        }
    }
}

impl Drop for AnswerSide {
    fn drop(&mut self) {
        if self.answer.is_none() && self.request.is_none() {
            return;
        }
        self.shared.metrics.disconnects.inc();
        if let Some(mut answer) = self.answer.take() {
            answer.reached(self.reading.outcome().output_tokens);
            answer.client_left();
        }
    }
}

/// Endpoint that answered, as Envoy's load balancer reports it.
fn served(context: &Metadata) -> Option<String> {
    let value = context
        .filter_metadata
        .get(LB_NAMESPACE)?
        .fields
        .get(SERVED_KEY)?;
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// Maker of the answer, where Envoy sends this attribute.
fn details(attributes: &HashMap<String, Struct>) -> Option<&str> {
    let value = attributes
        .values()
        .find_map(|attributes| attributes.fields.get(CODE_DETAILS))?;
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
