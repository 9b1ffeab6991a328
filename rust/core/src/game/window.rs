//! One window of placements and the estimates of what its routing lost.
//!
//! The congestion model of a window of N placements over T seconds on m workers, all in seconds:
//!
//! * own cost of request i on worker j: `p_ij = prefill_ij + decode_ij`;
//! * waiting, as a fluid: worker j starts with a backlog of `W_j` seconds and drains one second per second, so with k of
//!   the window's requests of mean prefill `s̄_j`, spread evenly, the backlog runs from `W_j` to
//!   `E_j(k) = W_j + (k − 1)·s̄_j − T`, and the mean wait is the mean of its positive part;
//! * company in the batch: `peer_j · (k − 1)`, where `peer_j` is what one more request adds to another's decode.
//!
//! `ℓ_j(k)` is the sum of the last two, non-negative, rising and convex in k; so `k·ℓ_j(k)` is convex and
//! [`assign_congested`] is exact. The actual placement is a feasible point of the same problem, which makes
//! `poa ≥ 1` by construction. `s̄_j` is the mean over the window's requests on worker j, scaled so that the prefill
//! actually done is met. What the model leaves out: caches as they were at each decision stay as they were (a
//! different placement would also have moved later overlaps), and who delays whom within a worker.

use super::matrix::refused;
use super::{CostMatrix, assign, assign_congested};
use crate::error::Error;

/// One decision: where a request went, and what each worker would have cost it.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// When, in the router's seconds.
    pub at_s: f64,
    /// Position of the chosen worker in the vectors below.
    pub chosen: usize,
    /// Prefill seconds of its uncached tokens, per worker.
    pub prefill_s: Vec<f64>,
    /// Decode seconds at the load of that moment, per worker.
    pub decode_s: Vec<f64>,
    /// Seconds of prefill ahead of it at that moment, per worker.
    pub wait_s: Vec<f64>,
}

impl Placement {
    fn cost_now_s(&self, worker: usize) -> f64 {
        self.prefill_s[worker] + self.decode_s[worker] + self.wait_s[worker]
    }

    /// Cost of the chosen worker minus that of the cheapest at that moment, in seconds; ≥ 0, O(m).
    pub fn regret_s(&self) -> f64 {
        let cheapest = (0..self.prefill_s.len())
            .map(|j| self.cost_now_s(j))
            .fold(f64::INFINITY, f64::min);
        self.cost_now_s(self.chosen) - cheapest
    }

    /// Refuses vectors of unequal length, a choice out of range and values that are negative or not finite.
    pub(super) fn check(&self) -> Result<(), Error> {
        let workers = self.prefill_s.len();
        if self.chosen >= workers || self.decode_s.len() != workers || self.wait_s.len() != workers {
            let got = format!(
                "worker {} of {workers} prefill, {} decode and {} wait costs",
                self.chosen,
                self.decode_s.len(),
                self.wait_s.len()
            );
            return Err(refused(got, "one of each per worker"));
        }
        let all = self.prefill_s.iter().chain(&self.decode_s).chain(&self.wait_s);
        match all.copied().find(|cost| !cost.is_finite() || *cost < 0.0) {
            Some(cost) => Err(refused(format!("{cost} s"), "finite and not negative")),
            None => Ok(()),
        }
    }
}

/// A worker as a window finds it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WorkerState {
    /// Seconds of prefill ahead at the window's start.
    pub wait_s: f64,
    /// Seconds that one more request in the batch adds to another's decode.
    pub peer_decode_s: f64,
}

/// What routing lost in a window, in seconds over all its requests.
///
/// `free + split + cache + load` is the social cost of the actual placement, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// `Σ_i min_j p_ij`: every request on its own best worker, alone.
    pub free_s: f64,
    /// What no placement could save: the optimum's social cost over `free_s`.
    pub split_s: f64,
    /// Own cost over the optimum's: prefill computed again that another placement would have saved. Negative where
    /// the optimum pays prefill to save waiting.
    pub cache_s: f64,
    /// Congestion over the optimum's: waiting that another placement would have saved.
    pub load_s: f64,
}

/// The estimates of one window, as sums, so that windows can be pooled by ratios of sums.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// Placements in the window.
    pub requests: usize,
    /// Social cost of the actual placement, seconds.
    pub actual_s: f64,
    /// Social cost of the exact optimum, seconds.
    pub optimum_s: f64,
    /// Where the difference comes from.
    pub loss: Loss,
    /// Σ frozen cost of the actual placement, seconds.
    pub frozen_actual_s: f64,
    /// Rectangular Hungarian on the frozen costs, seconds: at most m of the N rows are matched.
    pub frozen_optimum_s: f64,
    /// Σ regret at the moment of decision, seconds.
    pub regret_s: f64,
}

impl Estimate {
    /// The headline: actual ÷ optimum under congestion, ≥ 1. A window without cost counts as optimal.
    pub fn poa(&self) -> f64 {
        ratio(self.actual_s, self.optimum_s).max(1.0)
    }

    /// The paper's estimator (section 6.4), kept under its own name: with N requests on m < N workers only m rows are
    /// matched, so it tends to N/m whatever the router does.
    pub fn poa_paper(&self) -> f64 {
        ratio(self.frozen_actual_s, self.frozen_optimum_s)
    }
}

/// `a / b`, and 1 where there is nothing to compare.
pub(super) fn ratio(actual: f64, optimum: f64) -> f64 {
    if optimum > 0.0 { actual / optimum } else { 1.0 }
}

/// Placements of one stretch of time on one fixed set of workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    workers: Vec<WorkerState>,
    placements: Vec<Placement>,
    /// Length in seconds; 0 for a burst.
    span_s: f64,
}

impl Window {
    /// A window of `placements`, in order of time, that found `workers` at its start.
    ///
    /// Errors: [`Error::Parameter`] for a placement with another number of workers or with bad costs.
    pub fn new(workers: Vec<WorkerState>, placements: Vec<Placement>) -> Result<Self, Error> {
        for placement in &placements {
            placement.check()?;
            if placement.prefill_s.len() != workers.len() {
                let got = format!(
                    "{} workers in a window of {}",
                    placement.prefill_s.len(),
                    workers.len()
                );
                return Err(refused(got, "placements over the window's workers"));
            }
        }
        let span_s = match (placements.first(), placements.last()) {
            (Some(first), Some(last)) => (last.at_s - first.at_s).max(0.0),
            _ => 0.0,
        };
        Ok(Self {
            workers,
            placements,
            span_s,
        })
    }

    /// Number of placements.
    pub fn len(&self) -> usize {
        self.placements.len()
    }

    /// True without any placement.
    pub fn is_empty(&self) -> bool {
        self.placements.is_empty()
    }

    /// Solves the window: one congested assignment and one rectangular one.
    pub fn estimate(&self) -> Result<Estimate, Error> {
        if self.is_empty() {
            return Ok(Estimate::default());
        }
        let own = self.matrix(|p, j| p.prefill_s[j] + p.decode_s[j])?;
        let congestion = self.congestion();
        let marginal = |j: usize, k: usize| congestion[j].marginal_s(k);
        let best = assign_congested(&own, marginal)?;

        let mut count = vec![0_usize; self.workers.len()];
        let mut actual_own = 0.0;
        for (row, placement) in self.placements.iter().enumerate() {
            actual_own += own.at(row, placement.chosen);
            count[placement.chosen] += 1;
        }
        let actual_congestion: f64 = count.iter().zip(&congestion).map(|(&k, c)| c.social_s(k)).sum();
        let free_s: f64 = (0..own.rows())
            .map(|row| own.row(row).iter().copied().fold(f64::INFINITY, f64::min))
            .sum();
        let (frozen_actual_s, frozen_optimum_s) = self.frozen()?;
        Ok(Estimate {
            requests: self.len(),
            actual_s: actual_own + actual_congestion,
            optimum_s: best.total(),
            loss: Loss {
                free_s,
                split_s: best.total() - free_s,
                cache_s: actual_own - best.own,
                load_s: actual_congestion - best.congestion,
            },
            frozen_actual_s,
            frozen_optimum_s,
            regret_s: self.placements.iter().map(Placement::regret_s).sum(),
        })
    }

    /// Σ actual and the Hungarian optimum on costs with the waiting frozen at the window's start.
    pub fn frozen(&self) -> Result<(f64, f64), Error> {
        let frozen = self.matrix(|p, j| p.prefill_s[j] + p.decode_s[j] + self.workers[j].wait_s)?;
        let actual = self
            .placements
            .iter()
            .enumerate()
            .map(|(row, p)| frozen.at(row, p.chosen))
            .sum();
        Ok((actual, assign(&frozen).total))
    }

    fn matrix(&self, cost: impl Fn(&Placement, usize) -> f64) -> Result<CostMatrix, Error> {
        let columns = self.workers.len();
        let values = self
            .placements
            .iter()
            .flat_map(|p| (0..columns).map(|j| cost(p, j)).collect::<Vec<_>>());
        CostMatrix::new(self.placements.len(), columns, values.collect())
    }

    fn congestion(&self) -> Vec<Congestion> {
        let requests = self.placements.len() as f64;
        let workers = self.workers.len() as f64;
        let done: f64 = self.placements.iter().map(|p| p.prefill_s[p.chosen]).sum();
        let offered: f64 = self.placements.iter().flat_map(|p| &p.prefill_s).sum::<f64>() / workers;
        let scale = if offered > 0.0 { done / offered } else { 1.0 };
        self.workers
            .iter()
            .enumerate()
            .map(|(j, worker)| Congestion {
                wait: worker.wait_s,
                mean_prefill: scale * self.placements.iter().map(|p| p.prefill_s[j]).sum::<f64>() / requests,
                span: self.span_s,
                peer_decode: worker.peer_decode_s,
            })
            .collect()
    }
}

/// `ℓ_j(k)` of one worker in one window; see the module's formula. Seconds.
#[derive(Debug, Clone, Copy)]
struct Congestion {
    wait: f64,
    mean_prefill: f64,
    span: f64,
    peer_decode: f64,
}

impl Congestion {
    /// Mean seconds that each of `k` requests loses to congestion.
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

    /// `k · ℓ(k)`.
    fn social_s(&self, k: usize) -> f64 {
        if k == 0 { 0.0 } else { k as f64 * self.delay_s(k) }
    }

    /// `k·ℓ(k) − (k−1)·ℓ(k−1)`.
    fn marginal_s(&self, k: usize) -> f64 {
        self.social_s(k) - self.social_s(k - 1)
    }
}
