//! The body of an answer on its way to the client, and what is learned from it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use wardrop_core::ledger::Outcome;

use super::server::Shared;
use super::usage::{Usage, UsageScan};
use crate::error::Refusal;
use crate::fleet::Booking;
use crate::metrics::StreamClocks;
use crate::receipts::{Ending, Slip};
use crate::shadows::Ticket;
use crate::upstream::{RelayBody, WireError};

/// How often a silent stream is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A place among the requests in flight.
pub struct InFlight {
    shared: Arc<Shared>,
}

impl InFlight {
    /// Takes a place, if one is free.
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

/// What is watched while a placed request's answer passes.
pub struct Watch {
    /// The claim on the workers, until the end.
    pub booking: Option<Booking>,
    /// By which the shadows know it.
    pub shadow: Option<Ticket>,
    /// When the whole request was here.
    pub started: Instant,
    /// Where its times go.
    pub clocks: StreamClocks,
    /// The client asked for a stream.
    pub is_streamed: bool,
    /// Predicted cached tokens, on the first leg's worker.
    pub predicted_tokens: u64,
    /// Tokens that were counted here.
    pub input_tokens: u64,
    /// Status of the answer.
    pub status: u16,
    /// Its receipt, when receipts are kept.
    pub slip: Option<Arc<Slip>>,
}

impl Watch {
    /// The end of an answer, as far as it came.
    fn ending(&self, how: &'static str, first: Option<Instant>) -> Ending {
        Ending {
            how,
            status: self.status,
            ttft_s: first.map(|first| (first - self.started).as_secs_f64()),
            e2e_s: Some(self.started.elapsed().as_secs_f64()),
            predicted_cached_tokens: self.predicted_tokens,
            ..Ending::default()
        }
    }
}

/// An answer's body: the gateway's own, or one that is relayed.
pub struct GatewayBody(Inner);

enum Inner {
    Own(Option<Bytes>),
    Relay(Box<Relay>),
}

struct Relay {
    body: RelayBody,
    shared: Arc<Shared>,
    _place: InFlight,
    watch: Option<Watch>,
    scan: UsageScan,
    first: Option<Instant>,
    last: Instant,
    look: Option<Pin<Box<Sleep>>>,
    is_events: bool,
    ended: bool,
}

impl GatewayBody {
    /// A body that is at hand.
    pub fn own(bytes: Bytes) -> Self {
        Self(Inner::Own(Some(bytes)))
    }

    /// A body that is relayed.
    pub(super) fn relay(
        body: RelayBody,
        shared: Arc<Shared>,
        place: InFlight,
        watch: Option<Watch>,
        is_events: bool,
    ) -> Self {
        let relay = Relay {
            body,
            shared,
            _place: place,
            watch,
            scan: UsageScan::default(),
            first: None,
            last: Instant::now(),
            look: None,
            is_events,
            ended: false,
        };
        Self(Inner::Relay(Box::new(relay)))
    }
}

impl Relay {
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

    /// Takes note of a piece: first byte, time since the last one, reported usage.
    fn note(&mut self, data: &Bytes) {
        let now = Instant::now();
        if let Some(watch) = &mut self.watch {
            self.scan.feed(data);
            if self.is_events {
                self.scan.count_events(data);
            }
            if self.first.is_none() {
                self.first = Some(now);
                // An answer in one piece comes when its last token is out: that teaches nothing of the first.
                if let Some(booking) = watch.booking.as_mut().filter(|_| watch.is_streamed) {
                    booking.prefill_done((now - watch.started).as_secs_f64());
                }
                let ttft_s = (now - watch.started).as_secs_f64();
                watch.clocks.ttft.observe(ttft_s);
                if watch.is_streamed {
                    self.shared.outcomes.first_token(ttft_s);
                    if let Some(shadow) = &watch.shadow {
                        shadow.first_token(ttft_s);
                    }
                }
            } else if watch.is_streamed {
                watch.clocks.itl.observe((now - self.last).as_secs_f64());
            }
        }
        self.last = now;
    }

    /// Nothing to relay now. Every few seconds: is the silence too long, or the worker gone quiet?
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
        let booking = self.watch.as_ref().and_then(|watch| watch.booking.as_ref());
        booking.is_some_and(|booking| booking.legs().any(|leg| leg.pool.is_silent(leg.worker)))
    }

    /// An event stream ends with an error event; anything else can only be cut, so that it is not taken for whole.
    fn end_early(
        &mut self,
        refusal: Refusal,
        error: WireError,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        self.ended = true;
        if let Some(watch) = self.watch.take() {
            self.shared.outcomes.broke();
            if let Some(slip) = &watch.slip {
                slip.ended(watch.ending("broken", self.first));
            }
        }
        if self.is_events {
            return Poll::Ready(Some(Ok(Frame::data(refusal.sse_event()))));
        }
        Poll::Ready(Some(Err(error)))
    }

    fn finish(&mut self) {
        self.ended = true;
        let Some(mut watch) = self.watch.take() else {
            return;
        };
        // The engine that answers in a split never saw the prompt's prefill: its count says nothing of the prediction.
        let is_split = watch
            .booking
            .as_ref()
            .is_some_and(|booking| booking.legs().count() > 1);
        let usage = self.scan.found();
        let output_tokens = usage
            .and_then(|usage| u32::try_from(usage.output_tokens?).ok())
            .or_else(|| self.scan.tokens_seen());
        let itl_s = self
            .first
            .zip(output_tokens.filter(|&tokens| tokens > 1 && watch.is_streamed))
            .map(|(first, tokens)| (self.last - first).as_secs_f64() / f64::from(tokens - 1));
        self.shared
            .outcomes
            .ended(watch.started.elapsed().as_secs_f64(), itl_s);
        if let Some(shadow) = &watch.shadow {
            shadow.ended(output_tokens);
        }
        if let Some(slip) = &watch.slip {
            slip.ended(Ending {
                output_tokens,
                cached_tokens: usage.filter(|_| !is_split).map(|usage| usage.cached_tokens),
                ..watch.ending("finished", self.first)
            });
        }
        if let Some(booking) = &mut watch.booking {
            let tokens = |count: Option<u64>| count.and_then(|count| u32::try_from(count).ok());
            booking.set_outcome(Outcome {
                output_tokens,
                cached_tokens: tokens(usage.filter(|_| !is_split).map(|usage| usage.cached_tokens)),
                at_first_token: false,
            });
        }
        if let Some(usage) = usage {
            self.audit(&watch, usage);
        }
    }

    /// The engine's own count against the prediction.
    fn audit(&self, watch: &Watch, usage: Usage) {
        let metrics = &self.shared.metrics;
        if usage
            .prompt_tokens
            .is_some_and(|tokens| tokens != watch.input_tokens)
        {
            metrics.length_mismatches.inc();
        }
        let mut legs = watch.booking.iter().flat_map(Booking::legs);
        let (Some(leg), None) = (legs.next(), legs.next()) else {
            return;
        };
        leg.pool
            .audit(leg.worker, watch.predicted_tokens, usage.cached_tokens);
        let instance = leg.worker.instance.to_string();
        let rank = leg.worker.dp_rank.to_string();
        let labels = [&*leg.pool.model, instance.as_str(), rank.as_str()];
        metrics
            .predicted_tokens
            .with_label_values(&labels)
            .inc_by(watch.predicted_tokens);
        metrics
            .reported_tokens
            .with_label_values(&labels)
            .inc_by(usage.cached_tokens);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A body of known length may be dropped once its last byte is taken, without being asked for its end.
        if !self.ended && self.body.is_finished() {
            self.finish();
        } else if !self.ended {
            self.shared.metrics.disconnects.inc();
            if let Some(watch) = &self.watch
                && let Some(slip) = &watch.slip
            {
                slip.ended(watch.ending("client_left", self.first));
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
        match &mut self.0 {
            Inner::Own(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Inner::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Inner::Relay(relay) => relay.ended || relay.body.is_finished(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Inner::Relay(relay) => relay.body.size_hint(),
        }
    }
}
