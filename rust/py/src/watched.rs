//! Bindings of a simulated fleet that a controller observes and changes during the run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wardrop_core::control::{ControlSnapshot, Routing};
use wardrop_py_macros::caught;
use wardrop_sim::{ChangeError, WatchedFleet as Native};

use crate::sim::{SimWorkload, pack, raise, specs};

/// Simulated fleet that a controller observes and changes during the run.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct WatchedFleet {
    /// The fleet; `None` after `finish` took its result.
    native: Mutex<Option<Native>>,
}

impl WatchedFleet {
    /// Poison is ignored: a panic raises in its own call.
    fn lock(&self) -> MutexGuard<'_, Option<Native>> {
        self.native.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `act` on the fleet.
    ///
    /// # Errors
    /// `RuntimeError` after the result was taken, and the errors of `act`.
    fn with<T>(&self, act: impl FnOnce(&mut Native) -> PyResult<T>) -> PyResult<T> {
        let mut guard = self.lock();
        let over =
            || PyRuntimeError::new_err("the run has ended and its result was taken: build a new fleet");
        act(guard.as_mut().ok_or_else(over)?)
    }
}

/// JSON of plain values. A failure would be a fault of the simulator.
fn json_text<T>(text: Result<T, serde_json::Error>) -> PyResult<T> {
    text.map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

/// The policy and the queue in force.
fn routing_json(routing: &Routing) -> PyResult<String> {
    json_text(serde_json::to_string(routing))
}

#[caught]
#[pymethods]
impl WatchedFleet {
    /// A fleet at time 0. The arguments are those of `simulate_fleet`.
    #[new]
    fn new(py: Python<'_>, workload: &SimWorkload, fleet: &str, routers: &str) -> PyResult<Self> {
        let (spec, routers) = specs(fleet, routers)?;
        let workload = (*workload.native).clone();
        let native = py
            .detach(|| Native::new(spec, workload, &routers))
            .map_err(|error| raise(&error))?;
        Ok(Self {
            native: Mutex::new(Some(native)),
        })
    }

    /// Run the fleet up to `until_s` seconds of simulated time.
    fn advance(&self, py: Python<'_>, until_s: f64) -> PyResult<bool> {
        if until_s.is_nan() {
            return Err(PyValueError::new_err("until_s: got NaN, expected seconds"));
        }
        py.detach(|| self.with(|native| native.advance(until_s * 1e3).map_err(|error| raise(&error))))
    }

    /// JSON of the outcomes since the last call, and of the current state of every pool.
    fn sample(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| {
            self.with(|native| {
                let look: ControlSnapshot = native.look();
                json_text(serde_json::to_string(&look))
            })
        })
    }

    /// JSON of the policy and the queue in force.
    fn routing(&self) -> PyResult<String> {
        self.with(|native| routing_json(native.routing()))
    }

    /// Change the policy or the queue of every pool at once.
    #[pyo3(signature = (change_json, /))]
    fn set_routing(&self, py: Python<'_>, change_json: &str) -> PyResult<String> {
        let change = serde_json::from_str(change_json)
            .map_err(|error| PyValueError::new_err(format!("change of the routing: {error}")))?;
        py.detach(|| {
            self.with(|native| match native.change(change) {
                Ok(routing) => routing_json(routing),
                Err(ChangeError::Refused(error)) => Err(PyValueError::new_err(error.to_string())),
                Err(ChangeError::Fleet(error)) => Err(raise(&error)),
            })
        })
    }

    /// End the run and return its results, as `simulate_fleet` does.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let over =
            || PyRuntimeError::new_err("the run has ended and its result was taken: build a new fleet");
        let native = self.lock().take().ok_or_else(over)?;
        let outcome = py.detach(|| native.finish()).map_err(|error| raise(&error))?;
        pack(py, &outcome)
    }
}
