//! CPU time of all meters of a service together: a debt that a fixed share of one core pays off.
//!
//! While the debt is above its credit, no meter opens a window. A window that is open is finished, so the debt exceeds
//! the credit by one window per model at most.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Share of one core that all meters together may take.
pub(super) const BUDGET_SHARE: f64 = 0.01;
/// Debt up to which new windows open, in seconds of CPU.
const CREDIT_S: f64 = 0.02;

/// The account of all meters.
pub(crate) struct Account(Mutex<Debt>);

struct Debt {
    debt_s: f64,
    settled: Instant,
}

impl Account {
    pub fn new() -> Self {
        Self(Mutex::new(Debt {
            debt_s: 0.0,
            settled: Instant::now(),
        }))
    }

    /// Whether a new window may open.
    pub fn allows(&self) -> bool {
        let mut account = self.0.lock();
        let passed_s = account.settled.elapsed().as_secs_f64();
        account.settled = Instant::now();
        account.debt_s = (account.debt_s - BUDGET_SHARE * passed_s).max(0.0);
        account.debt_s <= CREDIT_S
    }

    /// Adds time that was spent.
    pub fn charge(&self, spent: Duration) {
        self.0.lock().debt_s += spent.as_secs_f64();
    }

    #[cfg(test)]
    pub fn pass(&self, time: Duration) {
        let mut account = self.0.lock();
        account.settled = account
            .settled
            .checked_sub(time)
            .expect("a clock that ran so long");
    }
}
