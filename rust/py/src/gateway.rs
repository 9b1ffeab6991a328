//! Bindings of the gateway beside those of every door: upstreams, workers, dumps, curves and the saved index.
//!
//! Every call releases the GIL, because a thread of the gateway may hold a lock that the call waits for.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use wardrop_gateway::{Gateway as Native, GatewayConfig};
use wardrop_py_macros::caught;
use wardrop_service::{PoolName, Service};

use crate::door::{Door, raise};
use crate::lists::List;

/// HTTP gateway: request in, decision, answer out, on native threads.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, extends = Door, module = "wardrop._core")]
pub struct Gateway {
    /// The gateway, which the base class holds too.
    native: Arc<Native>,
}

#[caught]
#[pymethods]
impl Gateway {
    /// A configured gateway that does not listen yet. Its feeds may be filled before it starts.
    #[new]
    #[pyo3(signature = (config_json = "{}"))]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<PyClassInitializer<Self>> {
        let native = py
            .detach(|| Native::new(GatewayConfig::from_json(config_json)?))
            .map_err(|error| raise(&error))?;
        let native = Arc::new(native);
        let door = PyClassInitializer::from(Door::new(native.clone()));
        Ok(door.add_subclass(Self { native }))
    }

    /// Replace the upstream frontends. Upstreams that stay keep their connections.
    #[pyo3(signature = (urls, /))]
    #[allow(clippy::needless_pass_by_value, reason = "a list from Python arrives owned")]
    fn set_upstreams(&self, py: Python<'_>, urls: List<String>) -> PyResult<()> {
        py.detach(|| self.native.set_upstreams(&urls.0))
            .map_err(|error| raise(&error))
    }

    /// Make workers the upstreams. A worker that stays keeps its connections.
    #[pyo3(signature = (workers_json, /))]
    fn set_workers(&self, py: Python<'_>, workers_json: &str) -> PyResult<()> {
        py.detach(|| self.native.set_workers(workers_json))
            .map_err(|error| raise(&error))
    }

    /// Report what was read from engines: whether they answer, and their load.
    #[pyo3(signature = (reports_json, /))]
    fn report_engines(&self, py: Python<'_>, reports_json: &str) -> PyResult<usize> {
        py.detach(|| self.native.service().report_engines(reports_json))
            .map_err(|error| raise(&error))
    }

    /// Compare a model's template with Dynamo's again, for example after a change upstream.
    #[pyo3(signature = (name, /))]
    fn recheck_model(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.native.recheck_model(name))
            .map_err(|error| raise(&error))
    }

    /// Register an instance with its ranks, or change it. An unchanged one has no effect.
    #[pyo3(signature = (worker_json, /))]
    fn upsert_worker(&self, py: Python<'_>, worker_json: &str) -> PyResult<()> {
        py.detach(|| self.native.service().upsert_worker(worker_json))
            .map_err(|error| raise(&error))
    }

    /// Remove an instance with its blocks and bookings.
    fn remove_worker(&self, py: Python<'_>, model: &str, role: &str, instance: u64) -> PyResult<bool> {
        py.detach(|| self.native.service().remove_worker(model, role, instance))
            .map_err(|error| raise(&error))
    }

    /// Begin a dump: keep the events of the workers that need the dump, until it is loaded.
    fn begin_dump(&self, py: Python<'_>, model: &str, role: &str) -> PyResult<usize> {
        py.detach(|| self.native.service().begin_dump(model, role))
            .map_err(|error| raise(&error))
    }

    /// Fill the index of workers whose first events the gateway missed.
    fn load_dump(&self, py: Python<'_>, model: &str, role: &str, dump_json: &str) -> PyResult<usize> {
        py.detach(|| self.native.service().load_dump(model, role, dump_json))
            .map_err(|error| raise(&error))
    }

    /// JSON of the facts of the live page: load, trust, curves, latency counts, anarchy.
    fn observation(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.service().observation())
    }

    /// JSON of the outcomes since the last call, and of every pool's state, for one caller.
    fn sample(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.service().sample())
    }

    /// JSON of the reports of every model's shadow fleets; None without shadow fleets.
    fn shadows(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| self.native.service().shadows())
    }

    /// JSON of the learned latency curves: per pool, every worker's coefficients and a record.
    fn curves(&self, py: Python<'_>) -> String {
        py.detach(|| self.native.service().curves())
    }

    /// Restore the curves of a pool and of its workers from a record of `curves`.
    fn restore_curves(&self, py: Python<'_>, model: &str, role: &str, record_json: &str) -> PyResult<usize> {
        py.detach(|| self.native.service().restore_curves(model, role, record_json))
            .map_err(|error| raise(&error))
    }

    /// Blocks of every worker in every pool, and positions of the workers' feeds.
    fn save_index<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.native.service().save_index()))
    }

    /// JSON of the contents of `save_index`: `saved_at_s` (Unix time) and `pools`.
    #[staticmethod]
    #[pyo3(signature = (data, /))]
    fn saved_index(py: Python<'_>, data: &[u8]) -> PyResult<String> {
        py.detach(|| Service::saved_index(data))
            .map_err(|error| raise(&error))
    }

    /// Restore the saved index of one pool. Call it before the pool's first feed is followed.
    #[allow(clippy::needless_pass_by_value, reason = "a list from Python arrives owned")]
    fn restore_index(
        &self,
        py: Python<'_>,
        model: &str,
        role: &str,
        data: &[u8],
        publishers: List<u64>,
        dump_follows: bool,
    ) -> PyResult<String> {
        py.detach(|| {
            self.native
                .service()
                .restore_index(PoolName { model, role }, data, &publishers.0, dump_follows)
        })
        .map_err(|error| raise(&error))
    }

    /// Publish figures of the control plane on the metrics page.
    #[pyo3(signature = (figures_json, /))]
    fn set_figures(&self, py: Python<'_>, figures_json: &str) -> PyResult<()> {
        py.detach(|| self.native.service().set_figures(figures_json))
            .map_err(|error| raise(&error))
    }
}
