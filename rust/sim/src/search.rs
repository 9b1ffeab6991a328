//! The best routing that can be found for a whole workload with all of it known in advance.
//!
//! ```text
//! placements of several policies ─▶ orders and limits (a grid) ─▶ best plan ─▶ random local moves ─▶ better plan …
//! ```
//!
//! The simulator evaluates every plan, so the cost of the best plan is a cost that routing can reach: an upper bound on
//! the optimum. The lower bound is [`crate::bound::lower_bound`]. One seed gives one course. A search can start again from
//! its best plan. Cost: one simulation per plan.

use wardrop_core::rng::Rng;

use crate::error::{SimError, out_of_range};
use crate::fleet::simulate_plan;
use crate::record::{End, Outcome};
use crate::spec::{FleetSpec, Plan};
use crate::workload::Workload;

/// Limits on the requests of a worker before their first token, and before their end, that the grid tries.
const LIMITS: [(u32, u32); 7] = [
    (u32::MAX, u32::MAX),
    (1, u32::MAX),
    (2, u32::MAX),
    (4, u32::MAX),
    (u32::MAX, 8),
    (u32::MAX, 16),
    (2, 32),
];
/// Requests after the moved one that may move with it.
const MOST_FOLLOWERS: usize = 32;

/// Weights of the two sums that a search minimises; at least one is above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostWeights {
    /// Weight of the sum of the times to first token.
    pub ttft: f64,
    /// Weight of the sum of the times to last token.
    pub e2e: f64,
}

/// A search in progress: the best plan so far, and the generator of its moves.
pub struct Search<'a> {
    spec: &'a FleetSpec,
    workload: &'a Workload,
    weights: CostWeights,
    rng: Rng,
    /// The plan of the lowest cost so far.
    best: Plan,
    /// Cost of the best plan, milliseconds.
    best_ms: f64,
    /// Plans simulated so far.
    evaluations: u64,
}

/// Weighted cost of a run in milliseconds; infinite unless every request is complete.
fn cost_ms(outcome: &Outcome, weights: CostWeights) -> f64 {
    let requests = &outcome.requests;
    let complete = |i: usize| requests.end[i] == End::Complete as u8;
    let cost = |i: usize| {
        let from_ms = requests.arrival_ms[i];
        weights.ttft * (requests.first_token_ms[i] - from_ms) + weights.e2e * (requests.end_ms[i] - from_ms)
    };
    if (0..requests.end.len()).all(complete) {
        (0..requests.end.len()).map(cost).sum()
    } else {
        f64::INFINITY
    }
}

impl<'a> Search<'a> {
    /// A search that has evaluated `start`.
    ///
    /// # Errors
    /// [`SimError::Config`] when the fleet, the workload, the weights or the plan is out of range.
    pub fn new(
        spec: &'a FleetSpec,
        workload: &'a Workload,
        weights: CostWeights,
        start: Plan,
        seed: u64,
    ) -> Result<Self, SimError> {
        let CostWeights { ttft, e2e } = weights;
        let is_usable = |weight: f64| weight.is_finite() && weight >= 0.0;
        if !is_usable(ttft) || !is_usable(e2e) || ttft + e2e <= 0.0 {
            return Err(out_of_range(
                "weights",
                format!("ttft {ttft}, e2e {e2e}"),
                "finite, at least 0, and one above 0",
            ));
        }
        let mut search = Self {
            spec,
            workload,
            weights,
            rng: Rng::new(seed),
            best: start.clone(),
            best_ms: f64::INFINITY,
            evaluations: 0,
        };
        search.offer(start)?;
        Ok(search)
    }

    /// The best plan so far.
    pub const fn best(&self) -> &Plan {
        &self.best
    }

    /// Weighted cost of the best plan, in milliseconds; infinite if no plan was complete.
    pub const fn best_ms(&self) -> f64 {
        self.best_ms
    }

    /// Number of plans that were simulated.
    pub const fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Simulates a plan, and keeps it if it is the best.
    ///
    /// # Errors
    /// [`SimError::Config`] when the plan is out of range.
    pub fn offer(&mut self, plan: Plan) -> Result<bool, SimError> {
        let outcome = simulate_plan(self.spec, self.workload, plan.clone())?;
        self.evaluations += 1;
        let cost = cost_ms(&outcome, self.weights);
        let is_better = cost < self.best_ms;
        if is_better {
            self.best_ms = cost;
            self.best = plan;
        }
        Ok(is_better)
    }

    /// Plan `number` of the grid over orders and limits for the placement of `start`; `None` past the end of the grid.
    pub fn variant(&self, start: &Plan, number: usize) -> Option<Plan> {
        let (most_prefilling, most_open) = *LIMITS.get(number / 3)?;
        let size = |i: usize| {
            let (input, output) = (self.workload.input_tokens[i], self.workload.output_tokens[i]);
            f64::from(input) * f64::from(output)
        };
        let len = self.workload.len();
        let rank: Vec<f64> = match number % 3 {
            0 => vec![0.0; len],
            1 => (0..len)
                .map(|i| f64::from(self.workload.input_tokens[i]))
                .collect(),
            _ => (0..len).map(size).collect(),
        };
        Some(Plan {
            rank,
            most_prefilling,
            most_open,
            ..start.clone()
        })
    }

    /// Tries one random change of the best plan. Returns true if it became better.
    ///
    /// # Errors
    /// As for [`Search::offer`].
    pub fn step(&mut self) -> Result<bool, SimError> {
        let len = self.workload.len();
        if len == 0 {
            return Ok(false);
        }
        let mut plan = self.best.clone();
        let chosen = self.rng.below(len);
        match self.rng.below(8) {
            0 => {
                let limits = LIMITS[self.rng.below(LIMITS.len())];
                (plan.most_prefilling, plan.most_open) = limits;
            }
            1 | 2 => {
                let other = self.rng.below(len);
                plan.rank[chosen] = plan.rank[other] + self.rng.unit() - 0.5;
            }
            3 if !plan.decode_worker.is_empty() => {
                let first = self.spec.pools[0].speeds.len();
                let to = (first + self.rng.below(self.spec.pools[1].speeds.len())) as u32;
                plan.decode_worker[chosen] = to;
            }
            4 => self.swap(&mut plan, chosen),
            number => {
                let to = self.rng.below(self.spec.pools[0].speeds.len()) as u32;
                let followers = if number == 5 {
                    0
                } else {
                    self.rng.below(MOST_FOLLOWERS)
                };
                self.move_family(&mut plan, (chosen, to), followers);
            }
        }
        self.offer(plan)
    }

    /// Exchanges the workers of a request and of a near one.
    fn swap(&mut self, plan: &mut Plan, chosen: usize) {
        let reach = self.rng.below(16) + 1;
        let other = (chosen + reach).min(plan.worker.len() - 1);
        plan.worker.swap(chosen, other);
    }

    /// Moves a request and the next ones that begin with the same block to another worker.
    fn move_family(&self, plan: &mut Plan, (chosen, to): (usize, u32), followers: usize) {
        let first_block = |i: usize| {
            let at = self.workload.block_start[i] as usize;
            self.workload.blocks.get(at).copied()
        };
        let family = first_block(chosen);
        plan.worker[chosen] = to;
        let next = (chosen + 1..plan.worker.len()).filter(|i| first_block(*i) == family);
        for i in next.take(followers) {
            plan.worker[i] = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bound::lower_bound;
    use crate::tests::{engine, workload};

    #[test]
    fn a_search_finds_the_optimum_of_a_small_case_and_stays_above_the_bound() {
        // Four equal prompts at once on two workers that start on one worker: two each is best.
        let rows: Vec<_> = (0..4).map(|i| (0.0, 100, 1, 20 * i)).collect();
        let (spec, requests) = (FleetSpec::aggregated(2, engine()), workload(&rows));
        let weights = CostWeights { ttft: 0.0, e2e: 1.0 };
        let mut search =
            Search::new(&spec, &requests, weights, Plan::immediate(vec![0; 4]), 1).expect("a valid plan");
        let start_ms = search.best_ms();
        for number in 0.. {
            let Some(plan) = search.variant(&search.best().clone(), number) else {
                break;
            };
            search.offer(plan).expect("a valid plan");
        }
        for _ in 0..200 {
            search.step().expect("a valid plan");
        }
        // One prompt per pass: 110 and 220 ms on each worker.
        assert_eq!(search.best_ms(), 660.0);
        assert!(start_ms > 660.0);
        assert!(lower_bound(&spec, &requests, None).expect("valid").all.e2e_ms <= 660.0);
    }

    #[test]
    fn one_seed_gives_one_course() {
        let rows: Vec<_> = (0..12).map(|i| (f64::from(i), 60 + i, 3, 20 * (i % 5))).collect();
        let (spec, requests) = (FleetSpec::split(2, 2, &engine()), workload(&rows));
        let course = || {
            let start = Plan {
                decode_worker: vec![2; 12],
                ..Plan::immediate(vec![0; 12])
            };
            let weights = CostWeights { ttft: 1.0, e2e: 0.0 };
            let mut search = Search::new(&spec, &requests, weights, start, 7).expect("a valid plan");
            for _ in 0..50 {
                search.step().expect("a valid plan");
            }
            (search.best().clone(), search.best_ms())
        };
        assert_eq!(course(), course());
    }

    #[test]
    fn weights_that_say_nothing_are_refused() {
        let (spec, requests) = (FleetSpec::aggregated(1, engine()), workload(&[(0.0, 10, 1, 0)]));
        let weights = CostWeights { ttft: 0.0, e2e: 0.0 };
        assert!(Search::new(&spec, &requests, weights, Plan::immediate(vec![0]), 0).is_err());
    }
}
