//! An answer on its way to the client, and what the service learns from it: the last step of a request's walk.
//!
//! The door reports each piece and the end. The first piece ends the prefill of the booking, the end releases it, and curves, outcomes,
//! receipts and shadows take the times. O(1) per piece.
//!
//! An answer that ends without [`Answer::finished`], for example because its task was dropped,
//! releases its booking and teaches nothing.

use std::sync::Arc;
use std::time::Instant;

use wardrop_core::ledger::Outcome;

use super::ActiveRequest;
use super::trail::Trail;
use crate::latency_bins::StreamLatency;
use crate::metrics::StreamHistograms;
use crate::pool::Booking;
use crate::receipts::ReceiptOutcome;
use crate::service::Service;
use crate::shadows::ShadowedRequest;

/// Token counts that the engine reported with an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "the names of the API")]
pub struct Usage {
    /// Prompt tokens that the engine found in its cache.
    pub cached_tokens: Option<u64>,
    /// Prompt tokens that the engine counted.
    pub prompt_tokens: Option<u64>,
    /// Tokens of one choice of the answer.
    pub output_tokens: Option<u32>,
}

/// The answer to one request. The door reports each piece and then the end.
pub struct Answer {
    /// Service whose metrics and outcomes the answer feeds.
    service: Arc<Service>,
    /// The booking on the workers, until the end.
    booking: Option<Booking>,
    /// Handle of the request in the shadows; `None` when they do not simulate it.
    shadow: Option<ShadowedRequest>,
    /// Receipt, record and trace of the request.
    trail: Trail,
    /// When the whole request had arrived.
    started: Instant,
    /// Times of the pieces; `None` before the first.
    pieces: Option<PieceTimes>,
    /// Histograms of the model, looked up once.
    histograms: StreamHistograms,
    /// Bins of the model for the live page.
    latency: Arc<StreamLatency>,
    /// Whether the client asked for a stream.
    is_streamed: bool,
    /// Cached prompt tokens predicted on the first leg's worker.
    predicted_tokens: u64,
    /// Prompt tokens that the service counted.
    input_tokens: u64,
    /// Status of the answer, in the door's protocol.
    status: u16,
    /// Tokens of the part that arrived, as the door counted them.
    reached_tokens: Option<u32>,
}

/// Times of the pieces of an answer.
#[derive(Clone, Copy)]
struct PieceTimes {
    /// Time of the first piece.
    first: Instant,
    /// Time of the latest piece.
    last: Instant,
    /// Pieces so far, at least 1.
    count: u32,
}

impl Answer {
    /// An answer without a piece.
    pub(super) fn new(request: ActiveRequest, status: u16) -> Self {
        let ActiveRequest {
            service,
            prepared,
            started,
            booking,
            shadow,
            trail,
            ..
        } = request;
        let model = &prepared.model.spec;
        let first_leg = booking.as_ref().and_then(|booking| booking.legs().next());
        let overlap_blocks = first_leg.map_or(0, |leg| leg.overlap_blocks);
        Self {
            histograms: StreamHistograms {
                ttft: service.metrics.ttft.with_label_values(&[&model.name]),
                itl: service.metrics.itl.with_label_values(&[&model.name]),
            },
            latency: prepared.model.latency.clone(),
            predicted_tokens: u64::from(overlap_blocks) * u64::from(model.block_size),
            is_streamed: prepared.prompt.is_streamed,
            input_tokens: u64::from(prepared.prompt.input_tokens),
            service,
            booking,
            shadow,
            trail,
            started,
            pieces: None,
            status,
            reached_tokens: None,
        }
    }

    /// Sets the tokens of the part that arrived, for an answer that ends before it is complete.
    pub fn reached(&mut self, tokens: Option<u32>) {
        self.reached_tokens = tokens;
    }

    /// The booking on the workers, while there is one.
    pub fn booking(&self) -> Option<&Booking> {
        self.booking.as_ref()
    }

    /// A token of the first choice arrived at `now`, or a piece of an answer that is no stream.
    ///
    /// The first piece of a stream ends the prefill of the booking. A refusal's pieces are no
    /// tokens and change nothing.
    pub fn piece(&mut self, now: Instant) {
        if !self.is_success() {
            return;
        }
        if let Some(booking) = &mut self.booking {
            booking.renew();
        }
        if let Some(pieces) = &mut self.pieces {
            if self.is_streamed {
                let itl_s = (now - pieces.last).as_secs_f64();
                self.histograms.itl.observe(itl_s);
                self.latency.itl.observe(itl_s);
            }
            pieces.last = now;
            pieces.count = pieces.count.saturating_add(1);
            return;
        }
        self.pieces = Some(PieceTimes {
            first: now,
            last: now,
            count: 1,
        });
        let ttft_s = (now - self.started).as_secs_f64();
        // An answer in one piece arrives with its last token, so its time says nothing about the first token.
        if let Some(booking) = self.booking.as_mut().filter(|_| self.is_streamed) {
            booking.prefill_done(ttft_s);
        }
        if self.is_streamed {
            self.histograms.ttft.observe(ttft_s);
            self.latency.ttft.observe(ttft_s);
            self.service.outcomes.first_token(ttft_s);
            if let Some(shadow) = &self.shadow {
                shadow.first_token(ttft_s);
            }
        }
    }

    /// Whether the status is a success. Any other answer is a refusal: it has no first token and teaches nothing.
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Records the end of a refusal.
    fn refused(mut self) {
        if let Some(booking) = &mut self.booking {
            booking.refuse();
        }
        if let Some(shadow) = &self.shadow {
            shadow.failed();
        }
        self.end_trail("refused");
    }

    /// The answer is complete. The workers' curves learn from `usage` when the booking is released.
    ///
    /// A mean time between tokens is known only for a streamed answer of at least two tokens. An
    /// answer with an error status counts as a refusal.
    pub fn finished(mut self, usage: Usage) {
        if !self.is_success() {
            self.refused();
            return;
        }
        // In a split, the engine that answers has not computed the prefill, so its count says nothing about the prediction.
        let legs = self.booking.as_ref().map_or(0, |booking| booking.legs().count());
        let of_answer = usage.cached_tokens.filter(|_| legs <= 1);
        let of_prefill = self.booking.as_ref().and_then(Booking::prefill_cached_tokens);
        let cached_tokens = of_answer.or(of_prefill);
        let output_tokens = usage.output_tokens;
        let itl_s = self
            .pieces
            .zip(output_tokens.filter(|&tokens| tokens > 1 && self.is_streamed))
            .map(|(pieces, tokens)| (pieces.last - pieces.first).as_secs_f64() / f64::from(tokens - 1));
        let outcomes = &self.service.outcomes;
        outcomes.ended(self.started.elapsed().as_secs_f64(), itl_s);
        if let Some(shadow) = &self.shadow {
            shadow.ended(output_tokens);
        }
        let outcome = ReceiptOutcome {
            input_tokens: usage.prompt_tokens,
            output_tokens,
            cached_tokens,
            ..self.receipt_outcome("finished")
        };
        self.trail.ended(outcome);
        if let Some(booking) = &mut self.booking {
            booking.set_outcome(Outcome {
                output_tokens,
                cached_tokens: of_answer.and_then(|tokens| u32::try_from(tokens).ok()),
                ..Outcome::default()
            });
        }
        self.check_length(usage);
    }

    /// The answer broke off, by a fault of the upstream or of a worker.
    pub fn broken(self) {
        self.service.outcomes.broke();
        self.end_trail("broken");
    }

    /// The client left before the end.
    pub fn client_left(self) {
        self.end_trail("client_left");
    }

    /// Ends an answer that is not complete.
    fn end_trail(&self, how: &'static str) {
        // A piece of a stream is one token or more; any other answer has no token before it is complete.
        let pieces = self.pieces.filter(|_| self.is_streamed);
        let outcome = ReceiptOutcome {
            output_tokens: self.reached_tokens.or_else(|| pieces.map(|pieces| pieces.count)),
            ..self.receipt_outcome(how)
        };
        self.trail.ended(outcome);
    }

    /// The parts of an outcome that every end has.
    fn receipt_outcome(&self, how: &'static str) -> ReceiptOutcome {
        let first = self.pieces.map(|pieces| pieces.first);
        ReceiptOutcome {
            how,
            status: self.status,
            ttft_s: first.map(|first| (first - self.started).as_secs_f64()),
            e2e_s: Some(self.started.elapsed().as_secs_f64()),
            predicted_cached_tokens: self.predicted_tokens,
            ..ReceiptOutcome::default()
        }
    }

    /// Compares the engine's own count of prompt tokens with the service's. The router compares the cached tokens, when the
    /// booking ends.
    fn check_length(&self, usage: Usage) {
        let differs = |tokens| tokens != self.input_tokens;
        if usage.cached_tokens.is_some() && usage.prompt_tokens.is_some_and(differs) {
            self.service.metrics.length_mismatches.inc();
        }
    }
}
