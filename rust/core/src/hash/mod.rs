//! Tokens → local hashes → sequence hashes, equal to Dynamo's bit for bit.
//!
//! ```text
//! seed       = 1337 + [lora]·XXH3-64(lora name, seed 0) + [namespace]·XXH3-64(namespace, seed 1)     (mod 2⁶⁴)
//! local_i    = XXH3-64(little-endian u32 tokens of block i, seed)
//! sequence_0 = local_0
//! sequence_i = XXH3-64(little-endian (sequence_{i−1}, local_i), seed 1337)
//! ```
//!
//! An empty name counts as none. Found by experiment against `dynamo.llm.compute_block_hash_for_seq` (1.6.1), which the
//! tests keep comparing with. These hashes are not keyed: who can choose prompts can look for collisions in 64 bits,
//! and the worst a collision does is a placement on a worker without the prefix. [`keyed`] closes that for feeds that carry
//! tokens.

mod hasher;
pub mod keyed;
mod prefix;
mod siphash;

pub use hasher::{BlockHasher, HashMode, ScopedHasher};
pub use keyed::HashKey;
pub use prefix::PromptHashes;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of every hash that has to agree with Dynamo's.
pub const SEED: u64 = 1337;

/// Inputs longer than this are hashed with a secret derived from the seed, which is worth deriving once.
const SEEDED_BYTES_MAX: usize = 240;

/// Hash of one block's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct LocalHash(pub u64);

/// Hash of a block and of everything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct SequenceHash(pub u64);

/// The name an engine gives to a block. Opaque: its scheme is the engine's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct EngineHash(pub u64);

/// What separates caches that hold the same tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashScope<'a> {
    /// Name of the `LoRA` adapter.
    pub lora_name: Option<&'a str>,
    /// Tenant or cache salt.
    pub cache_namespace: Option<&'a str>,
}

impl HashScope<'_> {
    /// Seed of the local hashes in this scope.
    pub fn seed(&self) -> u64 {
        let part = |name: Option<&str>, seed| match name {
            None | Some("") => 0,
            Some(name) => xxh3_64_with_seed(name.as_bytes(), seed),
        };
        SEED.wrapping_add(part(self.lora_name, 0))
            .wrapping_add(part(self.cache_namespace, 1))
    }
}

/// Local hashes of the full blocks of `tokens`, as Dynamo has them; a partial last block is ignored. O(tokens).
///
/// `block_size` 0 gives none.
pub fn local_hashes(tokens: &[u32], block_size: u32, scope: &HashScope<'_>) -> Vec<LocalHash> {
    BlockHasher::new(HashMode::Xxh3, block_size).local_hashes(tokens, scope)
}

#[cfg(target_endian = "little")]
fn with_bytes(block: &[u32], hash: impl FnOnce(&[u8]) -> u64) -> u64 {
    hash(bytemuck::cast_slice(block))
}

#[cfg(not(target_endian = "little"))]
fn with_bytes(block: &[u32], hash: impl FnOnce(&[u8]) -> u64) -> u64 {
    hash(
        &block
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect::<Vec<u8>>(),
    )
}

/// The sequence hash of a block whose predecessor has `parent` (`None`: first block).
#[inline]
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

/// 64 bits that stand for a text, such as a request's id. Two of n texts are equal with a chance below n² / 2⁶⁵.
pub fn text_id(text: &str) -> u64 {
    xxh3_64_with_seed(text.as_bytes(), 0)
}
