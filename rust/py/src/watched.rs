//! Bindings of a simulated fleet that a controller observes and changes during the run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wardrop_core::control::{ControlSnapshot, Routing};
use wardrop_py_macros::caught;
use wardrop_sim::{ChangeError, WatchedFleet as Native};

use crate::sim::{SimWorkload, pack, raise, specs};

/// A watched fleet; `_core.pyi` documents it.
#[pyclass(frozen, module = "wardrop._core")]
pub struct WatchedFleet {
    native: Mutex<Option<Native>>,
}

impl WatchedFleet {
    fn lock(&self) -> MutexGuard<'_, Option<Native>> {
        self.native.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Native) -> PyResult<T>) -> PyResult<T> {
        let mut guard = self.lock();
        let over =
            || PyRuntimeError::new_err("the run has ended and its result was taken: build a new fleet");
        act(guard.as_mut().ok_or_else(over)?)
    }
}

fn json_text<T>(text: Result<T, serde_json::Error>) -> PyResult<T> {
    text.map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

fn routing_json(routing: &Routing) -> PyResult<String> {
    json_text(serde_json::to_string(routing))
}

#[caught]
#[pymethods]
impl WatchedFleet {
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

    fn advance(&self, py: Python<'_>, until_s: f64) -> PyResult<bool> {
        if until_s.is_nan() {
            return Err(PyValueError::new_err("until_s: got NaN, expected seconds"));
        }
        py.detach(|| self.with(|native| native.advance(until_s * 1e3).map_err(|error| raise(&error))))
    }

    fn sample(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| {
            self.with(|native| {
                let look: ControlSnapshot = native.look();
                json_text(serde_json::to_string(&look))
            })
        })
    }

    fn routing(&self) -> PyResult<String> {
        self.with(|native| routing_json(native.routing()))
    }

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

    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let over =
            || PyRuntimeError::new_err("the run has ended and its result was taken: build a new fleet");
        let native = self.lock().take().ok_or_else(over)?;
        let outcome = py.detach(|| native.finish()).map_err(|error| raise(&error))?;
        pack(py, &outcome)
    }
}
