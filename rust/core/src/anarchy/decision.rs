//! One routing decision with what every candidate would have cost: the input of the price of anarchy.

use super::matrix::unusable;
use crate::error::Error;
use crate::request::RequestId;

/// What a request would have cost on every candidate, at the moment of its decision.
///
/// Invariant: the three cost vectors have one entry per candidate, in the same order.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionCosts {
    /// Time of the decision, in seconds of the router's clock.
    pub at_s: f64,
    /// Position of the chosen candidate in the cost vectors.
    pub chosen: usize,
    /// Seconds to prefill the request's uncached tokens, per candidate.
    pub prefill_s: Vec<f64>,
    /// Seconds to decode the whole answer at the candidate's load, per candidate.
    pub decode_s: Vec<f64>,
    /// Seconds of prefill queued before the request, per candidate.
    pub wait_s: Vec<f64>,
}

impl DecisionCosts {
    /// Prefill, decode and wait of one candidate, seconds.
    fn total_s(&self, candidate: usize) -> f64 {
        self.prefill_s[candidate] + self.decode_s[candidate] + self.wait_s[candidate]
    }

    /// Cost of the chosen candidate minus the cost of the cheapest one, in seconds, at least 0. O(candidates).
    pub fn regret_s(&self) -> f64 {
        let cheapest = (0..self.prefill_s.len())
            .map(|candidate| self.total_s(candidate))
            .fold(f64::INFINITY, f64::min);
        self.total_s(self.chosen) - cheapest
    }

    /// Checks the vectors' lengths, the choice, and that every cost is finite and not negative.
    pub(super) fn check(&self) -> Result<(), Error> {
        let candidates = self.prefill_s.len();
        if self.chosen >= candidates || self.decode_s.len() != candidates || self.wait_s.len() != candidates {
            let got = format!(
                "choice {} with {candidates} prefill, {} decode and {} wait costs",
                self.chosen,
                self.decode_s.len(),
                self.wait_s.len()
            );
            return Err(unusable(
                got,
                "one cost of each kind per worker, and a choice among them",
            ));
        }
        let all = self.prefill_s.iter().chain(&self.decode_s).chain(&self.wait_s);
        match all.copied().find(|cost| !cost.is_finite() || *cost < 0.0) {
            Some(cost) => Err(unusable(format!("{cost} s"), "finite costs of at least 0 s")),
            None => Ok(()),
        }
    }
}

/// A booked decision, as the router hands it to a [`super::Meter`].
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedDecision {
    /// Id of the booked request.
    pub request: RequestId,
    /// Cost of every candidate just before the booking.
    pub costs: DecisionCosts,
    /// Seconds that one more request in the batch adds to another request's whole decode, per candidate.
    pub peer_decode_s: Vec<f64>,
    /// Seconds of one decode step of the chosen worker with this request in its batch.
    pub step_s: f64,
    /// Generation of the fleet at the decision. Two decisions have the same candidates only if it is equal.
    pub generation: u64,
}
