//! Fault plan of a fleet: what happens to which worker, and when.

use serde::Deserialize;

use crate::error::{SimError, out_of_range};

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// The process dies: its cache is lost, and its requests are tried again on other workers.
    ///
    /// The router learns of the crash at the first request that fails. Discovery removes the worker `detect_ms` later.
    Crash {
        /// Milliseconds from the crash until discovery removes the worker.
        detect_ms: f64,
    },
    /// The engine stops for a while. The router is not informed.
    Hang {
        /// Length of the stop, in milliseconds.
        for_ms: f64,
    },
    /// From now on the engine runs at `factor` times the speed that its pool gives it.
    Speed {
        /// Factor of the speed: 1 is the pool's timing, 0.5 is half as fast.
        factor: f64,
    },
    /// A worker joins with an empty cache. It was absent before, or had crashed.
    Join,
}

/// One entry of a fault plan.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Fault {
    /// Simulated time of the fault, in milliseconds.
    pub at_ms: f64,
    /// Index of the worker over all pools: prefill workers first, then decode workers.
    ///
    /// A worker whose first fault is a join is absent until then.
    pub worker: usize,
    /// What happens to the worker.
    #[serde(flatten)]
    pub kind: FaultKind,
}

impl Fault {
    pub(super) fn validate(&self, workers: usize) -> Result<(), SimError> {
        if self.worker >= workers {
            return Err(out_of_range(
                "fault.worker",
                self.worker,
                "the index of a worker of the fleet",
            ));
        }
        if !(self.at_ms.is_finite() && self.at_ms >= 0.0) {
            return Err(out_of_range("fault.at_ms", self.at_ms, "finite and at least 0"));
        }
        match self.kind {
            FaultKind::Crash { detect_ms: ms } | FaultKind::Hang { for_ms: ms }
                if !(ms.is_finite() && ms >= 0.0) =>
            {
                Err(out_of_range("fault duration", ms, "finite and at least 0 ms"))
            }
            FaultKind::Speed { factor } if !(factor.is_finite() && factor > 0.0) => {
                Err(out_of_range("fault.factor", factor, "finite and above 0"))
            }
            _ => Ok(()),
        }
    }
}
