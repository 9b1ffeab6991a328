//! Why a router chose the worker of one leg: kept on a booking until its receipt takes it over.

use wardrop_core::Candidate;

/// The costs behind one leg's decision.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// Cost of the chosen worker, in the unit of the policy.
    pub cost: f64,
    /// Every candidate with its cost.
    pub candidates: Vec<Candidate>,
    /// Seconds in the queue; 0 for a decision without a wait.
    pub waited_s: f64,
    /// What ended the wait: `at_once`, `room`, `overflow` or `age`.
    pub cause: &'static str,
}
