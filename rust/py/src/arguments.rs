//! Arguments of the router's calls: workers, request ids, times, prompts, policy parameters.
//!
//! Each function names what it received and what it expects. No part of a prompt is in an error.

use std::time::Instant;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};
use serde_json::{Map, Value};
use wardrop_core::{BlockHasher, HashKey, HashMode, HashScope, RequestId, WorkerId};
use wardrop_py_macros::caught;

use crate::hashes::sized;
use crate::prefix::Prefix;
use crate::tokens::{HashColumn, Tokens};

/// A worker argument: an instance id, or a pair `(instance, dp_rank)`.
#[derive(Clone, Copy)]
pub struct Worker(pub WorkerId);

/// `TypeError` names both accepted forms. A number alone stands for rank 0.
#[caught]
impl<'py> FromPyObject<'_, 'py> for Worker {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(instance) = value.extract::<u64>() {
            return Ok(Self(WorkerId::new(instance, 0)));
        }
        match value.extract::<(u64, u32)>() {
            Ok((instance, dp_rank)) => Ok(Self(WorkerId::new(instance, dp_rank))),
            Err(_) => Err(PyTypeError::new_err(format!(
                "worker = {}: expected an instance id (0 to 2**64 - 1) or (instance, dp_rank)",
                value.repr()?
            ))),
        }
    }
}

/// A request id argument. Text is hashed to 64 bits; an int is the id itself.
///
/// # Errors
/// `TypeError` for another type. The text names the type and not the value, which may be a
/// client's.
pub fn request_id(value: &Bound<'_, PyAny>) -> PyResult<RequestId> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(RequestId(wardrop_core::hash::text_id(text.to_str()?)));
    }
    value.extract::<u64>().map(RequestId).map_err(|_| {
        let name = value
            .get_type()
            .name()
            .map_or_else(|_| "?".to_owned(), |name| name.to_string());
        PyTypeError::new_err(format!(
            "got request_id of type {name}: expected a str or an int from 0 to 2**64 - 1"
        ))
    })
}

/// The caller's time, or `time.monotonic()` without one.
///
/// # Errors
/// `ValueError` for a time that is not finite, since every later time would compare as older or as
/// newer.
pub fn seconds(py: Python<'_>, now_s: Option<f64>) -> PyResult<f64> {
    match now_s {
        Some(now_s) if now_s.is_finite() => Ok(now_s),
        Some(now_s) => Err(PyValueError::new_err(format!(
            "got now_s {now_s}: expected a finite number of seconds"
        ))),
        None => monotonic_s(py),
    }
}

/// `time.monotonic()` without a Python call. It reads the clock of [`Instant`], so one reading of both gives the offset.
fn monotonic_s(py: Python<'_>) -> PyResult<f64> {
    static START: PyOnceLock<(Instant, f64)> = PyOnceLock::new();
    let (start, start_s) = START.get_or_try_init(py, || {
        let start_s = py.import("time")?.call_method0("monotonic")?.extract()?;
        PyResult::Ok((Instant::now(), start_s))
    })?;
    Ok(start_s + start.elapsed().as_secs_f64())
}

/// Keyword parameters of a policy, as JSON values.
///
/// Python's own `json` converts them, so an object that is no JSON raises Python's own `TypeError`.
pub fn parameters(py: Python<'_>, parameters: Option<&Bound<'_, PyDict>>) -> PyResult<Map<String, Value>> {
    let Some(parameters) = parameters.filter(|parameters| !parameters.is_empty()) else {
        return Ok(Map::new());
    };
    let text: String = py
        .import("json")?
        .call_method1("dumps", (parameters,))?
        .extract()?;
    serde_json::from_str(&text).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The prompt argument of a call: its hashes and its length.
pub struct Prompt {
    /// Local hashes of the full blocks.
    pub locals: HashColumn,
    /// Tokens of the whole prompt.
    pub input_tokens: u32,
}

impl Prompt {
    /// The prompt of a `Prefix`, which must be hashed as the router hashes.
    ///
    /// # Errors
    /// `ValueError` for another block size or key: its hashes would match nothing.
    fn grown(hasher: &BlockHasher, prefix: &Prefix) -> PyResult<Self> {
        let hashes = prefix.now();
        if *hashes.hasher() != *hasher {
            return Err(PyValueError::new_err(
                "the Prefix is hashed in another way than this router's prompts (block size, or key); expected one of \
                 router.prefix()",
            ));
        }
        Ok(Self {
            input_tokens: u32::try_from(hashes.tokens()).unwrap_or(u32::MAX),
            locals: HashColumn::Known(hashes),
        })
    }

    /// Reads the arguments `tokens`, `hashes`, `input_tokens`, `lora_name` and `cache_namespace` of one call.
    ///
    /// Without tokens and hashes the prompt is empty, and only the load decides.
    ///
    /// # Errors
    /// `ValueError` for tokens together with hashes, for hashes under a secret key, or for a scope
    /// beside a `Prefix`. [`Tokens::new`] adds its own errors.
    pub fn read(
        py: Python<'_>,
        hasher: &BlockHasher,
        tokens: Option<&Bound<'_, PyAny>>,
        hashes: Option<HashColumn>,
        (input_tokens, lora_name, cache_namespace): (Option<u32>, Option<&str>, Option<&str>),
    ) -> PyResult<Self> {
        let prompt = match (tokens, hashes) {
            (Some(_), Some(_)) => {
                return Err(PyValueError::new_err(
                    "got tokens and hashes; expected one of them",
                ));
            }
            (Some(tokens), None) => {
                if let Ok(prefix) = tokens.cast::<Prefix>() {
                    if lora_name.is_some() || cache_namespace.is_some() {
                        return Err(PyValueError::new_err(
                            "got a Prefix with lora_name or cache_namespace; expected them where the Prefix is made",
                        ));
                    }
                    Self::grown(hasher, prefix.get())?
                } else {
                    Self::hashed(py, hasher, &Tokens::new(tokens)?, lora_name, cache_namespace)
                }
            }
            (None, Some(_)) if hasher.is_keyed() => return Err(mixed("hashes were")),
            (None, Some(hashes)) => {
                let known = (hashes.len() as u64).saturating_mul(u64::from(hasher.block_size()));
                Self {
                    locals: hashes,
                    // Hashes cover full blocks alone, so the length lacks the tokens of a partial
                    // last block.
                    input_tokens: u32::try_from(known).unwrap_or(u32::MAX),
                }
            }
            (None, None) => Self {
                locals: HashColumn::Owned(Vec::new()),
                input_tokens: 0,
            },
        };
        Ok(Self {
            input_tokens: input_tokens.unwrap_or(prompt.input_tokens),
            ..prompt
        })
    }

    /// The prompt of token ids. O(tokens).
    fn hashed(
        py: Python<'_>,
        hasher: &BlockHasher,
        tokens: &Tokens,
        lora_name: Option<&str>,
        cache_namespace: Option<&str>,
    ) -> Self {
        let tokens = tokens.as_slice();
        let scope = HashScope {
            lora_name,
            cache_namespace,
        };
        Self {
            locals: HashColumn::Owned(sized(py, tokens.len(), || hasher.local_hashes(tokens, &scope))),
            input_tokens: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The hash mode of the `hash` and `hash_key` arguments. Without a key, the router draws one.
///
/// # Errors
/// `ValueError` for an unknown mode, or for a key with a mode that uses none.
pub fn hash_mode(py: Python<'_>, hash: &str, key: Option<[u8; 16]>) -> PyResult<HashMode> {
    match (hash, key) {
        ("xxh3", None) => Ok(HashMode::Xxh3),
        ("xxh3", Some(_)) => Err(PyValueError::new_err(
            "got a hash_key with hash='xxh3'; expected hash='keyed'",
        )),
        ("keyed", Some(key)) => Ok(HashMode::Keyed(HashKey::new(key))),
        ("keyed", None) => {
            let key = py.import("os")?.call_method1("urandom", (16,))?.extract()?;
            Ok(HashMode::Keyed(HashKey::new(key)))
        }
        _ => Err(PyValueError::new_err(format!(
            "hash = {hash:?}: expected xxh3 or keyed"
        ))),
    }
}

/// The error for hashes that do not come from the router's secret key.
pub fn mixed(what: &str) -> PyErr {
    PyValueError::new_err(format!(
        "{what} given to a router that hashes under its own key: it would match nothing; give tokens or a Prefix of \
         router.prefix(), or make the router with hash='xxh3'"
    ))
}
