//! New prefill tokens times batch size.

use super::{Policy, View};
use crate::rng::Rng;

/// cost = (uncached prompt tokens in flight + uncached tokens of the prompt) · (requests in flight + 1).
///
/// The product needs no weights. It prefers a cached prefix on a worker with few requests, and either factor can
/// outweigh the other. Source: `LMetric`, a multiplicative indicator of KV-cache-aware scheduling. The + 1 counts the
/// request itself, so that an idle worker without the prefix does not cost 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lmetric;

impl Policy for Lmetric {
    fn name(&self) -> &'static str {
        "lmetric"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        for (i, cost) in costs.iter_mut().enumerate() {
            let tokens = view.prefill_tokens[i] + view.uncached_tokens(i);
            *cost = tokens as f64 * f64::from(view.active_requests[i] + 1);
        }
    }
}
