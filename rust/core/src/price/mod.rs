//! Policies: one cost per candidate, the lowest wins.
//!
//! Stands in the flow `match ─▶ price ─▶ pick`. A [`Policy`] reads a [`View`] of the candidates and a
//! generator, and writes costs. It changes nothing: what learns from outcomes is in [`crate::ledger`] and
//! [`crate::regime`]. O(candidates) per decision.
//!
//! | policy | cost | serves |
//! |---|---|---|
//! | [`Toll`] | own time and delay of others, seconds | the default of the gateway |
//! | [`Dynamo`] | blocks to prefill and in flight | parity with Dynamo |
//! | [`Paper`] | as `Dynamo`, with parameters by regime | the paper's experiment |
//! | [`Sticky`], [`TwoTier`], [`Chwbl`], [`Lmetric`] | rules of other routers | comparison |
//! | [`LeastLoaded`], [`PowerOfTwo`], [`RoundRobin`] | load alone | baselines, and fleets without caches |
//!
//! A new policy is a file here, with its formula and its source, and a name in [`PolicyConfig`]. `lmetric.rs`
//! is the shortest one, and `toll.rs` the model for a price with several terms
//! (`docs/how-to/add-a-policy.md`).

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

use crate::ledger::LatencyView;
use crate::request::Parts;
use crate::rng::Rng;
use crate::worker::WorkerId;

/// One request and its candidates, as columns: entry i of each slice belongs to candidate i.
///
/// Invariant: all slices have the length of `workers`, except those of `latency`, which may be empty. The
/// overlaps of a candidate never add up to more than `request_blocks`.
///
/// Columns and not a struct per candidate: thousands of candidates are priced several at a time, from memory
/// that is read in order (`docs/adr/0009-candidates-by-columns.md`).
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Tokens per block.
    pub block_size: u32,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Full blocks of the prompt, 0 when the prompt is unknown. Then only the load distinguishes the
    /// candidates.
    pub request_blocks: u32,
    /// Expected tokens of the answer, where the request says so.
    pub expected_output_tokens: Option<u32>,
    /// Decisions made before this one. Round robin counts with it.
    pub turn: u64,
    /// Hash of the prompt's first block, equal for requests of one prefix family. 0 without a full block.
    pub prefix_key: u64,
    /// Whether this pool prefills. The decode leg of a split does not.
    pub tracks_prefill: bool,
    /// Whether this pool decodes. The prefill leg of a split does not.
    pub tracks_decode: bool,
    /// The candidates.
    pub workers: &'a [WorkerId],
    /// Leading blocks of the prompt in device memory.
    pub device_blocks: &'a [u32],
    /// Further blocks in host memory.
    pub host_blocks: &'a [u32],
    /// Further blocks on disk.
    pub disk_blocks: &'a [u32],
    /// Whether both columns above are all 0: no candidate holds a block in host memory or on disk.
    pub no_lower: bool,
    /// Uncached prompt tokens of requests that wait for their first token. 0 in a pool that does not prefill.
    pub prefill_tokens: &'a [u64],
    /// Distinct blocks of requests in flight. A block that two requests share counts once.
    pub decode_blocks: &'a [u64],
    /// Leading blocks of the prompt that are in flight on the worker already, at most `request_blocks`.
    pub shared_blocks: &'a [u32],
    /// Requests in flight.
    pub active_requests: &'a [u32],
    /// Expected tokens of the answer: the request's own figure, else the running mean. 0 in a pool that does not
    /// decode.
    pub output_tokens: f64,
    /// The candidates in seconds. Empty unless the policy [needs](Policy::needs_latency) them.
    pub latency: LatencyView<'a>,
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

    /// Share of the prompt that so many blocks cover, 0 to 1. A prompt of 0 tokens counts as one token, so
    /// that no share is undefined.
    pub fn device_share(&self, blocks: u32) -> f64 {
        f64::from(blocks) * f64::from(self.block_size) / f64::from(self.input_tokens.max(1))
    }

    /// Distinct blocks in flight on candidate `i` with the request.
    pub fn union_blocks(&self, i: usize) -> u64 {
        self.decode_blocks[i] + u64::from(self.request_blocks - self.shared_blocks[i])
    }

    /// Prompt tokens that candidate `i` would compute when the request's turn comes: all but its device blocks and
    /// the blocks in flight.
    pub fn tokens_to_compute(&self, i: usize) -> u64 {
        let held_blocks = self.device_blocks[i].max(self.shared_blocks[i]);
        u64::from(self.input_tokens).saturating_sub(u64::from(held_blocks) * u64::from(self.block_size))
    }

    /// Prompt tokens that candidate `i` would compute now: all but its device blocks.
    ///
    /// Policies that follow another router's formula use this, since their sources know KV events only.
    /// [`View::tokens_to_compute`] also counts blocks in flight.
    pub fn uncached_tokens(&self, i: usize) -> u64 {
        u64::from(self.input_tokens)
            .saturating_sub(u64::from(self.device_blocks[i]) * u64::from(self.block_size))
    }
}

/// A rule that prices candidates. Pure: the same view and generator give the same costs.
///
/// The router calls `price` under its state lock, so a policy must not block. `Send + Sync`, because any
/// thread may make the next decision.
pub trait Policy: Send + Sync {
    /// Name of the policy, as in [`PolicyConfig::NAMES`].
    fn name(&self) -> &'static str;

    /// Writes the cost of every candidate. Lower is better. An infinite or undefined cost is never chosen, unless
    /// every cost is so: the router then chooses the least loaded candidate.
    ///
    /// `costs` has one entry per candidate and arrives with arbitrary contents. Every entry must be written.
    fn price(&self, view: &View<'_>, rng: &mut Rng, costs: &mut [f64]);

    /// The parts of the cost of candidate `i`, for an explained decision. Empty where the cost is no sum. O(1).
    fn parts(&self, _view: &View<'_>, _i: usize) -> Parts {
        Parts::default()
    }

    /// Whether [`View::latency`] must be filled.
    fn needs_latency(&self) -> bool {
        false
    }

    /// Shares of a block's prefill that a block in host memory, and on disk, saves: 0 to 1. `None` takes the router's
    /// own.
    fn reuse_weights(&self) -> Option<[f64; 2]> {
        None
    }

    /// Temperature of the pick ([`crate::pick::pick`]). 0 takes the lowest cost.
    fn temperature(&self) -> f64 {
        0.0
    }
}
