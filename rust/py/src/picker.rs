//! Bindings of the gRPC doors: the endpoint picker and the selection service.
//!
//! Every call releases the GIL, because a thread of the door may hold a lock that the call waits for.

use std::sync::Arc;

use pyo3::prelude::*;
use wardrop_picker::{Picker as Native, PickerConfig, SelectConfig, SelectServer as NativeSelect};
use wardrop_py_macros::caught;

use crate::door::{Door, raise};

/// Endpoint picker: Envoy's external processing in, the address of a worker out.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, extends = Door, module = "wardrop._core")]
pub struct Picker {
    /// The picker, which the base class holds too.
    native: Arc<Native>,
}

#[caught]
#[pymethods]
impl Picker {
    /// A configured picker that does not listen yet.
    #[new]
    #[pyo3(signature = (config_json = "{}"))]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<PyClassInitializer<Self>> {
        let native = py
            .detach(|| Native::new(PickerConfig::from_json(config_json)?))
            .map_err(|error| raise(&error))?;
        let native = Arc::new(native);
        let door = PyClassInitializer::from(Door::new(native.clone()));
        Ok(door.add_subclass(Self { native }))
    }

    /// Replace all endpoints. An endpoint that stays keeps its blocks, load and health.
    #[pyo3(signature = (endpoints_json, /))]
    fn set_endpoints(&self, py: Python<'_>, endpoints_json: &str) -> PyResult<()> {
        py.detach(|| self.native.set_endpoints(endpoints_json))
            .map_err(|error| raise(&error))
    }
}

/// Selection service: prompts in, workers out, with reservations that callers free.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct SelectServer {
    /// The selection service.
    native: NativeSelect,
}

#[caught]
#[pymethods]
impl SelectServer {
    /// A configured service that does not listen yet.
    #[new]
    #[pyo3(signature = (config_json = "{}"))]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        let native = py
            .detach(|| NativeSelect::new(SelectConfig::from_json(config_json)?))
            .map_err(|error| raise(&error))?;
        Ok(Self { native })
    }

    /// Register a worker, with the fields of Dynamo's selection service.
    #[pyo3(signature = (worker_json, /))]
    fn upsert_worker(&self, py: Python<'_>, worker_json: &str) -> PyResult<()> {
        py.detach(|| self.native.upsert_worker(worker_json))
            .map_err(|error| raise(&error))
    }

    /// Start to serve.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.native.start()).map_err(|error| raise(&error))
    }

    /// Addresses, reservations, models, workers and feeds, as JSON.
    fn status(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.status())
    }

    /// The metrics page in Prometheus' text format.
    fn metrics(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.metrics())
    }

    /// Stop all threads. A second call does nothing.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.native.stop());
    }
}
