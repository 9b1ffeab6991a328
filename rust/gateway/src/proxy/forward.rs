//! The way of a request to an upstream and back to the head of its answer: attempts, their faults, and further attempts.
//!
//! ```text
//! attempt ─▶ answer without a fault ─▶ client
//!    ▲  └──▶ fault of the pin, the worker or the upstream ─▶ budget of retries ─▶ other target
//!    └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! No byte goes to the client before the last attempt. O(1) per attempt beside the exchange.
//!
//! Every second attempt takes one retry of the budget of [`super::retries`]. Under overload, a
//! refusal that was sent twice would double the load on a full fleet. Reasons:
//! `docs/adr/0019-answers-judged-by-what-they-are.md`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};
use wardrop_service::{ActiveRequest, Booking, Endpoint, Role};

use super::body::GatewayBody;
use super::exchange::{Failed, Target, exchange, first_event_fails, first_piece};
use super::shared::Thread;
use super::split::SplitRequest;
use super::{pins, split};
use crate::error::Refusal;
use crate::upstream::{RelayBody, write_head};

/// Largest error answer that is read to decide whether the worker or the request caused the error.
const ERROR_LIMIT_BYTES: usize = 64 << 10;
/// Text of Dynamo's answer to a pin on an unknown instance. Errors of the request carry a longer text.
const UNKNOWN_PIN: &[u8] = b"\"Invalid request\"";
/// Dynamo's default status of a full fleet, which HTTP does not define.
const OVERLOADED: u16 = 529;
/// Most further workers that are tried, where workers are the upstreams and accept no connection.
const MOVES_MAX: u32 = 3;

/// A request with its whole body in memory, so that it can be sent again.
pub(super) struct Outbound<'a> {
    /// Head of the client's request.
    pub parts: &'a Parts,
    /// Body, in the pieces in which it is sent.
    pub pieces: &'a [Bytes],
    /// Whether the gateway writes the pin headers. Otherwise the pin headers of the client are forwarded.
    pub is_pinned: bool,
}

/// The answer that the client gets.
#[allow(
    clippy::large_enum_variant,
    reason = "one lives at a time, on the way from an attempt to its answer"
)]
pub(super) enum Reply {
    /// An answer whose body is relayed as it arrives.
    Stream(StatusCode, HeaderMap, RelayBody),
    /// An error answer that is read to its end.
    Read(Response<GatewayBody>),
}

impl Reply {
    /// Status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Stream(status, ..) => *status,
            Self::Read(response) => response.status(),
        }
    }
}

impl Outbound<'_> {
    /// Sends the request with its pin, and at most once more for each cause, before any byte has gone to the client.
    ///
    /// The second attempt goes without the pin when the pin explains the failure or the refusal. When the worker went silent
    /// before the first byte, the second attempt goes to another worker. When the upstream went silent or broke off, it goes to another
    /// upstream, if there is one. The budget of retries bounds all second attempts.
    ///
    /// # Errors
    /// The refusal for the client: no upstream, no answer in time, or a broken answer without a
    /// retry left.
    pub async fn forward(
        &self,
        thread: &Arc<Thread>,
        mut request: Option<&mut ActiveRequest>,
    ) -> Result<Reply, Refusal> {
        let metrics = &thread.shared.metrics;
        let length = self.pieces.iter().map(Bytes::len).sum();
        let mut base = BytesMut::with_capacity(1024);
        write_head(
            &mut base,
            &self.parts.method,
            &self.parts.uri,
            &self.parts.headers,
            Some(length),
        );
        let may_retry = |reason: &str| {
            let may = thread.shared.retries.take();
            let reason = if may { reason } else { "budget_exhausted" };
            metrics.retries.with_label_values(&[reason]).inc();
            may
        };
        if thread.shared.upstreams.are_workers() {
            return self.forward_to_worker(thread, request, &base, may_retry).await;
        }
        let mut blamed: Option<Booking> = None;
        let (mut was_silent, mut has_moved) = (false, false);
        loop {
            let mut head = base.clone();
            let booking = request.as_ref().and_then(|request| request.booking());
            let pinned = booking.filter(|_| self.is_pinned);
            if let Some(pinned) = pinned {
                pins::write_pins(&mut head, pinned);
            }
            let is_pinned = pinned.is_some();
            let target = Target::of(thread, booking);
            match attempt(thread, &self.parts.method, &head, self.pieces, target).await {
                // A frontend that has not read discovery yet: another frontend may know the model.
                Ok(tried) if tried.fault == Fault::Upstream && !has_moved => {
                    has_moved = true;
                    if !may_retry("upstream_knows_no_model") {
                        return Ok(tried.reply);
                    }
                }
                // The pin may be the cause, so the second attempt goes without it and Dynamo
                // chooses.
                Ok(tried) if is_pinned && matches!(tried.fault, Fault::Worker | Fault::Overload) => {
                    let is_overload = tried.fault == Fault::Overload;
                    let mut taken = request.as_mut().and_then(|request| request.take_booking());
                    match &mut taken {
                        Some(refused) if is_overload => refused.refuse(),
                        Some(failed) => failed.fail(),
                        None => {}
                    }
                    // An overloaded worker is healthy: it refuses, and only several refusals in a
                    // row make it skipped.
                    blamed = taken.filter(|_| !is_overload);
                    if !may_retry(if is_overload { "pin_refused" } else { "pin_failed" }) {
                        return Ok(tried.reply);
                    }
                }
                Ok(tried) => {
                    // The same failure without the pin: the request caused it, not the worker.
                    if let Some(blamed) = blamed.filter(|_| tried.fault != Fault::None) {
                        blamed.withdraw_failure();
                    }
                    return Ok(tried.reply);
                }
                Err(Failed::WorkerSilent) if !was_silent && may_retry("worker_silent") => {
                    was_silent = true;
                    if let Some(request) = request.as_mut() {
                        request.place_again();
                    }
                }
                Err(Failed::UpstreamSilent) if !has_moved && may_retry("upstream_silent") => has_moved = true,
                Err(Failed::UpstreamBroke) if !has_moved && may_retry("upstream_broke") => has_moved = true,
                Err(
                    Failed::WorkerSilent
                    | Failed::UpstreamSilent
                    | Failed::UpstreamBroke
                    | Failed::WorkerDown
                    | Failed::WorkerBroken,
                ) => return Err(Refusal::UpstreamBroken),
                Err(Failed::Refused(refusal)) => return Err(refusal),
            }
        }
    }

    /// Sends the request straight to its workers. Before any byte has gone to the client, a failure moves it to another worker.
    ///
    /// A refused connection costs the client nothing, so it moves the request up to [`MOVES_MAX`] times. An answer that shows a fault of
    /// the worker moves it once, because the request itself may be the cause. The budget of retries bounds all second attempts.
    ///
    /// In a split, only the worker of the failed leg is blamed. Without another prefill worker, one worker gets the whole request.
    ///
    /// # Errors
    /// As [`Outbound::forward`].
    async fn forward_to_worker(
        &self,
        thread: &Arc<Thread>,
        mut request: Option<&mut ActiveRequest>,
        base: &BytesMut,
        may_retry: impl Fn(&str) -> bool,
    ) -> Result<Reply, Refusal> {
        let mut blamed: Option<(Booking, Option<Role>)> = None;
        let (mut moves, mut has_failed) = (0, false);
        loop {
            let has_booking = request
                .as_ref()
                .is_some_and(|request| request.booking().is_some());
            let (result, at) = self.attempt_at_worker(thread, request.as_deref_mut(), base).await;
            // `reply` goes to the client when no other worker may be tried.
            let (cause, reply) = match result {
                Ok(tried) if has_booking && tried.fault == Fault::Worker => (Cause::Failed, Ok(tried.reply)),
                Ok(tried) if has_booking && tried.fault == Fault::Overload => {
                    (Cause::Overloaded, Ok(tried.reply))
                }
                Ok(tried) => {
                    // Another worker gave the same kind of answer, so the request caused the failure.
                    if let Some((blamed, at)) = blamed.filter(|_| tried.fault != Fault::None) {
                        blamed.withdraw_failure_on(at);
                    }
                    return Ok(tried.reply);
                }
                Err(Failed::WorkerDown) => (Cause::Down, Err(Refusal::UpstreamDown)),
                Err(Failed::WorkerBroken | Failed::UpstreamBroke) => {
                    (Cause::Broken, Err(Refusal::UpstreamBroken))
                }
                Err(Failed::WorkerSilent | Failed::UpstreamSilent) => {
                    (Cause::Silent, Err(Refusal::UpstreamBroken))
                }
                Err(Failed::Refused(refusal)) => return Err(refusal),
            };
            let Some(request) = request.as_mut().filter(|_| has_booking) else {
                return reply;
            };
            let Some(mut failed) = request.take_booking() else {
                return reply;
            };
            let worker = failed.legs_of(at).last().map(|leg| leg.worker);
            if cause == Cause::Overloaded {
                failed.refuse_by(at);
            } else {
                failed.fail_on(at);
            }
            // Two workers failing at one request point at the request, so neither is taken out of
            // the pool.
            if has_failed && cause != Cause::Down {
                failed.withdraw_failure_on(at);
                if let Some((blamed, at)) = blamed.take() {
                    blamed.withdraw_failure_on(at);
                }
                return reply;
            }
            has_failed |= cause != Cause::Down;
            moves += 1;
            let is_prefill = at == Some(Role::Prefill);
            if (moves > MOVES_MAX && !is_prefill) || !may_retry(cause.reason(is_prefill)) {
                return reply;
            }
            if matches!(cause, Cause::Failed | Cause::Broken) {
                blamed = Some((failed, at));
            } else {
                drop(failed);
            }
            let is_placed = worker.is_some_and(|worker| {
                if is_prefill {
                    return (moves <= MOVES_MAX && request.place_on_others(worker))
                        || split::place_whole(&thread.shared, request);
                }
                let endpoint = Endpoint::from_path(self.parts.uri.path());
                request.place_elsewhere(worker) && split::suits(&thread.shared, endpoint, request)
            });
            if !is_placed {
                return reply;
            }
        }
    }

    /// One attempt at the workers of the booking. Also returns the role of the leg that the result comes from, in a split.
    async fn attempt_at_worker(
        &self,
        thread: &Arc<Thread>,
        request: Option<&mut ActiveRequest>,
        base: &BytesMut,
    ) -> (Result<Tried, Failed>, Option<Role>) {
        let booking = request.as_ref().and_then(|request| request.booking());
        let prefill = booking
            .filter(|booking| booking.is_split())
            .and_then(|booking| Some(booking.leg(Role::Prefill)?.worker.instance));
        match (request, prefill) {
            (Some(request), Some(instance)) => {
                let Some(transfer) = thread.shared.upstreams.transfer(instance) else {
                    // The worker left since the decision.
                    return (Err(Failed::WorkerDown), Some(Role::Prefill));
                };
                let mut headers = self.parts.headers.clone();
                // The answer of a prefill leg is read here, so it has no coding.
                headers.remove(ACCEPT_ENCODING);
                let split = SplitRequest {
                    uri: &self.parts.uri,
                    headers: &headers,
                    pieces: self.pieces,
                };
                let tried = split::send(thread, &split, request, &transfer).await;
                if tried
                    .result
                    .as_ref()
                    .is_ok_and(|tried| tried.fault == Fault::None)
                {
                    let splits = &thread.shared.metrics.splits;
                    splits.with_label_values(&[tried.way]).inc();
                }
                (tried.result, Some(tried.at))
            }
            (request, _) => {
                let booking = request.as_ref().and_then(|request| request.booking());
                let mut head = base.clone();
                if let Some(leg) = booking.and_then(|booking| booking.legs().last()) {
                    pins::write_rank(&mut head, leg);
                }
                let target = Target::of(thread, booking);
                let result = attempt(thread, &self.parts.method, &head, self.pieces, target).await;
                (result, None)
            }
        }
    }
}

/// Fault of a worker that moves a request to another worker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The worker accepts no connection.
    Down,
    /// The worker broke off before the first byte.
    Broken,
    /// The worker gives no sign of life.
    Silent,
    /// The worker answered with an error of its own.
    Failed,
    /// The worker is full.
    Overloaded,
}

impl Cause {
    /// Label of a second attempt. `is_prefill` names the prefill leg of a split.
    fn reason(self, is_prefill: bool) -> &'static str {
        match (self, is_prefill) {
            (Self::Down, false) => "worker_down",
            (Self::Broken, false) => "worker_broken",
            (Self::Silent, false) => "worker_silent",
            (Self::Failed, false) => "worker_failed",
            (Self::Overloaded, false) => "worker_overloaded",
            (Self::Down, true) => "prefill_down",
            (Self::Broken, true) => "prefill_broken",
            (Self::Silent, true) => "prefill_silent",
            (Self::Failed, true) => "prefill_failed",
            (Self::Overloaded, true) => "prefill_overloaded",
        }
    }
}

/// One exchange, up to the point where a failure of the worker shows: an error body, or the first event of a stream.
///
/// Dynamo opens a stream before its worker has answered, so a status of 200 proves nothing about the worker.
///
/// An error answer is read whole, up to [`ERROR_LIMIT_BYTES`], since its text shows whether the
/// pin or the request is wrong.
///
/// # Errors
/// [`Failed`] when there is no answer, or none with a first event.
pub(super) async fn attempt(
    thread: &Arc<Thread>,
    method: &Method,
    head: &BytesMut,
    pieces: &[Bytes],
    target: Target<'_>,
) -> Result<Tried, Failed> {
    let begun = exchange(thread, method, head, pieces, target).await?;
    let upstream = begun.connection.upstream();
    let (status, headers, mut body) = begun.into_body(thread);
    let is_overload = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) || status.as_u16() == OVERLOADED;
    if status.is_server_error() || status == StatusCode::BAD_REQUEST || is_overload {
        let (response, bytes) = read_error(thread, status, headers, body)
            .await
            .map_err(Failed::Refused)?;
        let unknown = memchr::memmem::find(&bytes, UNKNOWN_PIN).is_some();
        let fault = if is_overload {
            Fault::Overload
        } else if status.is_server_error() || unknown {
            Fault::Worker
        } else {
            Fault::Request
        };
        return Ok(Tried {
            reply: Reply::Read(response),
            fault,
        });
    }
    let mut fault = if status.is_success() {
        Fault::None
    } else {
        Fault::Request
    };
    // The model has workers, so a frontend that does not know the model has not read discovery yet.
    // `distrust` takes the frontend out of the round robin until a probe of it finds a model.
    if status == StatusCode::NOT_FOUND && target.has_booking() && thread.shared.upstreams.distrust(upstream) {
        fault = Fault::Upstream;
    }
    if !status.is_success() || !is_event_stream(&headers) {
        first_piece(thread, &mut body, target).await?;
    } else if first_event_fails(thread, &mut body, target).await? {
        fault = Fault::Worker;
    }
    Ok(Tried {
        reply: Reply::Stream(status, headers, body),
        fault,
    })
}

/// An answer, with the cause when it is an error.
pub(super) struct Tried {
    /// The answer as the client would get it.
    pub reply: Reply,
    /// Cause of an error answer.
    pub fault: Fault,
}

/// Cause of an error answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The answer is no error.
    None,
    /// The request is wrong on every worker.
    Request,
    /// A dead or unknown worker may be the cause.
    Worker,
    /// The worker or the fleet is full, which is no failure.
    Overload,
    /// The upstream does not know a model that has workers.
    Upstream,
}

/// Reads an error answer to its end. An answer above [`ERROR_LIMIT_BYTES`] counts as a broken upstream.
///
///
/// # Errors
/// [`Refusal::UpstreamBroken`] for an answer that breaks off, is too large or too slow.
async fn read_error(
    thread: &Arc<Thread>,
    status: StatusCode,
    headers: HeaderMap,
    body: RelayBody,
) -> Result<(Response<GatewayBody>, Bytes), Refusal> {
    let limit_ms = thread.shared.config.upstream.idle_timeout_ms;
    let read = tokio::time::timeout(
        Duration::from_millis(limit_ms),
        Limited::new(body, ERROR_LIMIT_BYTES).collect(),
    );
    let body = match read.await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => return Err(Refusal::UpstreamBroken),
    };
    let mut response = Response::new(GatewayBody::own(body.clone()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().remove(CONTENT_LENGTH);
    Ok((response, body))
}

/// Whether an answer is a stream of server-sent events.
///
/// Parameters behind the type, such as a charset, do not matter.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}
