//! One request, from its head to the head of its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use wardrop_service::{Abstention, ActiveRequest, Answer, Booking, Endpoint, PlaceHints, Unplaced};

use super::admin;
use super::body::{GatewayBody, InFlight};
use super::client_state::RequestGuard;
use super::exchange::{Failed, exchange, exchange_streamed, first_event_fails};
use super::guard::catch_panic;
use super::intake::HeldBody;
use super::shared::{Shared, Thread};
use super::{intake, pins, routes};
use crate::error::Refusal;
use crate::upstream::{RelayBody, write_head};

/// Longest body, bytes, that hyper finds complete in its buffer after a refusal, so that the connection can go on.
const SHORT_BODY_BYTES: u64 = 8 << 10;
/// Says that the connection ends after this answer.
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header of an answer: milliseconds that the request waited in the queue.
const QUEUE_MS: HeaderName = HeaderName::from_static("x-wardrop-queue-ms");
const EXPLAIN_WORKER: HeaderName = HeaderName::from_static("x-wardrop-worker");
const EXPLAIN_OVERLAP: HeaderName = HeaderName::from_static("x-wardrop-overlap-blocks");
/// Largest error answer that is read to decide whether the worker or the request caused the error.
const ERROR_LIMIT_BYTES: usize = 64 << 10;
/// Text of Dynamo's answer to a pin on an unknown instance. Errors of the request carry a longer text.
const UNKNOWN_PIN: &[u8] = b"\"Invalid request\"";
/// Dynamo's default status of a full fleet, which HTTP does not define.
const OVERLOADED: u16 = 529;
/// Workers that are tried after the first one when workers are the upstreams and accept no connection.
const MOVES_MAX: u32 = 3;
const TENANT: &str = "x-tenant-id";
const PRIORITY: &str = "x-wardrop-priority";
const DEADLINE_MS: &str = "x-wardrop-deadline-ms";

/// Serves one request. Every outcome is an answer: also a panic, which costs this request alone.
pub async fn handle(
    thread: Arc<Thread>,
    request: Request<Incoming>,
    guard: RequestGuard,
) -> Response<GatewayBody> {
    let metrics = &thread.shared.metrics;
    if let Some(own) = admin::answer(&thread.shared, request.method(), request.uri().path()) {
        return own.map(|body| body.guarded(guard));
    }
    let length = request.body().size_hint().exact();
    let is_long = length.is_none_or(|bytes| bytes > SHORT_BODY_BYTES);
    let served = catch_panic(serve(&thread, request)).await;
    let served = served.unwrap_or_else(|_| {
        metrics.panics.with_label_values(&["request"]).inc();
        Err(Refusal::Internal)
    });
    let response = served.unwrap_or_else(|refusal| {
        metrics.refusals.with_label_values(&[refusal.code()]).inc();
        let mut response = admin::refuse(refusal);
        if is_long || matches!(refusal, Refusal::ReadTimeout { .. } | Refusal::BodyBroken) {
            // The body is not read to its end, so no next request can be found behind it.
            response.headers_mut().insert(CONNECTION, CLOSE);
        }
        response
    });
    metrics
        .requests
        .with_label_values(&[response.status().as_str()])
        .inc();
    response.map(|body| body.guarded(guard))
}

async fn serve(thread: &Arc<Thread>, request: Request<Incoming>) -> Result<Response<GatewayBody>, Refusal> {
    let shared = &thread.shared;
    if shared.draining.load(Ordering::Relaxed) {
        return Err(Refusal::Draining);
    }
    if !routes::is_public(
        request.method(),
        request.uri().path(),
        &shared.config.routes.extra,
    ) {
        return Err(Refusal::RouteNotPublic);
    }
    let place = InFlight::enter(shared)?;
    intake::check_headers(request.headers(), &shared.config.limits)?;
    let has_pin = pins::has_pin_header(request.headers());
    if has_pin && !shared.config.service.routing.allow_client_pins {
        return Err(Refusal::ClientPin);
    }
    let (mut parts, body) = request.into_parts();
    let request_id = ensure_request_id(&mut parts, thread);
    let endpoint = if parts.method == Method::POST {
        Endpoint::from_path(parts.uri.path())
    } else {
        None
    };
    let mut response = match endpoint {
        None => pass_through(thread, &parts, body, place).await?,
        Some(endpoint) => {
            let body = intake::read_body(body, &shared.config.limits, &shared.bodies).await?;
            place_and_forward(thread, &parts, endpoint, body, has_pin, place).await?
        }
    };
    if !response.headers().contains_key(REQUEST_ID) {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    Ok(response)
}

fn ensure_request_id(parts: &mut Parts, thread: &Thread) -> HeaderValue {
    if let Some(id) = parts.headers.get(REQUEST_ID) {
        return id.clone();
    }
    let number = thread.shared.service.next_request_number();
    let text = format!("{:016x}-{number:x}", thread.shared.nonce);
    let id = HeaderValue::from_str(&text).expect("hexadecimal digits must be a header value");
    parts.headers.insert(REQUEST_ID, id.clone());
    id
}

/// Relays a request without a prompt unchanged.
async fn pass_through(
    thread: &Arc<Thread>,
    parts: &Parts,
    body: Incoming,
    place: InFlight,
) -> Result<Response<GatewayBody>, Refusal> {
    let mut head = BytesMut::with_capacity(1024);
    write_head(&mut head, &parts.method, &parts.uri, &parts.headers, None);
    let begun = if body.is_end_stream() {
        exchange(thread, &parts.method, &head, &[], None)
            .await
            .map_err(|failed| match failed {
                Failed::Refused(refusal) => refusal,
                Failed::WorkerSilent
                | Failed::UpstreamSilent
                | Failed::UpstreamBroke
                | Failed::WorkerDown
                | Failed::WorkerBroken => Refusal::UpstreamBroken,
            })?
    } else {
        exchange_streamed(thread, &parts.method, head, body).await?
    };
    let (status, mut headers, body) = begun.into_body(thread);
    if body.reads_client() {
        headers.insert(CONNECTION, CLOSE);
    }
    Ok(relay(thread, status, headers, body, place, None))
}

/// Places a request with a prompt and forwards it with the pin of its worker.
async fn place_and_forward(
    thread: &Arc<Thread>,
    parts: &Parts,
    endpoint: Endpoint,
    body: HeldBody,
    has_pin: bool,
    place: InFlight,
) -> Result<Response<GatewayBody>, Refusal> {
    let shared = &thread.shared;
    let bytes = &body.bytes;
    let service = &shared.service;
    let started = Instant::now();
    shared.retries.pay_in();
    let mut request = match service.prepare(endpoint, bytes, tenant(&parts.headers)).await {
        Ok(prepared) => Some(service.begin(prepared, request_id(&parts.headers), started)),
        Err(Abstention::ClientPin) if !shared.config.service.routing.allow_client_pins => {
            return Err(Refusal::ClientPin);
        }
        Err(Abstention::Unreadable) if !shared.config.service.routing.allow_client_pins => {
            return Err(Refusal::UnreadableBody);
        }
        Err(reason) => {
            service.count_abstention(reason);
            // No other router stands behind the gateway, so a request whose prompt is not known is placed by load.
            let by_load = shared
                .upstreams
                .are_workers()
                .then(|| service.prepare_by_load(bytes));
            by_load
                .flatten()
                .map(|prepared| service.begin(prepared, request_id(&parts.headers), started))
        }
    };
    match &mut request {
        None => {}
        Some(request) if has_pin => request.book_client_choice(pins::pinned_worker(&parts.headers)),
        Some(request) => {
            let hints = place_hints(shared, &parts.headers, bytes.len());
            let refusal = match request.place(&hints).await {
                Ok(()) => None,
                Err(Unplaced::Refuse(refusal)) => Some(Refusal::from(refusal)),
                Err(Unplaced::Abstain(_)) => shared.upstreams.are_workers().then_some(Refusal::NoWorker),
            };
            if let Some(refusal) = refusal {
                request.refused(refusal.status().as_u16());
                return Err(refusal);
            }
        }
    }
    let waited_s = request.as_ref().and_then(ActiveRequest::waited_s);
    service.observe_decision_time(started, waited_s);
    let spliced = request.as_mut().and_then(ActiveRequest::take_spliced);
    let outbound = Outbound {
        parts,
        pieces: match &spliced {
            Some(spliced) => spliced,
            None => std::slice::from_ref(bytes),
        },
        is_pinned: !has_pin,
    };
    let reply = match outbound.forward(thread, request.as_mut()).await {
        Ok(reply) => reply,
        Err(refusal) => {
            if let Some(request) = &request {
                request.unanswered(refusal.status().as_u16());
            }
            return Err(refusal);
        }
    };
    let booking = request.as_ref().and_then(ActiveRequest::booking);
    let explained = booking.filter(|_| shared.config.service.routing.explain_headers);
    let explanation = explained.and_then(explanation_headers);
    let mut response = match reply {
        // Without workers Dynamo closes its routes and answers a bare 404, which clients take for a wrong URL.
        Reply::Stream(status, ..) if status == StatusCode::NOT_FOUND && service.routable_workers() == 0 => {
            return Err(Refusal::NoWorker);
        }
        Reply::Stream(status, headers, body) => {
            let answer = request.map(|request| request.answer(status.as_u16()));
            relay(thread, status, headers, body, place, answer)
        }
        Reply::Read(response) => {
            if let Some(request) = &mut request {
                request.answered_with_error(response.status().as_u16());
            }
            response
        }
    };
    if let Some(waited_s) = waited_s {
        let waited_ms = (waited_s * 1e3).round() as u64;
        response
            .headers_mut()
            .insert(QUEUE_MS, HeaderValue::from(waited_ms));
    }
    if let Some((worker, overlap)) = explanation {
        response.headers_mut().insert(EXPLAIN_WORKER, worker);
        response.headers_mut().insert(EXPLAIN_OVERLAP, overlap);
    }
    Ok(response)
}

/// Name of the tenant: the last header value that is not empty, as Dynamo reads it for cache namespaces.
fn tenant(headers: &HeaderMap) -> Option<&str> {
    let values = headers.get_all(TENANT).iter();
    let names = values.filter_map(|value| value.to_str().ok());
    names.map(str::trim).rfind(|name| !name.is_empty())
}

fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(REQUEST_ID)?.to_str().ok()
}

/// The tenant and, where clients may give them, priority and deadline.
fn place_hints<'a>(shared: &Shared, headers: &'a HeaderMap, body_bytes: usize) -> PlaceHints<'a> {
    let may_hint = shared.config.service.routing.queue_hints;
    let hint = |name: &str| headers.get(name).filter(|_| may_hint)?.to_str().ok();
    PlaceHints {
        tenant: tenant(headers),
        priority: hint(PRIORITY)
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0),
        deadline_ms: hint(DEADLINE_MS).and_then(|text| text.trim().parse().ok()),
        body_bytes,
        allowed: None,
    }
}

/// A request with its whole body in memory, so that it can be sent again.
struct Outbound<'a> {
    parts: &'a Parts,
    pieces: &'a [Bytes],
    /// Whether the gateway writes the pin headers. Otherwise the pin headers of the client are forwarded.
    is_pinned: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "one lives at a time, on the way from an attempt to its answer"
)]
enum Reply {
    Stream(StatusCode, HeaderMap, RelayBody),
    Read(Response<GatewayBody>),
}

impl Outbound<'_> {
    /// Sends the request with its pin, and at most once more for each cause, before any byte has gone to the client.
    ///
    /// The second attempt goes without the pin when the pin explains the failure or the refusal. When the worker went silent
    /// before the first byte, the second attempt goes to another worker; when the upstream did or broke off, to another
    /// upstream if there is one. The budget of retries bounds all second attempts.
    async fn forward(
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
            match self.attempt(thread, &head, booking).await {
                Ok(tried) if tried.fault == Fault::Upstream && !has_moved => {
                    has_moved = true;
                    if !may_retry("upstream_knows_no_model") {
                        return Ok(tried.reply);
                    }
                }
                Ok(tried) if is_pinned && matches!(tried.fault, Fault::Worker | Fault::Overload) => {
                    let is_overload = tried.fault == Fault::Overload;
                    let mut taken = request.as_mut().and_then(|request| request.take_booking());
                    match &mut taken {
                        Some(refused) if is_overload => refused.refuse(),
                        Some(failed) => failed.fail(),
                        None => {}
                    }
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

    /// Sends the request straight to its worker. Before any byte has gone to the client, a failure moves it to another worker.
    ///
    /// A refused connection costs the client nothing, so it moves the request up to [`MOVES_MAX`] times. An answer that shows a fault of
    /// the worker moves it once, because the request itself may be the cause. The budget of retries bounds all second attempts.
    async fn forward_to_worker(
        &self,
        thread: &Arc<Thread>,
        mut request: Option<&mut ActiveRequest>,
        base: &BytesMut,
        may_retry: impl Fn(&str) -> bool,
    ) -> Result<Reply, Refusal> {
        let mut blamed: Option<Booking> = None;
        let (mut moves, mut has_failed) = (0, false);
        loop {
            let mut head = base.clone();
            let booking = request.as_ref().and_then(|request| request.booking());
            if let Some(booking) = booking {
                pins::write_rank(&mut head, booking);
            }
            let has_booking = booking.is_some();
            // What is left to give to the client when no other worker may be tried.
            let (reason, reply) = match self.attempt(thread, &head, booking).await {
                Ok(tried) if has_booking && matches!(tried.fault, Fault::Worker | Fault::Overload) => {
                    let reason = match tried.fault {
                        Fault::Worker => "worker_failed",
                        _ => "worker_overloaded",
                    };
                    (reason, Ok(tried.reply))
                }
                Ok(tried) => {
                    // Another worker gave the same kind of answer, so the request caused the failure.
                    if let Some(blamed) = blamed.filter(|_| tried.fault != Fault::None) {
                        blamed.withdraw_failure();
                    }
                    return Ok(tried.reply);
                }
                Err(Failed::WorkerDown) => ("worker_down", Err(Refusal::UpstreamDown)),
                Err(Failed::WorkerBroken | Failed::UpstreamBroke) => {
                    ("worker_broken", Err(Refusal::UpstreamBroken))
                }
                Err(Failed::WorkerSilent | Failed::UpstreamSilent) => {
                    ("worker_silent", Err(Refusal::UpstreamBroken))
                }
                Err(Failed::Refused(refusal)) => return Err(refusal),
            };
            let is_down = reason == "worker_down";
            let Some(request) = request.as_mut().filter(|_| has_booking) else {
                return reply;
            };
            let Some(mut failed) = request.take_booking() else {
                return reply;
            };
            let worker = failed.legs().last().map(|leg| leg.worker);
            if reason == "worker_overloaded" {
                failed.refuse();
            } else {
                failed.fail();
            }
            if has_failed && !is_down {
                // A second worker failed at the same request.
                failed.withdraw_failure();
                if let Some(blamed) = blamed.take() {
                    blamed.withdraw_failure();
                }
                return reply;
            }
            has_failed |= !is_down;
            moves += 1;
            if moves > MOVES_MAX || !may_retry(reason) {
                return reply;
            }
            if reason == "worker_failed" || reason == "worker_broken" {
                blamed = Some(failed);
            } else {
                drop(failed);
            }
            if !worker.is_some_and(|worker| request.place_elsewhere(worker)) {
                return reply;
            }
        }
    }

    /// One exchange, up to the point where a failure of the worker shows: an error body, or the first event of a stream.
    ///
    /// Dynamo opens a stream before its worker has answered, so a status of 200 proves nothing about the worker.
    async fn attempt(
        &self,
        thread: &Arc<Thread>,
        head: &BytesMut,
        booking: Option<&Booking>,
    ) -> Result<Tried, Failed> {
        let begun = exchange(thread, &self.parts.method, head, self.pieces, booking).await?;
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
        if status == StatusCode::NOT_FOUND && booking.is_some() && thread.shared.upstreams.distrust(upstream)
        {
            fault = Fault::Upstream;
        }
        if status.is_success()
            && is_event_stream(&headers)
            && first_event_fails(thread, &mut body, booking).await?
        {
            fault = Fault::Worker;
        }
        Ok(Tried {
            reply: Reply::Stream(status, headers, body),
            fault,
        })
    }
}

/// An answer, with the cause when it is an error.
struct Tried {
    reply: Reply,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
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

fn explanation_headers(booking: &Booking) -> Option<(HeaderValue, HeaderValue)> {
    let leg = booking.legs().next()?;
    let worker = HeaderValue::from_str(&leg.worker.to_string()).ok()?;
    Some((worker, HeaderValue::from(leg.overlap_blocks)))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

fn relay(
    thread: &Arc<Thread>,
    status: StatusCode,
    headers: HeaderMap,
    body: RelayBody,
    place: InFlight,
    answer: Option<Answer>,
) -> Response<GatewayBody> {
    let is_events = is_event_stream(&headers);
    let body = GatewayBody::relay(body, thread.shared.clone(), place, answer, is_events);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_is_the_last_name_that_is_not_empty() {
        let headers = |names: &[&str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(TENANT, name.parse().unwrap());
            }
            headers
        };
        assert_eq!(tenant(&headers(&["x", " a ", ""])), Some("a"));
        assert_eq!(tenant(&headers(&["", " "])), None);
        assert_eq!(tenant(&headers(&[])), None);
    }
}
