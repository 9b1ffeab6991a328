//! Bindings of the load driver.
//!
//! The driver has a thread of its own, so Python only starts it, asks for progress and takes the
//! report.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use wardrop_drive::{Drive as Native, DriveError, Plan, Planned, Release};
use wardrop_py_macros::caught;

use crate::lists::List;

/// A wrong plan is a `ValueError`; a fault of the machine or of the order of calls is a
/// `RuntimeError`.
fn raise(error: &DriveError) -> PyErr {
    match error {
        DriveError::Plan(_) => PyValueError::new_err(error.to_string()),
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}

/// A request of the plan: its time in seconds, the index of its predecessor or None, and its body.
type Row<'py> = (f64, Option<usize>, Bound<'py, PyBytes>);

/// Load driver: sends requests over HTTP from its own thread, and records when tokens arrive.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Drive {
    /// The running driver.
    native: Native,
    /// The report, kept after the first call, because the driver gives it out once.
    report: Mutex<Option<String>>,
}

#[caught]
#[pymethods]
impl Drive {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (url, requests, *, duration_s, timeout_s, concurrency=None, max_in_flight=4096, headers=None))]
    fn new(
        py: Python<'_>,
        url: String,
        requests: List<Row<'_>>,
        duration_s: f64,
        timeout_s: f64,
        concurrency: Option<usize>,
        max_in_flight: usize,
        headers: Option<List<(String, String)>>,
    ) -> PyResult<Self> {
        let requests = requests.0.into_iter().map(|(time_s, after, body)| Planned {
            release: after.map_or(Release::At(time_s), |request| Release::After {
                request,
                think_s: time_s,
            }),
            body: body.as_bytes().to_vec().into(),
        });
        let headers = headers.map(|headers| headers.0).unwrap_or_default();
        let requests = requests.collect();
        let plan = Plan {
            url,
            headers,
            requests,
            concurrency,
            duration_s,
            timeout_s,
            max_in_flight,
        };
        let native = py.detach(|| Native::start(plan)).map_err(|e| raise(&e))?;
        Ok(Self {
            native,
            report: Mutex::new(None),
        })
    }

    /// Progress of the run. The cost does not grow with the run.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let progress = self.native.progress();
        let dict = PyDict::new(py);
        dict.set_item("elapsed_s", progress.elapsed_s)?;
        dict.set_item("planned", progress.planned)?;
        dict.set_item("sent", progress.sent)?;
        dict.set_item("ended", progress.ended)?;
        dict.set_item("ok", progress.ok)?;
        dict.set_item("tokens", progress.tokens)?;
        dict.set_item("ttft_p50_s", progress.ttft_p50_s)?;
        dict.set_item("ttft_p95_s", progress.ttft_p95_s)?;
        dict.set_item("finished", progress.finished)?;
        Ok(dict)
    }

    /// Send no further request, and abort the requests in flight.
    fn stop(&self) {
        self.native.stop();
    }

    /// Wait for the end of the run, for at most `timeout_s` seconds.
    fn wait(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| {
            PyValueError::new_err(format!("got timeout_s {timeout_s}: expected at least 0 seconds"))
        })?;
        Ok(py.detach(|| self.native.wait(timeout)))
    }

    /// Report of a run that has ended.
    fn report(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| {
            let mut kept = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(text) = kept.as_ref() {
                return Ok(text.clone());
            }
            let (report, first_error) = self.native.report().map_err(|e| raise(&e))?;
            let json = serde_json::json!({ "report": report, "first_error": first_error }).to_string();
            *kept = Some(json.clone());
            Ok(json)
        })
    }
}
