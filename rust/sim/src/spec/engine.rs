//! Specification of one simulated engine.

use serde::Deserialize;

use super::tier::TierSpec;
use crate::error::{SimError, out_of_range};
use crate::timing::Timing;

/// Which inactive block is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// The block released longest ago, as in vLLM.
    #[default]
    Lru,
    /// The block used least often, and among equals the one released longest ago.
    ///
    /// The use counter is KVBM's: it starts at 1, doubles on a hit and halves with each epoch.
    Frequency,
}

/// Which running sequence loses its blocks when the running sequences need more than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preemption {
    /// The sequence admitted last.
    #[default]
    Lifo,
    /// The sequence admitted first.
    Fifo,
}

/// One engine: its memory, its limits and its timing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSpec {
    /// Tokens per KV block.
    pub block_size: u32,
    /// Device memory, in KV blocks.
    pub num_blocks: u32,
    /// KV blocks that the polynomial timing counts as a full memory; `None` for `num_blocks`.
    ///
    /// It keeps step times as they are when a relaxed fleet has more memory. Other timings ignore it.
    pub curve_blocks: Option<u32>,
    /// Number of sequences that may run at the same time.
    pub max_num_seqs: u32,
    /// Number of tokens that one iteration may compute.
    pub max_num_batched_tokens: u32,
    /// Whether a prompt may be split over several iterations.
    pub chunked_prefill: bool,
    /// Whether requests share the blocks of a common prefix.
    pub prefix_caching: bool,
    /// Share of the blocks that admission keeps free, in [0, 1).
    pub watermark: f64,
    /// Which running sequence is preempted first.
    pub preemption: Preemption,
    /// Which inactive block is evicted first.
    pub eviction: Eviction,
    /// Milliseconds after which use counters halve, under [`Eviction::Frequency`].
    pub frequency_epoch_ms: f64,
    /// Duration of an iteration.
    pub timing: Timing,
    /// Bytes of KV per token. It determines the size of a transfer.
    pub kv_bytes_per_token: f64,
    /// Whether a prefill worker also generates the whole answer, one token per iteration without cost.
    ///
    /// `dynamo.replay` 1.4.2 does this. Real engines stop at the first token.
    pub prefill_answers: bool,
    /// Memory tiers below device memory, nearest first.
    pub tiers: Vec<TierSpec>,
    /// Number of decode iterations that may be planned at once. It changes the cost of a simulation, never its result.
    pub longest_run: u32,
}

impl Default for EngineSpec {
    fn default() -> Self {
        Self {
            block_size: 64,
            num_blocks: 16_384,
            curve_blocks: None,
            max_num_seqs: 256,
            max_num_batched_tokens: 8_192,
            chunked_prefill: true,
            prefix_caching: true,
            watermark: 0.0,
            preemption: Preemption::Lifo,
            eviction: Eviction::Lru,
            frequency_epoch_ms: 10_000.0,
            timing: Timing::Polynomial,
            kv_bytes_per_token: 131_072.0,
            prefill_answers: false,
            tiers: Vec::new(),
            longest_run: 512,
        }
    }
}

impl EngineSpec {
    /// KV tokens that the polynomial timing counts as a full memory.
    pub(crate) fn curve_tokens(&self) -> u64 {
        u64::from(self.curve_blocks.unwrap_or(self.num_blocks)) * u64::from(self.block_size)
    }

    pub(crate) fn validate(&self) -> Result<(), SimError> {
        let positive = [
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("longest_run", self.longest_run),
            ("curve_blocks", self.curve_blocks.unwrap_or(1)),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(out_of_range(field, value, "at least 1"));
            }
        }
        if self.num_blocks >= u32::MAX / 2 {
            return Err(out_of_range("num_blocks", self.num_blocks, "below 2^31"));
        }
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(out_of_range("watermark", self.watermark, "in [0, 1)"));
        }
        if self.kv_bytes_per_token.is_nan() || self.kv_bytes_per_token < 0.0 {
            return Err(out_of_range(
                "kv_bytes_per_token",
                self.kv_bytes_per_token,
                "at least 0",
            ));
        }
        if self.frequency_epoch_ms.is_nan() || self.frequency_epoch_ms <= 0.0 {
            return Err(out_of_range(
                "frequency_epoch_ms",
                self.frequency_epoch_ms,
                "above 0",
            ));
        }
        self.tiers.iter().try_for_each(TierSpec::validate)
    }
}
