//! Tokens → local hashes → sequence hashes, equal to Dynamo's.
//!
//! ```text
//! local_i    = XXH3-64(little-endian u32 tokens of block i, seed 1337)
//! sequence_0 = local_0
//! sequence_i = XXH3-64(little-endian (sequence_{i−1}, local_i), seed 1337)
//! ```

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of every hash that has to agree with Dynamo's.
pub const SEED: u64 = 1337;

/// Hash of one block's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LocalHash(pub u64);

/// Hash of a block and of everything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SequenceHash(pub u64);

/// The name an engine gives to a block. Opaque: its scheme is the engine's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EngineHash(pub u64);

/// What separates caches that hold the same tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashScope<'a> {
    /// Name of the LoRA adapter.
    pub lora_name: Option<&'a str>,
    /// Tenant or cache salt.
    pub cache_namespace: Option<&'a str>,
}

/// Local hashes of the full blocks of `tokens`; a partial last block is ignored. O(tokens).
///
/// `block_size` 0 gives none.
pub fn local_hashes(tokens: &[u32], block_size: u32, scope: &HashScope<'_>) -> Vec<LocalHash> {
    let _ = scope;
    if block_size == 0 {
        return Vec::new();
    }
    let mut bytes = Vec::with_capacity(block_size as usize * 4);
    tokens
        .chunks_exact(block_size as usize)
        .map(|block| {
            bytes.clear();
            bytes.extend(block.iter().flat_map(|token| token.to_le_bytes()));
            LocalHash(xxh3_64_with_seed(&bytes, SEED))
        })
        .collect()
}

/// The sequence hash of a block whose predecessor has `parent` (`None`: first block).
pub fn next_sequence_hash(parent: Option<SequenceHash>, local: LocalHash) -> SequenceHash {
    let Some(parent) = parent else {
        return SequenceHash(local.0);
    };
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&parent.0.to_le_bytes());
    bytes[8..].copy_from_slice(&local.0.to_le_bytes());
    SequenceHash(xxh3_64_with_seed(&bytes, SEED))
}

/// Sequence hashes of a chain of blocks from the start of a prompt. O(blocks).
pub fn sequence_hashes(locals: &[LocalHash]) -> Vec<SequenceHash> {
    let mut previous = None;
    locals
        .iter()
        .map(|&local| {
            let hash = next_sequence_hash(previous, local);
            previous = Some(hash);
            hash
        })
        .collect()
}
