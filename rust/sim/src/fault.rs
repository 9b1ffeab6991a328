//! What goes wrong, and when.

use serde::Deserialize;

use crate::config::{SimError, bad};

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// The process dies: its requests break off and are tried again elsewhere; its cache is lost. The router hears of it
    /// at the first failed request, and the worker leaves the pool `detect_ms` later.
    Crash {
        /// Until discovery drops the worker, ms.
        detect_ms: f64,
    },
    /// The engine stands still for this long; nobody is told.
    Hang {
        /// Milliseconds.
        for_ms: f64,
    },
    /// From now on the engine runs at this factor of its timing.
    Speed {
        /// 1 is the timing as given.
        factor: f64,
    },
    /// A worker that was not there before (or had crashed) joins, with an empty cache.
    Join,
}

/// One event of a fault plan.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Fault {
    /// When, ms of simulated time.
    pub at_ms: f64,
    /// Index over all pools: prefill workers first, then decode workers. A worker whose first fault is a join starts absent.
    pub worker: usize,
    /// What.
    #[serde(flatten)]
    pub kind: FaultKind,
}

impl Fault {
    pub(crate) fn validate(&self, workers: usize) -> Result<(), SimError> {
        if self.worker >= workers {
            return Err(bad(
                "fault.worker",
                self.worker,
                "the index of a worker of the fleet",
            ));
        }
        if !(self.at_ms.is_finite() && self.at_ms >= 0.0) {
            return Err(bad("fault.at_ms", self.at_ms, "finite and at least 0"));
        }
        match self.kind {
            FaultKind::Crash { detect_ms: ms } | FaultKind::Hang { for_ms: ms }
                if !(ms.is_finite() && ms >= 0.0) =>
            {
                Err(bad("fault duration", ms, "finite and at least 0 ms"))
            }
            FaultKind::Speed { factor } if !(factor.is_finite() && factor > 0.0) => {
                Err(bad("fault.factor", factor, "finite and above 0"))
            }
            _ => Ok(()),
        }
    }
}
