//! One request from its head to the head of its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::admin::{self, routable};
use super::body::{GatewayBody, InFlight, Watch};
use super::decide::{Standing, Undecided, book_client_pin, decide, decide_late, write_pins};
use super::exchange::{Failed, exchange, exchange_streamed, first_piece};
use super::intake;
use super::server::{Shared, Thread};
use super::tenants::Tenants;
use crate::error::Refusal;
use crate::fleet::Booking;
use crate::metrics::StreamClocks;
use crate::prompt::{Abstention, Endpoint, Prepared, is_heavy, prepare};
use crate::receipts::{Ending, Slip};
use crate::shadows::Ticket;
use crate::upstream::{RelayBody, write_head};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Milliseconds in the queue.
const QUEUE_MS: HeaderName = HeaderName::from_static("x-wardrop-queue-ms");
const EXPLAIN_WORKER: HeaderName = HeaderName::from_static("x-wardrop-worker");
const EXPLAIN_OVERLAP: HeaderName = HeaderName::from_static("x-wardrop-overlap-blocks");
/// Largest error answer that is read to find out whose fault it was.
const ERROR_LIMIT_BYTES: usize = 64 << 10;
/// Dynamo's answer to a pin on an instance that it does not know. A fault of the request itself says more.
const UNKNOWN_PIN: &[u8] = b"\"Invalid request\"";
/// First event of a stream whose worker failed before its first token.
const ERROR_EVENTS: [&[u8]; 2] = [b"data: {\"error\"", b"event: error"];
/// Prompts that wait for a tokeniser thread; above it they are placed without.
const HEAVY_LIMIT: usize = 64;

/// Serves one request. Every way out is an answer.
pub async fn handle(thread: Arc<Thread>, request: Request<Incoming>) -> Response<GatewayBody> {
    if let Some(own) = admin::answer(&thread.shared, request.method(), request.uri().path()) {
        return own;
    }
    let metrics = &thread.shared.metrics;
    match serve(&thread, request).await {
        Ok(response) => {
            metrics
                .requests
                .with_label_values(&[response.status().as_str()])
                .inc();
            response
        }
        Err(refusal) => {
            metrics.refusals.with_label_values(&[refusal.code()]).inc();
            metrics
                .requests
                .with_label_values(&[refusal.status().as_str()])
                .inc();
            admin::refuse(refusal)
        }
    }
}

async fn serve(thread: &Arc<Thread>, request: Request<Incoming>) -> Result<Response<GatewayBody>, Refusal> {
    let shared = &thread.shared;
    if shared.draining.load(Ordering::Relaxed) {
        return Err(Refusal::Draining);
    }
    let place = InFlight::enter(shared)?;
    intake::check_headers(request.headers(), &shared.config.limits)?;
    let has_pin = intake::has_pin_header(request.headers());
    if has_pin && !shared.config.routing.allow_client_pins {
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
            let bytes = intake::read_body(body, &shared.config.limits).await?;
            place_and_forward(thread, &parts, endpoint, bytes, has_pin, place).await?
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
    let number = thread.shared.next_request.fetch_add(1, Ordering::Relaxed);
    let text = format!("{:016x}-{number:x}", thread.shared.nonce);
    let id = HeaderValue::from_str(&text).expect("hexadecimal digits must be a header value");
    parts.headers.insert(REQUEST_ID, id.clone());
    id
}

/// Requests without a prompt go through as they are.
async fn pass_through(
    thread: &Arc<Thread>,
    parts: &Parts,
    body: Incoming,
    place: InFlight,
) -> Result<Response<GatewayBody>, Refusal> {
    let mut head = BytesMut::with_capacity(1024);
    write_head(&mut head, &parts.method, &parts.uri, &parts.headers, None);
    let (connection, answer) = if body.is_end_stream() {
        exchange(thread, &parts.method, &head, &[], None)
            .await
            .map_err(|failed| match failed {
                Failed::Refused(refusal) => refusal,
                Failed::WorkerSilent => Refusal::UpstreamBroken,
            })?
    } else {
        exchange_streamed(thread, &parts.method, head, body).await?
    };
    let (status, headers, body) = RelayBody::new(connection, answer, thread.connections.clone());
    Ok(relay(thread, status, headers, body, place, None))
}

/// Requests with a prompt: decide, then forward with the pin.
async fn place_and_forward(
    thread: &Arc<Thread>,
    parts: &Parts,
    endpoint: Endpoint,
    bytes: Bytes,
    has_pin: bool,
    place: InFlight,
) -> Result<Response<GatewayBody>, Refusal> {
    let shared = &thread.shared;
    let started = Instant::now();
    let prepared = match prepare_prompt(thread, parts, endpoint, &bytes).await {
        Ok(prepared) => Some(prepared),
        Err(Abstention::ClientPin) if !shared.config.routing.allow_client_pins => {
            return Err(Refusal::ClientPin);
        }
        Err(reason) => {
            abstain(shared, reason);
            None
        }
    };
    let slip = prepared
        .as_ref()
        .and_then(|prepared| open_receipt(shared, parts, prepared));
    let mut waited_s = None;
    let mut shadow = None;
    let booking = match &prepared {
        None => None,
        Some(prepared) if has_pin => {
            abstain(shared, Abstention::ClientPin);
            book_client_pin(shared, parts, prepared)
        }
        Some(prepared) => {
            shared.outcomes.arrived();
            shadow = shared
                .shadows
                .as_ref()
                .and_then(|shadows| shadows.arrived(prepared, (started, shared.clock), &shared.metrics));
            let hints = shared.config.routing.queue_hints;
            let standing = Standing::from_headers(&parts.headers, &shared.tenants, hints);
            match decide_late(shared, prepared, standing, bytes.len()).await {
                Ok((mut booking, waited)) => {
                    waited_s = waited;
                    if let Some(slip) = &slip {
                        slip.placed(&mut booking);
                    }
                    Some(booking)
                }
                Err(Undecided::Abstain(reason)) => {
                    abstain(shared, reason);
                    if let Some(slip) = &slip {
                        slip.abstained(reason.name());
                    }
                    None
                }
                Err(Undecided::Refuse(refusal)) => {
                    shared.outcomes.refused();
                    if let Some(slip) = &slip {
                        slip.ended(Ending::refused(refusal.status().as_u16()));
                    }
                    return Err(refusal);
                }
            }
        }
    };
    shared
        .metrics
        .stages
        .total
        .observe(started.elapsed().as_secs_f64() - waited_s.unwrap_or(0.0));
    let pieces: &[Bytes] = match prepared.as_ref().and_then(|prepared| prepared.spliced.as_ref()) {
        Some(spliced) => {
            shared.metrics.handovers.inc();
            spliced
        }
        None => std::slice::from_ref(&bytes),
    };
    let outbound = Outbound {
        parts,
        pieces,
        prepared: prepared.as_ref(),
        is_pinned: !has_pin,
        slip: slip.as_deref(),
    };
    let forwarded = outbound.forward(thread, booking).await;
    if let (Some(slip), Err(refusal)) = (&slip, &forwarded) {
        slip.ended(Ending::refused(refusal.status().as_u16()));
    }
    if let (Err(_), Some(shadow)) = (&forwarded, &shadow) {
        shadow.failed();
    }
    let (reply, booking) = forwarded?;
    let explain = shared
        .config
        .routing
        .explain_headers
        .then(|| explain(booking.as_ref()))
        .flatten();
    let mut response = match reply {
        // Without workers Dynamo closes its routes and answers a bare 404, which tells a client the wrong thing.
        Reply::Stream(status, ..) if status == StatusCode::NOT_FOUND && routable(shared) == 0 => {
            return Err(Refusal::NoWorker);
        }
        Reply::Stream(status, headers, body) => {
            let watch = prepared.map(|prepared| Watch {
                status: status.as_u16(),
                slip,
                ..watch(shared, &prepared, booking, started, shadow)
            });
            relay(thread, status, headers, body, place, watch)
        }
        Reply::Read(response) => {
            if let Some(shadow) = shadow {
                shadow.failed();
            }
            if let Some(slip) = &slip {
                slip.ended(Ending::error(response.status().as_u16(), started.elapsed()));
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
    if let Some((worker, overlap)) = explain {
        response.headers_mut().insert(EXPLAIN_WORKER, worker);
        response.headers_mut().insert(EXPLAIN_OVERLAP, overlap);
    }
    Ok(response)
}

/// A request with its body at hand, ready to be sent as often as it takes.
struct Outbound<'a> {
    parts: &'a Parts,
    pieces: &'a [Bytes],
    prepared: Option<&'a Prepared>,
    is_pinned: bool,
    slip: Option<&'a Slip>,
}

enum Reply {
    Stream(StatusCode, HeaderMap, RelayBody),
    Read(Response<GatewayBody>),
}

impl Outbound<'_> {
    /// Sends it with the pin. When the pin explains the failure: once more without it. When the worker goes silent before the first
    /// byte: once more to another one. In both cases nothing has gone to the client yet.
    async fn forward(
        &self,
        thread: &Arc<Thread>,
        mut booking: Option<Booking>,
    ) -> Result<(Reply, Option<Booking>), Refusal> {
        let shared = &thread.shared;
        let length = self.pieces.iter().map(Bytes::len).sum();
        let mut base = BytesMut::with_capacity(1024);
        write_head(
            &mut base,
            &self.parts.method,
            &self.parts.uri,
            &self.parts.headers,
            Some(length),
        );
        let mut blamed: Option<Booking> = None;
        let mut was_silent = false;
        loop {
            let mut head = base.clone();
            let pinned = booking.as_ref().filter(|_| self.is_pinned);
            if let Some(pinned) = pinned {
                write_pins(&mut head, pinned);
            }
            match self.attempt(thread, &head, booking.as_ref()).await {
                Ok(tried) if pinned.is_some() && tried.fault == Fault::Worker => {
                    shared.metrics.retries.with_label_values(&["pin_failed"]).inc();
                    if let Some(failed) = booking.take() {
                        failed.fail();
                        blamed = Some(failed);
                    }
                }
                Ok(tried) => {
                    // The same without the pin: the request is the cause, not the worker.
                    if let Some(blamed) = blamed.filter(|_| tried.fault != Fault::None) {
                        blamed.absolve();
                    }
                    return Ok((tried.reply, booking));
                }
                Err(Failed::WorkerSilent) if !was_silent => {
                    was_silent = true;
                    shared.metrics.retries.with_label_values(&["worker_silent"]).inc();
                    drop(booking.take());
                    booking = self.prepared.and_then(|prepared| decide(shared, prepared).ok());
                    if let (Some(slip), Some(booking)) = (self.slip, &mut booking) {
                        slip.placed(booking);
                    }
                }
                Err(Failed::WorkerSilent) => return Err(Refusal::UpstreamBroken),
                Err(Failed::Refused(refusal)) => return Err(refusal),
            }
        }
    }

    /// One exchange, up to where it is known whether the worker failed: the body of an error, or the first event of a stream,
    /// because Dynamo opens a stream before its worker has answered.
    async fn attempt(
        &self,
        thread: &Arc<Thread>,
        head: &BytesMut,
        booking: Option<&Booking>,
    ) -> Result<Tried, Failed> {
        let (connection, answer) = exchange(thread, &self.parts.method, head, self.pieces, booking).await?;
        let (status, headers, mut body) = RelayBody::new(connection, answer, thread.connections.clone());
        if status.is_server_error() || status == StatusCode::BAD_REQUEST {
            let (response, bytes) = read_error(thread, status, headers, body)
                .await
                .map_err(Failed::Refused)?;
            let unknown = memchr::memmem::find(&bytes, UNKNOWN_PIN).is_some();
            let fault = if status.is_server_error() || unknown {
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
        if is_event_stream(&headers)
            && let Some(piece) = first_piece(thread, &mut body, booking).await?
        {
            if ERROR_EVENTS.iter().any(|start| piece.starts_with(start)) {
                fault = Fault::Worker;
            }
            body.hold(piece);
        }
        Ok(Tried {
            reply: Reply::Stream(status, headers, body),
            fault,
        })
    }
}

/// An answer, and whose fault it is when it is an error.
struct Tried {
    reply: Reply,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The request is wrong wherever it goes.
    Request,
    /// A dead or unknown worker can be the cause.
    Worker,
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

/// Long bodies are prepared off the serving threads, so that they hold up nobody else.
async fn prepare_prompt(
    thread: &Arc<Thread>,
    parts: &Parts,
    endpoint: Endpoint,
    bytes: &Bytes,
) -> Result<Prepared, Abstention> {
    let shared = &thread.shared;
    let options = &shared.config.prompt;
    let tenant = Tenants::name(&parts.headers);
    let prepared = if is_heavy(bytes, options) {
        if shared.heavy.fetch_add(1, Ordering::Relaxed) >= HEAVY_LIMIT {
            shared.heavy.fetch_sub(1, Ordering::Relaxed);
            return Err(Abstention::TokeniseTimeout);
        }
        let (shared, bytes, tenant) = (shared.clone(), bytes.clone(), tenant.map(str::to_owned));
        let work = tokio::task::spawn_blocking(move || {
            let prepared = prepare(
                endpoint,
                &bytes,
                tenant.as_deref(),
                &shared.registry,
                &shared.config.prompt,
            );
            shared.heavy.fetch_sub(1, Ordering::Relaxed);
            prepared
        });
        match tokio::time::timeout(Duration::from_millis(options.tokenise_timeout_ms), work).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(_)) => Err(Abstention::TokeniserError),
            Err(_) => Err(Abstention::TokeniseTimeout),
        }
    } else {
        prepare(endpoint, bytes, tenant, &shared.registry, options)
    }?;
    let seconds = |ns: u64| ns as f64 / 1e9;
    let stages = &shared.metrics.stages;
    stages.tokenise.observe(seconds(prepared.timing.tokenise_ns));
    stages.hash.observe(seconds(prepared.timing.hash_ns));
    let tokens = u64::from(prepared.input_tokens);
    shared
        .metrics
        .input_tokens
        .with_label_values(&[&prepared.model.spec.name])
        .inc_by(tokens);
    Ok(prepared)
}

fn abstain(shared: &Shared, reason: Abstention) {
    shared
        .metrics
        .abstentions
        .with_label_values(&[reason.name()])
        .inc();
}

fn open_receipt(shared: &Shared, parts: &Parts, prepared: &Prepared) -> Option<Arc<Slip>> {
    if !shared.receipts.is_on() {
        return None;
    }
    let request_id = parts.headers.get(REQUEST_ID)?.to_str().ok()?;
    let routing = || shared.routing.lock().clone();
    shared.receipts.open(request_id, prepared, routing)
}

fn watch(
    shared: &Shared,
    prepared: &Prepared,
    booking: Option<Booking>,
    started: Instant,
    shadow: Option<Ticket>,
) -> Watch {
    let model = prepared.model.spec.name.as_str();
    let predicted = booking
        .as_ref()
        .and_then(|booking| booking.legs().next())
        .map_or(0, |leg| leg.overlap_blocks);
    Watch {
        booking,
        shadow,
        started,
        clocks: StreamClocks {
            ttft: shared.metrics.ttft.with_label_values(&[model]),
            itl: shared.metrics.itl.with_label_values(&[model]),
        },
        is_streamed: prepared.is_streamed,
        predicted_tokens: u64::from(predicted) * u64::from(prepared.model.spec.block_size),
        input_tokens: u64::from(prepared.input_tokens),
        status: 0,
        slip: None,
    }
}

fn explain(booking: Option<&Booking>) -> Option<(HeaderValue, HeaderValue)> {
    let leg = booking?.legs().next()?;
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
    watch: Option<Watch>,
) -> Response<GatewayBody> {
    let is_events = is_event_stream(&headers);
    let body = GatewayBody::relay(body, thread.shared.clone(), place, watch, is_events);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
