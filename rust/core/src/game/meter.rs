//! Sliding windows of placements, and the figures they give, live or offline.
//!
//! Recording is O(m) per decision; solving is left to the caller's spare time ([`Meter::solve`]), one closed window at
//! a time, so that a busy gateway samples windows instead of falling behind: what it has no time for is dropped
//! and counted. Every container has a bound from [`MeterConfig`].

use std::collections::VecDeque;

use super::calibration::{Calibration, ModelError};
use super::matrix::refused;
use super::window::{Estimate, Loss, Placement, Window, WorkerState, ratio};
use crate::error::Error;
use crate::rng::Rng;

/// How windows are cut and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterConfig {
    /// A window closes at this many placements …
    pub window_requests: usize,
    /// … or when it is this old, in seconds.
    pub window_s: f64,
    /// Solved windows that the figures slide over.
    pub keep_windows: usize,
    /// Closed windows of each kind that may wait for a solver; more are dropped and counted.
    pub max_pending: usize,
    /// Resamples of the bootstrap interval.
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

/// A 95 % bootstrap interval over windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The 2.5 % point.
    pub low: f64,
    /// The 97.5 % point.
    pub high: f64,
}

/// The four estimators over the kept windows; see [`Estimate`] for their meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct MeterReport {
    /// Solved windows behind the figures.
    pub windows: usize,
    /// Placements in them.
    pub requests: usize,
    /// Ratio of sums under the convex congestion model, ≥ 1.
    pub poa: f64,
    /// Its interval; `None` under two windows.
    pub poa_interval: Option<Interval>,
    /// The paper's ratio on the rectangular frozen matrix.
    pub poa_paper: f64,
    /// Windows of exactly m arrivals: ratio of sums, median, 90 % point and largest.
    pub poa_square: f64,
    /// Median over windows.
    pub poa_square_median: f64,
    /// 90 % point over windows.
    pub poa_square_p90: f64,
    /// Largest window.
    pub poa_square_max: f64,
    /// Mean seconds between the chosen worker and the cheapest at that moment.
    pub regret_mean_s: f64,
    /// Sums over the kept windows, in seconds.
    pub loss: Loss,
    /// Calibration of the model.
    pub model_error: ModelError,
    /// Windows dropped because no solver came in time, since the start.
    pub dropped_windows: u64,
    /// Placements refused for bad costs, since the start.
    pub refused_placements: u64,
}

/// A closed window that waits for a solver.
#[derive(Debug)]
pub enum Task {
    /// A window of the headline figure.
    Whole(Window),
    /// A window of exactly m arrivals.
    Square(Window),
}

/// What a [`Task`] gave, for [`Meter::accept`].
#[derive(Debug)]
pub struct Solved(Gave);

#[derive(Debug)]
enum Gave {
    Whole(Estimate),
    Square(SquareRatio),
}

impl Task {
    /// Solves the window. The cost is that of [`Window::estimate`] or [`Window::frozen`].
    pub fn solve(self) -> Result<Solved, Error> {
        Ok(Solved(match self {
            Self::Whole(window) => Gave::Whole(window.estimate()?),
            Self::Square(window) => {
                let (actual_s, optimum_s) = window.frozen()?;
                Gave::Square(SquareRatio { actual_s, optimum_s })
            }
        }))
    }
}

/// One window of exactly m arrivals on frozen costs.
#[derive(Debug, Clone, Copy)]
struct SquareRatio {
    actual_s: f64,
    optimum_s: f64,
}

/// Collects placements, cuts windows, keeps estimates.
#[derive(Debug, Clone)]
pub struct Meter {
    config: MeterConfig,
    current: Stretch,
    square: Stretch,
    pending: VecDeque<Window>,
    pending_square: VecDeque<Window>,
    solved: VecDeque<Estimate>,
    solved_square: VecDeque<SquareRatio>,
    calibration: Calibration,
    dropped_windows: u64,
    refused_placements: u64,
}

/// An open window.
#[derive(Debug, Clone, Default)]
struct Stretch {
    workers: Vec<WorkerState>,
    placements: Vec<Placement>,
}

impl Meter {
    /// An empty meter.
    pub fn new(config: MeterConfig) -> Self {
        Self {
            config,
            current: Stretch::default(),
            square: Stretch::default(),
            pending: VecDeque::new(),
            pending_square: VecDeque::new(),
            solved: VecDeque::new(),
            solved_square: VecDeque::new(),
            calibration: Calibration::default(),
            dropped_windows: 0,
            refused_placements: 0,
        }
    }

    /// Records one decision; `peer_decode_s[j]` is what one more request adds to another's decode on worker j.
    ///
    /// A change in the number of workers closes the open windows. Errors: [`Error::Parameter`], counted.
    pub fn record(&mut self, placement: &Placement, peer_decode_s: &[f64]) -> Result<(), Error> {
        let checked = placement.check().and_then(|()| {
            if peer_decode_s.len() == placement.prefill_s.len() {
                return Ok(());
            }
            let got = format!(
                "{} slopes for {} workers",
                peer_decode_s.len(),
                placement.prefill_s.len()
            );
            Err(refused(got, "one decode slope per worker"))
        });
        if let Err(error) = checked {
            self.refused_placements += 1;
            return Err(error);
        }
        let workers = placement.prefill_s.len();
        let config = self.config;
        if self.current.must_close_before(placement, config.window_s) {
            self.close_current();
        }
        if self.square.workers.len() != workers {
            self.square = Stretch::default();
        }
        self.current.push(placement, peer_decode_s);
        self.square.push(placement, peer_decode_s);
        if self.current.placements.len() >= config.window_requests {
            self.close_current();
        }
        if self.square.placements.len() == workers {
            let window = std::mem::take(&mut self.square).into_window()?;
            self.dropped_windows += enqueue(&mut self.pending_square, window, config.max_pending);
        }
        Ok(())
    }

    /// Records what a prediction made at decision time turned out to be, both in seconds.
    pub fn record_outcome(&mut self, predicted_s: f64, observed_s: f64) {
        self.calibration.record(predicted_s, observed_s);
    }

    /// Closed windows that wait for [`Meter::solve`].
    pub fn pending(&self) -> usize {
        self.pending.len() + self.pending_square.len()
    }

    /// Solves the oldest closed window, one of m arrivals when no other waits; false when none does.
    pub fn solve(&mut self) -> Result<bool, Error> {
        let Some(task) = self.next_task() else {
            return Ok(false);
        };
        let solved = task.solve()?;
        self.accept(&solved);
        Ok(true)
    }

    /// Takes the oldest closed window out, one of m arrivals when no other waits, to be solved without holding the meter.
    pub fn next_task(&mut self) -> Option<Task> {
        let window = self.pending.pop_front().map(Task::Whole);
        window.or_else(|| self.pending_square.pop_front().map(Task::Square))
    }

    /// Takes what a task gave into the figures.
    pub fn accept(&mut self, solved: &Solved) {
        match solved.0 {
            Gave::Whole(estimate) => push_bounded(&mut self.solved, estimate, self.config.keep_windows),
            Gave::Square(ratio) => push_bounded(&mut self.solved_square, ratio, self.config.keep_windows),
        }
    }

    /// Closes the open windows: what comes next is no part of them (other workers, or decisions that were not recorded).
    pub fn cut(&mut self) {
        self.close_current();
        self.square = Stretch::default();
    }

    /// Closes the open window and solves everything: the end of an offline run.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.close_current();
        while self.solve()? {}
        Ok(())
    }

    /// The figures over the kept windows; `None` before the first is solved.
    pub fn report(&self) -> Option<MeterReport> {
        if self.solved.is_empty() {
            return None;
        }
        let sum = |part: fn(&Estimate) -> f64| self.solved.iter().map(part).sum::<f64>();
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
            refused_placements: self.refused_placements,
        })
    }

    /// Resamples whole windows, since placements within a window are not independent.
    fn bootstrap(&self) -> Option<Interval> {
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
        Some(Interval {
            low: at(0.025),
            high: at(0.975),
        })
    }

    fn close_current(&mut self) {
        let stretch = std::mem::take(&mut self.current);
        // A lone placement has nothing to be compared with.
        if stretch.placements.len() < 2 {
            return;
        }
        match stretch.into_window() {
            Ok(window) => {
                self.dropped_windows += enqueue(&mut self.pending, window, self.config.max_pending);
            }
            Err(_) => self.refused_placements += 1,
        }
    }
}

impl Stretch {
    fn must_close_before(&self, next: &Placement, window_s: f64) -> bool {
        self.placements.first().is_some_and(|first| {
            first.prefill_s.len() != next.prefill_s.len() || next.at_s - first.at_s > window_s
        })
    }

    fn push(&mut self, placement: &Placement, peer_decode_s: &[f64]) {
        if self.placements.is_empty() {
            let states = placement.wait_s.iter().zip(peer_decode_s);
            self.workers = states
                .map(|(&wait_s, &peer_decode_s)| WorkerState {
                    wait_s,
                    peer_decode_s,
                })
                .collect();
        }
        self.placements.push(placement.clone());
    }

    fn into_window(self) -> Result<Window, Error> {
        Window::new(self.workers, self.placements)
    }
}

fn push_bounded<T>(kept: &mut VecDeque<T>, value: T, bound: usize) {
    if kept.len() >= bound.max(1) {
        kept.pop_front();
    }
    kept.push_back(value);
}

/// Adds `window` unless `bound` wait already; how many were dropped.
fn enqueue(pending: &mut VecDeque<Window>, window: Window, bound: usize) -> u64 {
    if pending.len() >= bound {
        return 1;
    }
    pending.push_back(window);
    0
}
