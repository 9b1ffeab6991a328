//! Bindings of the simulator. Workload and results are columns of raw bytes, which numpy reads without a copy.
//!
//! A run holds no lock and no GIL, so several threads may simulate at once. Cost: O(events of the
//! run).

use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use wardrop_core::RouterConfig;
use wardrop_core::anarchy::MeterReport;
use wardrop_core::queue::LateQueue;
use wardrop_core::regime::RegimeChange;
use wardrop_py_macros::caught;
use wardrop_sim::bound::{CostSums, LowerBound, lower_bound};
use wardrop_sim::search::{CostWeights, Search};
use wardrop_sim::{
    FleetSpec, GapHistogram, Outcome, Plan, RouterSpec, SimError, Workload, simulate, simulate_plan,
};

use crate::buffers::column;
use crate::lists::List;

/// A router that refuses is a fault of the simulator, hence a `RuntimeError`; everything else is a
/// wrong argument.
pub fn raise(error: &SimError) -> PyErr {
    match error {
        SimError::Router { .. } => PyRuntimeError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

/// Workload of the simulator, checked once. Columns are contiguous arrays.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct SimWorkload {
    /// The checked columns, shared by all runs.
    pub(crate) native: Arc<Workload>,
}

#[caught]
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
            arrival_ms: column("arrival_ms", arrival_ms)?,
            input_tokens: column("input_tokens", input_tokens)?,
            output_tokens: column("output_tokens", output_tokens)?,
            block_start: column("block_start", block_start)?,
            blocks: column("blocks", blocks)?,
            block_size,
            after: column("after", after)?,
            think_ms: column("think_ms", think_ms)?,
        };
        py.detach(|| native.validate()).map_err(|error| raise(&error))?;
        Ok(Self {
            native: Arc::new(native),
        })
    }

    /// Number of requests.
    fn __len__(&self) -> usize {
        self.native.len()
    }
}

/// The fleet with the queues of its routers, and one router configuration per pool.
///
/// # Errors
/// `ValueError` names `fleet`, `routers` or the queue's parameter that is wrong.
pub fn specs(fleet: &str, routers: &str) -> PyResult<(FleetSpec, Vec<RouterConfig>)> {
    let mut spec: FleetSpec =
        serde_json::from_str(fleet).map_err(|error| PyValueError::new_err(format!("fleet: {error}")))?;
    let routers: Vec<RouterSpec> =
        serde_json::from_str(routers).map_err(|error| PyValueError::new_err(format!("routers: {error}")))?;
    let block_size = spec.pools.first().map_or(1, |pool| pool.engine.block_size);
    spec.queues = routers.iter().map(|router| router.queue).collect();
    for queue in spec.queues.iter().flatten() {
        // A queue checks its parameters when it is built. The simulation would report them as an internal error.
        LateQueue::new(*queue).map_err(|error| PyValueError::new_err(error.to_string()))?;
    }
    let pools = spec.pools.iter().zip(&routers);
    let routers = pools
        .map(|(pool, router)| {
            let config = router.config(pool.role, block_size)?;
            Ok(config.with_handoff_s_per_token(spec.handoff_s_per_token()))
        })
        .collect::<Result<Vec<_>, wardrop_core::Error>>()
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((spec, routers))
}

/// Simulate a workload on a fleet. The GIL is released meanwhile.
#[caught]
#[pyfunction]
#[pyo3(signature = (workload, fleet, routers))]
pub fn simulate_fleet<'py>(
    py: Python<'py>,
    workload: &SimWorkload,
    fleet: &str,
    routers: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let (spec, routers) = specs(fleet, routers)?;
    let native = Arc::clone(&workload.native);
    let outcome = py
        .detach(|| simulate(&spec, &native, &routers))
        .map_err(|error| raise(&error))?;
    pack(py, &outcome)
}

/// Lower bound on the cost of any routing, with the GIL released.
#[caught]
#[pyfunction]
#[pyo3(signature = (workload, fleet, counted=None))]
pub fn cost_lower_bound<'py>(
    py: Python<'py>,
    workload: &SimWorkload,
    fleet: &str,
    counted: Option<List<bool>>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec: FleetSpec =
        serde_json::from_str(fleet).map_err(|error| PyValueError::new_err(format!("fleet: {error}")))?;
    let native = Arc::clone(&workload.native);
    let bound = py
        .detach(|| lower_bound(&spec, &native, counted.as_ref().map(|counted| &counted.0[..])))
        .map_err(|error| raise(&error))?;
    bound_dict(py, &bound)
}

/// A plan from its JSON form, whose lists have one entry per request.
///
/// # Errors
/// `ValueError` with the field that is wrong.
fn plan_of(text: &str) -> PyResult<Plan> {
    serde_json::from_str(text).map_err(|error| PyValueError::new_err(format!("plan: {error}")))
}

/// A fleet from its JSON form.
///
/// # Errors
/// `ValueError` with the field that is wrong.
fn fleet_of(text: &str) -> PyResult<FleetSpec> {
    serde_json::from_str(text).map_err(|error| PyValueError::new_err(format!("fleet: {error}")))
}

/// Simulate a workload with placements and orders chosen in advance. The GIL is released.
#[caught]
#[pyfunction]
pub fn simulate_planned<'py>(
    py: Python<'py>,
    workload: &SimWorkload,
    fleet: &str,
    plan: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let (spec, plan) = (fleet_of(fleet)?, plan_of(plan)?);
    let native = Arc::clone(&workload.native);
    let outcome = py
        .detach(|| simulate_plan(&spec, &native, plan))
        .map_err(|error| raise(&error))?;
    pack(py, &outcome)
}

/// Look for a better plan with all requests known in advance. The GIL is released.
#[caught]
#[pyfunction]
pub fn improve_plan(
    py: Python<'_>,
    workload: &SimWorkload,
    fleet: &str,
    plan: &str,
    weights: (f64, f64),
    seed: u64,
    limits: (u64, f64),
) -> PyResult<(String, f64, u64)> {
    let (spec, start) = (fleet_of(fleet)?, plan_of(plan)?);
    let native = Arc::clone(&workload.native);
    let (most_evaluations, most_seconds) = limits;
    let (ttft, e2e) = weights;
    py.detach(|| {
        let started = Instant::now();
        let weights = CostWeights { ttft, e2e };
        let mut search = Search::new(&spec, &native, weights, start.clone(), seed)?;
        let is_over = |search: &Search<'_>| {
            search.evaluations() >= most_evaluations || started.elapsed().as_secs_f64() >= most_seconds
        };
        // Only a plan that sends every request at once has orders and limits left to try.
        let mut number = if start.most_open == u32::MAX && start.most_prefilling == u32::MAX {
            1
        } else {
            usize::MAX
        };
        while !is_over(&search)
            && let Some(plan) = search.variant(&start, number)
        {
            search.offer(plan)?;
            number += 1;
        }
        while !is_over(&search) {
            search.step()?;
        }
        Ok((
            search.best().clone(),
            search.best_ms() * 1e-3,
            search.evaluations(),
        ))
    })
    .map_err(|error: SimError| raise(&error))
    .and_then(|(plan, cost_s, evaluations)| {
        let text =
            serde_json::to_string(&plan).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok((text, cost_s, evaluations))
    })
}

/// Sums in seconds by limit, and the numbers of requests.
fn bound_dict<'py>(py: Python<'py>, bound: &LowerBound) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("requests", bound.requests)?;
    dict.set_item("pooled_requests", bound.pooled_requests)?;
    let limits = [
        ("all", bound.all),
        ("alone", bound.alone),
        ("prefill", bound.prefill),
        ("work", bound.work),
        ("memory", bound.memory),
        ("priced", bound.priced),
    ];
    for (name, CostSums { ttft_ms, e2e_ms }) in limits {
        dict.set_item(name, (ttft_ms * 1e-3, e2e_ms * 1e-3))?;
    }
    Ok(dict)
}

/// A column as little-endian bytes, in one copy.
fn bytes<'py, T: Copy, const N: usize>(
    py: Python<'py>,
    values: &[T],
    encode: impl Fn(T) -> [u8; N],
) -> Bound<'py, PyBytes> {
    let raw: Vec<u8> = values.iter().flat_map(|value| encode(*value)).collect();
    PyBytes::new(py, &raw)
}

/// Results of a run as a dict: columns as bytes, sums as numbers. `simulate_fleet` in the stub
/// names every column.
pub fn pack<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
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
    numbers.set_item("reports_sent", totals.reports_sent)?;
    numbers.set_item("reports_lost", totals.reports_lost)?;
    numbers.set_item("preemptions", totals.preemptions)?;
    numbers.set_item("evictions", totals.evictions)?;
    numbers.set_item("onboarded_tokens", totals.onboarded_tokens)?;
    numbers.set_item("transfer_bytes", totals.transfer_bytes)?;
    numbers.set_item("decisions", totals.decisions)?;
    let decided_statically: u64 = outcome.decided_statically.iter().sum();
    let falls: u64 = outcome.price_guards.iter().map(|guard| guard.falls).sum();
    numbers.set_item("decided_statically", decided_statically)?;
    numbers.set_item("price_falls", falls)?;
    numbers.set_item("peak_active_blocks", totals.peak_active_blocks)?;
    numbers.set_item("gap_sum_ms", outcome.gaps.sum_ms)?;
    numbers.set_item("end_ms", outcome.end_ms)?;
    dict.set_item("totals", numbers)?;
    let anarchy = outcome.anarchy.iter().map(|report| match report {
        Some(report) => anarchy_dict(py, report).map(Some),
        None => Ok(None),
    });
    dict.set_item("anarchy", anarchy.collect::<PyResult<Vec<_>>>()?)?;
    let bound = outcome.bound.as_ref().map(|bound| bound_dict(py, bound));
    dict.set_item("bound", bound.transpose()?)?;
    let regimes: Vec<Vec<_>> = outcome
        .regimes
        .iter()
        .map(|pool| pool.iter().map(change).collect())
        .collect();
    dict.set_item("regimes", regimes)?;
    Ok(dict)
}

/// A change of regime as (time, new regime, smoothed p99, baseline); times are seconds.
fn change(change: &RegimeChange) -> (f64, &'static str, f64, f64) {
    (
        change.at_s,
        change.to.name(),
        change.smoothed_s,
        change.baseline_s,
    )
}

/// Figures of a pool's price of anarchy. NaN stands for an interval that too few windows give.
fn anarchy_dict<'py>(py: Python<'py>, report: &MeterReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let interval = report.poa_interval;
    let figures = [
        ("poa", report.poa),
        ("poa_low", interval.map_or(f64::NAN, |interval| interval.low)),
        ("poa_high", interval.map_or(f64::NAN, |interval| interval.high)),
        ("poa_paper", report.poa_paper),
        ("poa_square", report.poa_square),
        ("poa_square_median", report.poa_square_median),
        ("poa_square_p90", report.poa_square_p90),
        ("poa_square_max", report.poa_square_max),
        ("regret_mean_s", report.regret_mean_s),
        ("free_s", report.loss.free_s),
        ("split_s", report.loss.split_s),
        ("cache_s", report.loss.cache_s),
        ("load_s", report.loss.load_s),
        ("model_error", report.model_error.mean_absolute_share),
        ("model_bias", report.model_error.bias),
    ];
    for (name, value) in figures {
        dict.set_item(name, value)?;
    }
    let counts = [
        ("windows", report.windows as u64),
        ("requests", report.requests as u64),
        ("model_samples", report.model_error.samples as u64),
        ("dropped_windows", report.dropped_windows),
        ("refused_decisions", report.refused_decisions),
    ];
    for (name, value) in counts {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
