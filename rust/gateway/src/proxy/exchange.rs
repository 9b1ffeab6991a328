//! One request to an upstream and the head of its answer.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::Method;
use hyper::body::Incoming;

use wardrop_service::Booking;

use super::shared::Thread;
use crate::error::Refusal;
use crate::upstream::{Connection, RelayBody, ResponseHead, SendError};

/// How often a request without an answer looks at its workers.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// Nothing that another attempt would change.
    Refused(Refusal),
    /// The worker that was pinned went silent before the first byte.
    WorkerSilent,
}

/// Sends a request whose body is at hand. A connection that the upstream closed while it idled is replaced once.
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
            // An upstream may answer and close without reading everything: its answer counts.
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

/// Sends a request whose body is relayed as it comes; there is no second attempt.
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

/// The first piece of a body, before anything of it goes to the client; `None` when the body is empty.
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

/// Waits for the first byte, and looks now and then whether the workers that should send it are alive.
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
