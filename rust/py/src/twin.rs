//! Bindings of the shadow fleets.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use wardrop_core::sim::{SimError, Timing};
use wardrop_core::twin::{Arrival, Figure, Observed, Twin as Native};

fn raise(error: &SimError) -> PyErr {
    match error {
        SimError::Router { .. } => PyRuntimeError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

/// Shadow fleets beside a live one; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Twin {
    native: Mutex<Native>,
}

impl Twin {
    fn lock(&self) -> MutexGuard<'_, Native> {
        self.native.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Twin {
    #[new]
    fn new(config: &str) -> PyResult<Self> {
        let config = serde_json::from_str(config)
            .map_err(|error| PyValueError::new_err(format!("config: {error}")))?;
        let native = Native::new(config).map_err(|error| raise(&error))?;
        Ok(Self {
            native: Mutex::new(native),
        })
    }

    #[pyo3(signature = (request_id, at_s, input_tokens, sequence_hashes))]
    #[allow(clippy::needless_pass_by_value, reason = "a Python list arrives by value")]
    fn push(&self, request_id: u64, at_s: f64, input_tokens: u32, sequence_hashes: Vec<u64>) {
        self.lock().push(&Arrival {
            id: request_id,
            at_s,
            input_tokens,
            sequence_hashes: &sequence_hashes,
        });
    }

    #[pyo3(signature = (request_id, *, ttft_s=None, output_tokens=None))]
    fn outcome(&self, request_id: u64, ttft_s: Option<f64>, output_tokens: Option<u32>) {
        let observed = Observed {
            ttft_s,
            output_tokens,
        };
        self.lock().outcome(request_id, observed);
    }

    /// Simulates, and charges the seconds that took: wall time, an upper bound of CPU time.
    fn advance(&self, py: Python<'_>, now_s: f64) -> PyResult<usize> {
        py.detach(|| {
            let mut native = self.lock();
            let mut started = 0;
            loop {
                let start = Instant::now();
                started += native.advance(now_s)?;
                native.charge(start.elapsed().as_secs_f64(), now_s);
                if !native.is_due(now_s) {
                    return Ok(started);
                }
            }
        })
        .map_err(|error| raise(&error))
    }

    fn charge(&self, busy_s: f64, now_s: f64) {
        self.lock().charge(busy_s, now_s);
    }

    fn set_timing(&self, pool: usize, timing: &str) -> PyResult<()> {
        let timing: Timing = serde_json::from_str(timing)
            .map_err(|error| PyValueError::new_err(format!("timing: {error}")))?;
        self.lock().set_timing(pool, &timing);
        Ok(())
    }

    fn report(&self) -> PyResult<String> {
        serde_json::to_string(&self.lock().report())
            .map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }

    fn suggest(&self, figure: &str) -> PyResult<Option<String>> {
        let known = Figure::from_name(figure).ok_or_else(|| {
            PyValueError::new_err(format!(
                "got figure {figure:?}: expected ttft, itl, e2e, cached_share or goodput"
            ))
        })?;
        Ok(self.lock().suggest(known).map(str::to_owned))
    }
}
