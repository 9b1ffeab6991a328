//! Bindings of `wardrop.engines`: feeds of vLLM and `SGLang`, and Dynamo's event plane.
//!
//! Frames arrive as bytes and change a router's index without the GIL. A feed holds the order of
//! one worker's frames; sockets and replays are the caller's.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyDict, PyList};
use wardrop_core::{EngineHash, Tier};
use wardrop_engines::{Adapter, CacheChange, Event, FRAME_BYTES_MAX, Feed, GroupKind, dynamo};
use wardrop_py_macros::caught;

use crate::arguments::{Worker, mixed};
use crate::error::raise;
use crate::router::Router;

/// KV events of one worker, as vLLM and `SGLang` publish them over ZMQ.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct EngineFeed {
    /// Decoder with the salts and groups that later frames refer to.
    feed: Mutex<Feed>,
    /// Tokens per block; equal to that of every router that the feed is applied to.
    block_size: u32,
}

#[caught]
#[pymethods]
impl EngineFeed {
    #[new]
    fn new(block_size: u32) -> PyResult<Self> {
        if block_size == 0 {
            return Err(PyValueError::new_err("block_size = 0: expected at least 1 token"));
        }
        Ok(Self {
            feed: Mutex::new(Feed::new()),
            block_size,
        })
    }

    /// Apply one message to a router. The GIL is released meanwhile.
    fn apply(
        &self,
        py: Python<'_>,
        router: &Bound<'_, Router>,
        worker: Worker,
        sequence: u64,
        payload: &[u8],
    ) -> PyResult<(usize, usize)> {
        let router = router.get();
        let hasher = router.hasher();
        if hasher.block_size() != self.block_size {
            let text = format!(
                "got a feed with blocks of {} tokens: expected {}, the router's block size",
                self.block_size,
                hasher.block_size()
            );
            return Err(PyValueError::new_err(text));
        }
        py.detach(|| {
            let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = feed
                .take(hasher, sequence, payload)
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
            apply_all(router, worker, &taken.changes)
        })
    }

    /// Counts since the start.
    #[getter]
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = self.feed.lock().unwrap_or_else(PoisonError::into_inner).counters;
        let dict = PyDict::new(py);
        dict.set_item("frames", counters.frames)?;
        dict.set_item("missed", counters.missed)?;
        dict.set_item("restarts", counters.restarts)?;
        dict.set_item("malformed", counters.malformed)?;
        dict.set_item("skipped", counters.skipped)?;
        dict.set_item("unusable", counters.unusable)?;
        Ok(dict)
    }
}

/// Applies changes in order. Returns the numbers of applied and refused changes.
///
/// # Errors
/// `KeyError` for a worker that is not registered, at its first change.
fn apply_all(router: &Router, worker: Worker, changes: &[CacheChange]) -> PyResult<(usize, usize)> {
    let core = router.core();
    let mut refused = 0;
    for change in changes {
        match change.apply(core, worker.0) {
            Ok(()) => {}
            Err(error @ wardrop_core::Error::UnknownWorker(_)) => return Err(raise(&error)),
            Err(_) => refused += 1, // the router counted it, by reason
        }
    }
    Ok((changes.len() - refused, refused))
}

/// Name of a tier in events.
const fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "device",
        Tier::Host => "host",
        Tier::Disk => "disk",
    }
}

/// Engine hashes as ints.
fn numbers(names: &[EngineHash]) -> Vec<u64> {
    names.iter().map(|name| name.0).collect()
}

/// Decode one payload of vLLM or `SGLang`.
#[caught]
#[pyfunction]
pub fn decode_engine_batch<'py>(py: Python<'py>, payload: &[u8]) -> PyResult<Bound<'py, PyDict>> {
    let batch = py
        .detach(|| wardrop_engines::decode_batch(payload))
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    let events = PyList::empty(py);
    for event in &batch.events {
        let dict = PyDict::new(py);
        match event {
            Event::Stored(stored) => {
                dict.set_item("type", "stored")?;
                dict.set_item("block_hashes", numbers(&stored.hashes))?;
                dict.set_item("parent", stored.parent.map(|name| name.0))?;
                dict.set_item("tokens", &stored.tokens)?;
                dict.set_item("block_size", stored.block_size)?;
                let lora_name = match &stored.adapter {
                    Adapter::Named(name) => Some(name.as_str()),
                    Adapter::Base | Adapter::Numbered => None,
                };
                dict.set_item("lora_name", lora_name)?;
                dict.set_item("numbered_adapter", stored.adapter == Adapter::Numbered)?;
                let kind = match stored.kind {
                    GroupKind::Unnamed => None,
                    GroupKind::Attention => Some("attention"),
                    GroupKind::Other => Some("other"),
                };
                dict.set_item("group_kind", kind)?;
                dict.set_item("tier", tier_name(stored.tier))?;
                dict.set_item("group", stored.group)?;
            }
            Event::Removed { hashes, tier, group } => {
                dict.set_item("type", "removed")?;
                dict.set_item("block_hashes", numbers(hashes))?;
                dict.set_item("tier", tier_name(*tier))?;
                dict.set_item("group", group)?;
            }
            Event::Cleared => dict.set_item("type", "cleared")?,
            Event::Other => dict.set_item("type", "other")?,
            Event::Unusable(malformed) => {
                dict.set_item("type", "unusable")?;
                dict.set_item("reason", malformed.to_string())?;
            }
        }
        events.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("at_s", batch.at_s)?;
    dict.set_item("dp_rank", batch.dp_rank)?;
    dict.set_item("events", events)?;
    Ok(dict)
}

/// Largest number of frames of one message; Dynamo sends four.
const FRAMES_MAX: usize = 64;

/// The frames of a message. The length that the iterable reports is not used, because it may be wrong.
///
///
/// # Errors
/// `ValueError` above [`FRAMES_MAX`], `TypeError` for a frame that is no bytes.
fn frames_of(frames: &Bound<'_, PyAny>) -> PyResult<Vec<PyBackedBytes>> {
    let mut read = Vec::new();
    for frame in frames.try_iter()? {
        if read.len() == FRAMES_MAX {
            let text = format!("got more than {FRAMES_MAX} frames: expected the frames of one message");
            return Err(PyValueError::new_err(text));
        }
        read.push(frame?.extract()?);
    }
    Ok(read)
}

/// Apply one message of Dynamo's event plane, topic `kv-events`. The GIL is released meanwhile.
#[caught]
#[pyfunction]
pub fn apply_dynamo_message(
    py: Python<'_>,
    router: &Bound<'_, Router>,
    frames: &Bound<'_, PyAny>,
) -> PyResult<(usize, usize, usize)> {
    let router = router.get();
    let frames = frames_of(frames)?;
    let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
    if bytes > FRAME_BYTES_MAX {
        let text = format!("got a message of {bytes} bytes: expected at most {FRAME_BYTES_MAX}");
        return Err(PyValueError::new_err(text));
    }
    if router.hasher().is_keyed() {
        return Err(mixed("events of Dynamo's were"));
    }
    py.detach(|| {
        let refuse = |error: dynamo::Malformed| PyValueError::new_err(error.to_string());
        let envelope = dynamo::decode_frames(&frames).map_err(refuse)?;
        let decoded = dynamo::decode_kv_events(&envelope.payload).map_err(refuse)?;
        let core = router.core();
        let (mut applied, mut refused, mut foreign) = (0, decoded.unreadable, 0);
        for of in &decoded.events {
            match of.event.as_ref().map(|event| core.apply(of.worker, event)) {
                Some(Ok(())) => applied += 1,
                Some(Err(wardrop_core::Error::UnknownWorker(_))) | None => foreign += 1,
                Some(Err(_)) => refused += 1, // the router counted it, by reason
            }
        }
        Ok((applied, refused, foreign))
    })
}
