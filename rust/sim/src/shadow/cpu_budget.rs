//! CPU budget: a share of one core, kept as an account that time fills and work empties.
//!
//! If the account is overdrawn by more than `share · BURST_S`, the simulation rests until the account is back at 0. Over
//! any span `t` that begins at 0, work is therefore at most `share · (t + BURST_S)` plus one step.

/// Seconds of share that the account can save, or owe before a rest. A small value keeps other work from waiting long.
const BURST_S: f64 = 2.0;
/// Time constant of the reported share, in seconds.
const REPORT_S: f64 = 60.0;

/// The account of the shadow fleets' CPU time.
#[derive(Debug)]
pub(super) struct CpuBudget {
    /// Share of one core, in (0, 1].
    share: f64,
    /// Seconds of work that the account covers; negative if it is overdrawn.
    balance_s: f64,
    /// Time of the last charge.
    charged_s: Option<f64>,
    /// Whether the account was overdrawn and is not level yet.
    resting: bool,
    /// Share of one core used recently.
    recent: f64,
}

impl CpuBudget {
    pub const fn new(share: f64) -> Self {
        Self {
            share,
            balance_s: 0.0,
            charged_s: None,
            resting: false,
            recent: 0.0,
        }
    }

    /// Charges `busy_s` seconds of work since the last charge.
    pub fn charge(&mut self, busy_s: f64, now_s: f64) {
        let span_s = self.charged_s.map_or(0.0, |last_s| (now_s - last_s).max(0.0));
        self.charged_s = Some(self.charged_s.map_or(now_s, |last_s| last_s.max(now_s)));
        let burst_s = self.share * BURST_S;
        let busy_s = busy_s.max(0.0);
        self.balance_s = (self.balance_s + self.share * span_s - busy_s).min(burst_s);
        if span_s > 0.0 {
            let keep = (-span_s / REPORT_S).exp();
            self.recent = self.recent * keep + (1.0 - keep) * busy_s / span_s;
        }
        if self.balance_s < -burst_s {
            self.resting = true;
        } else if self.balance_s >= 0.0 {
            self.resting = false;
        }
    }

    pub const fn resting(&self) -> bool {
        self.resting
    }

    pub const fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    /// Share of one core used recently: a mean with a time constant of 60 s.
    pub const fn recent(&self) -> f64 {
        self.recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_never_exceeds_its_share_by_more_than_the_burst_and_a_step() {
        let mut budget = CpuBudget::new(0.05);
        let (mut worked_s, mut rests) = (0.0, 0);
        for second in 0..2_000 {
            let busy_s = if budget.resting() { 0.0 } else { 0.4 };
            rests += u32::from(budget.resting());
            worked_s += busy_s;
            budget.charge(busy_s, f64::from(second));
            let allowed_s = 0.05 * (f64::from(second) + BURST_S) + 0.4;
            assert!(
                worked_s <= allowed_s + 1e-9,
                "{worked_s} of {allowed_s} at {second}"
            );
        }
        assert!(
            worked_s > 0.9 * 0.05 * 2_000.0,
            "the work must use the budget, used {worked_s} s"
        );
        assert!(rests > 1_000);
    }

    #[test]
    fn light_work_never_rests() {
        let mut budget = CpuBudget::new(0.05);
        for second in 0..500 {
            budget.charge(0.01, f64::from(second));
            assert!(!budget.resting());
        }
        assert!((budget.recent() - 0.01).abs() < 1e-3);
    }
}
