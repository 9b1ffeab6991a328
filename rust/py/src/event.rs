//! Bindings of KV events: classes, and the dicts of Dynamo's event plane and dumps.
//!
//! Content that comes as tokens is hashed when the event is applied. O(tokens) or O(blocks).

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use wardrop_core::{BlockHasher, EngineHash, HashScope, KvEvent, LocalHash, StoredBlock, Tier};
use wardrop_py_macros::caught;

use crate::arguments::mixed;
use crate::hashes::{Hashes, hash, sized};
use crate::tokens::Tokens;

/// KV event: a worker stored consecutive blocks of a prompt.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Stored {
    /// Engine hashes, one per block.
    names: Vec<u64>,
    /// Block before the first one.
    parent: Option<EngineHash>,
    /// Memory of the blocks.
    tier: Tier,
    /// What the blocks hold.
    content: Content,
}

/// Content of the stored blocks.
enum Content {
    /// Local hashes under Dynamo's hash.
    Hashes(Vec<LocalHash>),
    /// Tokens. They are hashed when a router applies the event, because the router may have a secret key.
    Tokens {
        /// Ids of all blocks.
        tokens: Vec<u32>,
        /// Tokens per block, above 0.
        block_size: u32,
        /// Adapter, which is part of every hash.
        lora_name: Option<String>,
        /// Tenant or salt, which is part of every hash.
        cache_namespace: Option<String>,
    },
}

/// KV event: a worker removed one copy of each named block.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Removed(KvEvent);

/// KV event: a worker removed all its blocks, in every tier.
///
/// The stub `_core.pyi` describes arguments, units and errors.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Cleared;

/// Names of all engines are accepted.
///
/// # Errors
/// `ValueError` for an unknown name.
fn tier(name: &str) -> PyResult<Tier> {
    match name {
        "device" | "gpu" | "GPU" => Ok(Tier::Device),
        "host" | "host_pinned" | "cpu" | "CPU" => Ok(Tier::Host),
        "disk" | "DISK" | "external" => Ok(Tier::Disk),
        _ => Err(PyValueError::new_err(format!(
            "tier = {name:?}: expected device, host or disk"
        ))),
    }
}

#[caught]
#[pymethods]
impl Stored {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (block_hashes, *, tokens=None, block_size=None, local_hashes=None, parent=None, tier="device",
        lora_name=None, cache_namespace=None))]
    fn new(
        block_hashes: Hashes,
        tokens: Option<&Bound<'_, PyAny>>,
        block_size: Option<u32>,
        local_hashes: Option<Hashes>,
        parent: Option<&Bound<'_, PyAny>>,
        tier: &str,
        lora_name: Option<String>,
        cache_namespace: Option<String>,
    ) -> PyResult<Self> {
        let (content, expected) = match (tokens, block_size, local_hashes) {
            (Some(_), Some(0), None) => {
                return Err(PyValueError::new_err("block_size = 0: expected at least 1 token"));
            }
            (Some(tokens), Some(block_size), None) => {
                let tokens = Tokens::new(tokens)?.as_slice().to_vec();
                let blocks = tokens.len() / block_size as usize;
                let content = Content::Tokens {
                    tokens,
                    block_size,
                    lora_name,
                    cache_namespace,
                };
                (content, blocks)
            }
            (None, None, Some(hashes)) => {
                let blocks = hashes.0.len();
                (Content::Hashes(crate::hashes::locals(hashes.0)), blocks)
            }
            _ => {
                return Err(PyValueError::new_err(
                    "a stored event needs tokens with block_size, or local_hashes",
                ));
            }
        };
        if block_hashes.0.len() != expected {
            let got = block_hashes.0.len();
            let text =
                format!("got {got} block_hashes for {expected} full blocks: expected one for each block");
            return Err(PyValueError::new_err(text));
        }
        Ok(Self {
            names: block_hashes.0,
            parent: parent.map(hash).transpose()?.map(EngineHash),
            tier: self::tier(tier)?,
            content,
        })
    }
}

impl Stored {
    /// The event as the core takes it.
    ///
    /// # Errors
    /// `ValueError` for hashes given to a router with a secret key, or for another block size.
    fn event(&self, py: Python<'_>, hasher: &BlockHasher) -> PyResult<KvEvent> {
        let hashed;
        let locals = match &self.content {
            Content::Hashes(_) if hasher.is_keyed() => return Err(mixed("hashes of stored blocks were")),
            Content::Hashes(locals) => locals,
            Content::Tokens { block_size, .. } if *block_size != hasher.block_size() => {
                let (got, expected) = (block_size, hasher.block_size());
                let text = format!(
                    "got an event with blocks of {got} tokens: expected {expected}, the router's block size"
                );
                return Err(PyValueError::new_err(text));
            }
            Content::Tokens {
                tokens,
                lora_name,
                cache_namespace,
                ..
            } => {
                let scope = HashScope {
                    lora_name: lora_name.as_deref(),
                    cache_namespace: cache_namespace.as_deref(),
                };
                hashed = sized(py, tokens.len(), || hasher.local_hashes(tokens, &scope));
                &hashed
            }
        };
        let blocks = self.names.iter().zip(locals);
        Ok(KvEvent::Stored {
            parent: self.parent,
            blocks: blocks
                .map(|(&name, &local_hash)| StoredBlock {
                    engine_hash: EngineHash(name),
                    local_hash,
                })
                .collect(),
            tier: self.tier,
        })
    }
}

#[caught]
#[pymethods]
impl Removed {
    #[new]
    #[pyo3(signature = (block_hashes, *, tier="device"))]
    fn new(block_hashes: Hashes, tier: &str) -> PyResult<Self> {
        let blocks = block_hashes.0.into_iter().map(EngineHash).collect();
        Ok(Self(KvEvent::Removed {
            blocks,
            tier: self::tier(tier)?,
        }))
    }
}

#[caught]
#[pymethods]
impl Cleared {
    #[new]
    fn new() -> Self {
        Self
    }
}

/// The KV event of a Python object: an object of one of the event classes, or a dict. `hasher` hashes its tokens.
///
/// # Errors
/// `TypeError` for another type, `ValueError` for a dict without a known key or with a hash out of
/// range.
pub fn event_from(py: Python<'_>, value: &Bound<'_, PyAny>, hasher: &BlockHasher) -> PyResult<KvEvent> {
    if let Ok(stored) = value.cast::<Stored>() {
        return stored.get().event(py, hasher);
    }
    if let Ok(removed) = value.cast::<Removed>() {
        return Ok(removed.get().0.clone());
    }
    if value.cast::<Cleared>().is_ok() || value.cast::<PyString>().is_ok_and(|text| text == "cleared") {
        return Ok(KvEvent::Cleared);
    }
    let Ok(dict) = value.cast::<PyDict>() else {
        let name = value.get_type().name()?;
        let text = format!("got an event of type {name}: expected Stored, Removed, Cleared or a dict");
        return Err(PyTypeError::new_err(text));
    };
    let event = from_dict(dict)?;
    if hasher.is_keyed() && matches!(event, KvEvent::Stored { .. }) {
        return Err(mixed("an event of Dynamo's was"));
    }
    Ok(event)
}

/// Reads an event in the form of Dynamo's `dump_events()`.
fn from_dict(dict: &Bound<'_, PyDict>) -> PyResult<KvEvent> {
    let tier = match dict.get_item("storage_tier")? {
        Some(name) => tier(name.extract()?)?,
        None => Tier::Device,
    };
    if let Some(stored) = dict.get_item("stored")? {
        let parent = stored.get_item("parent_hash")?;
        let parent = if parent.is_none() {
            None
        } else {
            Some(EngineHash(hash(&parent)?))
        };
        let block = |block: PyResult<Bound<'_, PyAny>>| {
            let block = block?;
            Ok(StoredBlock {
                engine_hash: EngineHash(hash(&block.get_item("block_hash")?)?),
                local_hash: LocalHash(hash(&block.get_item("tokens_hash")?)?),
            })
        };
        let blocks = stored
            .get_item("blocks")?
            .try_iter()?
            .map(block)
            .collect::<PyResult<_>>()?;
        return Ok(KvEvent::Stored { parent, blocks, tier });
    }
    if let Some(removed) = dict.get_item("removed")? {
        let Hashes(blocks) = removed.get_item("block_hashes")?.extract()?;
        return Ok(KvEvent::Removed {
            blocks: blocks.into_iter().map(EngineHash).collect(),
            tier,
        });
    }
    if dict.contains("cleared")? {
        return Ok(KvEvent::Cleared);
    }
    Err(PyValueError::new_err(
        "got an event with none of the keys stored, removed, cleared: expected one of them",
    ))
}
