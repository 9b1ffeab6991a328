//! Whether a worker has room for one more prompt.
//!
//! ```text
//! room(j) = no prefill in flight on j,
//!           or the prompt may share an engine pass, the pass of j still holds it, the backlog of j is below `backlog_s`,
//!           and j runs fewer requests than its sequences;
//!           and, unless j is empty, KV in flight + own new KV + (n_j + 1)·(mean answer + a block) ≤ KV capacity of j
//! ```
//!
//! A worker that reports nothing always has room: unconfirmed figures are no reason to hold a request back. So has every
//! worker while the price guard finds that predictions do not fit ([`crate::price_guard`]).

use super::config::QueueConfig;
use crate::ledger::Occupancy;
use crate::router::Decisions;

/// A prompt shares an engine pass only when it fills at most 1 / `SHARED_PART` of it. The other prompts of the pass
/// wait for it.
const SHARED_PART: u64 = 4;

/// What a prompt needs of a worker. The default asks for any room at all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demand {
    /// Prompt tokens to compute.
    pub prefill_tokens: u64,
    /// Prompt tokens to keep in KV memory that are not in flight there yet.
    pub kv_tokens: f64,
}

/// The rule of one round: the configuration, and the mean answer as of the round.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoomRule {
    /// Whether small prompts may share an engine pass.
    share_passes: bool,
    /// Backlog from which a worker takes no further prompt, seconds.
    backlog_s: f64,
    /// KV tokens that one answer needs: the mean answer and a block, since its last block is rarely full.
    answer_tokens: f64,
    /// Whether every worker has room, since the figures do not fit the fleet.
    admits_all: bool,
}

impl RoomRule {
    /// The rule at the mean answer of now.
    pub fn new(config: &QueueConfig, decisions: &Decisions<'_>) -> Self {
        Self {
            share_passes: config.share_passes,
            backlog_s: config.backlog_s,
            admits_all: decisions.misfit().is_some(),
            answer_tokens: decisions.mean_output_tokens() + f64::from(decisions.block_size()),
        }
    }

    /// Whether a worker takes a prompt now.
    ///
    /// Small prompts that fit into one engine pass delay no other prompt, and an engine that gets them one by one
    /// computes half-empty passes. A prompt that does not fit waits: the next one to go is chosen when the pass is
    /// over.
    ///
    /// Example. A pass takes 8,192 tokens. A worker computes prompts of 3,000 tokens, with 0.3 s of backlog.
    /// A prompt of 2,000 tokens is below a quarter and fits: it has room. A prompt of 2,500 tokens is above a
    /// quarter and waits.
    pub fn admits(&self, worker: &Occupancy, demand: Demand) -> bool {
        let shares_pass = self.may_share(demand.prefill_tokens, worker.chunk_tokens)
            && worker.prefill_tokens.saturating_add(demand.prefill_tokens) <= worker.chunk_tokens;
        let takes_prefill = worker.prefills == 0
            || (shares_pass && worker.backlog_s < self.backlog_s && worker.requests < worker.max_requests);
        let has_memory =
            worker.requests == 0 || self.needed_tokens(worker, demand) <= worker.kv_capacity_tokens;
        self.admits_all || !worker.is_reported || takes_prefill && has_memory
    }

    /// Whether a worker lacks memory or sequences, so that the end of any request may give it room.
    pub fn is_full(&self, worker: &Occupancy, demand: Demand) -> bool {
        worker.requests > 0
            && (self.needed_tokens(worker, demand) > worker.kv_capacity_tokens
                || worker.requests >= worker.max_requests)
    }

    /// Whether a prompt is small enough to share an engine pass.
    pub const fn may_share(&self, prefill_tokens: u64, chunk_tokens: u64) -> bool {
        self.share_passes && SHARED_PART.saturating_mul(prefill_tokens) <= chunk_tokens
    }

    /// KV tokens that the worker needs until all its requests and this one end.
    fn needed_tokens(&self, worker: &Occupancy, demand: Demand) -> f64 {
        worker.kv_tokens + demand.kv_tokens + f64::from(worker.requests + 1) * self.answer_tokens
    }
}
