//! The better of two random candidates.

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
