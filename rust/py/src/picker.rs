//! Bindings of the gRPC doors: the endpoint picker and the selection service.
//!
//! Every call releases the GIL, because a thread of the door may hold a lock that the call waits for.

use std::sync::Arc;

use pyo3::prelude::*;
use wardrop_picker::{Picker as Native, PickerConfig, SelectConfig, SelectServer as NativeSelect};
use wardrop_py_macros::caught;

use crate::door::{Door, raise};

/// The endpoint picker; `_core.pyi` documents it.
#[pyclass(frozen, extends = Door, module = "wardrop._core")]
pub struct Picker {
    native: Arc<Native>,
}

#[caught]
#[pymethods]
impl Picker {
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

    #[pyo3(signature = (endpoints_json, /))]
    fn set_endpoints(&self, py: Python<'_>, endpoints_json: &str) -> PyResult<()> {
        py.detach(|| self.native.set_endpoints(endpoints_json))
            .map_err(|error| raise(&error))
    }
}

/// The selection service; `_core.pyi` documents it.
#[pyclass(frozen, module = "wardrop._core")]
pub struct SelectServer {
    native: NativeSelect,
}

#[caught]
#[pymethods]
impl SelectServer {
    #[new]
    #[pyo3(signature = (config_json = "{}"))]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        let native = py
            .detach(|| NativeSelect::new(SelectConfig::from_json(config_json)?))
            .map_err(|error| raise(&error))?;
        Ok(Self { native })
    }

    #[pyo3(signature = (worker_json, /))]
    fn upsert_worker(&self, py: Python<'_>, worker_json: &str) -> PyResult<()> {
        py.detach(|| self.native.upsert_worker(worker_json))
            .map_err(|error| raise(&error))
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.native.start()).map_err(|error| raise(&error))
    }

    fn status(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.status())
    }

    fn metrics(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.metrics())
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.native.stop());
    }
}
