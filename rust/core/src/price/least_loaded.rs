//! Fewest requests in flight: the default policy, and the last resort of every other one.

use super::{Policy, View};
use crate::rng::Rng;

/// cost = requests in flight. Caches are ignored.
///
/// The default, and the fallback of a decision without any finite cost: it needs no figure that a worker reports. Ties
/// are broken at random, so that a fleet that starts idle fills evenly.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoaded;

impl Policy for LeastLoaded {
    fn name(&self) -> &'static str {
        "least_loaded"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        for (cost, &requests) in costs.iter_mut().zip(view.active_requests) {
            *cost = f64::from(requests);
        }
    }
}
