//! Sliding windows of decisions, and the price of anarchy over them.
//!
//! Recording a decision is O(workers). Solving is a call of its own ([`Meter::solve`]), one closed window at
//! a time, so that a busy caller samples windows instead of falling behind. Windows that no call solves in
//! time are dropped and counted. [`MeterConfig`] bounds every container.
//!
//! ```text
//! record ─▶ current window ─▶ closed by count, age or change of workers ─▶ pending ─▶ solve ─▶ kept
//!        ─▶ square window  ─▶ closed at as many decisions as workers    ─▶ pending ─▶ solve ─▶ kept
//! report: ratio of sums over the kept windows, interval by bootstrap over whole windows
//! ```
//!
//! Square windows have a queue of their own. With N decisions on fewer workers the paper's estimator shows
//! N/m where nothing is lost, so it is shown for N = m too. In one common queue the many small square windows
//! would crowd out the whole ones.
//!
//! A solver need not hold the meter: [`Meter::next_task`] hands a window out, and [`Meter::accept`] takes the
//! result in.

use std::collections::VecDeque;

use super::calibration::{Calibration, ModelError};
use super::decision::DecisionCosts;
use super::matrix::unusable;
use super::window::{FrozenCosts, Loss, Window, WindowEstimate, WindowWorker, ratio};
use crate::error::Error;
use crate::rng::Rng;

/// How windows are cut and how many are kept. Larger windows compare more decisions with each other, and cost
/// more to solve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterConfig {
    /// Number of decisions that closes a window.
    pub window_requests: usize,
    /// Age in seconds that closes a window, counted from its first decision.
    pub window_s: f64,
    /// Number of solved windows that the report covers; the oldest is dropped first.
    pub keep_windows: usize,
    /// Number of closed windows of each kind that may wait to be solved. Further windows are dropped and counted.
    pub max_pending: usize,
    /// Number of bootstrap resamples. Below 40 the report has no confidence interval.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Default for MeterConfig {
    fn default() -> Self {
        Self {
            window_requests: 64,
            window_s: 10.0,
            keep_windows: 64,
            max_pending: 8,
            resamples: 200,
            seed: 0,
        }
    }
}

/// 95 % bootstrap confidence interval over windows. It covers the scatter between windows, not the error of
/// the latency model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfidenceInterval {
    /// 2.5 % quantile.
    pub low: f64,
    /// 97.5 % quantile.
    pub high: f64,
}

/// The four estimators over the kept windows. [`WindowEstimate`] defines them.
#[derive(Debug, Clone, PartialEq)]
pub struct MeterReport {
    /// Number of solved windows that the report covers.
    pub windows: usize,
    /// Number of decisions in the solved windows.
    pub requests: usize,
    /// Price of anarchy: `Σ actual / Σ optimum` under the convex congestion model, at least 1.
    pub poa: f64,
    /// Confidence interval of `poa`; `None` with fewer than two windows.
    pub poa_interval: Option<ConfidenceInterval>,
    /// The paper's estimator: `Σ actual / Σ matched` on the rectangular frozen matrices.
    pub poa_paper: f64,
    /// The paper's estimator over windows with as many decisions as workers: ratio of sums.
    pub poa_square: f64,
    /// Median of the paper's estimator over windows with as many decisions as workers.
    pub poa_square_median: f64,
    /// 90 % quantile of the paper's estimator over windows with as many decisions as workers.
    pub poa_square_p90: f64,
    /// Largest value of the paper's estimator over windows with as many decisions as workers.
    pub poa_square_max: f64,
    /// Mean cost of the chosen worker minus the cheapest worker at the decision, seconds.
    pub regret_mean_s: f64,
    /// Social cost by cause, in seconds summed over the kept windows.
    pub loss: Loss,
    /// Error of the predicted times to first token.
    pub model_error: ModelError,
    /// Windows dropped since the start because `max_pending` others already waited.
    pub dropped_windows: u64,
    /// Decisions refused since the start because of costs that are negative, not finite or missing.
    pub refused_decisions: u64,
}

/// A closed window, to be solved without holding the [`Meter`].
#[derive(Debug)]
pub enum WindowTask {
    /// A window for all estimators.
    Whole(Window),
    /// A window with as many decisions as workers, for `poa_square` only.
    Square(Window),
}

/// The result of a [`WindowTask`], for [`Meter::accept`]. Opaque: only a meter reads it.
#[derive(Debug)]
pub struct SolvedWindow(Solution);

/// The result, by kind of window.
#[derive(Debug)]
enum Solution {
    Whole(WindowEstimate),
    Square(FrozenCosts),
}

impl WindowTask {
    /// Solves the window, at the cost of [`Window::estimate`] or [`Window::frozen`].
    ///
    /// # Errors
    /// [`Error::Parameter`] when a cost of the window is not finite.
    pub fn solve(self) -> Result<SolvedWindow, Error> {
        Ok(SolvedWindow(match self {
            Self::Whole(window) => Solution::Whole(window.estimate()?),
            Self::Square(window) => Solution::Square(window.frozen()?),
        }))
    }
}

/// Cuts decisions into windows and keeps the estimates of the solved ones.
///
/// Memory: two open windows, `max_pending` closed ones of each kind, and `keep_windows` estimates of each
/// kind.
#[derive(Debug, Clone)]
pub struct Meter {
    /// How windows are cut. It never changes.
    config: MeterConfig,
    /// The open window for all estimators.
    current: OpenWindow,
    /// The open window that closes at as many decisions as workers.
    square: OpenWindow,
    /// Closed windows that wait to be solved, oldest first.
    pending: VecDeque<Window>,
    /// Closed square windows that wait, oldest first.
    pending_square: VecDeque<Window>,
    /// Estimates that the report covers, oldest first.
    solved: VecDeque<WindowEstimate>,
    /// Costs of solved square windows, oldest first.
    solved_square: VecDeque<FrozenCosts>,
    /// Predicted times against measured ones.
    calibration: Calibration,
    /// Closed windows that found no place to wait.
    dropped_windows: u64,
    /// Decisions whose costs could not be true.
    refused_decisions: u64,
}

/// A window that still takes decisions. Its workers are as they were at its first decision.
#[derive(Debug, Clone, Default)]
struct OpenWindow {
    /// State of each worker at the first decision.
    workers: Vec<WindowWorker>,
    /// Decisions so far, in order of time.
    decisions: Vec<DecisionCosts>,
}

impl Meter {
    /// A meter without decisions.
    pub fn new(config: MeterConfig) -> Self {
        Self {
            config,
            current: OpenWindow::default(),
            square: OpenWindow::default(),
            pending: VecDeque::new(),
            pending_square: VecDeque::new(),
            solved: VecDeque::new(),
            solved_square: VecDeque::new(),
            calibration: Calibration::default(),
            dropped_windows: 0,
            refused_decisions: 0,
        }
    }

    /// Records one decision. A change in the number of workers closes the open windows.
    ///
    /// `peer_decode_s[j]` is the seconds that one more request adds to another request's whole decode on worker j.
    ///
    /// # Errors
    /// [`Error::Parameter`] for vectors of unequal length and for costs that are negative or not finite. Refused
    /// decisions are counted in [`MeterReport::refused_decisions`].
    pub fn record(&mut self, decision: &DecisionCosts, peer_decode_s: &[f64]) -> Result<(), Error> {
        let checked = decision.check().and_then(|()| {
            if peer_decode_s.len() == decision.prefill_s.len() {
                return Ok(());
            }
            let got = format!(
                "{} slopes for {} workers",
                peer_decode_s.len(),
                decision.prefill_s.len()
            );
            Err(unusable(got, "one decode slope per worker"))
        });
        if let Err(error) = checked {
            self.refused_decisions += 1;
            return Err(error);
        }
        let workers = decision.prefill_s.len();
        let config = self.config;
        if self.current.must_close_before(decision, config.window_s) {
            self.close_current();
        }
        if self.square.workers.len() != workers {
            self.square = OpenWindow::default();
        }
        self.current.push(decision, peer_decode_s);
        self.square.push(decision, peer_decode_s);
        if self.current.decisions.len() >= config.window_requests {
            self.close_current();
        }
        if self.square.decisions.len() == workers {
            let window = std::mem::take(&mut self.square).into_window()?;
            self.dropped_windows += enqueue(&mut self.pending_square, window, config.max_pending);
        }
        Ok(())
    }

    /// Records a time predicted at the decision and the time measured for it, both in seconds.
    pub fn record_outcome(&mut self, predicted_s: f64, observed_s: f64) {
        self.calibration.record(predicted_s, observed_s);
    }

    /// Number of closed windows that wait to be solved.
    pub fn pending(&self) -> usize {
        self.pending.len() + self.pending_square.len()
    }

    /// Solves the oldest closed window, and returns false when none waits.
    ///
    /// # Errors
    /// [`Error::Parameter`] when a cost of the window is not finite.
    pub fn solve(&mut self) -> Result<bool, Error> {
        let Some(task) = self.next_task() else {
            return Ok(false);
        };
        let solved = task.solve()?;
        self.accept(&solved);
        Ok(true)
    }

    /// Takes the oldest closed window out, to be solved without holding the meter. Windows for all estimators come
    /// before windows with as many decisions as workers.
    pub fn next_task(&mut self) -> Option<WindowTask> {
        let window = self.pending.pop_front().map(WindowTask::Whole);
        window.or_else(|| self.pending_square.pop_front().map(WindowTask::Square))
    }

    /// Adds the result of a [`WindowTask`] to the report.
    pub fn accept(&mut self, solved: &SolvedWindow) {
        match solved.0 {
            Solution::Whole(estimate) => push_bounded(&mut self.solved, estimate, self.config.keep_windows),
            Solution::Square(ratio) => push_bounded(&mut self.solved_square, ratio, self.config.keep_windows),
        }
    }

    /// Closes the open windows, so that no window spans a change of workers or a gap in the recording.
    pub fn cut(&mut self) {
        self.close_current();
        self.square = OpenWindow::default();
    }

    /// Closes the open window and solves all closed ones, at the end of an offline run.
    ///
    /// # Errors
    /// [`Error::Parameter`] when a cost of a window is not finite.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.close_current();
        while self.solve()? {}
        Ok(())
    }

    /// The report over the kept windows; `None` before the first window is solved.
    pub fn report(&self) -> Option<MeterReport> {
        if self.solved.is_empty() {
            return None;
        }
        let sum = |part: fn(&WindowEstimate) -> f64| self.solved.iter().map(part).sum::<f64>();
        let requests: usize = self.solved.iter().map(|e| e.requests).sum();
        let mut squares: Vec<f64> = self
            .solved_square
            .iter()
            .map(|s| ratio(s.actual_s, s.optimum_s))
            .collect();
        squares.sort_by(f64::total_cmp);
        let quantile = |share: f64| match squares.len() {
            0 => 1.0,
            n => squares[((n - 1) as f64 * share).round() as usize],
        };
        Some(MeterReport {
            windows: self.solved.len(),
            requests,
            poa: ratio(sum(|e| e.actual_s), sum(|e| e.optimum_s)).max(1.0),
            poa_interval: self.bootstrap(),
            poa_paper: ratio(sum(|e| e.frozen_actual_s), sum(|e| e.frozen_optimum_s)),
            poa_square: ratio(
                self.solved_square.iter().map(|s| s.actual_s).sum(),
                self.solved_square.iter().map(|s| s.optimum_s).sum(),
            ),
            poa_square_median: quantile(0.5),
            poa_square_p90: quantile(0.9),
            poa_square_max: quantile(1.0),
            regret_mean_s: sum(|e| e.regret_s) / requests as f64,
            loss: Loss {
                free_s: sum(|e| e.loss.free_s),
                split_s: sum(|e| e.loss.split_s),
                cache_s: sum(|e| e.loss.cache_s),
                load_s: sum(|e| e.loss.load_s),
            },
            model_error: self.calibration.error(),
            dropped_windows: self.dropped_windows,
            refused_decisions: self.refused_decisions,
        })
    }

    /// Bootstrap over whole windows, because decisions within a window are not independent.
    fn bootstrap(&self) -> Option<ConfidenceInterval> {
        let windows = self.solved.len();
        if windows < 2 || self.config.resamples < 40 {
            return None;
        }
        let mut rng = Rng::new(self.config.seed);
        let mut ratios: Vec<f64> = (0..self.config.resamples)
            .map(|_| {
                let (mut actual, mut optimum) = (0.0, 0.0);
                for _ in 0..windows {
                    let drawn = &self.solved[rng.below(windows)];
                    actual += drawn.actual_s;
                    optimum += drawn.optimum_s;
                }
                ratio(actual, optimum).max(1.0)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share).round() as usize];
        Some(ConfidenceInterval {
            low: at(0.025),
            high: at(0.975),
        })
    }

    /// Closes the open window, if it has at least two decisions.
    fn close_current(&mut self) {
        let open = std::mem::take(&mut self.current);
        // One decision alone has no other decision to compete with.
        if open.decisions.len() < 2 {
            return;
        }
        match open.into_window() {
            Ok(window) => {
                self.dropped_windows += enqueue(&mut self.pending, window, self.config.max_pending);
            }
            Err(_) => self.refused_decisions += 1,
        }
    }
}

impl OpenWindow {
    /// Whether `next` belongs to another window: other workers, or too late.
    fn must_close_before(&self, next: &DecisionCosts, window_s: f64) -> bool {
        self.decisions.first().is_some_and(|first| {
            first.prefill_s.len() != next.prefill_s.len() || next.at_s - first.at_s > window_s
        })
    }

    /// Adds a decision. The first one sets the workers of the window.
    fn push(&mut self, decision: &DecisionCosts, peer_decode_s: &[f64]) {
        if self.decisions.is_empty() {
            let states = decision.wait_s.iter().zip(peer_decode_s);
            self.workers = states
                .map(|(&wait_s, &peer_decode_s)| WindowWorker {
                    wait_s,
                    peer_decode_s,
                })
                .collect();
        }
        self.decisions.push(decision.clone());
    }

    /// The window, checked as a whole.
    fn into_window(self) -> Result<Window, Error> {
        Window::new(self.workers, self.decisions)
    }
}

/// Adds a value and drops the oldest beyond `bound`, at least 1.
fn push_bounded<T>(kept: &mut VecDeque<T>, value: T, bound: usize) {
    if kept.len() >= bound.max(1) {
        kept.pop_front();
    }
    kept.push_back(value);
}

/// Adds `window` unless `bound` windows already wait. Returns how many windows were dropped, 0 or 1.
fn enqueue(pending: &mut VecDeque<Window>, window: Window, bound: usize) -> u64 {
    if pending.len() >= bound {
        return 1;
    }
    pending.push_back(window);
    0
}
