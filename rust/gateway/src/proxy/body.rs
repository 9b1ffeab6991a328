//! The body of an answer on its way to the client, with the measurements taken from it: first token, gaps, usage, end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use wardrop_service::{Answer, Usage};

use super::client_state::RequestGuard;
use super::shared::Shared;
use super::usage::UsageScan;
use crate::error::Refusal;
use crate::upstream::{RelayBody, WireError};

/// Interval between two checks of a silent stream.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A permit to be one of the requests in flight; dropping it frees the permit.
pub struct InFlight {
    shared: Arc<Shared>,
}

impl InFlight {
    /// Takes a permit, or refuses the request when all permits are taken.
    pub fn enter(shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let limit = shared.config.limits.concurrent_requests;
        if shared.in_flight.fetch_add(1, Ordering::Relaxed) >= limit {
            shared.in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Busy { limit });
        }
        Ok(Self {
            shared: shared.clone(),
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Body of an answer: bytes of the gateway, or a body that is relayed from an upstream.
pub struct GatewayBody {
    inner: Inner,
    /// The connection is serving the request until the body is dropped.
    guard: Option<RequestGuard>,
}

enum Inner {
    Own(Option<Bytes>),
    Relay(Box<Relay>),
}

struct Relay {
    body: RelayBody,
    shared: Arc<Shared>,
    _place: InFlight,
    answer: Option<Answer>,
    scan: UsageScan,
    last: Instant,
    look: Option<Pin<Box<Sleep>>>,
    is_events: bool,
    ended: bool,
}

impl GatewayBody {
    /// A body of bytes that the gateway holds.
    pub fn own(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Own(Some(bytes)),
            guard: None,
        }
    }

    /// A body that is relayed piece by piece.
    pub(super) fn relay(
        body: RelayBody,
        shared: Arc<Shared>,
        place: InFlight,
        answer: Option<Answer>,
        is_events: bool,
    ) -> Self {
        let relay = Relay {
            body,
            shared,
            _place: place,
            answer,
            scan: UsageScan::default(),
            last: Instant::now(),
            look: None,
            is_events,
            ended: false,
        };
        Self {
            inner: Inner::Relay(Box::new(relay)),
            guard: None,
        }
    }

    /// The same body; it keeps the connection marked as serving a request, and waits while the client does not read.
    pub fn guarded(self, guard: RequestGuard) -> Self {
        Self {
            guard: Some(guard),
            ..self
        }
    }
}

impl Relay {
    /// A panic costs this answer only.
    fn poll_caught(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.poll(cx)));
        polled.unwrap_or_else(|_| {
            self.shared.metrics.panics.with_label_values(&["answer"]).inc();
            self.end_early(Refusal::Internal, WireError::Malformed("state of an answer"))
        })
    }

    /// The client takes no bytes, so silence says nothing about the upstream.
    fn client_waits(&mut self) {
        self.last = Instant::now();
        self.look = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.body.poll_piece(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.note(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.shared
                    .metrics
                    .broken_streams
                    .with_label_values(&["upstream_broken"])
                    .inc();
                self.end_early(Refusal::UpstreamBroken, error)
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    /// Records the time of a piece and the usage that it reports.
    fn note(&mut self, data: &Bytes) {
        let now = Instant::now();
        if let Some(answer) = &mut self.answer {
            self.scan.feed(data);
            if self.is_events {
                self.scan.count_events(data);
            }
            answer.piece(now);
        }
        self.last = now;
    }

    /// Called when there is nothing to relay. Checks at an interval whether the silence is too long or the worker is silent.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        loop {
            let look = self
                .look
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_EVERY)));
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.look = None;
            let silence = self.last.elapsed();
            let limit_ms = self.shared.config.upstream.idle_timeout_ms;
            let stalled = silence >= Duration::from_millis(limit_ms);
            if stalled || self.is_worker_gone(silence) {
                self.shared
                    .metrics
                    .broken_streams
                    .with_label_values(&["stream_stalled"])
                    .inc();
                let refusal = Refusal::StreamStalled {
                    limit_ms: silence.as_millis() as u64,
                };
                return self.end_early(refusal, WireError::Io(std::io::ErrorKind::TimedOut.into()));
            }
        }
    }

    fn is_worker_gone(&self, silence: Duration) -> bool {
        if silence < Duration::from_millis(self.shared.config.feed.silence_ms) {
            return false;
        }
        let booking = self.answer.as_ref().and_then(Answer::booking);
        booking.is_some_and(|booking| booking.legs().any(|leg| leg.pool.is_silent(leg.worker)))
    }

    /// Ends an event stream with an error event. Any other body is cut, so that the client sees that it is incomplete.
    fn end_early(
        &mut self,
        refusal: Refusal,
        error: WireError,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        self.ended = true;
        if let Some(answer) = self.answer.take() {
            answer.broken();
        }
        if self.is_events {
            return Poll::Ready(Some(Ok(Frame::data(refusal.sse_event()))));
        }
        Poll::Ready(Some(Err(error)))
    }

    fn finish(&mut self) {
        self.ended = true;
        let Some(answer) = self.answer.take() else {
            return;
        };
        let found = self.scan.found();
        let output_tokens = found
            .and_then(|usage| u32::try_from(usage.output_tokens?).ok())
            .or_else(|| self.scan.tokens_seen());
        answer.finished(Usage {
            cached_tokens: found.map(|usage| usage.cached_tokens),
            prompt_tokens: found.and_then(|usage| usage.prompt_tokens),
            output_tokens,
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // hyper drops a body of known length after its last byte, without polling for the end.
        if !self.ended && self.body.is_finished() {
            self.finish();
        } else if !self.ended {
            self.shared.metrics.disconnects.inc();
            if let Some(answer) = self.answer.take() {
                answer.client_left();
            }
        }
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = WireError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        let this = &mut *self;
        match &mut this.inner {
            Inner::Own(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            // Without this wait hyper would queue up to 400 kB for each client that does not read.
            Inner::Relay(relay)
                if this
                    .guard
                    .as_ref()
                    .is_some_and(|guard| guard.client().must_wait(cx.waker())) =>
            {
                relay.client_waits();
                Poll::Pending
            }
            Inner::Relay(relay) => relay.poll_caught(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Inner::Relay(relay) => relay.ended || relay.body.is_finished(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Inner::Relay(relay) => relay.body.size_hint(),
        }
    }
}
