//! Tokens → local hashes → sequence hashes, equal to Dynamo's bit for bit.
//!
//! ```text
//! seed       = 1337 + [lora]·XXH3-64(lora name, seed 0) + [namespace]·XXH3-64(namespace, seed 1)     (mod 2⁶⁴)
//! local_i    = XXH3-64(little-endian u32 tokens of block i, seed)
//! sequence_0 = local_0
//! sequence_i = XXH3-64(little-endian (sequence_{i−1}, local_i), seed 1337)
//! ```
//!
//! An empty name counts as no name. The formulas come from experiments with
//! `dynamo.llm.compute_block_hash_for_seq` (Dynamo 1.6.1), and the tests compare with that function. Cost:
//! O(tokens).
//!
//! Example. Two prompts of three blocks of two tokens, which differ in the middle block:
//!
//! ```text
//! tokens      1 2 | 3 4 | 5 6          1 2 | 9 9 | 5 6
//! local       a     b     c            a     d     c        a block's hash knows its own tokens only
//! sequence    a     h(a,b) h(h(a,b),c) a     h(a,d) …       equal up to the first difference, and never after it
//! ```
//!
//! So one equal sequence hash proves that all blocks up to it are equal. The index compares one per frame of
//! up to 64 blocks, and falls back to local hashes where a frame is matched in part.
//!
//! These hashes have no key, so an author of prompts can search for collisions in 64 bits. A collision can at
//! worst place a request on a worker without its prefix. [`keyed`] prevents this for feeds that carry tokens.

mod hasher;
pub mod keyed;
mod prefix;
mod siphash;

pub use hasher::{BlockHasher, HashMode, ScopedHasher};
pub use keyed::HashKey;
pub use prefix::PromptHashes;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of every hash that must agree with Dynamo's. It is part of a wire format and cannot change.
pub(crate) const SEED: u64 = 1337;

/// XXH3 hashes longer inputs with a secret derived from the seed; [`BlockHasher::scoped`] derives it once.
const SEEDED_BYTES_MAX: usize = 240;

/// Hash of the content of one block. Equal blocks have equal local hashes, wherever they stand in a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct LocalHash(pub u64);

/// Hash of a block and of all blocks before it. It identifies a block with its context, as a KV cache needs
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct SequenceHash(pub u64);

/// Hash by which an engine identifies a block. It is opaque, because each engine computes it in its own way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct EngineHash(pub u64);

/// What separates caches that hold the same tokens. Blocks of two scopes have different hashes, so they never
/// match.
///
/// ```
/// use wardrop_core::{HashScope, local_hashes};
///
/// let tokens = [1, 2, 3, 4];
/// let base = local_hashes(&tokens, 2, &HashScope::default());
/// let adapted = local_hashes(&tokens, 2, &HashScope { lora_name: Some("law"), ..HashScope::default() });
/// assert_eq!(base.len(), 2);
/// assert_ne!(base, adapted);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashScope<'a> {
    /// Name of the `LoRA` adapter.
    pub lora_name: Option<&'a str>,
    /// Name of the tenant, or the request's cache salt.
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

/// Local hashes of the full blocks of `tokens`, equal to Dynamo's. A partial last block is ignored.
/// O(tokens).
///
/// A `block_size` of 0 gives no hashes.
pub fn local_hashes(tokens: &[u32], block_size: u32, scope: &HashScope<'_>) -> Vec<LocalHash> {
    BlockHasher::new(HashMode::Xxh3, block_size).local_hashes(tokens, scope)
}

/// Passes the little-endian bytes of a block to `hash`.
// Always inline: out of line, XXH3 of a block of 16 tokens takes 80 instructions instead of 59 (`make gate`).
#[cfg(target_endian = "little")]
#[inline(always)]
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

/// Sequence hash of a block whose predecessor has the sequence hash `parent`; `None` for the first block.
#[inline]
pub(crate) fn next_sequence_hash(parent: Option<SequenceHash>, local: LocalHash) -> SequenceHash {
    let Some(parent) = parent else {
        return SequenceHash(local.0);
    };
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&parent.0.to_le_bytes());
    bytes[8..].copy_from_slice(&local.0.to_le_bytes());
    SequenceHash(xxh3_64_with_seed(&bytes, SEED))
}

/// Sequence hashes of consecutive blocks from the start of a prompt. O(blocks).
///
/// ```
/// use wardrop_core::{HashScope, local_hashes, sequence_hashes};
///
/// let locals = |tokens: &[u32]| local_hashes(tokens, 2, &HashScope::default());
/// let (one, other) = (locals(&[1, 2, 3, 4, 5, 6]), locals(&[1, 2, 9, 9, 5, 6]));
/// assert_eq!(one[2], other[2]); // the last blocks are equal, and what precedes them is not
/// let (one, other) = (sequence_hashes(&one), sequence_hashes(&other));
/// assert_eq!(one[0], other[0]);
/// assert_ne!(one[2], other[2]);
/// ```
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

/// 64-bit hash of a text such as a request id. Among n texts, a collision has a probability below n² / 2⁶⁵.
pub fn text_id(text: &str) -> u64 {
    xxh3_64_with_seed(text.as_bytes(), 0)
}
