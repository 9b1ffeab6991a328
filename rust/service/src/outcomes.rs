//! Outcomes of recent requests, for a controller that polls from another thread. [`crate::request`] records; O(1) per request.
//!
//! The window holds sums and at most 4,096 times to first token, so its size is bounded between two
//! polls.

use parking_lot::Mutex;
use wardrop_core::control::OutcomeWindow;

/// Outcomes since the last poll.
#[derive(Default)]
pub(crate) struct Outcomes(Mutex<OutcomeWindow>);

impl Outcomes {
    /// Counts a request with a prompt that arrived.
    pub fn arrived(&self) {
        self.0.lock().arrivals += 1;
    }

    /// Records the TTFT of a request, in seconds.
    pub fn first_token(&self, ttft_s: f64) {
        self.0.lock().first_token(ttft_s);
    }

    /// Records a complete answer: end-to-end time and mean ITL, in seconds.
    pub fn ended(&self, e2e_s: f64, itl_s: Option<f64>) {
        self.0.lock().ended(e2e_s, itl_s);
    }

    /// Counts an answer that broke off.
    pub fn broke(&self) {
        self.0.lock().broken += 1;
    }

    /// Counts a request that the queue refused.
    pub fn refused(&self) {
        self.0.lock().refused += 1;
    }

    /// Everything since the last call.
    ///
    /// The next window starts empty. One caller polls: two callers would each see a part of the
    /// outcomes.
    pub fn take(&self) -> OutcomeWindow {
        std::mem::take(&mut self.0.lock())
    }
}
