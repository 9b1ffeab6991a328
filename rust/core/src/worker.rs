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

/// Sizes that a worker reported. All are optional: a policy that needs a missing size returns an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSpec {
    /// Blocks of the KV cache in device memory.
    pub total_kv_blocks: Option<u64>,
    /// Highest number of sequences that the engine runs at once.
    pub max_num_seqs: Option<u32>,
    /// Highest number of tokens in one engine step.
    pub max_num_batched_tokens: Option<u32>,
}

impl WorkerSpec {
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
