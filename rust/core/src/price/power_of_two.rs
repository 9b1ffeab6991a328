//! The better of two random candidates.
//!
//! With many routers that see a late copy of the load, the least loaded worker attracts all of them at once.
//! Two random candidates avoid that herd, at a longest queue that is only a little longer than with full
//! knowledge.

use super::{Policy, View};
use crate::rng::Rng;

/// Two distinct candidates are drawn at random. They cost their requests in flight, and the cost of other candidates
/// is infinite. A single candidate is always drawn.
///
/// Source: Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
#[derive(Clone, Copy, Debug, Default)]
pub struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn name(&self) -> &'static str {
        "power_of_two"
    }

    fn price(&self, view: &View<'_>, rng: &mut Rng, costs: &mut [f64]) {
        // Candidates that were not drawn can never be picked.
        costs.fill(f64::INFINITY);
        let n = costs.len();
        let first = rng.below(n);
        costs[first] = f64::from(view.active_requests[first]);
        if n > 1 {
            let second = (first + 1 + rng.below(n - 1)) % n;
            costs[second] = f64::from(view.active_requests[second]);
        }
    }
}
