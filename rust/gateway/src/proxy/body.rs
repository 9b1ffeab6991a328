//! The body of an answer on its way to the client, with the measurements taken from it: first token, gaps, usage, end.
//!
//! Cost: O(bytes) for the reading, without a copy; one timer per silent stream. The body is the
//! last owner of its request: dropping it ends booking, permit, trace and measurement.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use wardrop_service::admission::RequestPermit;
use wardrop_service::{Answer, AnswerReading, Booking, RequestTrace};

use super::client_state::RequestGuard;
use super::shared::Shared;
use crate::error::Refusal;
use crate::upstream::{RelayBody, WireError};

/// Interval between two checks of a silent stream.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Body of an answer: bytes of the gateway, or a body that is relayed from an upstream.
pub struct GatewayBody {
    /// Where the bytes come from.
    inner: Inner,
    /// Marks the connection as serving the request, until the body is dropped.
    guard: Option<RequestGuard>,
    /// The server span of the request ends when the body is dropped.
    _trace: Option<Arc<RequestTrace>>,
}

/// Source of a body's bytes.
enum Inner {
    /// Bytes in memory, until they are taken.
    Own(Option<Bytes>),
    /// An upstream's body, boxed because it is much larger.
    Relay(Box<Relay>),
}

/// An upstream's body on its way through the gateway.
///
/// An answer counts as begun with its first whole event, so bytes of a comment are no sign of a
/// live worker (`docs/adr/0019-answers-judged-by-what-they-are.md`).
struct Relay {
    /// The upstream's body.
    body: RelayBody,
    /// Metrics, limits and upstreams.
    shared: Arc<Shared>,
    /// Permit of the request, held to the last byte.
    _place: RequestPermit,
    /// The service's view of the answer; `None` for a request without a prompt, and after the end
    /// was reported.
    answer: Option<Answer>,
    /// Reader of progress and usage.
    reading: AnswerReading,
    /// Time of the last event with data, or of the last byte of an answer that is no stream of events.
    last: Instant,
    /// Timer of the next check of a silent stream; `None` while bytes flow.
    look: Option<Pin<Box<Sleep>>>,
    /// The answer is a stream of server-sent events.
    is_events: bool,
    /// Whether the answer reported its end. Bytes may follow, and the client may leave.
    is_complete: bool,
    /// The last frame was given out, or the answer was cut.
    ended: bool,
    /// The error that cuts the answer, once hyper has written the bytes before it.
    cut: Option<WireError>,
}

impl GatewayBody {
    /// A body of bytes that the gateway holds.
    pub fn own(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Own(Some(bytes)),
            guard: None,
            _trace: None,
        }
    }

    /// A body that is relayed piece by piece.
    pub(super) fn relay(
        body: RelayBody,
        shared: Arc<Shared>,
        place: RequestPermit,
        answer: Option<Answer>,
        is_events: bool,
    ) -> Self {
        let relay = Relay {
            body,
            shared,
            _place: place,
            answer,
            reading: AnswerReading::new(is_events),
            last: Instant::now(),
            look: None,
            is_events,
            is_complete: false,
            ended: false,
            cut: None,
        };
        Self {
            inner: Inner::Relay(Box::new(relay)),
            guard: None,
            _trace: None,
        }
    }

    /// The same body; it keeps the connection marked as serving a request, and waits while the client does not read.
    pub fn guarded(self, guard: RequestGuard) -> Self {
        Self {
            guard: Some(guard),
            ..self
        }
    }

    /// The same body, which keeps the trace of its request open.
    pub fn traced(self, trace: Option<Arc<RequestTrace>>) -> Self {
        Self {
            _trace: trace,
            ..self
        }
    }
}

impl Relay {
    /// Polls the body and catches a panic, which then costs this answer only.
    fn poll_caught(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.poll(cx)));
        polled.unwrap_or_else(|_| {
            self.shared.metrics.panics.with_label_values(&["answer"]).inc();
            self.end_early(Refusal::Internal, WireError::Malformed("state of an answer"), cx)
        })
    }

    /// Restarts the measurement of silence: the client takes no bytes, so the silence is not the upstream's.
    fn client_waits(&mut self) {
        self.last = Instant::now();
        self.look = None;
    }

    /// One piece of the upstream's body, the end, or the wait for either.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if self.ended {
            return Poll::Ready(self.cut.take().map(Err));
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
                self.count_broken("upstream_broken");
                self.end_early(Refusal::AnswerBroken, error, cx)
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    /// Records what a piece shows. Comments and blank lines of a stream do not show that its worker lives.
    fn note(&mut self, data: &Bytes) {
        let progress = self.reading.feed(data);
        if !progress.has_data {
            return;
        }
        let now = Instant::now();
        self.last = now;
        if let Some(answer) = self.answer.as_mut().filter(|_| progress.has_token) {
            answer.piece(now);
        }
        if progress.has_failed {
            self.count_broken("upstream_error");
            self.end_incomplete(Answer::broken);
        }
        if progress.is_complete {
            self.is_complete = true;
            self.finish_answer();
        }
    }

    /// Counts an answer that ended early, by its cause.
    fn count_broken(&self, code: &str) {
        let broken = &self.shared.metrics.broken_streams;
        broken.with_label_values(&[code]).inc();
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
            // Two limits apply: one for the silence of any stream, and a shorter one for a stream
            // whose worker sends no heartbeats either.
            let stalled = silence >= Duration::from_millis(limit_ms);
            if stalled || self.is_worker_gone(silence) {
                self.count_broken("stream_stalled");
                let refusal = Refusal::StreamStalled {
                    limit_ms: silence.as_millis() as u64,
                };
                return self.end_early(refusal, WireError::Io(std::io::ErrorKind::TimedOut.into()), cx);
            }
        }
    }

    /// Whether the worker that has to send the next token, or its frontend, went silent. A prefill worker has done its part by the first token.
    ///
    /// It asks nothing before the worker has been silent for `feed.silence_ms`, so that a slow step
    /// of an engine is no fault.
    fn is_worker_gone(&self, silence: Duration) -> bool {
        if silence < Duration::from_millis(self.shared.config.service.feed.silence_ms) {
            return false;
        }
        let booking = self.answer.as_ref().and_then(Answer::booking);
        let upstream = self.body.upstream();
        booking.is_some_and(Booking::is_decoder_silent)
            // A silent frontend ends the answer only while another one answers: a pause of the only
            // frontend may end by itself.
            || upstream.is_some_and(|id| self.shared.upstreams.has_better_than(id))
    }

    /// Ends an event stream with an error event. Any other body is cut, so that the client sees that it is incomplete.
    ///
    /// hyper drops what it has not written yet when a body fails. The cut therefore comes one poll later: a client that could have had
    /// bytes of the answer gets them. It does not take the cut for a connection that closed before any answer.
    fn end_early(
        &mut self,
        refusal: Refusal,
        error: WireError,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        self.ended = true;
        self.end_incomplete(Answer::broken);
        // An event stream has a place for an error; any other body can only be cut.
        if self.is_events {
            return Poll::Ready(Some(Ok(Frame::data(refusal.sse_event()))));
        }
        self.cut = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends a body whose last byte came.
    fn finish(&mut self) {
        self.ended = true;
        self.finish_answer();
    }

    /// Ends an answer that is not complete, with the tokens that it reached.
    fn end_incomplete(&mut self, end: fn(Answer)) {
        if let Some(mut answer) = self.answer.take() {
            answer.reached(self.reading.outcome().output_tokens);
            end(answer);
        }
    }

    /// Hands the outcome of a complete answer to the service, once.
    ///
    /// Usage that the engine reported wins over the tokens that the relay counted.
    fn finish_answer(&mut self) {
        let Some(answer) = self.answer.take() else {
            return;
        };
        answer.finished(self.reading.outcome());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // hyper drops a body of known length after its last byte, without polling for the end.
        if !self.ended && self.body.is_finished() {
            self.finish();
        } else if !self.ended && !self.is_complete {
            self.shared.metrics.disconnects.inc();
            self.end_incomplete(Answer::client_left);
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
            Inner::Relay(relay) => relay.cut.is_none() && (relay.ended || relay.body.is_finished()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Inner::Relay(relay) => relay.body.size_hint(),
        }
    }
}
