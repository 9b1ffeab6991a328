//! KV events from Python: typed, or as the dicts that Dynamo's event plane and dumps carry.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use wardrop_core::{EngineHash, HashScope, KvEvent, LocalHash, StoredBlock, Tier};

use crate::hashes::{Hashes, hash, sized};
use crate::tokens::Tokens;

/// Blocks that a worker stored; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Stored {
    event: KvEvent,
    block_size: Option<u32>,
}

/// Blocks that a worker removed; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Removed(KvEvent);

/// A worker's cache is empty; see `_core.pyi`.
#[pyclass(frozen, module = "wardrop._core")]
pub struct Cleared;

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

#[pymethods]
impl Stored {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    #[pyo3(signature = (block_hashes, *, tokens=None, block_size=None, local_hashes=None, parent=None, tier="device",
        lora_name=None, cache_namespace=None))]
    fn new(
        py: Python<'_>,
        block_hashes: Hashes,
        tokens: Option<&Bound<'_, PyAny>>,
        block_size: Option<u32>,
        local_hashes: Option<Hashes>,
        parent: Option<&Bound<'_, PyAny>>,
        tier: &str,
        lora_name: Option<&str>,
        cache_namespace: Option<&str>,
    ) -> PyResult<Self> {
        let scope = HashScope {
            lora_name,
            cache_namespace,
        };
        let locals: Vec<LocalHash> = match (tokens, block_size, local_hashes) {
            (Some(tokens), Some(block_size), None) => {
                let tokens = Tokens::new(tokens)?;
                let tokens = tokens.as_slice();
                sized(py, tokens.len(), || {
                    wardrop_core::local_hashes(tokens, block_size, &scope)
                })
            }
            (None, None, Some(hashes)) => crate::hashes::locals(hashes.0),
            _ => {
                return Err(PyValueError::new_err(
                    "a stored event needs tokens with block_size, or local_hashes",
                ));
            }
        };
        if locals.len() != block_hashes.0.len() {
            let (got, expected) = (block_hashes.0.len(), locals.len());
            let text = format!("{got} block_hashes for {expected} full blocks: expected one for each");
            return Err(PyValueError::new_err(text));
        }
        let names = block_hashes.0.into_iter().map(EngineHash);
        let blocks = names
            .zip(locals)
            .map(|(engine_hash, local_hash)| StoredBlock {
                engine_hash,
                local_hash,
            })
            .collect();
        let parent = parent.map(hash).transpose()?.map(EngineHash);
        Ok(Self {
            event: KvEvent::Stored {
                parent,
                blocks,
                tier: self::tier(tier)?,
            },
            block_size,
        })
    }
}

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

#[pymethods]
impl Cleared {
    #[new]
    const fn new() -> Self {
        Self
    }
}

/// The event in `value`: one of the classes here, or a dict.
pub fn event_from(value: &Bound<'_, PyAny>, block_size: u32) -> PyResult<KvEvent> {
    if let Ok(stored) = value.cast::<Stored>() {
        let stored = stored.get();
        if let Some(got) = stored.block_size.filter(|&got| got != block_size) {
            let text =
                format!("the event has blocks of {got} tokens: expected {block_size}, as in the router");
            return Err(PyValueError::new_err(text));
        }
        return Ok(stored.event.clone());
    }
    if let Ok(removed) = value.cast::<Removed>() {
        return Ok(removed.get().0.clone());
    }
    if value.cast::<Cleared>().is_ok() || value.cast::<PyString>().is_ok_and(|text| text == "cleared") {
        return Ok(KvEvent::Cleared);
    }
    let Ok(dict) = value.cast::<PyDict>() else {
        let name = value.get_type().name()?;
        let text = format!("the event is a {name}; expected Stored, Removed, Cleared or a dict");
        return Err(PyTypeError::new_err(text));
    };
    from_dict(dict)
}

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
        "the event has none of the keys stored, removed, cleared",
    ))
}
