//! The price guard: a static rule decides while the predictions of the price do not fit this fleet.
//!
//! ```text
//! booking ─▶ predicted first token ─┐
//! outcome ─▶ observed first token ──┴▶ [`Fit`] ─┐
//! outcome ─▶ predicted, observed step ─▶ [`Fit`] ┴▶ [`PriceGuard`] ─▶ policy in force, room of the queue
//! end     ─▶ was its first token reported? ──────┘
//! ```
//!
//! A price in seconds is right when its seconds are. Three things show that they are not:
//!
//! | misfit | falls when | returns when |
//! |---|---|---|
//! | first tokens unreported | fewer than 0.5 of the ended requests had a first token | 0.8 of them or more |
//! | first tokens unpredicted | error > ln 2, and error > 1.1 · reference | error ≤ 0.75 · ln 2, or error ≤ 0.9 · reference |
//! | steps unpredicted | the same, for the mean step of an answer | the same |
//!
//! `error` and `reference` are in `fit.rs`: the price errs by more than a factor of two, and by more than a
//! prediction of the recent mean. Both must hold. Where all requests are alike, the recent mean is hard to beat and a
//! factor of 1.2 does no harm. Where times vary widely, a factor of 2 still ranks the workers.
//!
//! The first 64 observations of each kind teach the curves and are no evidence. A fall needs 64 observations of the kind
//! since the last change, and 8 ended requests where first tokens go unreported. A return needs 128 observations, or 8
//! ended requests. Each further fall doubles both, up to 16 times. A price that held for 4,096 observations starts again.
//!
//! The static rule is Dynamo's cost over the same overlaps. The trust in the index shortens these overlaps, so Dynamo's
//! cost of a worker without trust is its load. The queue lets every request through meanwhile, since room is a matter of
//! predicted seconds too. The curves learn and the price predicts all the while, so the guard finds when they fit again.
//!
//! O(1) per outcome. Pure: no clock, no I/O. `docs/explanation/price-guard.md` has the evidence.

mod fit;
#[cfg(test)]
mod tests;

use serde::Serialize;

use fit::Fit;
pub use fit::FitReport;
pub(crate) use fit::Observation;

/// Error from which a prediction is off: a typical factor of two.
const FALL_ERROR: f64 = std::f64::consts::LN_2;
/// Error up to which a prediction fits again.
const RETURN_ERROR: f64 = 0.75 * std::f64::consts::LN_2;
/// Multiple of the reference's error from which a prediction is off.
const FALL_FACTOR: f64 = 1.1;
/// Multiple of the reference's error up to which a prediction fits again.
const RETURN_FACTOR: f64 = 0.9;
/// Observations since the last change that a fall needs.
const FALL_EVIDENCE: u32 = 64;
/// Observations since the last change that a first return needs.
const RETURN_EVIDENCE: u32 = 128;
/// Most often that the evidence for a return doubles.
const DOUBLINGS_MAX: u32 = 4;
/// Observations after which a price that held is as good as new.
const HELD_EVIDENCE: u32 = 4096;
/// Share of ended requests with a reported first token below which first tokens count as unreported.
const FALL_REPORTED: f64 = 0.5;
/// Share of ended requests with a reported first token from which first tokens count as reported again.
const RETURN_REPORTED: f64 = 0.8;
/// Ended requests since the last change that a fall or a return by reports needs.
const REPORT_EVIDENCE: u32 = 8;
/// Ended requests over which the share is averaged.
const REPORT_WINDOW: f64 = 32.0;

/// What shows that the price's model of this fleet is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Misfit {
    /// Requests end, and their first tokens are not reported.
    FirstTokensUnreported,
    /// First tokens come at other times than predicted.
    FirstTokensUnpredicted,
    /// Decode steps take other times than predicted.
    StepsUnpredicted,
}

impl Misfit {
    /// Every misfit, in the order in which they are looked for.
    pub const ALL: [Self; 3] = [
        Self::FirstTokensUnreported,
        Self::FirstTokensUnpredicted,
        Self::StepsUnpredicted,
    ];

    /// Name of the misfit in metric labels and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FirstTokensUnreported => "first_tokens_unreported",
            Self::FirstTokensUnpredicted => "first_tokens_unpredicted",
            Self::StepsUnpredicted => "steps_unpredicted",
        }
    }
}

/// State and evidence of the price guard of one router.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PriceGuardReport {
    /// Whether the guard may fall.
    pub is_on: bool,
    /// Why a static rule decides; `None` while the policy decides.
    pub misfit: Option<Misfit>,
    /// Falls to the static rule since the router was made.
    pub falls: u64,
    /// Predicted against observed first tokens.
    pub first_tokens: FitReport,
    /// Predicted against observed steps.
    pub steps: FitReport,
    /// Share of recently ended requests whose first token was reported, 0 to 1. 1 without evidence.
    pub reported_share: f64,
}

impl Default for PriceGuardReport {
    fn default() -> Self {
        PriceGuard::new(true).report()
    }
}

/// Share of ended requests whose first token was reported.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reports {
    /// Ended requests so far, saturating.
    count: u32,
    /// Ended requests since the last change of the guard, saturating.
    since_change: u32,
    /// Decayed share, 0 to 1.
    share: f64,
}

/// Judges whether the price's predictions fit. The module's page has the rule.
#[derive(Clone, Debug)]
pub(crate) struct PriceGuard {
    /// Whether the guard may fall. It measures either way.
    is_on: bool,
    misfit: Option<Misfit>,
    first_tokens: Fit,
    steps: Fit,
    reports: Reports,
    /// Falls since the start.
    falls: u64,
    /// How often the evidence for a return has doubled.
    doublings: u32,
}

impl PriceGuard {
    /// A guard without evidence.
    pub fn new(is_on: bool) -> Self {
        Self {
            is_on,
            misfit: None,
            first_tokens: Fit::default(),
            steps: Fit::default(),
            reports: Reports {
                count: 0,
                since_change: 0,
                share: 1.0,
            },
            falls: 0,
            doublings: 0,
        }
    }

    /// Why a static rule decides; `None` while the policy decides.
    pub const fn misfit(&self) -> Option<Misfit> {
        self.misfit
    }

    /// Turns the guard on or off. Off, the policy decides at once.
    pub fn turn(&mut self, is_on: bool) {
        self.is_on = is_on;
        if !is_on {
            self.misfit = None;
        }
    }

    /// State and evidence.
    pub fn report(&self) -> PriceGuardReport {
        PriceGuardReport {
            is_on: self.is_on,
            misfit: self.misfit,
            falls: self.falls,
            first_tokens: self.first_tokens.report(),
            steps: self.steps.report(),
            reported_share: self.reports.share,
        }
    }

    /// A first token came. Returns whether the guard changed.
    pub fn first_token(&mut self, seen: &Observation) -> bool {
        self.first_tokens.observe(seen);
        self.judge()
    }

    /// An answer ended, and its mean step is known. Returns whether the guard changed.
    pub fn step(&mut self, seen: &Observation) -> bool {
        self.steps.observe(seen);
        self.judge()
    }

    /// A streamed request ended. Returns whether the guard changed.
    pub fn ended(&mut self, was_reported: bool) -> bool {
        let reports = &mut self.reports;
        reports.count = reports.count.saturating_add(1);
        reports.since_change = reports.since_change.saturating_add(1);
        let share = 1.0 / f64::from(reports.count).min(REPORT_WINDOW);
        reports.share += (f64::from(u8::from(was_reported)) - reports.share) * share;
        self.judge()
    }

    /// Moves to the state that the evidence asks for.
    fn judge(&mut self) -> bool {
        if !self.is_on {
            return false;
        }
        let next = match self.misfit {
            None => Misfit::ALL.into_iter().find(|&misfit| self.falls_by(misfit)),
            Some(misfit) if self.persists(misfit) => Some(misfit),
            // Another misfit may have shown itself meanwhile, by the same evidence as for a fall.
            Some(_) => Misfit::ALL.into_iter().find(|&misfit| self.falls_by(misfit)),
        };
        if next == self.misfit {
            return false;
        }
        if self.misfit.is_none() {
            self.falls += 1;
            let held = self.first_tokens.since_change() >= HELD_EVIDENCE;
            self.doublings = match self.falls {
                1 => 0,
                _ if held => 0,
                _ => (self.doublings + 1).min(DOUBLINGS_MAX),
            };
        }
        self.misfit = next;
        self.first_tokens.changed();
        self.steps.changed();
        self.reports.since_change = 0;
        true
    }

    /// Whether the evidence suffices to fall by a misfit.
    fn falls_by(&self, misfit: Misfit) -> bool {
        let is_off = |fit: &Fit| fit.since_change() >= FALL_EVIDENCE && fit.is_off(FALL_ERROR, FALL_FACTOR);
        match misfit {
            Misfit::FirstTokensUnreported => {
                self.reports.since_change >= REPORT_EVIDENCE && self.reports.share < FALL_REPORTED
            }
            Misfit::FirstTokensUnpredicted => is_off(&self.first_tokens),
            Misfit::StepsUnpredicted => is_off(&self.steps),
        }
    }

    /// Whether a misfit still holds, or the evidence does not suffice to say that it ended.
    fn persists(&self, misfit: Misfit) -> bool {
        let evidence = RETURN_EVIDENCE << self.doublings;
        let is_off = |fit: &Fit| fit.since_change() < evidence || fit.is_off(RETURN_ERROR, RETURN_FACTOR);
        match misfit {
            Misfit::FirstTokensUnreported => {
                self.reports.since_change < REPORT_EVIDENCE << self.doublings
                    || self.reports.share < RETURN_REPORTED
            }
            Misfit::FirstTokensUnpredicted => is_off(&self.first_tokens),
            Misfit::StepsUnpredicted => is_off(&self.steps),
        }
    }
}
