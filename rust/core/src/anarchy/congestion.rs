//! System optimum of a window: the minimum-cost assignment under convex congestion.
//!
//! Request i on worker j pays its own cost `c_ij`. The k requests on worker j together pay `k · ℓ_j(k)` on
//! top. Slot k of worker j therefore costs the marginal `k·ℓ_j(k) − (k−1)·ℓ_j(k−1)`. Marginals rise with k,
//! so the slots of a worker fill in order and need not be written out: a min-cost flow with workers as nodes
//! is exact (Ahuja, Magnanti and Orlin, "Network Flows", 1993, chapters 9 and 14). The solver is successive
//! shortest paths with potentials: one run of Dijkstra's algorithm over the workers per request.
//!
//! Example. Two workers, no own costs, `ℓ(k) = k` on both. The marginals of a worker are 1, 3, 5, … Four
//! requests take the slots 1, 1, 3, 3: two per worker, 8 in all. Three on one worker and one on the other
//! would cost 9 + 1.
//!
//! Cost: O(requests · (workers² + requests · workers)) at worst. Written out as slots, the matrix would have
//! workers × requests columns.

use super::CostMatrix;
use super::matrix::unusable;
use crate::error::Error;

/// Assignment of every request to a worker, at the least social cost.
#[derive(Debug, Clone, PartialEq)]
pub struct CongestedAssignment {
    /// Worker of each request.
    pub worker_of: Vec<usize>,
    /// Sum of the requests' own costs, in the unit of the matrix.
    pub own: f64,
    /// `Σ_j k_j·ℓ_j(k_j)`: the congestion of all requests, in the unit of the matrix.
    pub congestion: f64,
}

impl CongestedAssignment {
    /// Social cost: own costs plus congestion.
    pub fn total(&self) -> f64 {
        self.own + self.congestion
    }
}

/// Assigns every row of `own` to a column at the least social cost.
///
/// `marginal(worker, k)` is what the k-th request on `worker` adds to the congestion of all requests, in the unit of
/// `own`. It must be finite and must not fall as k grows; k starts at 1.
///
/// # Errors
/// [`Error::Parameter`] when there is no worker, or when a marginal falls or is not finite.
pub fn assign_congested(
    own: &CostMatrix,
    marginal: impl Fn(usize, usize) -> f64,
) -> Result<CongestedAssignment, Error> {
    if own.columns() == 0 && own.rows() > 0 {
        return Err(unusable("no worker".to_owned(), "at least one column"));
    }
    let mut flow = Flow::new(own, &marginal)?;
    for request in 0..own.rows() {
        flow.place(own, request);
        flow.open_next_slot(&marginal)?;
    }
    Ok(flow.into_assignment(own, &marginal))
}

/// Requests assigned so far, with potentials that certify that their assignment is optimal.
///
/// Invariant after each request: no residual cycle has a negative cost, so no exchange of requests between
/// workers saves anything.
struct Flow {
    /// Dual of each worker. Invariant: every residual arc has a reduced cost of at least 0.
    potential: Vec<f64>,
    /// Dual of the sink. It is the least first marginal, so that every first slot has a reduced cost of at least 0.
    sink: f64,
    /// Marginal of the next free slot of each worker.
    next_marginal: Vec<f64>,
    /// Requests of each worker, in no order.
    members: Vec<Vec<usize>>,
    /// Worker of each request. `usize::MAX` before its turn.
    worker_of: Vec<usize>,
    /// Worker that took the last request, and whose next slot has no marginal yet.
    grown: Option<usize>,
    /// Request through which the search reached each worker.
    via: Vec<usize>,
    /// Workers that are not settled, in no order.
    open: Vec<Open>,
    /// Settled workers with their distances. Only their potentials change.
    settled: Vec<(usize, f64)>,
}

/// A worker that the search has not settled. The list stays compact because each step reads all of it.
#[derive(Clone, Copy)]
struct Open {
    /// The worker.
    worker: usize,
    /// Its dual, copied so that the search reads one list only.
    potential: f64,
    /// Length of the cheapest path found to it. Infinite before one is found.
    distance: f64,
}

impl Flow {
    /// No request assigned yet. The first slot of every worker is open.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a first marginal that is not finite.
    fn new(own: &CostMatrix, marginal: &impl Fn(usize, usize) -> f64) -> Result<Self, Error> {
        let workers = own.columns();
        let mut next_marginal = Vec::with_capacity(workers);
        for worker in 0..workers {
            next_marginal.push(checked(worker, 1, marginal(worker, 1), f64::NEG_INFINITY)?);
        }
        Ok(Self {
            potential: vec![0.0; workers],
            sink: next_marginal.iter().copied().fold(f64::INFINITY, f64::min),
            next_marginal,
            members: vec![Vec::new(); workers],
            worker_of: vec![usize::MAX; own.rows()],
            grown: None,
            via: vec![0; workers],
            open: Vec::with_capacity(workers),
            settled: Vec::with_capacity(workers),
        })
    }

    /// Adds one request along the cheapest path to a free slot. Earlier requests may change worker along the path.
    ///
    /// Example of a path: this request goes to worker a, a request of a goes to b, and b has a free slot. Its
    /// cost is the new request's cost on a, the difference for the request that moves, and b's marginal.
    fn place(&mut self, own: &CostMatrix, request: usize) {
        self.open.clear();
        let open = |(worker, &potential): (usize, &f64)| Open {
            worker,
            potential,
            distance: f64::INFINITY,
        };
        self.open.extend(self.potential.iter().enumerate().map(open));
        self.settled.clear();
        let (mut end, mut end_distance) = (usize::MAX, f64::INFINITY);
        let mut nearest = self.relax(own.row(request), request, 0.0);
        while let Some(at) = nearest {
            let Open {
                worker,
                potential,
                distance,
            } = self.open[at];
            // No worker further away can lead to a cheaper slot.
            if distance >= end_distance {
                break;
            }
            self.open.swap_remove(at);
            self.settled.push((worker, distance));
            let through = distance + self.next_marginal[worker] + potential - self.sink;
            if through < end_distance {
                (end, end_distance) = (worker, through);
            }
            let members = std::mem::take(&mut self.members[worker]);
            nearest = if members.is_empty() {
                self.nearest_open()
            } else {
                None
            };
            for &member in &members {
                let row = own.row(member);
                nearest = self.relax(row, member, distance - row[worker] + potential);
            }
            self.members[worker] = members;
        }
        for &(worker, distance) in &self.settled {
            self.potential[worker] += distance - end_distance;
        }
        self.flip(end, request);
        self.grown = Some(end);
    }

    /// Lowers the distances of the open workers through `request`, and returns the position of the nearest one.
    fn relax(&mut self, row: &[f64], request: usize, base: f64) -> Option<usize> {
        let (mut nearest, mut low) = (None, f64::INFINITY);
        for (at, open) in self.open.iter_mut().enumerate() {
            let through = row[open.worker] - open.potential + base;
            if through < open.distance {
                open.distance = through;
                self.via[open.worker] = request;
            }
            if open.distance < low {
                (nearest, low) = (Some(at), open.distance);
            }
        }
        nearest
    }

    /// Position of the nearest worker that is not settled. `None` when all are.
    fn nearest_open(&self) -> Option<usize> {
        let by_distance = self.open.iter().map(|open| open.distance).enumerate();
        by_distance.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    }

    /// Moves the requests along the path that ends at a free slot of worker `end`. Only that worker grows:
    /// each of the others gives one request and takes one.
    fn flip(&mut self, end: usize, start: usize) {
        let mut worker = end;
        loop {
            let request = self.via[worker];
            let before = std::mem::replace(&mut self.worker_of[request], worker);
            self.members[worker].push(request);
            if request == start {
                return;
            }
            let at = self.members[before].iter().position(|&member| member == request);
            self.members[before].swap_remove(at.expect("a placed request must be a member of its worker"));
            worker = before;
        }
    }

    /// Sets the marginal of the slot after the one that the last request took.
    fn open_next_slot(&mut self, marginal: &impl Fn(usize, usize) -> f64) -> Result<(), Error> {
        if let Some(worker) = self.grown.take() {
            let slot = self.members[worker].len() + 1;
            let floor = self.next_marginal[worker];
            self.next_marginal[worker] = checked(worker, slot, marginal(worker, slot), floor)?;
        }
        Ok(())
    }

    /// The assignment with its costs, summed anew from the matrix and the marginals.
    fn into_assignment(
        self,
        own: &CostMatrix,
        marginal: &impl Fn(usize, usize) -> f64,
    ) -> CongestedAssignment {
        let own_total = self
            .worker_of
            .iter()
            .enumerate()
            .map(|(row, &column)| own.at(row, column))
            .sum();
        let congestion = self
            .members
            .iter()
            .enumerate()
            .map(|(worker, members)| (1..=members.len()).map(|k| marginal(worker, k)).sum::<f64>())
            .sum();
        CongestedAssignment {
            worker_of: self.worker_of,
            own: own_total,
            congestion,
        }
    }
}

/// Checks that a marginal is finite and not below its predecessor `floor`, up to rounding.
fn checked(worker: usize, slot: usize, value: f64, floor: f64) -> Result<f64, Error> {
    let slack = 1e-9 * floor.abs().max(1e-3);
    if !value.is_finite() || value < floor - slack {
        let got = format!("a marginal of {value} after {floor}, slot {slot} of worker {worker}");
        return Err(unusable(got, "finite marginals that do not fall"));
    }
    Ok(value.max(floor))
}
