//! Binding of `wardrop.Prefix`: hashes of a prompt that grows.
//!
//! A prefix is shared by copying a pointer. `extend` copies the hashes only while another call
//! reads them, so a session pays O(new tokens).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use wardrop_core::{BlockHasher, HashMode, HashScope, PromptHashes};
use wardrop_py_macros::caught;

use crate::hashes::sized;
use crate::tokens::Tokens;

/// Hashes of a prompt that grows. Every token is hashed once.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Prefix(Mutex<Arc<PromptHashes>>);

impl Prefix {
    /// An empty prompt that `hasher` hashes.
    pub fn empty(hasher: &BlockHasher, scope: &HashScope<'_>) -> Self {
        Self(Mutex::new(Arc::new(PromptHashes::new(hasher, scope))))
    }

    /// Poison is ignored: hashes are replaced as a whole, so a panic leaves the former ones.
    fn lock(&self) -> MutexGuard<'_, Arc<PromptHashes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hashes of the prompt at this moment. Later appends do not change them.
    pub fn now(&self) -> Arc<PromptHashes> {
        Arc::clone(&self.lock())
    }
}

#[caught]
#[pymethods]
impl Prefix {
    #[new]
    #[pyo3(signature = (block_size, *, lora_name=None, cache_namespace=None))]
    fn new(block_size: u32, lora_name: Option<&str>, cache_namespace: Option<&str>) -> PyResult<Self> {
        if block_size == 0 {
            return Err(PyValueError::new_err("block_size = 0: expected at least 1 token"));
        }
        let scope = HashScope {
            lora_name,
            cache_namespace,
        };
        Ok(Self::empty(&BlockHasher::new(HashMode::Xxh3, block_size), &scope))
    }

    /// Append tokens. The cost is O(new tokens).
    fn extend(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<()> {
        let tokens = Tokens::new(tokens)?;
        let tokens = tokens.as_slice();
        // The hashes are copied only if a call of another thread reads them at this moment.
        sized(py, tokens.len(), || {
            Arc::make_mut(&mut self.lock()).extend(tokens);
        });
        Ok(())
    }

    /// An independent copy, for another branch of the session.
    fn copy(&self) -> Self {
        Self(Mutex::new(self.now()))
    }

    /// Number of tokens so far.
    #[getter]
    fn tokens(&self) -> usize {
        self.now().tokens()
    }

    /// Number of full blocks so far.
    #[getter]
    fn blocks(&self) -> usize {
        self.now().locals().len()
    }

    /// Tokens per KV block.
    #[getter]
    fn block_size(&self) -> u32 {
        self.now().hasher().block_size()
    }

    /// Local hashes of the full blocks.
    fn block_hashes(&self) -> PyResult<Vec<u64>> {
        let hashes = self.now();
        if hashes.hasher().is_keyed() {
            return Err(PyValueError::new_err(
                "got a Prefix that is hashed with a router's secret key, which stays inside the router: \
                 pass the Prefix itself to route, find_matches or book",
            ));
        }
        Ok(hashes.locals().iter().map(|hash| hash.0).collect())
    }
}
