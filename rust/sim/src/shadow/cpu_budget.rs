//! A share of one core, kept as an account: time passing pays in, work draws on it.
//!
//! Overdrawn by more than [`BURST_S`]' worth the shadow fleets stops where it is until the account is level again; so over any span `t`
//! from a level account, work is at most `share · (t + BURST_S)` plus one step.

/// Seconds' worth of share that may be saved up, or owed before a rest: short, so that nothing else waits long for the core.
const BURST_S: f64 = 2.0;
/// Time constant of the reported share, s.
const REPORT_S: f64 = 60.0;

#[derive(Debug)]
pub(super) struct Budget {
    share: f64,
    /// Seconds of work in hand.
    balance_s: f64,
    at_s: Option<f64>,
    resting: bool,
    recent: f64,
}

impl Budget {
    pub const fn new(share: f64) -> Self {
        Self {
            share,
            balance_s: 0.0,
            at_s: None,
            resting: false,
            recent: 0.0,
        }
    }

    pub fn charge(&mut self, busy_s: f64, now_s: f64) {
        let span_s = self.at_s.map_or(0.0, |at_s| (now_s - at_s).max(0.0));
        self.at_s = Some(self.at_s.map_or(now_s, |at_s| at_s.max(now_s)));
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

    /// Share of one core used of late.
    pub const fn recent(&self) -> f64 {
        self.recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_never_exceeds_its_share_by_more_than_the_burst_and_a_step() {
        let mut budget = Budget::new(0.05);
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
            "it must use what it has, used {worked_s}"
        );
        assert!(rests > 1_000);
    }

    #[test]
    fn light_work_never_rests() {
        let mut budget = Budget::new(0.05);
        for second in 0..500 {
            budget.charge(0.01, f64::from(second));
            assert!(!budget.resting());
        }
        assert!((budget.recent() - 0.01).abs() < 1e-3);
    }
}
