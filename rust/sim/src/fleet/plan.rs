//! Placement by a plan: requests go to the workers that a [`Plan`] names, in its order and within its limits.

use std::collections::BTreeSet;

use super::Fleet;
use crate::error::SimError;
use crate::spec::Plan;

/// Position of a request in the order of its worker: bits of the rank that sort like the rank, then the index.
type Place = (u64, u32);

/// A plan, and what has happened of it.
pub(super) struct PlanRun {
    plan: Plan,
    /// Requests that have arrived and wait, per worker of the first pool.
    waiting: Vec<BTreeSet<Place>>,
    /// All requests of each worker that have not been sent, per worker of the first pool; empty unless the plan is strict.
    unsent: Vec<BTreeSet<Place>>,
    /// Requests at each worker before their first token.
    prefilling: Vec<u32>,
    /// Requests at each worker before their end.
    open: Vec<u32>,
}

fn place(rank: f64, request: u32) -> Place {
    let bits = rank.to_bits();
    // Bits of a negative float sort in reverse.
    let order = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
    (order, request)
}

impl PlanRun {
    pub fn new(plan: Plan, workers: usize) -> Self {
        let mut unsent = vec![BTreeSet::new(); workers];
        if plan.is_strict {
            for (i, worker) in plan.worker.iter().enumerate() {
                unsent[*worker as usize].insert(place(plan.rank[i], i as u32));
            }
        }
        Self {
            waiting: vec![BTreeSet::new(); workers],
            unsent,
            prefilling: vec![0; workers],
            open: vec![0; workers],
            plan,
        }
    }

    /// Worker of `request` in pool `at`.
    pub fn worker(&self, at: usize, request: u32) -> usize {
        let workers = if at == 0 {
            &self.plan.worker
        } else {
            &self.plan.decode_worker
        };
        workers[request as usize] as usize
    }

    fn arrive(&mut self, request: u32) -> usize {
        let worker = self.plan.worker[request as usize] as usize;
        self.waiting[worker].insert(place(self.plan.rank[request as usize], request));
        worker
    }

    /// The next request that `worker` may take, if there is one.
    fn take(&mut self, worker: usize) -> Option<u32> {
        if self.prefilling[worker] >= self.plan.most_prefilling || self.open[worker] >= self.plan.most_open {
            return None;
        }
        let next = *self.waiting[worker].first()?;
        if self.plan.is_strict && self.unsent[worker].first() != Some(&next) {
            return None;
        }
        self.waiting[worker].remove(&next);
        self.unsent[worker].remove(&next);
        self.prefilling[worker] += 1;
        self.open[worker] += 1;
        Some(next.1)
    }
}

impl Fleet<'_> {
    /// Replaces the decisions of the routers by `plan`, which must be valid.
    pub(super) fn follow(&mut self, plan: Plan) {
        let workers = self.pools.get(1).map_or(self.workers.len(), |pool| pool.first);
        self.plan = Some(PlanRun::new(plan, workers));
    }

    /// A planned request has arrived: its worker takes what it may take.
    pub(super) fn arrive_planned(&mut self, request: u32) -> Result<(), SimError> {
        let Some(run) = self.plan.as_mut() else {
            return Ok(());
        };
        let worker = run.arrive(request);
        self.send_planned(worker)
    }

    /// The prompt of a planned request is computed.
    pub(super) fn planned_first_token(&mut self, request: u32) -> Result<(), SimError> {
        let Some(run) = self.plan.as_mut() else {
            return Ok(());
        };
        let worker = run.worker(0, request);
        run.prefilling[worker] = run.prefilling[worker].saturating_sub(1);
        self.send_planned(worker)
    }

    /// A planned request has ended.
    pub(super) fn planned_end(&mut self, request: u32) -> Result<(), SimError> {
        let Some(run) = self.plan.as_mut() else {
            return Ok(());
        };
        let worker = run.worker(0, request);
        run.open[worker] = run.open[worker].saturating_sub(1);
        self.send_planned(worker)
    }

    fn send_planned(&mut self, worker: usize) -> Result<(), SimError> {
        while let Some(request) = self.plan.as_mut().and_then(|run| run.take(worker)) {
            let Some(routed) = self.route(0, request)? else {
                self.retry(request);
                return Ok(());
            };
            self.dispatch(request, routed)?;
        }
        Ok(())
    }
}
