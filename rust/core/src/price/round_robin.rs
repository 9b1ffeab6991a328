//! Each candidate in turn: what a router does that knows nothing.
//!
//! Caches and load are ignored. It is the baseline from which every gain is counted.

use super::{Policy, View};
use crate::rng::Rng;

/// `cost_i = (i − turn) mod n`, where turn counts decisions: candidate `turn mod n` costs 0. Fair while the
/// candidates stay the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        let n = costs.len();
        let next = (view.turn % n.max(1) as u64) as usize;
        for (i, cost) in costs.iter_mut().enumerate() {
            *cost = ((i + n - next) % n) as f64;
        }
    }
}
