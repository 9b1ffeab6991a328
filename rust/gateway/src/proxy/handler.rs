//! One request, from its head to the head of its answer: admit, read, place, forward, relay.
//!
//! Every outcome is an answer. [`super::forward`] makes the attempts; [`super::body`] relays the body and measures it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use wardrop_service::admission::RequestPermit;
use wardrop_service::{
    Abstention, ActiveRequest, Answer, Booking, Endpoint, PlaceHints, RequestTrace, TraceStart, Unplaced,
};

use super::admin;
use super::body::GatewayBody;
use super::client_state::RequestGuard;
use super::exchange::{Target, exchange, exchange_streamed, first_piece};
use super::forward::{Outbound, Reply, is_event_stream};
use super::guard::catch_panic;
use super::intake::HeldBody;
use super::shared::{Shared, Thread};
use super::{intake, pins, routes, split};
use crate::error::Refusal;
use crate::upstream::{RelayBody, write_head};

/// Longest body, bytes, that hyper finds complete in its buffer after a refusal, so that the connection can serve another request.
const SHORT_BODY_BYTES: u64 = 8 << 10;
/// Value of the header `connection` of an answer after which the connection closes.
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// Id of a request: the client's own, or one that the gateway makes.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header of an answer: milliseconds that the request waited in the queue.
const QUEUE_MS: HeaderName = HeaderName::from_static("x-wardrop-queue-ms");
/// Header of an answer: the worker that served it, where `routing.explain_headers` is on.
const EXPLAIN_WORKER: HeaderName = HeaderName::from_static("x-wardrop-worker");
/// Header of an answer: leading blocks that the index listed for the worker.
const EXPLAIN_OVERLAP: HeaderName = HeaderName::from_static("x-wardrop-overlap-blocks");
/// Header of W3C Trace Context with the ids of the caller's span.
const TRACEPARENT: &str = "traceparent";
/// Header of W3C Trace Context with vendors' own values.
const TRACESTATE: &str = "tracestate";
/// Header with the tenant, which is also the namespace of the cache, as in Dynamo.
const TENANT: &str = "x-tenant-id";
/// Header with the priority, −10 to 10; read where `routing.queue_hints` is on.
const PRIORITY: &str = "x-wardrop-priority";
/// Header with the time in milliseconds after which the first token is useless; read as
/// [`PRIORITY`] is.
const DEADLINE_MS: &str = "x-wardrop-deadline-ms";

/// Serves one request. Every outcome is an answer. A panic becomes an answer with status 500 and costs this request alone.
///
/// Probes are answered first, before any limit. A refused request with a long or unread body closes
/// its connection, because its next request has no known start.
pub async fn handle(
    thread: Arc<Thread>,
    mut request: Request<Incoming>,
    guard: RequestGuard,
) -> Response<GatewayBody> {
    let metrics = &thread.shared.metrics;
    if let Some(own) = admin::answer(&thread.shared, request.method(), request.uri().path()) {
        return own.map(|body| body.guarded(guard));
    }
    let length = request.body().size_hint().exact();
    // hyper discards a short body that is already in its buffer; a longer one would have to be
    // read.
    let is_long = length.is_none_or(|bytes| bytes > SHORT_BODY_BYTES);
    let trace = begin_trace(&thread.shared, &mut request);
    let served = catch_panic(serve(&thread, request, trace.as_ref())).await;
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
    if let Some(trace) = &trace {
        trace.answered(response.status().as_u16());
    }
    response.map(|body| body.guarded(guard).traced(trace))
}

/// Begins the trace of a request, and names the new server span as the parent of the upstream's spans.
///
/// Without a caller's trace, a `tracestate` of the client would belong to no trace, so it is
/// removed.
fn begin_trace(shared: &Shared, request: &mut Request<Incoming>) -> Option<Arc<RequestTrace>> {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let trace = shared.service.begin_trace(&TraceStart {
        traceparent: text(TRACEPARENT),
        tracestate: text(TRACESTATE),
        method: request.method().as_str(),
        path: request.uri().path(),
    })?;
    let parent =
        HeaderValue::from_str(&trace.traceparent()).expect("hexadecimal digits must be a header value");
    let headers = request.headers_mut();
    headers.insert(TRACEPARENT, parent);
    if !trace.continues_a_trace() {
        headers.remove(TRACESTATE);
    }
    Some(trace)
}

/// Admits a request and serves it. Checks of the head come before the body is read.
///
/// # Errors
/// The refusal that becomes the answer.
async fn serve(
    thread: &Arc<Thread>,
    request: Request<Incoming>,
    trace: Option<&Arc<RequestTrace>>,
) -> Result<Response<GatewayBody>, Refusal> {
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
    let place = shared.in_flight.enter()?;
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
            // The whole body is needed before the decision: its last message decides which prefix a
            // worker holds.
            let body = intake::read_body(body, &shared.config.limits, &shared.bodies).await?;
            let arrived = Arrived {
                parts: &parts,
                endpoint,
                body,
                has_pin,
                trace,
            };
            place_and_forward(thread, arrived, place).await?
        }
    };
    if !response.headers().contains_key(REQUEST_ID) {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    Ok(response)
}

/// Keeps the client's id, or makes one that no other request of any process has.
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
///
/// Such a request is not placed: the upstream is the next one in turn.
async fn pass_through(
    thread: &Arc<Thread>,
    parts: &Parts,
    body: Incoming,
    place: RequestPermit,
) -> Result<Response<GatewayBody>, Refusal> {
    let mut head = BytesMut::with_capacity(1024);
    write_head(&mut head, &parts.method, &parts.uri, &parts.headers, None);
    let (status, mut headers, body) = if body.is_end_stream() {
        let begun = exchange(thread, &parts.method, &head, &[], Target::default()).await?;
        let (status, headers, mut answer) = begun.into_body(thread);
        first_piece(thread, &mut answer, Target::default()).await?;
        (status, headers, answer)
    } else {
        let begun = exchange_streamed(thread, &parts.method, head, body).await?;
        begun.into_body(thread)
    };
    // The answer began before the request ended, so the connection cannot carry another request.
    if body.reads_client() {
        headers.insert(CONNECTION, CLOSE);
    }
    Ok(relay(thread, status, headers, body, place, None))
}

/// A request with a prompt that arrived as a whole.
struct Arrived<'a> {
    /// Head of the request.
    parts: &'a Parts,
    /// Endpoint of the request's path.
    endpoint: Endpoint,
    /// The whole body, charged to the sum of all bodies.
    body: HeldBody,
    /// The client chose its worker by header.
    has_pin: bool,
    /// Trace of the request; `None` where tracing is off.
    trace: Option<&'a Arc<RequestTrace>>,
}

/// Places a request with a prompt and forwards it with the pin of its worker.
///
/// An abstention is no failure: the request goes out without a pin, and Dynamo chooses the worker.
///
/// # Errors
/// The refusal that becomes the answer. The receipt then holds its status.
async fn place_and_forward(
    thread: &Arc<Thread>,
    arrived: Arrived<'_>,
    place: RequestPermit,
) -> Result<Response<GatewayBody>, Refusal> {
    let Arrived {
        parts,
        endpoint,
        body,
        has_pin,
        trace,
    } = arrived;
    let shared = &thread.shared;
    let bytes = &body.bytes;
    let service = &shared.service;
    let started = Instant::now();
    // Only requests with a prompt pay in, since only these are tried again.
    shared.retries.pay_in();
    let mut request = match service.prepare(endpoint, bytes, tenant(&parts.headers)).await {
        Ok(prepared) => Some(service.begin(prepared, request_id(&parts.headers), started)),
        Err(Abstention::ClientPin) if !shared.config.service.routing.allow_client_pins => {
            return Err(Refusal::ClientPin);
        }
        Err(Abstention::TooLarge) => {
            let body_bytes = bytes.len();
            return Err(Refusal::PromptTooLarge { body_bytes });
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
    if let (Some(request), Some(trace)) = (&mut request, trace) {
        request.trace(trace);
    }
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
            let refusal = match refusal {
                None if shared.upstreams.are_workers() && !split::suits(shared, Some(endpoint), request) => {
                    Some(Refusal::NoWorker)
                }
                Some(Refusal::NoWorker) if split::place_whole(shared, request) => None,
                refusal => refusal,
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
    // Without workers Dynamo closes its routes and answers a bare 404, which clients take for a wrong URL. Until discovery
    // removes the last dead worker, it answers 503 in a shape of its own.
    let status = reply.status();
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE)
        && service.routable_workers() == 0
    {
        if let Some(request) = &mut request {
            request.answered_with_error(status.as_u16());
        }
        return Err(Refusal::NoWorker);
    }
    let mut response = match reply {
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
///
/// The same name is the namespace of the cache and the account in the fair queue.
fn tenant(headers: &HeaderMap) -> Option<&str> {
    let values = headers.get_all(TENANT).iter();
    let names = values.filter_map(|value| value.to_str().ok());
    names.map(str::trim).rfind(|name| !name.is_empty())
}

/// Id of the request as text; `None` for bytes that are no text.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(REQUEST_ID)?.to_str().ok()
}

/// The tenant and, where clients may give them, priority and deadline.
///
/// A value that is no number counts as absent, because a hint must not make a request fail.
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

/// Worker and overlap of the first leg; `None` for a request without a booking.
fn explanation_headers(booking: &Booking) -> Option<(HeaderValue, HeaderValue)> {
    let leg = booking.legs().next()?;
    let worker = HeaderValue::from_str(&leg.worker.to_string()).ok()?;
    Some((worker, HeaderValue::from(leg.overlap_blocks)))
}

/// The answer whose body is relayed; `place` is held until its last byte.
fn relay(
    thread: &Arc<Thread>,
    status: StatusCode,
    headers: HeaderMap,
    body: RelayBody,
    place: RequestPermit,
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
