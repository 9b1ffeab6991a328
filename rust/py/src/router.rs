//! Binding of `wardrop.Router`. Its arguments are read in [`crate::arguments`].
//!
//! A call converts its arguments with the GIL and decides without it where that pays, see
//! [`sized`].

#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments of Python calls arrive by value"
)]

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wardrop_core::{
    BlockHasher, HashScope, PolicyConfig, PredictedConfig, PredictedUse, RestoredWorker, RouteRequest,
    Router as Core, RouterConfig, WorkerId, WorkerSpec,
};
use wardrop_py_macros::caught;

use crate::arguments::{self, Prompt, Worker, hash_mode, seconds};
use crate::decision::{Decision, to_python};
use crate::error::raise;
use crate::event::event_from;
use crate::hashes::sized;
use crate::lists::List;
use crate::prefix::Prefix;
use crate::tokens::HashColumn;

/// Cost of matching one block, in units of hashing one token, for [`sized`].
const TOKENS_PER_BLOCK: usize = 2;
/// Cost of matching and booking one block, in units of hashing one token.
const TOKENS_PER_BOOKED_BLOCK: usize = 64;
/// Cost of pricing one worker, in units of hashing one token.
const TOKENS_PER_WORKER: usize = 4;

/// Restored blocks per tier and saved position of the feed, by worker.
type Restored = HashMap<(u64, u32), ((u64, u64, u64), Option<u64>)>;

/// Writes a file atomically: a reader sees either the old content or the new one.
///
/// The content goes into a file beside it, is synchronised, and replaces the old file by a rename.
/// Each call has a name of its own, so two threads may write at once.
///
/// # Errors
/// The error of the operating system; the old file is then unchanged.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{call}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// Router of one pool of workers: applies KV events, matches, prices, picks and books.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Router {
    /// The core's router, which has locks of its own.
    core: Core,
    /// Hash of the core's router, for prompts and events that come as tokens.
    hasher: BlockHasher,
}

impl Router {
    /// Runs `work` without the GIL if the prompt is long or the workers are many.
    fn sized<T: Send>(
        &self,
        py: Python<'_>,
        (blocks, books): (usize, bool),
        work: impl FnOnce() -> T + Send,
    ) -> T {
        let per_block = if books {
            TOKENS_PER_BOOKED_BLOCK
        } else {
            TOKENS_PER_BLOCK
        };
        let tokens = per_block * blocks + TOKENS_PER_WORKER * self.core.positions();
        sized(py, tokens, work)
    }

    /// The core's router, for bindings that apply events to it.
    pub const fn core(&self) -> &Core {
        &self.core
    }

    /// Hash that this router uses.
    pub const fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }
}

#[caught]
#[pymethods]
impl Router {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (block_size, policy="dynamo", *, seed=0, tracks_prefill=true, tracks_decode=true, booking_ttl_s=600.0,
        max_bookings=1_000_000, max_workers=65_536, index_max_blocks=100_000_000, index_max_bytes=None, predicted="off",
        predicted_ttl_s=120.0, predicted_settle_s=1.0, predicted_capacity_blocks=65_536, hash="xxh3", hash_key=None, price_guard=false,
        **parameters))]
    fn new(
        py: Python<'_>,
        block_size: u32,
        policy: &str,
        seed: u64,
        tracks_prefill: bool,
        tracks_decode: bool,
        booking_ttl_s: f64,
        max_bookings: usize,
        max_workers: usize,
        index_max_blocks: u64,
        index_max_bytes: Option<u64>,
        predicted: &str,
        predicted_ttl_s: f64,
        predicted_settle_s: f64,
        predicted_capacity_blocks: u64,
        hash: &str,
        hash_key: Option<[u8; 16]>,
        price_guard: bool,
        parameters: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let policy = PolicyConfig::from_name(policy, &arguments::parameters(py, parameters)?)
            .map_err(|e| raise(&e))?;
        let used = PredictedUse::from_name(predicted).map_err(|e| raise(&e))?;
        let predicted = PredictedConfig::new(used)
            .with_ttl_s(predicted_ttl_s)
            .with_settle_s(predicted_settle_s)
            .with_capacity_blocks(predicted_capacity_blocks);
        let config = RouterConfig::new(block_size)
            .with_policy(policy)
            .with_seed(seed)
            .with_prefill_tracking(tracks_prefill)
            .with_decode_tracking(tracks_decode)
            .with_booking_ttl_s(booking_ttl_s)
            .with_max_bookings(max_bookings)
            .with_max_workers(max_workers)
            .with_index_max_blocks(index_max_blocks)
            .with_index_max_bytes(index_max_bytes.unwrap_or(u64::MAX))
            .with_predicted(predicted)
            .with_price_guard(price_guard)
            .with_hash(hash_mode(py, hash, hash_key)?);
        let core = Core::new(config).map_err(|e| raise(&e))?;
        Ok(Self {
            hasher: core.hasher().clone(),
            core,
        })
    }

    /// Tokens per KV block.
    #[getter]
    fn block_size(&self) -> u32 {
        self.hasher.block_size()
    }

    /// An empty `Prefix` that hashes as this router does.
    #[pyo3(signature = (*, lora_name=None, cache_namespace=None))]
    fn prefix(&self, lora_name: Option<&str>, cache_namespace: Option<&str>) -> Prefix {
        let scope = HashScope {
            lora_name,
            cache_namespace,
        };
        Prefix::empty(&self.hasher, &scope)
    }

    /// Register a worker as available and idle, with an empty cache.
    #[pyo3(signature = (worker, *, total_kv_blocks=None, max_num_seqs=None, max_num_batched_tokens=None))]
    fn add_worker(
        &self,
        worker: Worker,
        total_kv_blocks: Option<u64>,
        max_num_seqs: Option<u32>,
        max_num_batched_tokens: Option<u32>,
    ) -> PyResult<()> {
        let mut spec = WorkerSpec::default();
        spec.total_kv_blocks = total_kv_blocks;
        spec.max_num_seqs = max_num_seqs;
        spec.max_num_batched_tokens = max_num_batched_tokens;
        self.core.add_worker(worker.0, spec).map_err(|e| raise(&e))
    }

    /// Remove a worker with its blocks and bookings.
    fn remove_worker(&self, py: Python<'_>, worker: Worker) -> PyResult<()> {
        py.detach(|| self.core.remove_worker(worker.0))
            .map_err(|e| raise(&e))
    }

    /// Set whether a worker takes new requests. Its blocks and bookings stay.
    fn set_available(&self, worker: Worker, available: bool) -> PyResult<()> {
        self.core
            .set_available(worker.0, available)
            .map_err(|e| raise(&e))
    }

    /// Registered workers as (instance, `dp_rank`), in ascending order.
    #[getter]
    fn workers(&self) -> Vec<(u64, u32)> {
        self.core
            .workers()
            .map(|worker| (worker.instance, worker.dp_rank))
            .collect()
    }

    /// Apply one KV event of a worker.
    fn apply(&self, py: Python<'_>, worker: Worker, event: &Bound<'_, PyAny>) -> PyResult<()> {
        let event = event_from(py, event, &self.hasher)?;
        py.detach(|| self.core.apply(worker.0, &event))
            .map_err(|e| raise(&e))
    }

    /// Overlap of a prompt with every worker's cache.
    #[pyo3(signature = (tokens=None, *, hashes=None, lora_name=None, cache_namespace=None))]
    fn find_matches(
        &self,
        py: Python<'_>,
        tokens: Option<&Bound<'_, PyAny>>,
        hashes: Option<HashColumn>,
        lora_name: Option<&str>,
        cache_namespace: Option<&str>,
    ) -> PyResult<Py<PyDict>> {
        let prompt = Prompt::read(
            py,
            &self.hasher,
            tokens,
            hashes,
            (None, lora_name, cache_namespace),
        )?;
        let found = self.sized(py, (prompt.locals.len(), false), || {
            self.core.find_matches(&prompt.locals)
        });
        let dict = PyDict::new(py);
        for overlap in found {
            let worker = (overlap.worker.instance, overlap.worker.dp_rank);
            dict.set_item(worker, (overlap.device, overlap.host, overlap.disk))?;
        }
        Ok(dict.unbind())
    }

    /// Choose a worker and, if a `request_id` is given, book the request there in the same step.
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (tokens=None, *, hashes=None, request_id=None, allowed=None, lora_name=None, cache_namespace=None,
        input_tokens=None, expected_output_tokens=None, streamed=true, explain=false, now_s=None))]
    fn route(
        &self,
        py: Python<'_>,
        tokens: Option<&Bound<'_, PyAny>>,
        hashes: Option<HashColumn>,
        request_id: Option<&Bound<'_, PyAny>>,
        allowed: Option<List<Worker>>,
        lora_name: Option<&str>,
        cache_namespace: Option<&str>,
        input_tokens: Option<u32>,
        expected_output_tokens: Option<u32>,
        streamed: bool,
        explain: bool,
        now_s: Option<f64>,
    ) -> PyResult<Decision> {
        let prompt = Prompt::read(
            py,
            &self.hasher,
            tokens,
            hashes,
            (input_tokens, lora_name, cache_namespace),
        )?;
        let allowed: Option<Vec<WorkerId>> =
            allowed.map(|workers| workers.0.into_iter().map(|worker| worker.0).collect());
        let request = RouteRequest {
            request_id: request_id.map(arguments::request_id).transpose()?,
            local_hashes: &prompt.locals,
            sequence_hashes: prompt.locals.sequence(),
            input_tokens: prompt.input_tokens,
            expected_output_tokens,
            allowed: allowed.as_deref(),
            is_unstreamed: !streamed,
            explain,
        };
        let now_s = seconds(py, now_s)?;
        let size = (prompt.locals.len(), request.request_id.is_some());
        let decision = self.sized(py, size, || self.core.route(&request, now_s));
        decision.map(Decision).map_err(|e| raise(&e))
    }

    /// Book a request on a worker that the caller chose.
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (worker, request_id, tokens=None, *, hashes=None, lora_name=None, cache_namespace=None,
        input_tokens=None, expected_output_tokens=None, streamed=true, now_s=None))]
    fn book(
        &self,
        py: Python<'_>,
        worker: Worker,
        request_id: &Bound<'_, PyAny>,
        tokens: Option<&Bound<'_, PyAny>>,
        hashes: Option<HashColumn>,
        lora_name: Option<&str>,
        cache_namespace: Option<&str>,
        input_tokens: Option<u32>,
        expected_output_tokens: Option<u32>,
        streamed: bool,
        now_s: Option<f64>,
    ) -> PyResult<()> {
        let prompt = Prompt::read(
            py,
            &self.hasher,
            tokens,
            hashes,
            (input_tokens, lora_name, cache_namespace),
        )?;
        let request = RouteRequest {
            request_id: Some(arguments::request_id(request_id)?),
            local_hashes: &prompt.locals,
            sequence_hashes: prompt.locals.sequence(),
            input_tokens: prompt.input_tokens,
            expected_output_tokens,
            is_unstreamed: !streamed,
            ..RouteRequest::default()
        };
        let now_s = seconds(py, now_s)?;
        let booked = self.sized(py, (prompt.locals.len(), true), || {
            self.core.book(&request, worker.0, now_s)
        });
        booked.map_err(|e| raise(&e))
    }

    /// Report the first token of a request.
    #[pyo3(signature = (request_id, *, now_s=None))]
    fn prefill_done(
        &self,
        py: Python<'_>,
        request_id: &Bound<'_, PyAny>,
        now_s: Option<f64>,
    ) -> PyResult<(u64, u32)> {
        let (request, now_s) = (arguments::request_id(request_id)?, seconds(py, now_s)?);
        let worker = self.core.prefill_done(request, now_s).map_err(|e| raise(&e))?;
        Ok((worker.instance, worker.dp_rank))
    }

    /// End the booking of a request, regardless of its outcome. The router learns from it.
    #[pyo3(signature = (request_id, *, output_tokens=None, cached_tokens=None, now_s=None))]
    fn release(
        &self,
        py: Python<'_>,
        request_id: &Bound<'_, PyAny>,
        output_tokens: Option<u32>,
        cached_tokens: Option<u32>,
        now_s: Option<f64>,
    ) -> PyResult<(u64, u32)> {
        let (request, now_s) = (arguments::request_id(request_id)?, seconds(py, now_s)?);
        let outcome = wardrop_core::ledger::Outcome {
            output_tokens,
            cached_tokens,
            at_first_token: !self.core.config().tracks_decode,
            is_refused: false,
        };
        let worker = self.core.finish(request, outcome, now_s).map_err(|e| raise(&e))?;
        Ok((worker.instance, worker.dp_rank))
    }

    /// End the bookings older than `booking_ttl_s`. `route` also does this.
    #[pyo3(signature = (*, now_s=None))]
    fn expire(&self, py: Python<'_>, now_s: Option<f64>) -> PyResult<usize> {
        let now_s = seconds(py, now_s)?;
        Ok(py.detach(|| self.core.expire(now_s)))
    }

    /// Replace the policy and all its parameters. Caches, bookings and curves stay.
    #[pyo3(signature = (policy, **parameters))]
    fn set_policy(
        &self,
        py: Python<'_>,
        policy: &str,
        parameters: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let policy = PolicyConfig::from_name(policy, &arguments::parameters(py, parameters)?)
            .map_err(|e| raise(&e))?;
        self.core.set_policy(policy).map_err(|e| raise(&e))
    }

    /// Write the blocks of every worker to a file, for a restart.
    #[pyo3(signature = (path, *, positions=None))]
    fn save_index(
        &self,
        py: Python<'_>,
        path: PathBuf,
        positions: Option<HashMap<(u64, u32), u64>>,
    ) -> PyResult<usize> {
        let positions = positions.unwrap_or_default();
        let position = |worker: WorkerId| positions.get(&(worker.instance, worker.dp_rank)).copied();
        py.detach(|| {
            let image = self.core.save_index(position);
            write_whole(&path, &image)?;
            Ok(image.len())
        })
    }

    /// Read the file of `save_index`. Only registered workers take their blocks over.
    fn load_index(&self, py: Python<'_>, path: PathBuf) -> PyResult<Restored> {
        let restored = py.detach(|| -> PyResult<_> {
            let image = std::fs::read(&path)?;
            self.core.restore_index(&image).map_err(|e| raise(&e))
        })?;
        let entry = |found: RestoredWorker| {
            let [device, host, disk] = found.blocks;
            let worker = (found.worker.instance, found.worker.dp_rank);
            (worker, ((device, host, disk), found.position))
        };
        Ok(restored.into_iter().map(entry).collect())
    }

    /// Load and blocks of every worker, size of the index, and counters, as plain data.
    fn snapshot(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let snapshot = py.detach(|| self.core.snapshot());
        let value =
            serde_json::to_value(snapshot).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(to_python(py, &value)?.unbind())
    }
}
