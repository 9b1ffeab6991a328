//! Why a router chose the worker of one leg: kept on a booking until its receipt takes it over.
//!
//! Made only where receipts are on, since it copies every candidate: O(workers) per decision.

use wardrop_core::{Candidate, Misfit, WorkerId};

/// The costs behind one leg's decision.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// Cost of the chosen worker, in the unit of the policy.
    pub cost: f64,
    /// Why a static rule decided in place of the policy; `None` where the policy decided.
    pub misfit: Option<Misfit>,
    /// Every candidate with its cost.
    pub candidates: Vec<Candidate>,
    /// Seconds in the queue; 0 for a decision without a wait.
    pub waited_s: f64,
    /// What ended the wait: `at_once`, `room`, `overflow` or `age`.
    pub cause: &'static str,
    /// For a request that waited: the placement that it would have had at its arrival.
    pub at_once: Option<ImmediateChoice>,
}

/// The cheapest worker at the arrival of a request that then waited in the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImmediateChoice {
    /// The cheapest worker at the arrival.
    pub worker: WorkerId,
    /// Cost of the worker at the arrival, in the unit of the policy.
    pub cost: f64,
}
