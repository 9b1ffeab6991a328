//! What is written down about a request that its caller sends itself: receipt, record and spans of a reservation.
//!
//! ```text
//! Service::open_trail ─▶ ReservedTrail ─ placed ─▶ first_token ─▶ freed
//! ```
//!
//! A reservation that ends without a free, because its caller left or its time is over, is written down as left. O(1) per call.

use std::sync::Arc;
use std::time::Instant;

use super::trail::Trail;
use super::{Prepared, Usage};
use crate::pool::Booking;
use crate::receipts::ReceiptOutcome;
use crate::service::Service;
use crate::spans::RequestTrace;
use crate::spans::facts::CollectsFacts as _;

/// Status of a reservation that was freed, in the terms of HTTP.
const OK: u16 = 200;

/// Receipt, record and spans of one reservation, until its end.
pub struct ReservedTrail {
    trail: Trail,
    /// Kept until the end of the reservation, because the spans end with the last handle.
    trace: Option<Arc<RequestTrace>>,
    started: Instant,
    /// When the caller reported the first token.
    first: Option<Instant>,
    /// Cached prompt tokens that the router predicted.
    predicted_tokens: u64,
}

impl Service {
    /// Opens what is written down about a request under the caller's id; `None` while receipts, records and spans are off.
    pub fn open_trail(
        self: &Arc<Self>,
        prepared: &Prepared,
        request_id: &str,
        trace: Option<Arc<RequestTrace>>,
    ) -> Option<ReservedTrail> {
        if !self.explains() {
            return None;
        }
        let started = Instant::now();
        let model = &prepared.model.spec;
        let mut trail = self.trail(prepared, Some(request_id), started);
        if let Some(trace) = trace.as_ref().filter(|trace| trace.is_sampled()) {
            let input_tokens = prepared.prompt.input_tokens;
            trace.facts().lock().prompt(&model.name, input_tokens);
            trail.trace(trace.clone(), model.block_size);
        }
        trail.deciding(|| self.policy_name());
        Some(ReservedTrail {
            trail,
            trace,
            started,
            first: None,
            predicted_tokens: 0,
        })
    }
}

impl ReservedTrail {
    /// The router booked the request. `cached_tokens` is what it predicts of the worker's cache.
    pub fn placed(&mut self, booking: &mut Booking, cached_tokens: u32) {
        self.predicted_tokens = u64::from(cached_tokens);
        self.trail.placed(booking);
        if let Some(trace) = &self.trace {
            trace.answered(OK);
        }
    }

    /// The caller reported the first token. A second call changes nothing.
    pub fn first_token(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// No reservation came about; the caller got this status, in the terms of HTTP.
    pub fn refused(self, status: u16) {
        if let Some(trace) = &self.trace {
            trace.answered(status);
        }
        self.trail.ended(ReceiptOutcome::refused(status));
    }

    /// The caller freed the reservation, with the counts of the engine.
    pub fn freed(self, usage: Usage) {
        self.trail.ended(ReceiptOutcome {
            how: "finished",
            status: OK,
            ttft_s: self.first.map(|first| (first - self.started).as_secs_f64()),
            e2e_s: Some(self.started.elapsed().as_secs_f64()),
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.output_tokens,
            cached_tokens: usage.cached_tokens,
            predicted_cached_tokens: self.predicted_tokens,
        });
    }
}
