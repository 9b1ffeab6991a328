//! One request to an upstream and the head of its answer.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, StatusCode};

use wardrop_service::Booking;

use super::shared::Thread;
use crate::error::Refusal;
use crate::upstream::{BodyLimits, Connection, ExchangeError, Outgoing, RelayBody, ResponseHead, SendError};

/// Interval between two checks of the workers while a request has no answer.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a request got no answer from an upstream.
#[derive(Debug)]
pub enum Failed {
    /// A second attempt would fail in the same way.
    Refused(Refusal),
    /// The pinned worker went silent before the first byte.
    WorkerSilent,
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

/// Sends a request whose body is in memory. When the upstream had closed the idle connection, a new one is tried once.
pub async fn exchange(
    thread: &Thread,
    method: &Method,
    head: &BytesMut,
    body: &[Bytes],
    booking: Option<&Booking>,
) -> Result<Begun, Failed> {
    let mut fresh = false;
    loop {
        let connection = thread.connections.checkout(fresh).await;
        let mut connection = connection.ok_or(Failed::Refused(Refusal::UpstreamDown))?;
        let mut outgoing = Some(Outgoing::held(head.clone(), body));
        let exchange = connection.exchange(&mut outgoing, method);
        match watched(thread, exchange, booking).await {
            Ok(Ok(head)) => {
                return Ok(Begun {
                    connection,
                    head,
                    outgoing,
                });
            }
            Ok(Err(error)) if connection.was_reused() && !fresh => {
                tracing::debug!(%error, "an idle connection of the upstream is gone");
                fresh = true;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no answer from the upstream");
                return Err(Failed::Refused(Refusal::UpstreamBroken));
            }
            Err(waited) => return Err(waited.into()),
        }
    }
}

/// Sends a request whose body is relayed as it arrives. A second attempt is impossible: the body is gone.
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
    match watched(thread, exchange, None).await {
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
        Err(Waited::WorkerSilent) => Err(Refusal::UpstreamBroken),
    }
}

/// Reads the first piece of a body before any byte goes to the client; `None` when the body is empty.
pub async fn first_piece(
    thread: &Thread,
    body: &mut RelayBody,
    booking: Option<&Booking>,
) -> Result<Option<Bytes>, Failed> {
    let next = std::future::poll_fn(|cx| body.poll_piece(cx));
    match watched(thread, next, booking).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(frame))) => Ok(frame.into_data().ok()),
        Ok(Some(Err(_))) => Err(Failed::Refused(Refusal::UpstreamBroken)),
        Err(waited) => Err(waited.into()),
    }
}

enum Waited {
    TooLong(u64),
    WorkerSilent,
}

impl From<Waited> for Failed {
    fn from(waited: Waited) -> Self {
        match waited {
            Waited::TooLong(limit_ms) => Self::Refused(Refusal::FirstByteTimeout { limit_ms }),
            Waited::WorkerSilent => Self::WorkerSilent,
        }
    }
}

/// Waits for the first byte, and checks at an interval whether the booked workers are still alive.
async fn watched<T>(
    thread: &Thread,
    work: impl Future<Output = T>,
    booking: Option<&Booking>,
) -> Result<T, Waited> {
    let limit_ms = thread.shared.config.upstream.first_byte_timeout_ms;
    let started = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(LOOK_EVERY, work.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_) if started.elapsed() >= Duration::from_millis(limit_ms) => {
                return Err(Waited::TooLong(limit_ms));
            }
            Err(_) => {
                if booking.is_some_and(|b| b.legs().any(|leg| leg.pool.is_silent(leg.worker))) {
                    return Err(Waited::WorkerSilent);
                }
            }
        }
    }
}
