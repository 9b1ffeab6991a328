//! What the price of anarchy needs of a run: the decisions of each pool, and the lower bound on the cost of any routing.
//!
//! Decisions go into the core's [`Meter`], as they do in the gateway.
//! Costs come from the curves that the router had learned at each decision. Early windows therefore rest on curves with
//! few samples; the report has the error of predicted first tokens. The report covers all windows of the run.

use rustc_hash::FxHashMap;
use wardrop_core::anarchy::{Meter, MeterConfig, MeterReport};

use super::Fleet;
use crate::bound::{LowerBound, lower_bound};
use crate::error::{SimError, router_refused};
use crate::record::End;

/// Solved windows that the report covers. At the default window size they hold 64 million decisions.
const MAX_WINDOWS: usize = 1 << 20;

/// First token of a request, as predicted at its decision.
struct Prediction {
    decided_s: f64,
    /// Seconds from the decision to the first token.
    ttft_s: f64,
}

/// The meter of one pool.
pub(super) struct PoolMeter {
    meter: Meter,
    /// Generation of the candidates of the last decision.
    generation: u64,
    /// Predictions whose first token is still to come, by request.
    predictions: FxHashMap<u32, Prediction>,
}

impl PoolMeter {
    /// A meter with windows of `window_requests` decisions, or `None` for 0.
    pub(super) fn new(window_requests: u32) -> Option<Self> {
        let config = MeterConfig {
            window_requests: window_requests as usize,
            keep_windows: MAX_WINDOWS,
            ..MeterConfig::default()
        };
        (window_requests > 0).then(|| Self {
            meter: Meter::new(config),
            generation: 0,
            predictions: FxHashMap::default(),
        })
    }
}

impl Fleet<'_> {
    /// Records the decisions of pool `at` since the last call, and solves the windows that closed.
    pub(super) fn record_decisions(&mut self, at: usize) -> Result<(), SimError> {
        let pool = &mut self.pools[at];
        let Some(PoolMeter {
            meter,
            generation,
            predictions,
        }) = &mut pool.meter
        else {
            return Ok(());
        };
        for decision in pool.router.take_decisions() {
            if std::mem::replace(generation, decision.generation) != decision.generation {
                meter.cut();
            }
            let costs = &decision.costs;
            // The report counts refused decisions.
            if meter.record(costs, &decision.peer_decode_s).is_err() {
                continue;
            }
            let prediction = Prediction {
                decided_s: costs.at_s,
                ttft_s: costs.wait_s[costs.chosen] + costs.prefill_s[costs.chosen],
            };
            predictions.insert(decision.request.0 as u32, prediction);
        }
        while meter.pending() > 0 {
            meter.solve().map_err(router_refused("a window of decisions"))?;
        }
        Ok(())
    }

    /// Compares the first token of a request with the prediction made at the decision of pool `at`.
    pub(super) fn record_first_token(&mut self, at: usize, request: u32) {
        let now_s = self.now_ms * 1e-3;
        if let Some(PoolMeter {
            meter, predictions, ..
        }) = &mut self.pools[at].meter
            && let Some(prediction) = predictions.remove(&request)
        {
            meter.record_outcome(prediction.ttft_s, now_s - prediction.decided_s);
        }
    }

    /// The lower bound for the complete requests, if the fleet measures the price of anarchy and a bound covers it.
    pub(super) fn bound(&self) -> Option<LowerBound> {
        if self.spec.anarchy_window == 0 {
            return None;
        }
        let ends = self.state.requests.end.iter();
        let is_complete: Vec<bool> = ends.map(|end| *end == End::Complete as u8).collect();
        lower_bound(&self.spec, &self.state.workload, Some(&is_complete)).ok()
    }

    /// The report of every pool; `None` for a pool without a meter or without a solved window.
    pub(super) fn anarchy(&mut self) -> Result<Vec<Option<MeterReport>>, SimError> {
        let report = |meter: &mut Meter| {
            meter.finish().map_err(router_refused("a window of decisions"))?;
            Ok(meter.report())
        };
        let meters = self.pools.iter_mut().map(|pool| pool.meter.as_mut());
        meters
            .map(|meter| meter.map_or(Ok(None), |pool| report(&mut pool.meter)))
            .collect()
    }
}
