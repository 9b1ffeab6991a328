//! What callers of the selection service may send at one time: bytes of all bodies together, and the time for one body.
//!
//! A layer around the routes of both protocols. It charges each piece of a body as it arrives, and gives the bytes back with the
//! answer. Each call has a limit of its own in `http` and `server`. Cost: one atomic addition per piece.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio_stream::StreamExt;
use tonic::Status;
use wardrop_service::admission::{BodiesFull, BodyBudget};

use super::http::error;

/// Protocol of a refusal.
#[derive(Clone, Copy)]
pub(crate) enum Protocol {
    /// A status with a JSON body.
    Http,
    /// A status in the headers of a gRPC answer.
    Grpc,
}

/// Limits on the bodies of all calls, shared by both protocols.
#[derive(Clone)]
pub(crate) struct BodyLimits {
    /// Bytes of all bodies in memory.
    pub budget: Arc<BodyBudget>,
    /// Longest time for the bytes of one HTTP call. A call over gRPC has none: its connection is watched by pings.
    pub read_timeout: Duration,
    /// Calls that were refused because of their body.
    pub refused: IntCounter,
}

/// Serves a call within the limits, and refuses it beyond them.
pub(crate) async fn limit_bodies(
    State((limits, protocol)): State<(BodyLimits, Protocol)>,
    request: Request,
    next: Next,
) -> Response {
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    let Ok(permit) = limits.budget.admit(announced.unwrap_or(0)) else {
        return limits.refuse_full(protocol);
    };
    // The permit lives here until the answer: the decoded call is as large as its body.
    let permit = Arc::new(Mutex::new(permit));
    let is_full = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| {
        let (permit, is_full) = (permit.clone(), is_full.clone());
        let pieces = body.into_data_stream().map(move |piece| {
            let piece = piece?;
            permit.lock().grow(piece.len()).map_err(|BodiesFull { .. }| {
                is_full.store(true, Ordering::Relaxed);
                axum::Error::new("the bodies of all calls together are at their limit")
            })?;
            Ok::<_, axum::Error>(piece)
        });
        Body::from_stream(pieces)
    });
    let answered = match protocol {
        Protocol::Http => tokio::time::timeout(limits.read_timeout, next.run(request)).await,
        Protocol::Grpc => Ok(next.run(request).await),
    };
    match answered {
        // The routes saw a body that broke off, which says nothing to the caller.
        Ok(_) if is_full.load(Ordering::Relaxed) => limits.refuse_full(protocol),
        Ok(answer) => answer,
        Err(_) => {
            limits.refused.inc();
            let limit_ms = limits.read_timeout.as_millis();
            error(
                StatusCode::REQUEST_TIMEOUT,
                &format!("The call did not arrive within {limit_ms} ms. Send the whole body at once."),
            )
        }
    }
}

impl BodyLimits {
    /// The refusal of a call whose body does not fit beside the others.
    fn refuse_full(&self, protocol: Protocol) -> Response {
        self.refused.inc();
        let text = format!(
            "The bodies of all calls together reach {} bytes, the limit. Try again shortly, or send shorter prompts.",
            self.budget.limit_bytes()
        );
        match protocol {
            Protocol::Http => error(StatusCode::SERVICE_UNAVAILABLE, &text),
            Protocol::Grpc => Status::resource_exhausted(text)
                .into_http::<Body>()
                .into_response(),
        }
    }
}
