//! One attempt of a request at an upstream, up to the head of the answer.
//!
//! [`super::forward`] decides about further attempts. An attempt holds the whole body or none of
//! it; only a body in memory can be sent again. A wait looks at the worker and the upstream five
//! times a second.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Method, StatusCode};

use wardrop_service::{Booking, Role, first_event_fails as event_fails};

use super::shared::Thread;
use crate::error::Refusal;
use crate::upstream::{BodyLimits, Connection, ExchangeError, Outgoing, RelayBody, ResponseHead, SendError};

/// Interval between two checks of the workers while a request has no answer.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Largest start of a stream that is held until its first event is whole, in bytes.
const FIRST_EVENT_BYTES: usize = 1 << 20;

/// Reason why a request got no answer from an upstream.
///
/// Each variant names the part at fault, since the second attempt changes exactly that part.
#[derive(Debug)]
pub enum Failed {
    /// A second attempt would fail in the same way.
    Refused(Refusal),
    /// The pinned worker went silent before the first byte.
    WorkerSilent,
    /// The upstream gives no answers, while another upstream does.
    UpstreamSilent,
    /// The worker that is the upstream of the request accepts no connection.
    WorkerDown,
    /// The worker that is the upstream of the request closed the connection before the first byte.
    WorkerBroken,
    /// The upstream broke off before the first byte of its answer's body, or before the first event of its stream.
    UpstreamBroke,
}

impl From<Failed> for Refusal {
    /// The answer to a client whose request gets no second attempt.
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(refusal) => refusal,
            Failed::WorkerSilent
            | Failed::UpstreamSilent
            | Failed::UpstreamBroke
            | Failed::WorkerDown
            | Failed::WorkerBroken => Self::UpstreamBroken,
        }
    }
}

/// The upstream of an attempt, and the workers whose silence ends it.
#[derive(Clone, Copy, Default)]
pub struct Target<'a> {
    /// Instance of the worker that is the upstream; `None` for the next upstream in turn.
    instance: Option<u64>,
    /// Workers of the request; `None` without a placement.
    booking: Option<&'a Booking>,
    /// Role of the leg whose worker counts; `None` for all legs.
    role: Option<Role>,
}

impl<'a> Target<'a> {
    /// The upstream of a placed request. Where the workers are the upstreams, that is the worker of the last leg, which answers.
    pub fn of(thread: &Thread, booking: Option<&'a Booking>) -> Self {
        let placed = booking.filter(|_| thread.shared.upstreams.are_workers());
        Self {
            instance: placed.and_then(|booking| Some(booking.legs().last()?.worker.instance)),
            booking,
            role: None,
        }
    }

    /// The worker of one leg of a split.
    pub fn leg(booking: Option<&'a Booking>, role: Role) -> Self {
        Self {
            instance: booking.and_then(|booking| Some(booking.leg(role)?.worker.instance)),
            booking,
            role: Some(role),
        }
    }

    /// A worker whose silence the caller watches, see [`Target::went_silent`].
    pub fn worker(instance: u64) -> Self {
        Self {
            instance: Some(instance),
            ..Self::default()
        }
    }

    /// Whether there is a booking on the upstream.
    pub fn has_booking(&self) -> bool {
        self.booking.is_some()
    }

    /// Whether a worker that counts went silent.
    fn is_silent(&self) -> bool {
        self.booking.is_some_and(|booking| {
            booking
                .legs_of(self.role)
                .any(|leg| leg.pool.is_silent(leg.worker))
        })
    }

    /// Waits until a worker that counts goes silent.
    pub async fn went_silent(self) {
        while !self.is_silent() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// An upstream's answer up to the end of its head.
pub struct Begun {
    /// Connection on which the body follows.
    pub connection: Connection,
    /// Status and fields.
    pub head: ResponseHead,
    /// The rest of the request, when the upstream answered before it had read everything.
    pub outgoing: Option<Outgoing>,
}

impl Begun {
    /// The answer with its body.
    pub fn into_body(self, thread: &Thread) -> (StatusCode, HeaderMap, RelayBody) {
        RelayBody::new(
            self.connection,
            self.head,
            self.outgoing,
            thread.connections.clone(),
        )
    }
}

/// Sends a request whose body is in memory.
///
/// An upstream may close an idle connection while a request is on its way. Nothing tells this apart from an upstream that fails at
/// the request, so the request goes out once more, on a new connection. A request of another API that may not run twice gets a new
/// connection at once: its method is not idempotent (RFC 9110 §9.2.2) and it has no body, which a prompt has.
///
/// A connection that was reused and gave no byte is replaced once without counting as an attempt.
///
/// # Errors
/// [`Failed`] says whose fault it is, and so which second attempt can help.
pub async fn exchange(
    thread: &Thread,
    method: &Method,
    head: &BytesMut,
    body: &[Bytes],
    target: Target<'_>,
) -> Result<Begun, Failed> {
    let mut fresh = body.is_empty() && !method.is_idempotent();
    loop {
        let mut connection = if let Some(instance) = target.instance {
            let connection = thread.connections.checkout_worker(instance, fresh).await;
            connection.ok_or(Failed::WorkerDown)?
        } else {
            let connection = thread.connections.checkout(fresh).await;
            connection.ok_or(Failed::Refused(Refusal::UpstreamDown))?
        };
        let upstream = connection.upstream();
        let mut outgoing = Some(Outgoing::held(head.clone(), body));
        let exchange = connection.exchange(&mut outgoing, method);
        let waiting = Waiting::new(thread, target, Some(upstream));
        match waiting.on(exchange).await {
            Ok(Ok(head)) => {
                return Ok(Begun {
                    connection,
                    head,
                    outgoing,
                });
            }
            // A request with a prompt may go out again here, because no byte of an answer came and
            // so no client has any of it.
            Ok(Err(error)) if connection.was_reused() && !connection.has_answered() && !fresh => {
                tracing::debug!(%error, "an idle connection of the upstream is gone");
                fresh = true;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no answer from the upstream");
                return Err(match target.instance {
                    Some(_) => Failed::WorkerBroken,
                    None => Failed::UpstreamBroke,
                });
            }
            Err(waited) => return Err(waited.into()),
        }
    }
}

/// Sends a request whose body is relayed as it arrives. A second attempt is impossible, because the gateway does not keep the body.
///
///
/// # Errors
/// The refusal for the client: a body too large or too late, or an upstream without an answer.
pub async fn exchange_streamed(
    thread: &Thread,
    method: &Method,
    head: BytesMut,
    body: Incoming,
) -> Result<Begun, Refusal> {
    let mut connection = thread
        .connections
        .checkout(true)
        .await
        .ok_or(Refusal::UpstreamDown)?;
    let limits = &thread.shared.config.limits;
    let (limit_bytes, limit_ms) = (limits.body_bytes, limits.read_timeout_ms);
    let body_limits = BodyLimits {
        bytes: limit_bytes,
        wait: Duration::from_millis(limit_ms),
    };
    let mut outgoing = Some(Outgoing::streamed(head, body, body_limits));
    let exchange = connection.exchange(&mut outgoing, method);
    match Waiting::new(thread, Target::default(), None).on(exchange).await {
        Ok(Ok(head)) => Ok(Begun {
            connection,
            head,
            outgoing,
        }),
        Ok(Err(ExchangeError::Client(SendError::TooLarge))) => Err(Refusal::BodyTooLarge { limit_bytes }),
        Ok(Err(ExchangeError::Client(SendError::ClientTimeout))) => Err(Refusal::ReadTimeout { limit_ms }),
        Ok(Err(ExchangeError::Client(_))) => Err(Refusal::BodyBroken),
        Ok(Err(ExchangeError::Upstream(error))) => {
            tracing::debug!(%error, "no answer from the upstream");
            Err(Refusal::UpstreamBroken)
        }
        Err(Waited::TooLong(limit_ms)) => Err(Refusal::FirstByteTimeout { limit_ms }),
        Err(Waited::WorkerSilent | Waited::UpstreamSilent) => Err(Refusal::UpstreamBroken),
    }
}

/// Reads a stream up to its first whole event with data, before any byte goes to the client. Returns whether this event is an
/// error. The body keeps the bytes that were read.
///
/// Comments and blank lines are stepped over: an upstream may send them while no worker has answered.
///
/// Bytes that were read are held and go out first, so the client gets the stream unchanged. Beyond
/// [`FIRST_EVENT_BYTES`] the stream counts as good.
///
/// # Errors
/// The stream broke, or its worker or upstream went silent, before its first event.
pub async fn first_event_fails(
    thread: &Thread,
    body: &mut RelayBody,
    target: Target<'_>,
) -> Result<bool, Failed> {
    let mut held = BytesMut::new();
    let waiting = Waiting::new(thread, target, body.upstream());
    loop {
        let next = std::future::poll_fn(|cx| body.poll_piece(cx));
        let fails = match waiting.on(next).await {
            // The end of the body ends its last event.
            Ok(None) => Some(event_fails(&[&held[..], b"\n\n"].concat()).unwrap_or(false)),
            Ok(Some(Ok(frame))) => {
                held.extend_from_slice(&frame.into_data().unwrap_or_default());
                event_fails(&held).or((held.len() > FIRST_EVENT_BYTES).then_some(false))
            }
            Ok(Some(Err(_))) => return Err(Failed::UpstreamBroke),
            Err(waited) => return Err(waited.into()),
        };
        if let Some(fails) = fails {
            if !held.is_empty() {
                body.hold(Frame::data(held.freeze()));
            }
            return Ok(fails);
        }
    }
}

/// Reads the first piece of an answer that is no stream of events, before any byte goes to the client. The body keeps the piece.
///
/// hyper writes the head of an answer together with its first piece. Without this wait a client would see its connection close
/// without a byte when an upstream breaks off between the two.
///
///
/// # Errors
/// The answer broke, or its worker or upstream went silent, before its first byte.
pub async fn first_piece(thread: &Thread, body: &mut RelayBody, target: Target<'_>) -> Result<(), Failed> {
    let waiting = Waiting::new(thread, target, body.upstream());
    let next = std::future::poll_fn(|cx| body.poll_piece(cx));
    match waiting.on(next).await {
        Ok(None) => Ok(()),
        Ok(Some(Ok(piece))) => {
            body.hold(piece);
            Ok(())
        }
        Ok(Some(Err(error))) => {
            tracing::debug!(%error, "an answer has a head and no body");
            Err(Failed::UpstreamBroke)
        }
        Err(waited) => Err(waited.into()),
    }
}

/// Why a wait ended without its work.
enum Waited {
    /// No first byte within the limit, in milliseconds.
    TooLong(u64),
    /// A booked worker sends no heartbeats any more.
    WorkerSilent,
    /// The upstream does not answer, and another one does.
    UpstreamSilent,
}

impl From<Waited> for Failed {
    fn from(waited: Waited) -> Self {
        match waited {
            Waited::TooLong(limit_ms) => Self::Refused(Refusal::FirstByteTimeout { limit_ms }),
            Waited::WorkerSilent => Self::WorkerSilent,
            Waited::UpstreamSilent => Self::UpstreamSilent,
        }
    }
}

/// A wait for the first token of one attempt, with the parts whose silence ends it.
///
/// A stopped process keeps its connections open and accepts new ones, so silence is judged by other
/// signs: heartbeats and probes.
struct Waiting<'a> {
    /// Serving thread with limits and upstreams.
    thread: &'a Thread,
    /// Workers whose silence ends the wait.
    target: Target<'a>,
    /// Id of the upstream that has to answer.
    upstream: Option<u64>,
    /// Begin of the wait.
    started: Instant,
}

impl<'a> Waiting<'a> {
    /// A wait that begins now.
    fn new(thread: &'a Thread, target: Target<'a>, upstream: Option<u64>) -> Self {
        Self {
            thread,
            target,
            upstream,
            started: Instant::now(),
        }
    }

    /// Waits for `work`, and checks at an interval whether the upstream and the booked workers are still alive.
    async fn on<T>(&self, work: impl Future<Output = T>) -> Result<T, Waited> {
        let shared = &self.thread.shared;
        let limit_ms = shared.config.upstream.first_byte_timeout_ms;
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK_EVERY, work.as_mut()).await {
                return Ok(done);
            }
            if self.started.elapsed() >= Duration::from_millis(limit_ms) {
                return Err(Waited::TooLong(limit_ms));
            }
            if self.target.is_silent() {
                return Err(Waited::WorkerSilent);
            }
            if self
                .upstream
                .is_some_and(|id| shared.upstreams.has_better_than(id))
            {
                return Err(Waited::UpstreamSilent);
            }
        }
    }
}
