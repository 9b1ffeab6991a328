//! Bindings of decisions and candidates, and conversion of plain data to Python objects.
//!
//! Objects hold the core's plain data. A property converts its value when Python reads it, so an
//! unread candidate list costs nothing.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;
use wardrop_core::{Misfit, WorkerId};
use wardrop_py_macros::caught;

/// Worker chosen for a request.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Decision(pub wardrop_core::Decision);

/// One candidate of an explained decision, as it was priced.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
#[derive(Clone, Copy)]
pub struct Candidate(wardrop_core::Candidate);

/// The worker as Python sees it.
const fn pair(worker: WorkerId) -> (u64, u32) {
    (worker.instance, worker.dp_rank)
}

#[caught]
#[pymethods]
impl Decision {
    /// Chosen worker as (instance, `dp_rank`).
    #[getter]
    fn worker(&self) -> (u64, u32) {
        pair(self.0.worker)
    }

    /// Leading blocks of the prompt that the worker holds in device memory.
    #[getter]
    fn overlap_blocks(&self) -> u32 {
        self.0.overlap_blocks
    }

    /// Cost of the worker in the unit of the policy.
    #[getter]
    fn cost(&self) -> f64 {
        self.0.cost
    }

    /// Why a static rule decided in place of the policy; None if the policy decided.
    #[getter]
    fn misfit(&self) -> Option<&'static str> {
        self.0.misfit.map(Misfit::name)
    }

    /// All candidates if `explain` was True, otherwise an empty list.
    #[getter]
    fn candidates(&self) -> Vec<Candidate> {
        self.0.candidates.iter().copied().map(Candidate).collect()
    }

    fn __repr__(&self) -> String {
        let (instance, dp_rank) = pair(self.0.worker);
        let (overlap, cost) = (self.0.overlap_blocks, self.0.cost);
        format!("Decision(worker=({instance}, {dp_rank}), overlap_blocks={overlap}, cost={cost})")
    }
}

#[caught]
#[pymethods]
impl Candidate {
    /// Worker as (instance, `dp_rank`).
    #[getter]
    fn worker(&self) -> (u64, u32) {
        pair(self.0.worker)
    }

    /// Cost in the unit of the policy. Lower is better.
    #[getter]
    fn cost(&self) -> f64 {
        self.0.cost
    }

    /// What the price believed of the cache: `exact`, `degraded`, `predicted` or `load_only`.
    #[getter]
    fn trust(&self) -> &'static str {
        self.0.trust.name()
    }

    /// Leading blocks of the prompt in device memory, as the index lists them.
    #[getter]
    fn listed_blocks(&self) -> u32 {
        self.0.listed_blocks
    }

    /// Leading blocks of the prompt that the worker holds in device memory.
    #[getter]
    fn device_blocks(&self) -> u32 {
        self.0.device_blocks
    }

    /// Blocks after the device prefix that the worker holds in host memory.
    #[getter]
    fn host_blocks(&self) -> u32 {
        self.0.host_blocks
    }

    /// Blocks after the host prefix that the worker holds on disk.
    #[getter]
    fn disk_blocks(&self) -> u32 {
        self.0.disk_blocks
    }

    /// Uncached prompt tokens of the worker's requests that wait for their first token.
    #[getter]
    fn prefill_tokens(&self) -> u64 {
        self.0.prefill_tokens
    }

    /// Distinct blocks of the worker's requests in flight.
    #[getter]
    fn decode_blocks(&self) -> u64 {
        self.0.decode_blocks
    }

    /// Leading blocks of this prompt among the worker's `decode_blocks`.
    #[getter]
    fn shared_blocks(&self) -> u32 {
        self.0.shared_blocks
    }

    /// Number of the worker's requests in flight.
    #[getter]
    fn active_requests(&self) -> u32 {
        self.0.active_requests
    }

    /// Summands of the cost by name, in the unit of the policy.
    #[getter]
    fn parts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let parts = PyDict::new(py);
        for (name, cost) in self.0.parts.iter() {
            parts.set_item(name, cost)?;
        }
        Ok(parts)
    }

    fn __repr__(&self) -> String {
        let (instance, dp_rank) = pair(self.0.worker);
        format!("Candidate(worker=({instance}, {dp_rank}), cost={})", self.0.cost)
    }
}

/// Converts JSON data to dicts, lists, numbers and text.
///
/// O(values). Whole numbers stay `int`, all others become `float`.
pub fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => value.into_pyobject(py)?.into_any(),
            (None, Some(value)) => value.into_pyobject(py)?.into_any(),
            (None, None) => number.as_f64().into_pyobject(py)?.into_any(),
        },
        Value::String(text) => text.into_pyobject(py)?.into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            list.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (key, value) in fields {
                dict.set_item(key, to_python(py, value)?)?;
            }
            dict.into_any()
        }
    })
}
