//! One stream of external processing: one HTTP request on its way to a worker, and its answer on the way back.
//!
//! ```text
//! headers ─▶ body … ─▶ placing (prompt, queue, decision) ─▶ headers answer, body pieces ─▶ answer: headers, pieces, end
//! ```
//!
//! The answer to the headers waits until the whole body has arrived and the queue has chosen a worker. Envoy holds the request
//! meanwhile, so a decision can be late. The picker holds the body once, until it hands the body on. An answer passes piece by piece.
//!
//! Bounds: `limits.body_bytes` per body, `limits.all_bodies_bytes` over all,
//! `limits.concurrent_requests`, and eight messages on their way to Envoy. Source: Envoy's external
//! processing protocol, `envoy.service.ext_proc.v3`.

mod answer;
mod placing;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use wardrop_service::admission::{BodiesFull, BodyPermit, RequestPermit};
use wardrop_service::{RequestTrace, TraceStart};

use self::answer::AnswerSide;
use self::placing::{Choice, Chosen, Placing};
use crate::destination::Destination;
use crate::headers::{QUEUE_MS, REQUEST_ID, RequestHead, TRACEPARENT, TRACESTATE};
use crate::messages;
use crate::proto::ext_proc::processing_request::Request;
use crate::proto::ext_proc::{BodySendMode, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// Messages on their way to Envoy; a slow Envoy makes the stream wait.
pub(crate) type Outbound = Sender<Result<ProcessingResponse, Status>>;

/// The decision under way. Dropping it releases bookings and the place in the queue.
type Work = Pin<Box<dyn Future<Output = Result<Choice, Refusal>> + Send>>;

/// Progress of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has arrived.
    Start,
    /// The body arrives.
    Body,
    /// The decision is being made.
    Placing,
    /// The request is on its way, or Envoy answers it itself.
    Forwarded,
}

/// How Envoy sends a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyMode {
    /// Envoy sends no body.
    Absent,
    /// In pieces, each of which waits for its answer. The headers were answered before.
    Streamed,
    /// In one message, after the answer to the headers.
    Whole,
    /// In pieces, which the picker may hand on later.
    Duplex,
}

impl BodyMode {
    /// The mode of Envoy's name. A body that Envoy buffers in part counts as whole.
    fn new(mode: BodySendMode) -> Self {
        match mode {
            BodySendMode::None | BodySendMode::Grpc => Self::Absent,
            BodySendMode::Streamed => Self::Streamed,
            BodySendMode::Buffered | BodySendMode::BufferedPartial => Self::Whole,
            BodySendMode::FullDuplexStreamed => Self::Duplex,
        }
    }
}

/// The state of one stream.
pub(crate) struct Exchange {
    /// State of the picker.
    shared: Arc<Shared>,
    /// Messages to Envoy.
    out: Outbound,
    /// Progress of the request.
    phase: Phase,
    /// How Envoy sends the body of the request.
    request_mode: BodyMode,
    /// Facts from the headers, until the decision takes them.
    head: RequestHead,
    /// Workers of the subset that Envoy allows; `None` allows all.
    allowed: Option<Vec<wardrop_core::WorkerId>>,
    /// Bytes of the body so far.
    body: BytesMut,
    /// Charge of the body against the sum of all bodies.
    held: Option<BodyPermit>,
    /// The request ends with trailers instead of its last piece.
    has_trailers: bool,
    /// Time by which the body must be whole; used in [`Phase::Body`] alone.
    deadline: Instant,
    /// Permit of a request in flight, to the end of the stream.
    place: Option<RequestPermit>,
    /// The answer's part of the stream.
    answer: AnswerSide,
    /// Trace of the request, where spans are exported. Its spans end with the stream.
    trace: Option<Arc<RequestTrace>>,
}

/// Sign that the stream has nothing more to do.
struct Ended;

/// Next action of the stream after a message.
enum Step {
    /// Wait for the next message.
    Wait,
    /// Make the decision, beside further messages.
    Place(Work),
}

impl Exchange {
    /// A stream that has received nothing.
    pub fn new(shared: Arc<Shared>, out: Outbound) -> Self {
        Self {
            answer: AnswerSide::new(shared.clone()),
            shared,
            out,
            phase: Phase::Start,
            request_mode: BodyMode::Duplex,
            head: RequestHead::default(),
            allowed: None,
            body: BytesMut::new(),
            held: None,
            has_trailers: false,
            deadline: Instant::now(),
            place: None,
            trace: None,
        }
    }

    /// Serves the stream until Envoy ends it or the picker answers in place of a worker.
    pub async fn run(mut self, mut inbound: Streaming<ProcessingRequest>) {
        let mut work: Option<Work> = None;
        loop {
            let step = tokio::select! {
                biased;
                choice = async { work.as_mut().expect("polled only while there is work").await }, if work.is_some() => {
                    work = None;
                    self.placed(choice).await.map(|()| Step::Wait)
                }
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.take(message).await,
                    // Envoy closes its side after the end of an answer, and resets the stream when the client left.
                    Ok(None) | Err(_) => Err(Ended),
                },
                () = tokio::time::sleep_until(self.deadline), if self.phase == Phase::Body => {
                    let limit_ms = self.shared.config.limits.read_timeout_ms;
                    self.refuse(Refusal::ReadTimeout { limit_ms }).await
                }
            };
            match step {
                Ok(Step::Wait) => {}
                Ok(Step::Place(started)) => work = Some(started),
                Err(Ended) => return,
            }
            // An answer that begins before the decision comes from Envoy, so the decision is useless.
            if self.answer.has_begun() {
                work = None;
            }
        }
    }

    /// Takes one message of Envoy.
    ///
    /// # Errors
    /// [`Ended`] after a violation of the protocol or a refusal.
    async fn take(&mut self, message: ProcessingRequest) -> Result<Step, Ended> {
        if message.observability_mode {
            return self.protocol_error("observability_mode").await;
        }
        match &message.request {
            Some(Request::RequestHeaders(_)) if self.phase != Phase::Start => {
                return self.protocol_error("second_request_headers").await;
            }
            Some(Request::RequestHeaders(headers)) => {
                return self.request_headers(headers, &message).await;
            }
            _ if self.phase == Phase::Start => return self.protocol_error("no_request_headers").await,
            _ => {}
        }
        match message.request {
            Some(Request::RequestBody(body)) => self.request_body(body).await,
            Some(Request::RequestTrailers(_)) => self.request_trailers().await,
            Some(Request::ResponseHeaders(headers)) => {
                let context = message.metadata_context.as_ref();
                let answer = self.answer.headers(&headers, context, &message.attributes);
                if let Some(trace) = &self.trace {
                    trace.answered(self.answer.status());
                }
                self.place_is_over();
                self.send(answer).await
            }
            Some(Request::ResponseBody(body)) => {
                let answer = self.answer.piece(body);
                self.send(answer).await
            }
            Some(Request::ResponseTrailers(_)) => {
                self.answer.end();
                self.send(messages::response_trailers()).await
            }
            Some(Request::RequestHeaders(_)) | None => self.protocol_error("unknown_message").await,
        }
    }

    /// Reads the head, takes a permit, and decides whether a body follows.
    async fn request_headers(
        &mut self,
        headers: &HttpHeaders,
        message: &ProcessingRequest,
    ) -> Result<Step, Ended> {
        let (request, response) = message.protocol_config.as_ref().map_or(
            (BodySendMode::FullDuplexStreamed, BodySendMode::FullDuplexStreamed),
            |modes| (modes.request_body_mode(), modes.response_body_mode()),
        );
        self.request_mode = BodyMode::new(request);
        self.answer.set_mode(BodyMode::new(response));
        self.head = headers
            .headers
            .as_ref()
            .map(RequestHead::read)
            .unwrap_or_default();
        self.trace = self.shared.service.begin_trace(&TraceStart {
            traceparent: self.head.traceparent.as_deref(),
            tracestate: self.head.tracestate.as_deref(),
            method: &self.head.method,
            path: &self.head.path,
        });
        if self.shared.config.service.routing.receipts > 0
            && let Some(request_id) = &self.head.request_id
        {
            self.answer.add_header(REQUEST_ID, request_id);
        }
        match self.shared.in_flight.enter() {
            Ok(permit) => self.place = Some(permit),
            Err(refused) => return self.refuse(refused.into()).await,
        }
        let context = message.metadata_context.as_ref();
        self.allowed = placing::allowed_workers(&self.shared, &self.head, context);
        if self.allowed.as_ref().is_some_and(Vec::is_empty) {
            return self.refuse(Refusal::NoWorker).await;
        }
        if headers.end_of_stream {
            self.request_mode = BodyMode::Absent;
        }
        match self.request_mode {
            // Envoy sends this body only after the answer to the headers, so the request is placed by load alone.
            BodyMode::Absent | BodyMode::Streamed => Ok(self.start_placing()),
            BodyMode::Whole => {
                self.phase = Phase::Body;
                self.set_deadline();
                self.send(messages::request_headers()).await
            }
            BodyMode::Duplex => {
                self.phase = Phase::Body;
                self.set_deadline();
                Ok(Step::Wait)
            }
        }
    }

    /// The whole body must arrive within `limits.read_timeout_ms` from now.
    fn set_deadline(&mut self) {
        let limit_ms = self.shared.config.limits.read_timeout_ms;
        self.deadline = Instant::now() + Duration::from_millis(limit_ms);
    }

    /// Takes a piece of the body, within the limits of one body and of all bodies.
    async fn request_body(&mut self, body: HttpBody) -> Result<Step, Ended> {
        if self.phase != Phase::Body {
            // A streamed body passes by. A duplex body after an answer of Envoy has no reader.
            return match self.request_mode {
                BodyMode::Streamed => self.send(messages::request_body()).await,
                _ => Ok(Step::Wait),
            };
        }
        let limit_bytes = self.shared.config.limits.body_bytes;
        if self.body.len() + body.body.len() > limit_bytes {
            return self.refuse(Refusal::BodyTooLarge { limit_bytes }).await;
        }
        if let Err(refused) = self.charge(body.body.len()) {
            return self.refuse(refused.into()).await;
        }
        self.body.extend_from_slice(&body.body);
        if body.end_of_stream || self.request_mode == BodyMode::Whole {
            return Ok(self.start_placing());
        }
        Ok(Step::Wait)
    }

    /// Charges bytes of the body to the sum of all bodies.
    fn charge(&mut self, bytes: usize) -> Result<(), BodiesFull> {
        let permit = match self.held.take() {
            Some(permit) => permit,
            None => self.shared.bodies.admit(0)?,
        };
        self.held.insert(permit).grow(bytes)
    }

    /// Trailers end a body, so the decision begins.
    async fn request_trailers(&mut self) -> Result<Step, Ended> {
        if self.phase != Phase::Body {
            return self.send(messages::request_trailers()).await;
        }
        self.has_trailers = true;
        Ok(self.start_placing())
    }

    /// Begins the decision with everything that arrived.
    fn start_placing(&mut self) -> Step {
        self.phase = Phase::Placing;
        let body = std::mem::take(&mut self.body).freeze();
        Step::Place(Box::pin(
            Placing {
                shared: self.shared.clone(),
                head: std::mem::take(&mut self.head),
                body,
                allowed: self.allowed.take(),
                trace: self.trace.clone(),
            }
            .run(),
        ))
    }

    /// Sends the decision: the answer to the headers first, then the body.
    async fn placed(&mut self, choice: Result<Choice, Refusal>) -> Result<(), Ended> {
        let choice = match choice {
            Ok(choice) => choice,
            Err(refusal) => return self.refuse(refusal).await.map(|_| ()),
        };
        self.phase = Phase::Forwarded;
        let Choice {
            chosen,
            destination,
            mut stripped,
            body,
        } = choice;
        let Destination { address, mut headers } = destination;
        stripped.retain(|name| !headers.set.iter().any(|header| header.name == *name));
        headers.remove = stripped;
        if let Some(trace) = &self.trace {
            headers.set(TRACEPARENT, trace.traceparent());
            if !trace.continues_a_trace() {
                headers.remove.push(TRACESTATE);
            }
        }
        let waited_ms = match &chosen {
            Chosen::Active(request) => request.waited_s().map(|waited_s| (waited_s * 1e3).round()),
            Chosen::Passing => None,
        };
        if let Some(waited_ms) = waited_ms {
            self.answer.add_header(QUEUE_MS, waited_ms);
        }
        self.answer.expect(chosen);
        match self.request_mode {
            BodyMode::Absent | BodyMode::Streamed => {
                self.send(messages::decision(headers, &address, None)).await?;
            }
            BodyMode::Whole => {
                self.send(messages::decision(headers, &address, Some(body)))
                    .await?;
            }
            BodyMode::Duplex => {
                self.send(messages::decision(headers, &address, None)).await?;
                self.send_body(&body).await?;
            }
        }
        self.held = None;
        Ok(())
    }

    /// Hands the body on in pieces that Envoy takes, and the trailers after it.
    async fn send_body(&mut self, body: &Bytes) -> Result<(), Ended> {
        // Trailers alone, without a byte of a body, have no piece before them.
        if !body.is_empty() || !self.has_trailers {
            for piece in messages::request_pieces(body, self.has_trailers) {
                self.send(piece).await?;
            }
        }
        if self.has_trailers {
            self.send(messages::request_trailers()).await?;
        }
        Ok(())
    }

    /// Stops waiting for a decision, because the headers of an answer arrived.
    fn place_is_over(&mut self) {
        self.phase = Phase::Forwarded;
        self.body = BytesMut::new();
        self.held = None;
    }

    /// Has Envoy answer the client, and ends the stream.
    async fn refuse(&mut self, refusal: Refusal) -> Result<Step, Ended> {
        let refusals = &self.shared.metrics.refusals;
        refusals.with_label_values(&[refusal.code()]).inc();
        self.answer.refused();
        if let Some(trace) = &self.trace {
            trace.answered(refusal.status());
        }
        let _ = self.send(messages::refuse(refusal)).await;
        Err(Ended)
    }

    /// Ends a stream that broke the protocol, with a status for Envoy's log.
    async fn protocol_error(&mut self, cause: &'static str) -> Result<Step, Ended> {
        let errors = &self.shared.metrics.protocol_errors;
        errors.with_label_values(&[cause]).inc();
        let text =
            format!("{cause}: expected the messages of external processing, with the request headers first");
        let _ = self.out.send(Err(Status::invalid_argument(text))).await;
        Err(Ended)
    }

    /// Waits until Envoy takes the message. [`Ended`] when Envoy closed the stream.
    async fn send(&self, message: ProcessingResponse) -> Result<Step, Ended> {
        match self.out.send(Ok(message)).await {
            Ok(()) => Ok(Step::Wait),
            Err(_) => Err(Ended),
        }
    }
}
