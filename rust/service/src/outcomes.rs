//! What came of the requests of the last moments, for a controller that polls from another thread.

use parking_lot::Mutex;
use wardrop_core::control::OutcomeWindow;

/// Outcomes since the last poll.
#[derive(Default)]
pub(crate) struct Outcomes(Mutex<OutcomeWindow>);

impl Outcomes {
    /// A request with a prompt arrived.
    pub fn arrived(&self) {
        self.0.lock().arrivals += 1;
    }

    /// Its first token came.
    pub fn first_token(&self, ttft_s: f64) {
        self.0.lock().first_token(ttft_s);
    }

    /// Its answer ended.
    pub fn ended(&self, e2e_s: f64, itl_s: Option<f64>) {
        self.0.lock().ended(e2e_s, itl_s);
    }

    /// Its answer broke off.
    pub fn broke(&self) {
        self.0.lock().broken += 1;
    }

    /// The queue refused it.
    pub fn refused(&self) {
        self.0.lock().refused += 1;
    }

    /// Everything since the last call.
    pub fn take(&self) -> OutcomeWindow {
        std::mem::take(&mut self.0.lock())
    }
}
