//! Bindings of the gRPC doors. Every call releases the GIL, because a thread of the picker may hold a lock it waits for.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use wardrop_picker::{Picker as Native, PickerConfig, SelectConfig, SelectServer as NativeSelect};
use wardrop_py_macros::caught;

use crate::gateway::raise;

/// The endpoint picker; `_core.pyi` documents it.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Picker {
    native: Native,
}

#[caught]
#[pymethods]
impl Picker {
    #[new]
    #[pyo3(signature = (config_json = "{}"))]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        let native = py
            .detach(|| Native::new(PickerConfig::from_json(config_json)?))
            .map_err(|error| raise(&error))?;
        Ok(Self { native })
    }

    fn start(&self, py: Python<'_>) -> PyResult<u16> {
        py.detach(|| self.native.start()).map_err(|error| raise(&error))
    }

    #[pyo3(signature = (model_json, /))]
    fn upsert_model(&self, py: Python<'_>, model_json: &str) -> PyResult<()> {
        py.detach(|| self.native.upsert_model(model_json))
            .map_err(|error| raise(&error))
    }

    #[pyo3(signature = (name, /))]
    fn remove_model(&self, py: Python<'_>, name: &str) -> bool {
        py.detach(|| self.native.remove_model(name))
    }

    #[pyo3(signature = (endpoints_json, /))]
    fn set_endpoints(&self, py: Python<'_>, endpoints_json: &str) -> PyResult<()> {
        py.detach(|| self.native.set_endpoints(endpoints_json))
            .map_err(|error| raise(&error))
    }

    #[pyo3(signature = (subscription_json, /))]
    fn subscribe(&self, py: Python<'_>, subscription_json: &str) -> PyResult<()> {
        py.detach(|| self.native.service().subscribe(subscription_json))
            .map_err(|error| raise(&error))
    }

    #[pyo3(signature = (publisher_id, /))]
    fn unsubscribe(&self, py: Python<'_>, publisher_id: u64) -> bool {
        py.detach(|| self.native.service().unsubscribe(publisher_id))
    }

    fn status(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.status())
    }

    fn metrics(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.metrics())
    }

    fn routing(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.service().routing())
    }

    #[pyo3(signature = (change_json, /))]
    fn set_routing(&self, py: Python<'_>, change_json: &str) -> PyResult<String> {
        py.detach(|| self.native.service().set_routing(change_json))
            .map_err(|error| raise(&error))
    }

    #[pyo3(signature = (parts_json, /))]
    fn set_parts(&self, py: Python<'_>, parts_json: &str) -> PyResult<()> {
        py.detach(|| self.native.service().set_parts(parts_json))
            .map_err(|error| raise(&error))
    }

    #[pyo3(signature = (request_id, /))]
    fn receipt(&self, py: Python<'_>, request_id: &str) -> Option<String> {
        py.detach(|| self.native.service().receipt(request_id))
    }

    fn drain(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| {
            PyValueError::new_err(format!(
                "timeout_s must be a number of seconds ≥ 0, got {timeout_s}"
            ))
        })?;
        Ok(py.detach(|| self.native.drain(timeout)))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.native.stop());
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
