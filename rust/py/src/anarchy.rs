//! Bindings of the exact assignments and of the meter of the price of anarchy.
//!
//! Every object is behind a mutex, so a meter may be shared by threads. Solving releases the GIL;
//! recording is O(workers) and keeps it.

#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments of Python calls arrive by value"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wardrop_core::Error;
use wardrop_core::anarchy::{CostMatrix, DecisionCosts, Meter, MeterConfig};
use wardrop_py_macros::caught;

use crate::buffers::column;
use crate::lists::List;

/// A wrong argument is a `ValueError` with the core's text.
fn raise(error: &Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Copies a buffer of two dimensions in C order.
///
/// # Errors
/// `ValueError` for another number of dimensions or a cost that is not finite, `TypeError` for
/// other items.
fn matrix(name: &str, costs: &Bound<'_, PyAny>) -> PyResult<CostMatrix> {
    let shape = PyUntypedBuffer::get(costs)?;
    let &[rows, columns] = shape.shape() else {
        let text = format!(
            "got {name} with {} dimensions: expected 2, requests × workers",
            shape.dimensions()
        );
        return Err(PyValueError::new_err(text));
    };
    CostMatrix::new(rows, columns, column(name, costs)?).map_err(|e| raise(&e))
}

/// Exact linear assignment of requests to workers, each at most once.
#[caught]
#[pyfunction]
pub fn assign(py: Python<'_>, costs: &Bound<'_, PyAny>) -> PyResult<(Vec<Option<usize>>, f64)> {
    let costs = matrix("costs", costs)?;
    let found = py.detach(|| wardrop_core::anarchy::assign(&costs));
    Ok((found.column_of, found.total))
}

/// Exact assignment of every request to a worker under convex congestion.
#[caught]
#[pyfunction]
pub fn assign_congested(
    py: Python<'_>,
    costs: &Bound<'_, PyAny>,
    marginals: &Bound<'_, PyAny>,
) -> PyResult<(Vec<usize>, f64)> {
    let costs = matrix("costs", costs)?;
    let marginals = matrix("marginals", marginals)?;
    // The solver also asks for the slot after the last one, which no request can take.
    if marginals.rows() != costs.columns() || marginals.columns() < costs.rows() {
        let text = format!(
            "got marginals of {} × {}: expected {} workers × at least {} slots",
            marginals.rows(),
            marginals.columns(),
            costs.columns(),
            costs.rows()
        );
        return Err(PyValueError::new_err(text));
    }
    let last = marginals.columns();
    let found = py
        .detach(|| wardrop_core::anarchy::assign_congested(&costs, |j, k| marginals.at(j, k.min(last) - 1)))
        .map_err(|e| raise(&e))?;
    let total = found.total();
    Ok((found.worker_of, total))
}

/// Price of anarchy over sliding windows of routing decisions. All costs are seconds.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct AnarchyMeter {
    /// The core's meter.
    native: Mutex<Meter>,
}

impl AnarchyMeter {
    /// Poison is ignored: a panic inside the meter raises, and the object stays usable.
    fn lock(&self) -> MutexGuard<'_, Meter> {
        self.native.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[caught]
#[pymethods]
impl AnarchyMeter {
    #[new]
    #[pyo3(signature = (*, window_requests=64, window_s=10.0, keep_windows=64, max_pending=8, resamples=200, seed=0))]
    fn new(
        window_requests: usize,
        window_s: f64,
        keep_windows: usize,
        max_pending: usize,
        resamples: usize,
        seed: u64,
    ) -> Self {
        let config = MeterConfig {
            window_requests,
            window_s,
            keep_windows,
            max_pending,
            resamples,
            seed,
        };
        Self {
            native: Mutex::new(Meter::new(config)),
        }
    }

    /// Record one decision. The lists have one entry per worker, in the same order.
    #[pyo3(signature = (at_s, chosen, prefill_s, decode_s, wait_s, peer_decode_s))]
    fn record(
        &self,
        at_s: f64,
        chosen: usize,
        prefill_s: List<f64>,
        decode_s: List<f64>,
        wait_s: List<f64>,
        peer_decode_s: List<f64>,
    ) -> PyResult<()> {
        let placement = DecisionCosts {
            at_s,
            chosen,
            prefill_s: prefill_s.0,
            decode_s: decode_s.0,
            wait_s: wait_s.0,
        };
        self.lock()
            .record(&placement, &peer_decode_s.0)
            .map_err(|e| raise(&e))
    }

    /// Record a time predicted at the decision, and the time measured for it, in seconds.
    fn record_outcome(&self, predicted_s: f64, observed_s: f64) {
        self.lock().record_outcome(predicted_s, observed_s);
    }

    /// Solve the oldest closed window. The GIL is released meanwhile.
    fn solve(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.lock().solve()).map_err(|e| raise(&e))
    }

    /// Close the open window and solve all closed ones. The GIL is released meanwhile.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().finish()).map_err(|e| raise(&e))
    }

    /// Estimators over the kept windows; None before the first window is solved.
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(report) = self.lock().report() else {
            return Ok(None);
        };
        let out = PyDict::new(py);
        out.set_item("windows", report.windows)?;
        out.set_item("requests", report.requests)?;
        out.set_item("poa", report.poa)?;
        out.set_item("poa_interval", report.poa_interval.map(|i| (i.low, i.high)))?;
        out.set_item("poa_paper", report.poa_paper)?;
        out.set_item("poa_square", report.poa_square)?;
        out.set_item("poa_square_median", report.poa_square_median)?;
        out.set_item("poa_square_p90", report.poa_square_p90)?;
        out.set_item("poa_square_max", report.poa_square_max)?;
        out.set_item("regret_mean_s", report.regret_mean_s)?;
        out.set_item("free_s", report.loss.free_s)?;
        out.set_item("split_s", report.loss.split_s)?;
        out.set_item("cache_s", report.loss.cache_s)?;
        out.set_item("load_s", report.loss.load_s)?;
        out.set_item("model_samples", report.model_error.samples)?;
        out.set_item("model_error", report.model_error.mean_absolute_share)?;
        out.set_item("model_bias", report.model_error.bias)?;
        out.set_item("dropped_windows", report.dropped_windows)?;
        out.set_item("refused_decisions", report.refused_decisions)?;
        Ok(Some(out))
    }
}
