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
    /// The routing service, for calls that every door shares.
    fn service(&self) -> &Service;
    /// Binds and serves; the port of the door's main protocol.
    fn start(&self) -> Result<u16, ServiceError>;
    /// Registers a model. A door may add a check of its own.
    fn upsert_model(&self, json: &str) -> Result<(), ServiceError>;
    /// Forgets a model; whether it was known.
    fn remove_model(&self, name: &str) -> bool;
    /// The status report, as JSON.
    fn status(&self) -> String;
    /// The metrics page.
    fn metrics(&self) -> String;
    /// Refuses new requests, and waits for the others.
    fn drain(&self, timeout: Duration) -> bool;
    /// Stops all threads.
    fn stop(&self);
}

/// The calls that the gateway and the picker share; a door is one of the two.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, subclass, module = "wardrop._core")]
pub struct Door {
    /// The gateway or the picker, which the subclass holds too.
    native: Arc<dyn NativeDoor>,
}

impl Door {
    /// The base of an object of a subclass.
    pub(crate) fn new(native: Arc<dyn NativeDoor>) -> Self {
        Self { native }
    }
}

#[caught]
#[pymethods]
impl Door {
    /// Start to serve.
    fn start(&self, py: Python<'_>) -> PyResult<u16> {
        py.detach(|| self.native.start()).map_err(|error| raise(&error))
    }

    /// Register a model, or change it. An unchanged model has no effect.
    #[pyo3(signature = (model_json, /))]
    fn upsert_model(&self, py: Python<'_>, model_json: &str) -> PyResult<()> {
        py.detach(|| self.native.upsert_model(model_json))
            .map_err(|error| raise(&error))
    }

    /// Remove a model with its workers and feeds.
    #[pyo3(signature = (name, /))]
    fn remove_model(&self, py: Python<'_>, name: &str) -> bool {
        py.detach(|| self.native.remove_model(name))
    }

    /// Follow a publisher of Dynamo's event plane. A known subscription has no effect.
    #[pyo3(signature = (subscription_json, /))]
    fn subscribe(&self, py: Python<'_>, subscription_json: &str) -> PyResult<()> {
        py.detach(|| self.native.service().subscribe(subscription_json))
            .map_err(|error| raise(&error))
    }

    /// Stop following a publisher.
    #[pyo3(signature = (publisher_id, /))]
    fn unsubscribe(&self, py: Python<'_>, publisher_id: u64) -> bool {
        py.detach(|| self.native.service().unsubscribe(publisher_id))
    }

    /// JSON of the door's state, of models with workers and health, and of feeds.
    fn status(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.status())
    }

    /// Text of `GET /metrics`, in Prometheus format.
    fn metrics(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.metrics())
    }

    /// JSON of the policy and the queue in force: `{"policy": {"name": …}, "queue": …}`.
    fn routing(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.service().routing())
    }

    /// Change the policy or the queue of every pool at once.
    #[pyo3(signature = (change_json, /))]
    fn set_routing(&self, py: Python<'_>, change_json: &str) -> PyResult<String> {
        py.detach(|| self.native.service().set_routing(change_json))
            .map_err(|error| raise(&error))
    }

    /// Show the states of the control plane's parts in `/health` and on the metrics page.
    #[pyo3(signature = (parts_json, /))]
    fn set_parts(&self, py: Python<'_>, parts_json: &str) -> PyResult<()> {
        py.detach(|| self.native.service().set_parts(parts_json))
            .map_err(|error| raise(&error))
    }

    /// JSON of a request's decision and outcome, by its `x-request-id`.
    #[pyo3(signature = (request_id, /))]
    fn receipt(&self, py: Python<'_>, request_id: &str) -> Option<String> {
        py.detach(|| self.native.service().receipt(request_id))
    }

    /// Refuse new requests, and wait at most `timeout_s` seconds for the requests in flight.
    fn drain(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| {
            PyValueError::new_err(format!(
                "timeout_s must be a number of seconds ≥ 0, got {timeout_s}"
            ))
        })?;
        Ok(py.detach(|| self.native.drain(timeout)))
    }

    /// Stop at once. A second call has no effect.
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
