//! What each pool's routing lost: its decisions go into the core's meter, window after window, as in the gateway.
//!
//! Costs are those of the learned curves in force at each decision, so a window early in a run is judged by a young model;
//! the error of predicted first tokens is in the report. All windows of the run are kept.

use rustc_hash::FxHashMap;

use super::{Fleet, refused};
use crate::config::SimError;
use wardrop_core::anarchy::{Meter, MeterConfig, MeterReport};

/// Solved windows that are kept: 64 million decisions of the default window.
const MAX_WINDOWS: usize = 1 << 20;

/// The meter of one pool.
pub(super) struct PoolMeter {
    meter: Meter,
    generation: u64,
    /// When a request was placed, and the seconds to its first token that were predicted then.
    open: FxHashMap<u32, (f64, f64)>,
}

impl PoolMeter {
    /// `None` for windows of no decisions.
    pub(super) fn new(window_requests: u32) -> Option<Self> {
        let config = MeterConfig {
            window_requests: window_requests as usize,
            keep_windows: MAX_WINDOWS,
            ..MeterConfig::default()
        };
        (window_requests > 0).then(|| Self {
            meter: Meter::new(config),
            generation: 0,
            open: FxHashMap::default(),
        })
    }
}

impl Fleet<'_> {
    /// Takes in what pool `at` has decided since the last call, and solves the windows that closed.
    pub(super) fn measure(&mut self, at: usize) -> Result<(), SimError> {
        let pool = &mut self.pools[at];
        let Some(PoolMeter {
            meter,
            generation,
            open,
        }) = &mut pool.meter
        else {
            return Ok(());
        };
        for placed in pool.router.take_placements() {
            if std::mem::replace(generation, placed.generation) != placed.generation {
                meter.cut();
            }
            // Bad costs are counted in the report.
            if meter.record(&placed.placement, &placed.peer_decode_s).is_err() {
                continue;
            }
            let chosen = placed.placement.chosen;
            let predicted_s = placed.placement.wait_s[chosen] + placed.placement.prefill_s[chosen];
            open.insert(placed.request.0 as u32, (placed.placement.at_s, predicted_s));
        }
        while meter.pending() > 0 {
            meter.solve().map_err(refused("a window of decisions"))?;
        }
        Ok(())
    }

    /// The first token of a request is out: how good was the prediction of pool `at`?
    pub(super) fn compare(&mut self, at: usize, request: u32) {
        let now_s = self.now_ms * 1e-3;
        if let Some(PoolMeter { meter, open, .. }) = &mut self.pools[at].meter
            && let Some((sent_s, predicted_s)) = open.remove(&request)
        {
            meter.record_outcome(predicted_s, now_s - sent_s);
        }
    }

    /// The figures of every pool.
    pub(super) fn anarchy(&mut self) -> Result<Vec<Option<MeterReport>>, SimError> {
        let report = |meter: &mut Meter| {
            meter.finish().map_err(refused("a window of decisions"))?;
            Ok(meter.report())
        };
        let meters = self.pools.iter_mut().map(|pool| pool.meter.as_mut());
        meters
            .map(|meter| meter.map_or(Ok(None), |pool| report(&mut pool.meter)))
            .collect()
    }
}
