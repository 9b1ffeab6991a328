//! The request of a caller (prompt, model, group) and its result, the chosen worker.

use std::sync::Arc;

use wardrop_core::{LocalHash, WorkerId};

/// A prompt of a caller.
pub(crate) enum PromptKey {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Local hashes of the full blocks, and the tokens of the whole prompt.
    Hashes {
        /// Local hashes of the full blocks, in the order of the prompt.
        hashes: Vec<LocalHash>,
        /// Tokens of the whole prompt.
        input_tokens: u32,
    },
}

/// The request of a caller.
pub(crate) struct Target {
    /// Name of the model.
    pub model: String,
    /// Group of the workers.
    pub group: String,
    /// The prompt.
    pub prompt: PromptKey,
    /// Instances that may be chosen; `None` allows all.
    pub allowed: Option<Vec<u64>>,
}

/// A chosen worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selection {
    /// Name of the model.
    pub model: String,
    /// Group of the workers.
    pub group: String,
    /// Chosen worker.
    pub worker: WorkerId,
    /// Address that the caller registered.
    pub endpoint: String,
    /// Tokens of a block.
    pub block_size: u32,
    /// Leading tokens that the worker should hold.
    pub cached_tokens: u32,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Blocks in flight on the worker with this prompt.
    pub decode_blocks: u64,
    /// Sequence hashes of the full blocks.
    pub sequence_hashes: Arc<[u64]>,
}

impl Selection {
    /// Tokens that the worker has to compute.
    pub fn prefill_tokens(&self) -> u32 {
        self.input_tokens.saturating_sub(self.cached_tokens)
    }

    /// Whether the selection is one of the model and the group of `target`.
    pub fn is_for(&self, target: &Target) -> bool {
        (&self.model, &self.group) == (&target.model, &target.group)
    }

    /// Memory of the selection, bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.sequence_hashes.len() * 12 + self.model.len() + self.endpoint.len()
    }
}
