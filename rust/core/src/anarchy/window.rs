//! One window of decisions, and the estimate of what its routing lost.
//!
//! The congestion model of a window with N decisions over T seconds on m workers. All quantities are seconds.
//!
//! * The own cost of request i on worker j is `p_ij = prefill_ij + decode_ij`.
//! * Waiting is a fluid queue. Worker j starts with a backlog of `W_j` seconds and drains one second per second. With k
//!   requests of mean prefill `s̄_j`, spread evenly, the backlog runs from `W_j` to `E_j(k) = W_j + (k − 1)·s̄_j − T`.
//!   The mean wait is the mean of the backlog's positive part.
//! * Sharing the batch costs `peer_j · (k − 1)`, where `peer_j` is what one more request adds to another's decode.
//!
//! `ℓ_j(k)` is waiting plus sharing. It is non-negative, rising and convex in k, so `k·ℓ_j(k)` is convex and
//! [`assign_congested`] is exact. The actual assignment is a feasible point of the same problem, so `poa ≥ 1`
//! holds by construction. `s̄_j` is the mean over the window's requests on worker j. It is scaled so that the
//! model's total prefill equals the prefill that the chosen workers computed.
//!
//! The model has two limits. Caches stay as they were at each decision, although another assignment would have changed
//! later overlaps. The order of requests within a worker is ignored.

use super::matrix::unusable;
use super::{CostMatrix, DecisionCosts, assign, assign_congested};
use crate::error::Error;

/// State of one worker at the start of a window.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WindowWorker {
    /// Seconds of prefill queued at the start of the window.
    pub wait_s: f64,
    /// Seconds that one more request in the batch adds to another request's whole decode.
    pub peer_decode_s: f64,
}

/// The social cost of a window, split by cause. All fields are seconds summed over the window's requests.
///
/// `free_s + split_s + cache_s + load_s` equals the social cost of the actual assignment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// `Σ_i min_j p_ij`: the cost if every request had its best worker to itself.
    pub free_s: f64,
    /// Optimal social cost minus `free_s`: the part that no assignment can save.
    pub split_s: f64,
    /// Actual own cost minus the optimum's own cost: prefill that another assignment would have found in a cache.
    /// It is negative where the optimum pays prefill to save waiting.
    pub cache_s: f64,
    /// Actual congestion minus the optimum's congestion: waiting that another assignment would have saved.
    pub load_s: f64,
}

impl Loss {
    /// Actual social cost, in seconds: the sum of the four parts.
    pub fn total_s(&self) -> f64 {
        self.free_s + self.split_s + self.cache_s + self.load_s
    }
}

/// The estimators of one window, kept as sums so that windows pool into ratios of sums.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WindowEstimate {
    /// Placements in the window.
    pub requests: usize,
    /// Social cost of the actual assignment, seconds.
    pub actual_s: f64,
    /// Social cost of the exact optimum, seconds.
    pub optimum_s: f64,
    /// The social cost of the actual assignment, split by cause.
    pub loss: Loss,
    /// Cost of the actual assignment, in seconds, with waiting frozen at the start of the window.
    pub frozen_actual_s: f64,
    /// Least cost of a rectangular assignment on the frozen costs, seconds. At most m of the N requests are matched.
    pub frozen_optimum_s: f64,
    /// Sum of [`DecisionCosts::regret_s`] over the window, seconds.
    pub regret_s: f64,
}

impl WindowEstimate {
    /// Price of anarchy: `actual_s / optimum_s`, at least 1. A window without cost counts as optimal.
    pub fn poa(&self) -> f64 {
        ratio(self.actual_s, self.optimum_s).max(1.0)
    }

    /// The paper's estimator (section 6.4): `frozen_actual_s / frozen_optimum_s`.
    ///
    /// With N requests on m < N workers the optimum matches only m requests. The ratio therefore tends to N/m
    /// regardless of the router, and has a name of its own.
    pub fn poa_paper(&self) -> f64 {
        ratio(self.frozen_actual_s, self.frozen_optimum_s)
    }
}

/// `actual / optimum`, or 1 where the optimum is 0.
pub(super) fn ratio(actual: f64, optimum: f64) -> f64 {
    if optimum > 0.0 { actual / optimum } else { 1.0 }
}

/// Costs of one window on the matrix whose waiting is frozen at the start of the window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrozenCosts {
    /// Cost of the actual assignment, seconds.
    pub actual_s: f64,
    /// Cost of the best rectangular assignment, seconds.
    pub optimum_s: f64,
}

/// Consecutive decisions over one fixed set of workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// State of each worker at the start of the window.
    workers: Vec<WindowWorker>,
    /// Decisions in order of time, each over the same workers.
    decisions: Vec<DecisionCosts>,
    /// Seconds from the first to the last decision; 0 when all have the same time.
    span_s: f64,
}

impl Window {
    /// A window of `decisions`, ordered by time, over `workers` as they were at its start.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a decision with another number of workers, or with a cost that is negative or not finite.
    pub fn new(workers: Vec<WindowWorker>, decisions: Vec<DecisionCosts>) -> Result<Self, Error> {
        for decision in &decisions {
            decision.check()?;
            if decision.prefill_s.len() != workers.len() {
                let got = format!(
                    "{} workers in a window of {}",
                    decision.prefill_s.len(),
                    workers.len()
                );
                return Err(unusable(got, "decisions over the workers of the window"));
            }
        }
        let span_s = match (decisions.first(), decisions.last()) {
            (Some(first), Some(last)) => (last.at_s - first.at_s).max(0.0),
            _ => 0.0,
        };
        Ok(Self {
            workers,
            decisions,
            span_s,
        })
    }

    /// Number of decisions in the window.
    pub fn len(&self) -> usize {
        self.decisions.len()
    }

    /// True if the window has no decision.
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty()
    }

    /// Solves the window: one assignment under congestion and one rectangular assignment on frozen costs.
    ///
    /// # Errors
    /// [`Error::Parameter`] when a cost is not finite.
    pub fn estimate(&self) -> Result<WindowEstimate, Error> {
        if self.is_empty() {
            return Ok(WindowEstimate::default());
        }
        let own = self.matrix(|p, j| p.prefill_s[j] + p.decode_s[j])?;
        let congestion = self.congestion();
        let marginal = |j: usize, k: usize| congestion[j].marginal_s(k);
        let best = assign_congested(&own, marginal)?;

        let mut count = vec![0_usize; self.workers.len()];
        let mut actual_own = 0.0;
        for (row, decision) in self.decisions.iter().enumerate() {
            actual_own += own.at(row, decision.chosen);
            count[decision.chosen] += 1;
        }
        let actual_congestion: f64 = count.iter().zip(&congestion).map(|(&k, c)| c.social_s(k)).sum();
        let free_s: f64 = (0..own.rows())
            .map(|row| own.row(row).iter().copied().fold(f64::INFINITY, f64::min))
            .sum();
        let frozen = self.frozen()?;
        Ok(WindowEstimate {
            requests: self.len(),
            actual_s: actual_own + actual_congestion,
            optimum_s: best.total(),
            loss: Loss {
                free_s,
                split_s: best.total() - free_s,
                cache_s: actual_own - best.own,
                load_s: actual_congestion - best.congestion,
            },
            frozen_actual_s: frozen.actual_s,
            frozen_optimum_s: frozen.optimum_s,
            regret_s: self.decisions.iter().map(DecisionCosts::regret_s).sum(),
        })
    }

    /// Actual and optimal cost with waiting frozen at the start of the window.
    ///
    /// # Errors
    /// [`Error::Parameter`] when a cost is not finite.
    pub fn frozen(&self) -> Result<FrozenCosts, Error> {
        let frozen = self.matrix(|p, j| p.prefill_s[j] + p.decode_s[j] + self.workers[j].wait_s)?;
        let actual_s = self
            .decisions
            .iter()
            .enumerate()
            .map(|(row, p)| frozen.at(row, p.chosen))
            .sum();
        Ok(FrozenCosts {
            actual_s,
            optimum_s: assign(&frozen).total,
        })
    }

    /// The matrix of a cost of every decision on every worker. O(decisions · workers).
    fn matrix(&self, cost: impl Fn(&DecisionCosts, usize) -> f64) -> Result<CostMatrix, Error> {
        let columns = self.workers.len();
        let values = self
            .decisions
            .iter()
            .flat_map(|p| (0..columns).map(|j| cost(p, j)).collect::<Vec<_>>());
        CostMatrix::new(self.decisions.len(), columns, values.collect())
    }

    /// The congestion of every worker over the window.
    ///
    /// The mean prefill of a worker is scaled, so that the model offers as much prefill as the chosen workers
    /// really computed. Otherwise a window with good cache hits would look more congested than it was.
    fn congestion(&self) -> Vec<Congestion> {
        let requests = self.decisions.len() as f64;
        let workers = self.workers.len() as f64;
        let done: f64 = self.decisions.iter().map(|p| p.prefill_s[p.chosen]).sum();
        let offered: f64 = self.decisions.iter().flat_map(|p| &p.prefill_s).sum::<f64>() / workers;
        let scale = if offered > 0.0 { done / offered } else { 1.0 };
        self.workers
            .iter()
            .enumerate()
            .map(|(j, worker)| Congestion {
                wait: worker.wait_s,
                mean_prefill: scale * self.decisions.iter().map(|p| p.prefill_s[j]).sum::<f64>() / requests,
                span: self.span_s,
                peer_decode: worker.peer_decode_s,
            })
            .collect()
    }
}

/// Parameters of `ℓ_j(k)` for one worker in one window, all in seconds. The module documentation has the formula.
#[derive(Debug, Clone, Copy)]
struct Congestion {
    /// Backlog at the start.
    wait: f64,
    /// Mean prefill of a request of the window on this worker.
    mean_prefill: f64,
    /// Length of the window.
    span: f64,
    /// What one more request adds to another's whole decode.
    peer_decode: f64,
}

impl Congestion {
    /// `ℓ(k)`: mean seconds that each of `k` requests loses to congestion; `k` is at least 1.
    ///
    /// The mean of the positive part of a backlog that runs evenly from `wait` to `end`: the mean of both
    /// while `end` is positive, else the area of a triangle.
    fn delay_s(&self, k: usize) -> f64 {
        let others = (k - 1) as f64;
        let end = self.wait + others * self.mean_prefill - self.span;
        let wait = if end >= 0.0 {
            f64::midpoint(self.wait, end)
        } else if self.wait > 0.0 {
            self.wait * self.wait / (2.0 * (self.wait - end))
        } else {
            0.0
        };
        wait + self.peer_decode * others
    }

    /// `k · ℓ(k)`: seconds that `k` requests together lose to congestion.
    fn social_s(&self, k: usize) -> f64 {
        if k == 0 { 0.0 } else { k as f64 * self.delay_s(k) }
    }

    /// `k·ℓ(k) − (k−1)·ℓ(k−1)`: what the k-th request adds to the congestion of all.
    fn marginal_s(&self, k: usize) -> f64 {
        self.social_s(k) - self.social_s(k - 1)
    }
}
