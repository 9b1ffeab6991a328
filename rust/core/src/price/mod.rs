//! Prices: one cost per candidate, lowest wins. Pure: a price reads the view and the generator, and changes nothing.

mod chwbl;
mod config;
mod dynamo;
mod least_loaded;
mod lmetric;
mod objective;
mod paper;
mod power_of_two;
mod round_robin;
mod sticky;
pub mod toll;
mod two_tier;

pub use chwbl::{Chwbl, ChwblConfig};
pub use config::PolicyConfig;
pub use dynamo::{Dynamo, DynamoConfig};
pub use least_loaded::LeastLoaded;
pub use lmetric::Lmetric;
pub use objective::{Objective, TollWeights};
pub use paper::{Paper, PaperConfig};
pub use power_of_two::PowerOfTwo;
pub use round_robin::RoundRobin;
pub use sticky::{Sticky, StickyConfig};
pub use toll::Toll;
pub use two_tier::{TwoTier, TwoTierConfig};

use crate::ledger::Books;
use crate::request::Parts;
use crate::rng::Rng;
use crate::worker::WorkerId;

/// One request and the candidates for it, as columns: entry i of each slice belongs to candidate i.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Tokens per block.
    pub block_size: u32,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Full blocks of the prompt.
    pub request_blocks: u32,
    /// Expected tokens of the answer, when somebody knows.
    pub expected_output_tokens: Option<u32>,
    /// Decisions made before this one.
    pub turn: u64,
    /// Hash of the prompt's first blocks: equal for requests of one prefix family; 0 without blocks.
    pub prefix_key: u64,
    /// Whether this pool prefills; a decode pool does not.
    pub tracks_prefill: bool,
    /// Whether this pool decodes; the prefill leg of a split does not.
    pub tracks_decode: bool,
    /// Who the candidates are.
    pub workers: &'a [WorkerId],
    /// Leading blocks of the prompt in device memory.
    pub device_blocks: &'a [u32],
    /// Further blocks in host memory.
    pub host_blocks: &'a [u32],
    /// Further blocks on disk.
    pub disk_blocks: &'a [u32],
    /// Whether no candidate has anything in host memory or on disk: both columns are all 0.
    pub no_lower: bool,
    /// Uncached prompt tokens of requests that wait for their first token.
    pub prefill_tokens: &'a [u64],
    /// Distinct blocks of requests in flight.
    pub decode_blocks: &'a [u64],
    /// Leading blocks of this prompt that are in flight there already.
    pub shared_blocks: &'a [u32],
    /// Requests in flight.
    pub active_requests: &'a [u32],
    /// Expected tokens of the answer: what the request says, else the running mean; 0 in a pool that does not decode.
    pub output_tokens: f64,
    /// The candidates in seconds; empty unless the policy [wants](Policy::wants_seconds) them.
    pub books: Books<'a>,
}

impl View<'_> {
    /// Number of candidates.
    pub const fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is no candidate.
    pub const fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// The longest device overlap of any candidate, blocks.
    pub fn best_device_blocks(&self) -> u32 {
        self.device_blocks.iter().copied().max().unwrap_or(0)
    }

    /// The share of the prompt that so many blocks cover.
    pub fn device_share(&self, blocks: u32) -> f64 {
        f64::from(blocks) * f64::from(self.block_size) / f64::from(self.input_tokens.max(1))
    }

    /// Distinct blocks that candidate `i` would have in flight with this request.
    pub fn union_blocks(&self, i: usize) -> u64 {
        self.decode_blocks[i] + u64::from(self.request_blocks - self.shared_blocks[i])
    }

    /// Prompt tokens that candidate `i` would have to compute by its turn: all but its device blocks and those in flight.
    pub fn tokens_to_compute(&self, i: usize) -> u64 {
        let held_blocks = self.device_blocks[i].max(self.shared_blocks[i]);
        u64::from(self.input_tokens).saturating_sub(u64::from(held_blocks) * u64::from(self.block_size))
    }

    /// Prompt tokens that candidate `i` would have to compute: all but its device blocks.
    pub fn uncached_tokens(&self, i: usize) -> u64 {
        u64::from(self.input_tokens)
            .saturating_sub(u64::from(self.device_blocks[i]) * u64::from(self.block_size))
    }
}

/// A rule that prices candidates.
pub trait Policy: Send + Sync {
    /// Its name, as in [`PolicyConfig::NAMES`].
    fn name(&self) -> &'static str;

    /// Write the cost of every candidate; lower is better, infinite is never chosen.
    fn price(&self, view: &View<'_>, rng: &mut Rng, costs: &mut [f64]);

    /// What the cost of candidate `i` is made of, where it is a sum; for people. O(1).
    fn parts(&self, _view: &View<'_>, _i: usize) -> Parts {
        Parts::default()
    }

    /// Whether [`View::books`] must be filled.
    fn wants_seconds(&self) -> bool {
        false
    }

    /// Share of a block's prefill that a block in host memory, respectively on disk, saves, where this price has its own view.
    fn reuse_weights(&self) -> Option<[f64; 2]> {
        None
    }

    /// Temperature of the pick: 0 takes the lowest cost. See [`crate::pick::pick`].
    fn temperature(&self) -> f64 {
        0.0
    }
}
