//! Bindings of `block_hashes` and `sequence_hashes`, and hashes as arguments.
//!
//! Numbers come as `int` or as a buffer; the result is a list of `int`, because Python's hash
//! tables take no other number.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use wardrop_core::{HashScope, LocalHash};
use wardrop_py_macros::caught;

use crate::buffers;
use crate::tokens::{HashColumn, Tokens};

/// Number of tokens from which the GIL is released. Hashing them takes 0.7 µs, and releasing the GIL takes 0.1 µs.
const DETACH_TOKENS: usize = 4096;

/// Runs `work` without the GIL if the input has at least [`DETACH_TOKENS`] tokens.
pub fn sized<T: Send>(py: Python<'_>, tokens: usize, work: impl FnOnce() -> T + Send) -> T {
    if tokens >= DETACH_TOKENS {
        py.detach(work)
    } else {
        work()
    }
}

/// 64-bit hashes from ints of either sign, as Dynamo writes them, or from a buffer of 64-bit integers.
pub struct Hashes(pub Vec<u64>);

#[caught]
impl<'py> FromPyObject<'_, 'py> for Hashes {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(buffer) = PyUntypedBuffer::get(&value) {
            if buffer.dimensions() > 1 {
                let text = format!(
                    "got hashes with {} dimensions: expected 1, so flatten them",
                    buffer.dimensions()
                );
                return Err(PyValueError::new_err(text));
            }
            if let Some(hashes) = buffers::read::<u64>(&value, &buffer) {
                return hashes.map(Self);
            }
            if let Some(hashes) = buffers::read::<i64>(&value, &buffer) {
                return Ok(Self(hashes?.into_iter().map(i64::cast_unsigned).collect()));
            }
            let format = buffer.format().to_string_lossy();
            let text = format!("got hashes in a buffer of format {format:?}: expected 64-bit integers");
            return Err(PyTypeError::new_err(text));
        }
        value
            .try_iter()?
            .map(|item| hash(&item?))
            .collect::<PyResult<_>>()
            .map(Self)
    }
}

#[caught]
impl<'py> FromPyObject<'_, 'py> for HashColumn {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Some(view) = Self::view(&value) {
            return Ok(view);
        }
        value
            .extract::<Hashes>()
            .map(|hashes| Self::Owned(locals(hashes.0)))
    }
}

/// One hash: an int from 0 to 2⁶⁴ − 1, or the signed form of the same bits.
pub fn hash(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    if let Ok(hash) = value.extract::<u64>() {
        return Ok(hash);
    }
    if let Ok(hash) = value.extract::<i64>() {
        return Ok(hash.cast_unsigned());
    }
    Err(PyValueError::new_err(
        "got a hash that is no 64-bit integer: expected -2**63 to 2**64 - 1",
    ))
}

/// Local hashes of the full blocks of a prompt, equal to Dynamo's.
#[caught]
#[pyfunction]
#[pyo3(signature = (tokens, block_size, *, lora_name=None, cache_namespace=None))]
pub fn block_hashes(
    py: Python<'_>,
    tokens: &Bound<'_, PyAny>,
    block_size: u32,
    lora_name: Option<&str>,
    cache_namespace: Option<&str>,
) -> PyResult<Vec<u64>> {
    let tokens = Tokens::new(tokens)?;
    let tokens = tokens.as_slice();
    if block_size == 0 {
        return Err(PyValueError::new_err("block_size = 0: expected at least 1 token"));
    }
    let scope = HashScope {
        lora_name,
        cache_namespace,
    };
    let hashes = sized(py, tokens.len(), || {
        wardrop_core::local_hashes(tokens, block_size, &scope)
    });
    Ok(hashes.into_iter().map(|hash| hash.0).collect())
}

/// Sequence hashes of a prompt: each stands for a block and all blocks before it.
#[caught]
#[pyfunction]
#[allow(
    clippy::needless_pass_by_value,
    reason = "arguments of Python calls arrive by value"
)]
pub fn sequence_hashes(py: Python<'_>, local_hashes: Hashes) -> Vec<u64> {
    let locals = locals(local_hashes.0);
    let hashes = sized(py, locals.len(), || wardrop_core::sequence_hashes(&locals));
    hashes.into_iter().map(|hash| hash.0).collect()
}

/// Marks numbers as local hashes.
pub fn locals(hashes: Vec<u64>) -> Vec<LocalHash> {
    hashes.into_iter().map(LocalHash).collect()
}
