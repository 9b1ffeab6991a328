//! The paper's controller without its weights: a tail latency polled, smoothed, and held against two thresholds.
//!
//! What is whose (`[A]` the paper's author, `[R]` a reader of the full text, `[O]` ours):
//!
//! * [A] polls every 5 s, the EWMA of the 99th percentile of TTFT, three regimes by two thresholds, a change after three polls.
//! * [A] thresholds are multiples of the model's own baseline TTFT. Known are the absolute ones of one model, 1.0 s and 10.0 s
//!   for the 340B; [R] its p99 below the knee is 74 ms; [O] so the multiples are 13.5 and 135.
//! * [O] EWMA factor 0.3; three polls in a row *on one side of the present regime*, up and down alike, and the mildest of
//!   the three is entered; a regime is left at 0.8 of its threshold; dwell 30 s; a baseline that is not given is the
//!   lowest EWMA seen, which while below rises by a hundredth of the way per poll.
//! * [O] a poll without a first token says nothing; after six of them all but the baseline is forgotten, so no regime
//!   outlives its traffic.
//!
//! Pure: no clock, bounded memory, O(1) per first token and per poll.

use std::collections::VecDeque;

/// Where the paper sees the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PaperRegime {
    /// EWMA below the first threshold.
    #[default]
    Below,
    /// Between the two.
    Transition,
    /// At or above the second.
    Saturated,
}

impl PaperRegime {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Below => "below",
            Self::Transition => "transition",
            Self::Saturated => "saturated",
        }
    }
}

/// A change of regime with what it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RegimeChange {
    /// When, in the router's seconds.
    pub at_s: f64,
    /// From …
    pub from: PaperRegime,
    /// … to.
    pub to: PaperRegime,
    /// Smoothed p99 of TTFT, seconds; 0 once it was forgotten.
    pub smoothed_s: f64,
    /// The baseline that the thresholds are multiples of, seconds.
    pub baseline_s: f64,
}

/// How polls are read. See the module for whose each value is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PollSettings {
    /// Seconds between polls.
    pub poll_s: f64,
    /// Weight of a new poll in the smoothed p99.
    pub smoothing: f64,
    /// Multiples of the baseline at which transition and saturated begin.
    pub enter: [f64; 2],
    /// A regime is left below this share of its threshold.
    pub leave_share: f64,
    /// Polls in a row that a change needs.
    pub in_a_row: u32,
    /// Shortest stay in a regime, seconds.
    pub dwell_s: f64,
    /// Baseline TTFT, seconds; learned when absent.
    pub baseline_s: Option<f64>,
}

/// Empty polls after which what was seen is forgotten.
const FORGET_POLLS: u32 = 6;
/// Share of the way that a learned baseline rises per poll.
const BASELINE_RISE: f64 = 0.01;
/// Changes that are kept; older ones go.
const MAX_CHANGES: usize = 1024;

/// See the module.
#[derive(Clone, Debug)]
pub struct Polls {
    settings: PollSettings,
    regime: PaperRegime,
    since_s: f64,
    next_s: Option<f64>,
    seen: TailHistogram,
    smoothed_s: Option<f64>,
    baseline_s: Option<f64>,
    /// Polls in a row above (positive) or below the present regime, and the mildest regime among them.
    streak: (i32, PaperRegime),
    empty: u32,
    changes: VecDeque<RegimeChange>,
}

impl Polls {
    /// Below, having seen nothing.
    pub fn new(settings: PollSettings) -> Self {
        Self {
            settings,
            regime: PaperRegime::Below,
            since_s: f64::NEG_INFINITY,
            next_s: None,
            seen: TailHistogram::default(),
            smoothed_s: None,
            baseline_s: settings.baseline_s,
            streak: (0, PaperRegime::Below),
            empty: 0,
            changes: VecDeque::new(),
        }
    }

    /// The regime as of the last poll.
    pub const fn regime(&self) -> PaperRegime {
        self.regime
    }

    /// The last changes, oldest first; at most 1,024.
    pub fn changes(&self) -> impl Iterator<Item = RegimeChange> + '_ {
        self.changes.iter().copied()
    }

    /// A first token came at `now_s`, `ttft_s` after its request. What is negative or not finite is passed over.
    pub fn first_token(&mut self, ttft_s: f64, now_s: f64) {
        self.advance(now_s);
        if ttft_s.is_finite() && ttft_s >= 0.0 {
            self.seen.add(ttft_s);
        }
    }

    /// Takes the polls that are due at `now_s`.
    pub fn advance(&mut self, now_s: f64) {
        let Some(mut next_s) = self.next_s else {
            self.next_s = Some(now_s + self.settings.poll_s);
            return;
        };
        // After a pause only the first polls can differ: they find what was seen before it, then nothing.
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

    fn poll(&mut self, at_s: f64) {
        let Some(p99_s) = self.seen.take_p99_s() else {
            self.empty += 1;
            if self.empty >= FORGET_POLLS {
                self.smoothed_s = None;
                self.streak.0 = 0;
                self.enter(PaperRegime::Below, at_s);
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

    fn learn_baseline(&mut self, smoothed_s: f64) {
        if self.settings.baseline_s.is_some() {
            return;
        }
        self.baseline_s = Some(match self.baseline_s {
            Some(lowest) if smoothed_s > lowest => {
                let rise = if self.regime == PaperRegime::Below {
                    BASELINE_RISE
                } else {
                    0.0
                };
                lowest + rise * (smoothed_s - lowest)
            }
            _ => smoothed_s,
        });
    }

    fn verdict(&self, smoothed_s: f64) -> PaperRegime {
        let baseline_s = self.baseline_s.unwrap_or(smoothed_s);
        let reaches = |regime: PaperRegime, multiple: f64| {
            let share = if self.regime >= regime {
                self.settings.leave_share
            } else {
                1.0
            };
            smoothed_s >= multiple * share * baseline_s
        };
        let [transition, saturated] = self.settings.enter;
        if reaches(PaperRegime::Saturated, saturated) {
            PaperRegime::Saturated
        } else if reaches(PaperRegime::Transition, transition) {
            PaperRegime::Transition
        } else {
            PaperRegime::Below
        }
    }

    fn enter(&mut self, to: PaperRegime, at_s: f64) {
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

/// Counts per 1/64 decade from 0.1 ms to 1,000 s: a percentile within 2 %.
#[derive(Clone, Debug)]
struct TailHistogram {
    counts: Vec<u32>,
    total: u32,
}

impl Default for TailHistogram {
    fn default() -> Self {
        Self {
            counts: vec![0; Self::BUCKETS],
            total: 0,
        }
    }
}

impl TailHistogram {
    const LOWEST_S: f64 = 1e-4;
    const PER_DECADE: f64 = 64.0;
    const BUCKETS: usize = 7 * 64;

    fn add(&mut self, value_s: f64) {
        let at = ((value_s.max(Self::LOWEST_S) / Self::LOWEST_S).log10() * Self::PER_DECADE) as usize;
        let at = at.min(Self::BUCKETS - 1);
        self.counts[at] = self.counts[at].saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// The 99th percentile, and an empty histogram; `None` when it was empty.
    fn take_p99_s(&mut self) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = (f64::from(self.total) * 0.99).ceil();
        let mut passed = 0.0;
        let at = self.counts.iter().position(|&count| {
            passed += f64::from(count);
            passed >= rank
        });
        self.counts.fill(0);
        self.total = 0;
        let middle = at.unwrap_or(Self::BUCKETS - 1) as f64 + 0.5;
        Some(Self::LOWEST_S * 10_f64.powf(middle / Self::PER_DECADE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polls(baseline_s: Option<f64>) -> Polls {
        Polls::new(PollSettings {
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
    fn feed(polls: &mut Polls, ttft_s: f64, from_s: f64, to_s: f64) {
        let mut now_s = from_s;
        while now_s < to_s {
            polls.first_token(ttft_s, now_s);
            now_s += 0.25;
        }
    }

    #[test]
    fn all_three_regimes_are_reached_and_left_again() {
        let mut polls = polls(Some(0.1));
        feed(&mut polls, 0.1, 0.0, 60.0);
        assert_eq!(polls.regime(), PaperRegime::Below);
        feed(&mut polls, 3.0, 60.0, 120.0);
        assert_eq!(polls.regime(), PaperRegime::Transition);
        feed(&mut polls, 40.0, 120.0, 200.0);
        assert_eq!(polls.regime(), PaperRegime::Saturated);
        feed(&mut polls, 0.1, 200.0, 400.0);
        assert_eq!(polls.regime(), PaperRegime::Below);
        let reached: Vec<_> = polls.changes().map(|change| change.to).collect();
        assert_eq!(reached[..2], [PaperRegime::Transition, PaperRegime::Saturated]);
    }

    #[test]
    fn a_change_needs_three_polls_in_a_row() {
        let mut polls = polls(Some(0.1));
        feed(&mut polls, 0.1, 0.0, 40.0);
        // Two polls above, one below, again and again: the EWMA never stays over the threshold for three.
        feed(&mut polls, 3.0, 40.0, 50.0);
        assert_eq!(polls.regime(), PaperRegime::Below);
        feed(&mut polls, 3.0, 50.0, 70.0);
        assert_eq!(polls.regime(), PaperRegime::Transition);
    }

    #[test]
    fn a_regime_stays_for_its_dwell_and_within_the_hysteresis() {
        let mut polls = polls(Some(0.1));
        feed(&mut polls, 3.0, 0.0, 20.0);
        assert_eq!(polls.regime(), PaperRegime::Transition);
        let entered_s = polls.changes().next().expect("a change").at_s;
        // 0.9 of the threshold: inside the hysteresis for ever.
        feed(&mut polls, 0.9, 20.0, 300.0);
        assert_eq!(polls.regime(), PaperRegime::Transition);
        feed(&mut polls, 0.1, 300.0, 340.0);
        assert_eq!(polls.regime(), PaperRegime::Below);
        let left_s = polls.changes().last().expect("a change").at_s;
        assert!(left_s - entered_s >= 30.0);
    }

    #[test]
    fn no_regime_outlives_its_traffic() {
        let mut polls = polls(Some(0.1));
        feed(&mut polls, 40.0, 0.0, 60.0);
        assert_eq!(polls.regime(), PaperRegime::Saturated);
        polls.advance(61.0);
        assert_eq!(polls.regime(), PaperRegime::Saturated);
        polls.advance(1e9);
        assert_eq!(polls.regime(), PaperRegime::Below);
        feed(&mut polls, 0.1, 1e9, 1e9 + 60.0);
        assert_eq!(polls.regime(), PaperRegime::Below);
    }

    #[test]
    fn thresholds_follow_the_learned_baseline() {
        for scale in [0.01, 1.0] {
            let mut polls = polls(None);
            feed(&mut polls, scale, 0.0, 60.0);
            feed(&mut polls, 5.0 * scale, 60.0, 120.0);
            assert_eq!(polls.regime(), PaperRegime::Below, "{scale}");
            feed(&mut polls, 40.0 * scale, 120.0, 180.0);
            assert_eq!(polls.regime(), PaperRegime::Transition, "{scale}");
        }
    }

    #[test]
    fn the_percentile_is_the_tail_within_two_percent() {
        let mut seen = TailHistogram::default();
        for i in 1..=1000 {
            seen.add(f64::from(i) * 1e-3);
        }
        let p99_s = seen.take_p99_s().expect("values");
        assert!((p99_s / 0.99 - 1.0).abs() < 0.02, "{p99_s}");
        assert_eq!(seen.take_p99_s(), None);
    }
}
