//! The calls that the gateway and the picker share, as a Python base class.
//!
//! Every call releases the GIL, because a thread of the door may hold a lock that the call waits for.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use wardrop_gateway::Gateway;
use wardrop_picker::Picker;
use wardrop_py_macros::caught;
use wardrop_service::{Service, ServiceError};

/// A fault of the machine or of the order of calls is a `RuntimeError`; a wrong argument is a `ValueError`.
pub(crate) fn raise(error: &ServiceError) -> PyErr {
    match error {
        ServiceError::Io { .. } | ServiceError::State(_) => PyRuntimeError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

/// A native door: the routing service, and the calls that each door serves in its own way.
pub(crate) trait NativeDoor: Send + Sync {
    fn service(&self) -> &Service;
    fn start(&self) -> Result<u16, ServiceError>;
    fn upsert_model(&self, json: &str) -> Result<(), ServiceError>;
    fn remove_model(&self, name: &str) -> bool;
    fn status(&self) -> String;
    fn metrics(&self) -> String;
    fn drain(&self, timeout: Duration) -> bool;
    fn stop(&self);
}

/// The base class of the doors; `_core.pyi` documents it.
#[pyclass(frozen, subclass, module = "wardrop._core")]
pub struct Door {
    native: Arc<dyn NativeDoor>,
}

impl Door {
    pub(crate) fn new(native: Arc<dyn NativeDoor>) -> Self {
        Self { native }
    }
}

#[caught]
#[pymethods]
impl Door {
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

/// Implements [`NativeDoor`] for a native type by its own methods, which have the same names.
macro_rules! native_door {
    ($native:ty) => {
        impl NativeDoor for $native {
            fn service(&self) -> &Service {
                <$native>::service(self)
            }

            fn start(&self) -> Result<u16, ServiceError> {
                <$native>::start(self)
            }

            fn upsert_model(&self, json: &str) -> Result<(), ServiceError> {
                <$native>::upsert_model(self, json)
            }

            fn remove_model(&self, name: &str) -> bool {
                <$native>::remove_model(self, name)
            }

            fn status(&self) -> String {
                <$native>::status(self)
            }

            fn metrics(&self) -> String {
                <$native>::metrics(self)
            }

            fn drain(&self, timeout: Duration) -> bool {
                <$native>::drain(self, timeout)
            }

            fn stop(&self) {
                <$native>::stop(self);
            }
        }
    };
}

native_door!(Gateway);
native_door!(Picker);
