//! Workers: their ids and their reported sizes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Id of a worker: one data-parallel rank of one engine instance, with a KV cache of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    /// Id of the engine instance, as discovery reports it.
    pub instance: u64,
    /// Data-parallel rank inside the instance.
    pub dp_rank: u32,
}

impl WorkerId {
    /// The worker with rank `dp_rank` of `instance`.
    pub const fn new(instance: u64, dp_rank: u32) -> Self {
        Self { instance, dp_rank }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.instance, self.dp_rank)
    }
}

/// Sizes that a worker reported. Each is optional: an unknown size never limits a worker.
///
/// A router takes a size outside its range as unknown, since an engine that reports 0 blocks has not measured its
/// cache yet. Taken literally, such a worker would have no finite price.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSpec {
    /// Blocks of the KV cache in device memory, 1 to 2⁴⁰.
    pub total_kv_blocks: Option<u64>,
    /// Highest number of sequences that the engine runs at once, above 0.
    pub max_num_seqs: Option<u32>,
    /// Highest number of tokens in one engine step, above 0.
    pub max_num_batched_tokens: Option<u32>,
}

/// Largest size of a KV cache that is believed, blocks. With one token per block it is a thousand billion tokens.
const MAX_KV_BLOCKS: u64 = 1 << 40;

impl WorkerSpec {
    /// The sizes that can be true. The others become unknown.
    pub(crate) fn believable(&self) -> Self {
        Self {
            total_kv_blocks: self
                .total_kv_blocks
                .filter(|blocks| (1..=MAX_KV_BLOCKS).contains(blocks)),
            max_num_seqs: self.max_num_seqs.filter(|&sequences| sequences > 0),
            max_num_batched_tokens: self.max_num_batched_tokens.filter(|&tokens| tokens > 0),
        }
    }

    /// Sets the size of the device KV cache, blocks.
    #[must_use]
    pub const fn with_total_kv_blocks(mut self, blocks: u64) -> Self {
        self.total_kv_blocks = Some(blocks);
        self
    }

    /// Sets the number of sequences that run at once.
    #[must_use]
    pub const fn with_max_num_seqs(mut self, sequences: u32) -> Self {
        self.max_num_seqs = Some(sequences);
        self
    }

    /// Sets the number of tokens in one engine step.
    #[must_use]
    pub const fn with_max_num_batched_tokens(mut self, tokens: u32) -> Self {
        self.max_num_batched_tokens = Some(tokens);
        self
    }
}
