//! Bindings of decisions and candidates, and conversion of plain data to Python objects.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;
use wardrop_core::WorkerId;
use wardrop_py_macros::caught;

/// Worker chosen for a request; `_core.pyi` documents it.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Decision(pub wardrop_core::Decision);

/// One candidate of an explained decision; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
#[derive(Clone, Copy)]
pub struct Candidate(wardrop_core::Candidate);

const fn pair(worker: WorkerId) -> (u64, u32) {
    (worker.instance, worker.dp_rank)
}

#[caught]
#[pymethods]
impl Decision {
    #[getter]
    fn worker(&self) -> (u64, u32) {
        pair(self.0.worker)
    }

    #[getter]
    fn overlap_blocks(&self) -> u32 {
        self.0.overlap_blocks
    }

    #[getter]
    fn cost(&self) -> f64 {
        self.0.cost
    }

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
    #[getter]
    fn worker(&self) -> (u64, u32) {
        pair(self.0.worker)
    }

    #[getter]
    fn cost(&self) -> f64 {
        self.0.cost
    }

    #[getter]
    fn trust(&self) -> &'static str {
        self.0.trust.name()
    }

    #[getter]
    fn listed_blocks(&self) -> u32 {
        self.0.listed_blocks
    }

    #[getter]
    fn device_blocks(&self) -> u32 {
        self.0.device_blocks
    }

    #[getter]
    fn host_blocks(&self) -> u32 {
        self.0.host_blocks
    }

    #[getter]
    fn disk_blocks(&self) -> u32 {
        self.0.disk_blocks
    }

    #[getter]
    fn prefill_tokens(&self) -> u64 {
        self.0.prefill_tokens
    }

    #[getter]
    fn decode_blocks(&self) -> u64 {
        self.0.decode_blocks
    }

    #[getter]
    fn shared_blocks(&self) -> u32 {
        self.0.shared_blocks
    }

    #[getter]
    fn active_requests(&self) -> u32 {
        self.0.active_requests
    }

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
