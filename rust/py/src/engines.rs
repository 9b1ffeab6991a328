//! `wardrop.engines`: the feeds of vLLM and `SGLang`.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wardrop_core::KvEvent;
use wardrop_engines::Feed;

use crate::error::raise;
use crate::router::{Router, Worker};

/// The feed of one worker; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
pub struct EngineFeed(Mutex<Feed>);

#[pymethods]
impl EngineFeed {
    #[new]
    fn new(block_size: u32) -> PyResult<Self> {
        if block_size == 0 {
            return Err(PyValueError::new_err("block_size = 0: expected at least 1 token"));
        }
        Ok(Self(Mutex::new(Feed::new(block_size))))
    }

    fn apply(
        &self,
        py: Python<'_>,
        router: &Bound<'_, Router>,
        worker: Worker,
        sequence: u64,
        payload: &[u8],
    ) -> PyResult<(usize, usize)> {
        let router = router.get();
        py.detach(|| {
            let mut feed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = feed
                .take(sequence, payload)
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
            apply_all(router, worker, &taken.events)
        })
    }

    #[getter]
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner).counters;
        let dict = PyDict::new(py);
        dict.set_item("frames", counters.frames)?;
        dict.set_item("missed", counters.missed)?;
        dict.set_item("restarts", counters.restarts)?;
        dict.set_item("malformed", counters.malformed)?;
        dict.set_item("skipped", counters.skipped)?;
        Ok(dict)
    }
}

fn apply_all(router: &Router, worker: Worker, events: &[KvEvent]) -> PyResult<(usize, usize)> {
    let mut core = router.lock();
    let mut refused = 0;
    for event in events {
        match core.apply(worker.0, event) {
            Ok(()) => {}
            Err(error @ wardrop_core::Error::UnknownWorker(_)) => return Err(raise(&error)),
            Err(_) => refused += 1, // the router counted it, by reason
        }
    }
    Ok((events.len() - refused, refused))
}
