//! The regime of a fleet against its knee, by the paper's rule: a tail latency polled, smoothed, and held
//! against two thresholds.
//!
//! Stands in the flow `outcome ─▶ regime ─▶ policy`: the router feeds first tokens to [`RegimeController`],
//! and replaces the parameters of its policy when the regime changes. The controller knows no price and no
//! router. No clock, bounded memory, O(1) per first token and per poll.
//!
//! ```text
//! first token ─▶ histogram ─▶ every 5 s: p99 ─▶ EWMA ─▶ against 13.5 and 135 times the baseline ─▶ regime
//! ```
//!
//! Source of each rule ((A) the paper's author, (R) a reader of the full text, (O) our choice):
//!
//! * (A) A poll every 5 s, an EWMA of the 99th percentile of TTFT, three regimes by two thresholds, a change
//!   after three polls.
//! * (A) Thresholds are multiples of the model's own baseline TTFT. The paper gives them for one model, 340B:
//!   1.0 s and 10.0 s. (R) Its p99 below the knee is 74 ms. (O) So the multiples are 13.5 and 135.
//! * (O) The EWMA factor is 0.3. A change needs three polls in a row *on one side of the present regime*, up
//!   and down alike. It enters the mildest regime of the three. A regime is left below 0.8 of its threshold,
//!   and lasts at least 30 s.
//! * (O) A baseline that is not given is the lowest EWMA seen. Below the knee it rises by a hundredth of the
//!   way per poll.
//! * (O) A poll without a first token changes nothing. After six of them everything but the baseline is
//!   forgotten, so no regime outlives its traffic.
//!
//! Example with a baseline of 0.1 s. The smoothed p99 is above 1.35 s at three polls in a row: after about 15
//! s the regime is *transition*. It is left after three polls below 0.8 · 1.35 = 1.08 s, and not before 30 s
//! have passed.
//!
//! This is not the controller of the gateway: that one reads more than one latency and acts through an
//! audited door (`python/wardrop/control`).

mod tail;

use std::collections::VecDeque;

use tail::TailHistogram;

/// State of the fleet against its knee.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regime {
    /// The smoothed p99 is below the first threshold.
    #[default]
    Below,
    /// The smoothed p99 is between the two thresholds.
    Transition,
    /// The smoothed p99 is at or above the second threshold.
    Saturated,
}

impl Regime {
    /// Name of the regime, as in metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Below => "below",
            Self::Transition => "transition",
            Self::Saturated => "saturated",
        }
    }
}

/// A change of regime, with the figures that it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RegimeChange {
    /// Time of the poll that changed it, in the router's seconds.
    pub at_s: f64,
    /// Regime before the change.
    pub from: Regime,
    /// Regime after the change.
    pub to: Regime,
    /// Smoothed p99 of TTFT, seconds. 0 when it was forgotten for want of traffic.
    pub smoothed_s: f64,
    /// Baseline TTFT, seconds. The thresholds are multiples of it.
    pub baseline_s: f64,
}

/// Parameters of the controller. The module's page gives the source of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RegimeSettings {
    /// Seconds between polls, above 0.
    pub poll_s: f64,
    /// Weight of a new poll in the smoothed p99, above 0 and at most 1.
    pub smoothing: f64,
    /// Multiples of the baseline at which transition and saturated begin, above 1 and ascending.
    pub enter: [f64; 2],
    /// Share of its threshold below which a regime is left, above 0 and at most 1.
    pub leave_share: f64,
    /// Polls in a row that a change needs, at least 1.
    pub in_a_row: u32,
    /// Shortest stay in a regime, seconds.
    pub dwell_s: f64,
    /// Baseline TTFT, seconds, above 0. Learned when absent.
    pub baseline_s: Option<f64>,
}

/// Empty polls in a row after which all but the baseline is forgotten.
const FORGET_POLLS: u32 = 6;
/// Share of the distance to the smoothed p99 by which a learned baseline rises per poll.
const BASELINE_RISE: f64 = 0.01;
/// Changes that are kept. The oldest ones are dropped.
const MAX_CHANGES: usize = 1024;

/// Reads first tokens and says which regime the fleet is in.
///
/// All state is in these fields, so the same first tokens at the same times give the same regimes.
#[derive(Clone, Debug)]
pub struct RegimeController {
    /// Parameters, which never change.
    settings: RegimeSettings,
    /// The regime as of the last poll.
    regime: Regime,
    /// When the regime was entered, seconds. Minus infinity for the first regime, which may be left at once.
    since_s: f64,
    /// When the next poll is due. `None` before the first call.
    next_s: Option<f64>,
    /// TTFT since the last poll.
    seen: TailHistogram,
    /// EWMA of the polled p99, seconds. `None` before the first poll with a first token, and after six polls without.
    smoothed_s: Option<f64>,
    /// Baseline TTFT, seconds: given, or learned.
    baseline_s: Option<f64>,
    /// Polls in a row above (positive) or below (negative) the present regime, and the mildest regime among them.
    streak: (i32, Regime),
    /// Polls in a row without a first token.
    empty: u32,
    /// Changes so far, oldest first. Invariant: at most 1,024.
    changes: VecDeque<RegimeChange>,
}

impl RegimeController {
    /// A controller that has seen nothing: below the knee.
    pub fn new(settings: RegimeSettings) -> Self {
        Self {
            settings,
            regime: Regime::Below,
            since_s: f64::NEG_INFINITY,
            next_s: None,
            seen: TailHistogram::default(),
            smoothed_s: None,
            baseline_s: settings.baseline_s,
            streak: (0, Regime::Below),
            empty: 0,
            changes: VecDeque::new(),
        }
    }

    /// The regime as of the last poll.
    pub const fn regime(&self) -> Regime {
        self.regime
    }

    /// The last changes, oldest first, at most 1,024.
    pub fn changes(&self) -> impl Iterator<Item = RegimeChange> + '_ {
        self.changes.iter().copied()
    }

    /// Counts a first token that came at `now_s`, `ttft_s` after its request. A negative or infinite `ttft_s` is
    /// ignored.
    pub fn first_token(&mut self, ttft_s: f64, now_s: f64) {
        self.advance(now_s);
        if ttft_s.is_finite() && ttft_s >= 0.0 {
            self.seen.add(ttft_s);
        }
    }

    /// Takes the polls that are due at `now_s`.
    ///
    /// O(polls that are due), at most seven.
    pub fn advance(&mut self, now_s: f64) {
        let Some(mut next_s) = self.next_s else {
            self.next_s = Some(now_s + self.settings.poll_s);
            return;
        };
        // After a pause only the first polls can differ: the first one finds the tokens from before the pause, the
        // others nothing.
        for _ in 0..=FORGET_POLLS {
            if next_s > now_s {
                break;
            }
            self.poll(next_s);
            next_s += self.settings.poll_s;
        }
        if next_s <= now_s {
            next_s = now_s + self.settings.poll_s;
        }
        self.next_s = Some(next_s);
    }

    /// One poll: smooths the p99 since the last poll, and changes the regime when enough polls in a row ask
    /// for it.
    ///
    /// The streak counts polls on one side. A poll on the other side, or in the present regime, starts it
    /// anew. The mildest regime of the streak is entered, so that one extreme poll does not skip a regime.
    fn poll(&mut self, at_s: f64) {
        let Some(p99_s) = self.seen.take_p99_s() else {
            self.empty += 1;
            if self.empty >= FORGET_POLLS {
                self.smoothed_s = None;
                self.streak.0 = 0;
                self.enter(Regime::Below, at_s);
            }
            return;
        };
        self.empty = 0;
        let smoothed_s = self.smoothed_s.map_or(p99_s, |before| {
            before + self.settings.smoothing * (p99_s - before)
        });
        self.smoothed_s = Some(smoothed_s);
        self.learn_baseline(smoothed_s);
        let verdict = self.verdict(smoothed_s);
        if verdict == self.regime {
            self.streak.0 = 0;
            return;
        }
        let side = if verdict > self.regime { 1 } else { -1 };
        self.streak = if self.streak.0.signum() == side {
            let mildest = if side > 0 {
                verdict.min(self.streak.1)
            } else {
                verdict.max(self.streak.1)
            };
            ((self.streak.0 + side).clamp(-1_000_000, 1_000_000), mildest)
        } else {
            (side, verdict)
        };
        let stayed = at_s - self.since_s >= self.settings.dwell_s;
        if stayed && self.streak.0.unsigned_abs() >= self.settings.in_a_row {
            self.enter(self.streak.1, at_s);
        }
    }

    /// Lowers a learned baseline to the smoothed p99 at once, and raises it slowly while below the knee.
    ///
    /// Above the knee it stays: a baseline that followed an overload would call the overload normal.
    fn learn_baseline(&mut self, smoothed_s: f64) {
        if self.settings.baseline_s.is_some() {
            return;
        }
        self.baseline_s = Some(match self.baseline_s {
            Some(lowest) if smoothed_s > lowest => {
                let rise = if self.regime == Regime::Below {
                    BASELINE_RISE
                } else {
                    0.0
                };
                lowest + rise * (smoothed_s - lowest)
            }
            _ => smoothed_s,
        });
    }

    /// The regime of a smoothed p99. The threshold of the present regime is lower by `leave_share`: hysteresis.
    fn verdict(&self, smoothed_s: f64) -> Regime {
        let baseline_s = self.baseline_s.unwrap_or(smoothed_s);
        let reaches = |regime: Regime, multiple: f64| {
            let share = if self.regime >= regime {
                self.settings.leave_share
            } else {
                1.0
            };
            smoothed_s >= multiple * share * baseline_s
        };
        let [transition, saturated] = self.settings.enter;
        if reaches(Regime::Saturated, saturated) {
            Regime::Saturated
        } else if reaches(Regime::Transition, transition) {
            Regime::Transition
        } else {
            Regime::Below
        }
    }

    /// Changes the regime and records the change.
    fn enter(&mut self, to: Regime, at_s: f64) {
        if to == self.regime {
            return;
        }
        if self.changes.len() == MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(RegimeChange {
            at_s,
            from: self.regime,
            to,
            smoothed_s: self.smoothed_s.unwrap_or(0.0),
            baseline_s: self.baseline_s.unwrap_or(0.0),
        });
        self.regime = to;
        self.since_s = at_s;
        self.streak.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(baseline_s: Option<f64>) -> RegimeController {
        RegimeController::new(RegimeSettings {
            poll_s: 5.0,
            smoothing: 0.3,
            enter: [10.0, 100.0],
            leave_share: 0.8,
            in_a_row: 3,
            dwell_s: 30.0,
            baseline_s,
        })
    }

    /// Feeds `ttft_s` four times a second from `from_s` to `to_s`.
    fn feed(controller: &mut RegimeController, ttft_s: f64, from_s: f64, to_s: f64) {
        let mut now_s = from_s;
        while now_s < to_s {
            controller.first_token(ttft_s, now_s);
            now_s += 0.25;
        }
    }

    #[test]
    fn all_three_regimes_are_reached_and_left_again() {
        let mut controller = controller(Some(0.1));
        feed(&mut controller, 0.1, 0.0, 60.0);
        assert_eq!(controller.regime(), Regime::Below);
        feed(&mut controller, 3.0, 60.0, 120.0);
        assert_eq!(controller.regime(), Regime::Transition);
        feed(&mut controller, 40.0, 120.0, 200.0);
        assert_eq!(controller.regime(), Regime::Saturated);
        feed(&mut controller, 0.1, 200.0, 400.0);
        assert_eq!(controller.regime(), Regime::Below);
        let reached: Vec<_> = controller.changes().map(|change| change.to).collect();
        assert_eq!(reached[..2], [Regime::Transition, Regime::Saturated]);
    }

    #[test]
    fn a_change_needs_three_polls_in_a_row() {
        let mut controller = controller(Some(0.1));
        feed(&mut controller, 0.1, 0.0, 40.0);
        // Two polls above, one below, again and again: the EWMA never stays over the threshold for three.
        feed(&mut controller, 3.0, 40.0, 50.0);
        assert_eq!(controller.regime(), Regime::Below);
        feed(&mut controller, 3.0, 50.0, 70.0);
        assert_eq!(controller.regime(), Regime::Transition);
    }

    #[test]
    fn a_regime_stays_for_its_dwell_and_within_the_hysteresis() {
        let mut controller = controller(Some(0.1));
        feed(&mut controller, 3.0, 0.0, 20.0);
        assert_eq!(controller.regime(), Regime::Transition);
        let entered_s = controller.changes().next().expect("a change").at_s;
        // 0.9 of the threshold: inside the hysteresis for ever.
        feed(&mut controller, 0.9, 20.0, 300.0);
        assert_eq!(controller.regime(), Regime::Transition);
        feed(&mut controller, 0.1, 300.0, 340.0);
        assert_eq!(controller.regime(), Regime::Below);
        let left_s = controller.changes().last().expect("a change").at_s;
        assert!(left_s - entered_s >= 30.0);
    }

    #[test]
    fn no_regime_outlives_its_traffic() {
        let mut controller = controller(Some(0.1));
        feed(&mut controller, 40.0, 0.0, 60.0);
        assert_eq!(controller.regime(), Regime::Saturated);
        controller.advance(61.0);
        assert_eq!(controller.regime(), Regime::Saturated);
        controller.advance(1e9);
        assert_eq!(controller.regime(), Regime::Below);
        feed(&mut controller, 0.1, 1e9, 1e9 + 60.0);
        assert_eq!(controller.regime(), Regime::Below);
    }

    #[test]
    fn thresholds_follow_the_learned_baseline() {
        for scale in [0.01, 1.0] {
            let mut controller = controller(None);
            feed(&mut controller, scale, 0.0, 60.0);
            feed(&mut controller, 5.0 * scale, 60.0, 120.0);
            assert_eq!(controller.regime(), Regime::Below, "{scale}");
            feed(&mut controller, 40.0 * scale, 120.0, 180.0);
            assert_eq!(controller.regime(), Regime::Transition, "{scale}");
        }
    }
}
