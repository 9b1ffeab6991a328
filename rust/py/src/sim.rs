//! Bindings of the simulator: columns in, columns out, both as raw bytes that numpy reads without a copy.

use std::sync::Arc;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde_json::{Map, Value};
use wardrop_core::queue::QueueConfig;
use wardrop_core::sim::{FleetSpec, GapHistogram, Outcome, Role, SimError, Workload, simulate};
use wardrop_core::{PolicyConfig, PredictedConfig, RouterConfig};

fn raise(error: &SimError) -> PyErr {
    match error {
        SimError::Router { .. } => PyRuntimeError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

fn column<T: Element>(py: Python<'_>, name: &str, column: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    PyBuffer::<T>::get(column)
        .and_then(|buffer| buffer.to_vec(py))
        .map_err(|error| {
            PyValueError::new_err(format!("{name}: need a contiguous array of its type: {error}"))
        })
}

/// A validated workload; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
pub struct SimWorkload {
    native: Arc<Workload>,
}

#[pymethods]
impl SimWorkload {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (*, arrival_ms, input_tokens, output_tokens, block_start, blocks, block_size, after, think_ms))]
    fn new(
        py: Python<'_>,
        arrival_ms: &Bound<'_, PyAny>,
        input_tokens: &Bound<'_, PyAny>,
        output_tokens: &Bound<'_, PyAny>,
        block_start: &Bound<'_, PyAny>,
        blocks: &Bound<'_, PyAny>,
        block_size: u32,
        after: &Bound<'_, PyAny>,
        think_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let native = Workload {
            arrival_ms: column(py, "arrival_ms", arrival_ms)?,
            input_tokens: column(py, "input_tokens", input_tokens)?,
            output_tokens: column(py, "output_tokens", output_tokens)?,
            block_start: column(py, "block_start", block_start)?,
            blocks: column(py, "blocks", blocks)?,
            block_size,
            after: column(py, "after", after)?,
            think_ms: column(py, "think_ms", think_ms)?,
        };
        py.detach(|| native.validate()).map_err(|error| raise(&error))?;
        Ok(Self {
            native: Arc::new(native),
        })
    }

    fn __len__(&self) -> usize {
        self.native.len()
    }
}

fn queue(value: &Value) -> PyResult<Option<QueueConfig>> {
    match &value["queue"] {
        Value::Null => Ok(None),
        given => serde_json::from_value(given.clone())
            .map(Some)
            .map_err(|error| PyValueError::new_err(format!("queue: {error}"))),
    }
}

fn predicted(value: &Value) -> PyResult<PredictedConfig> {
    match &value["predicted"] {
        Value::Null => Ok(PredictedConfig::default()),
        given => serde_json::from_value(given.clone())
            .map_err(|error| PyValueError::new_err(format!("predicted: {error}"))),
    }
}

fn router(block_size: u32, value: &Value) -> PyResult<RouterConfig> {
    let refuse = |what: String| PyValueError::new_err(what);
    let name = value["policy"]
        .as_str()
        .ok_or_else(|| refuse("a router needs a policy by name".to_owned()))?;
    let empty = Map::new();
    let parameters = value["parameters"].as_object().unwrap_or(&empty);
    let policy = PolicyConfig::from_name(name, parameters).map_err(|error| refuse(error.to_string()))?;
    let seed = value["seed"].as_u64().unwrap_or(0);
    // Simulated requests may wait for hours past saturation; their bookings end with them, never by age.
    Ok(RouterConfig::new(block_size)
        .with_policy(policy)
        .with_seed(seed)
        .with_predicted(predicted(value)?)
        .with_booking_ttl_s(1e12)
        .with_max_bookings(usize::MAX >> 1))
}

/// Run one cell. Releases the interpreter for the whole run.
#[pyfunction]
#[pyo3(signature = (workload, fleet, routers))]
pub fn simulate_fleet<'py>(
    py: Python<'py>,
    workload: &SimWorkload,
    fleet: &str,
    routers: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let mut spec: FleetSpec =
        serde_json::from_str(fleet).map_err(|error| PyValueError::new_err(format!("fleet: {error}")))?;
    let routers: Vec<Value> =
        serde_json::from_str(routers).map_err(|error| PyValueError::new_err(format!("routers: {error}")))?;
    let block_size = spec.pools.first().map_or(1, |pool| pool.engine.block_size);
    spec.queues = routers.iter().map(queue).collect::<PyResult<Vec<_>>>()?;
    // A split's pools each do half of the work, and their prices must know which.
    let roles = spec.pools.iter().map(|pool| pool.role);
    let routers = roles
        .zip(&routers)
        .map(|(role, value)| {
            let config = router(block_size, value)?;
            Ok(config
                .with_prefill_tracking(role != Role::Decode)
                .with_decode_tracking(role != Role::Prefill))
        })
        .collect::<PyResult<Vec<_>>>()?;
    let native = Arc::clone(&workload.native);
    let outcome = py
        .detach(|| simulate(&spec, &native, &routers))
        .map_err(|error| raise(&error))?;
    pack(py, &outcome)
}

fn bytes<'py, T: Copy, const N: usize>(
    py: Python<'py>,
    values: &[T],
    encode: impl Fn(T) -> [u8; N],
) -> Bound<'py, PyBytes> {
    let raw: Vec<u8> = values.iter().flat_map(|value| encode(*value)).collect();
    PyBytes::new(py, &raw)
}

fn pack<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let requests = &outcome.requests;
    let times = [
        ("arrival_ms", &requests.arrival_ms),
        ("admit_ms", &requests.admit_ms),
        ("first_token_ms", &requests.first_token_ms),
        ("end_ms", &requests.end_ms),
        ("sample_ms", &outcome.samples.at_ms),
    ];
    for (name, values) in times {
        dict.set_item(name, bytes(py, values, f64::to_le_bytes))?;
    }
    let counts = [
        ("worker", &requests.worker),
        ("decode_worker", &requests.decode_worker),
        ("cached_tokens", &requests.cached_tokens),
        ("expected_tokens", &requests.expected_tokens),
        ("preemptions", &requests.preemptions),
        ("retries", &requests.retries),
        ("sample_running", &outcome.samples.running),
        ("sample_waiting", &outcome.samples.waiting),
        ("sample_active_blocks", &outcome.samples.active_blocks),
    ];
    for (name, values) in counts {
        dict.set_item(name, bytes(py, values, u32::to_le_bytes))?;
    }
    dict.set_item("end", PyBytes::new(py, &requests.end))?;
    let middles: Vec<f64> = (0..outcome.gaps.counts.len())
        .map(GapHistogram::bucket_ms)
        .collect();
    dict.set_item("gap_ms", bytes(py, &middles, f64::to_le_bytes))?;
    dict.set_item("gap_counts", bytes(py, &outcome.gaps.counts, u64::to_le_bytes))?;
    let totals = &outcome.totals;
    let numbers = PyDict::new(py);
    numbers.set_item("iterations", totals.iterations)?;
    numbers.set_item("prefill_tokens", totals.prefill_tokens)?;
    numbers.set_item("output_tokens", totals.output_tokens)?;
    numbers.set_item("events_sent", totals.events_sent)?;
    numbers.set_item("events_lost", totals.events_lost)?;
    numbers.set_item("events_refused", totals.events_refused)?;
    numbers.set_item("preemptions", totals.preemptions)?;
    numbers.set_item("evictions", totals.evictions)?;
    numbers.set_item("onboarded_tokens", totals.onboarded_tokens)?;
    numbers.set_item("transfer_bytes", totals.transfer_bytes)?;
    numbers.set_item("decisions", totals.decisions)?;
    numbers.set_item("peak_active_blocks", totals.peak_active_blocks)?;
    numbers.set_item("gap_sum_ms", outcome.gaps.sum_ms)?;
    numbers.set_item("end_ms", outcome.end_ms)?;
    dict.set_item("totals", numbers)?;
    Ok(dict)
}
