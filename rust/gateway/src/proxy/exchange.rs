//! One request to an upstream and the head of its answer.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::Method;
use hyper::body::Incoming;

use wardrop_service::Booking;

use super::shared::Thread;
use crate::error::Refusal;
use crate::upstream::{Connection, RelayBody, ResponseHead, SendError};

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

/// Sends a request whose body is in memory. When the upstream had closed the idle connection, a new one is tried once.
pub async fn exchange(
    thread: &Thread,
    method: &Method,
    head: &BytesMut,
    body: &[Bytes],
    booking: Option<&Booking>,
) -> Result<(Connection, ResponseHead), Failed> {
    let mut fresh = false;
    loop {
        let connection = thread.connections.checkout(fresh).await;
        let mut connection = connection.ok_or(Failed::Refused(Refusal::UpstreamDown))?;
        let sent = connection.send(&mut head.clone(), body).await;
        let answer = match sent {
            // An upstream may answer and close before it has read the whole body: its answer counts.
            Ok(()) | Err(SendError::Upstream(_)) => {
                await_head(thread, &mut connection, method, booking).await
            }
            Err(_) => return Err(Failed::Refused(Refusal::BodyBroken)),
        };
        match answer {
            Ok(answer) => return Ok((connection, answer)),
            Err(Waited::Broken) if connection.was_reused() && !fresh => fresh = true,
            Err(Waited::Broken) => return Err(Failed::Refused(Refusal::UpstreamBroken)),
            Err(Waited::TooLong(limit_ms)) => {
                return Err(Failed::Refused(Refusal::FirstByteTimeout { limit_ms }));
            }
            Err(Waited::WorkerSilent) => return Err(Failed::WorkerSilent),
        }
    }
}

/// Sends a request whose body is relayed as it arrives. A second attempt is impossible: the body is gone.
pub async fn exchange_streamed(
    thread: &Thread,
    method: &Method,
    mut head: BytesMut,
    body: Incoming,
) -> Result<(Connection, ResponseHead), Refusal> {
    let mut connection = thread
        .connections
        .checkout(true)
        .await
        .ok_or(Refusal::UpstreamDown)?;
    let limit_bytes = thread.shared.config.limits.body_bytes;
    match connection.send_streamed(&mut head, body, limit_bytes).await {
        Ok(()) | Err(SendError::Upstream(_)) => {}
        Err(SendError::TooLarge) => return Err(Refusal::BodyTooLarge { limit_bytes }),
        Err(SendError::Client) => return Err(Refusal::BodyBroken),
    }
    match await_head(thread, &mut connection, method, None).await {
        Ok(answer) => Ok((connection, answer)),
        Err(Waited::TooLong(limit_ms)) => Err(Refusal::FirstByteTimeout { limit_ms }),
        Err(_) => Err(Refusal::UpstreamBroken),
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
        Ok(Some(Err(_))) | Err(Waited::Broken) => Err(Failed::Refused(Refusal::UpstreamBroken)),
        Err(Waited::TooLong(limit_ms)) => Err(Failed::Refused(Refusal::FirstByteTimeout { limit_ms })),
        Err(Waited::WorkerSilent) => Err(Failed::WorkerSilent),
    }
}

enum Waited {
    Broken,
    TooLong(u64),
    WorkerSilent,
}

async fn await_head(
    thread: &Thread,
    connection: &mut Connection,
    method: &Method,
    booking: Option<&Booking>,
) -> Result<ResponseHead, Waited> {
    watched(thread, connection.read_head(method), booking)
        .await?
        .map_err(|error| {
            tracing::debug!(%error, "no answer from the upstream");
            Waited::Broken
        })
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
