//! The latency of a candidate for one request: one formula, for one candidate and for thousands.
//!
//! Stands between `match ─▶ price`: the columns of the workers, the match and the load go in,
//! [`LatencyEstimate`] comes out, and a price in seconds is a function of it. `docs/explanation/price.md` has
//! the model. O(1) per candidate.
//!
//! [`LatencyView`] holds the inputs of a whole decision and builds the estimate of a candidate when a price
//! asks for it. Nothing is stored per candidate: computing eighteen figures again is cheaper than writing and
//! reading them.

use super::columns::{ColumnSlices, WorkerRow};
use super::{MAX_UTILISATION, OWN_SHARE};
use crate::exact::{large_f64, small_f64};

/// One candidate for one request, in seconds. Every field is finite and at least 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatencyEstimate {
    /// Prefill of the request on this worker, with nothing ahead of it.
    pub prefill_s: f64,
    /// Prefill of the requests ahead of it.
    pub wait_s: f64,
    /// A decode step at the present load.
    pub step_s: f64,
    /// A decode step with the request in the batch.
    pub step_with_s: f64,
    /// A full prefill chunk.
    pub chunk_s: f64,
    /// Wait until enough KV blocks are free. At least as long as the longest awaited first token is overdue.
    pub memory_wait_s: f64,
    /// KV-memory time that the request takes: its share of the memory times the time it stays.
    pub footprint_s: f64,
    /// Share of the KV memory in use with the request, at most 0.95.
    pub memory_share: f64,
    /// Arriving requests per second: 0.7 of the fleet's mean and 0.3 of the worker's own rate.
    pub arrivals_per_s: f64,
    /// Arriving prefill seconds per second, in the same mixture, at most 0.95.
    pub utilisation: f64,
    /// Requests in flight, and requests that wait at the router for the worker.
    pub requests: f64,
    /// Seconds to compute one evicted token again.
    pub token_s: f64,
    /// Tokens that the new blocks of the request evict.
    pub evicted_tokens: f64,
    /// Chance that an evicted token is wanted again, 0 to 1.
    pub reuse: f64,
    /// Transfer of the prompt's KV cache from another pool.
    pub transfer_s: f64,
    /// Whether the worker's curves have seen too few outcomes to be believed.
    pub is_new: bool,
}

impl LatencyEstimate {
    /// Seconds from the booking to the first token: `(W + M + s)·(1 + step/chunk)`.
    ///
    /// The wait for memory is part of the price beside the own first token, and of the time that a client sees.
    pub(crate) fn first_token_s(&self) -> f64 {
        let shared = if self.chunk_s > 0.0 && self.requests > 0.0 {
            self.step_s / self.chunk_s
        } else {
            0.0
        };
        (self.wait_s + self.memory_wait_s + self.prefill_s) * (1.0 + shared)
    }
}

/// What the estimates of all candidates of a decision share. Computed once per decision, with the
/// exponentials of the rates.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SharedInputs {
    /// Expected tokens of the answer.
    pub output_tokens: f64,
    /// Tokens that a running answer has written on average: half of the mean answer.
    pub written_tokens: f64,
    /// Decayed sum of a rate of 1 per second ([`super::rates::Rate::unit_per_s`]).
    pub rate_unit: f64,
    /// Part of the fleet's mean in the arrivals of a worker, requests per second.
    pub fleet_arrivals_per_s: f64,
    /// Part of the fleet's mean in the utilisation of a worker.
    pub fleet_utilisation: f64,
    /// Chance that an evicted token is wanted again, 0 to 1.
    pub reuse: f64,
    /// First tokens expected before this time are overdue, seconds: now, or minus infinity where first tokens go
    /// unreported.
    pub late_from_s: f64,
}

/// What the estimate of one candidate needs of the request and its load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CandidateInputs {
    /// Prompt tokens to compute.
    pub new_tokens: f64,
    /// Prompt tokens in the worker's cache.
    pub cached_tokens: f64,
    /// Distinct prompt tokens in flight on the worker.
    pub kv_tokens: f64,
    /// Distinct prompt tokens in flight with the request.
    pub kv_tokens_with: f64,
}

/// The inputs of every candidate, as columns. Empty for a policy that needs no latency.
///
/// Invariant: all slices have one entry per candidate, in the order of
/// [`View::workers`](crate::price::View::workers).
#[derive(Clone, Copy, Debug, Default)]
pub struct LatencyView<'a> {
    /// What all candidates share.
    pub(crate) shared: SharedInputs,
    /// Accounts and curves of the candidates.
    pub(crate) columns: ColumnSlices<'a>,
    /// Prompt tokens to compute.
    pub(crate) new_tokens: &'a [f64],
    /// Prompt tokens in the worker's cache.
    pub(crate) cached_tokens: &'a [f64],
    /// Distinct blocks in flight.
    pub(crate) decode_blocks: &'a [u64],
    /// Leading blocks of the prompt in flight.
    pub(crate) shared_blocks: &'a [u32],
    /// Leading blocks of the prompt in device memory.
    pub(crate) device_blocks: &'a [u32],
    /// Prefill seconds of requests that wait at the router for the worker.
    pub(crate) pending_prefill_s: &'a [f64],
    /// Requests that wait at the router for the worker.
    pub(crate) pending_requests: &'a [u32],
    /// Tokens of the prompt.
    pub(crate) input_tokens: f64,
    /// Full blocks of the prompt.
    pub(crate) request_blocks: f64,
    /// Tokens per block.
    pub(crate) block_tokens: f64,
    /// Seconds to transfer the KV of one token to this pool. 0 in a pool that computes its prompts.
    pub(crate) handoff_s_per_token: f64,
}

impl LatencyView<'_> {
    /// Number of candidates.
    pub const fn len(&self) -> usize {
        self.new_tokens.len()
    }

    /// Whether the columns are empty, as for a policy that needs no latency.
    pub const fn is_empty(&self) -> bool {
        self.new_tokens.is_empty()
    }

    /// The first `n` candidates. A loop over them then needs no bounds checks.
    #[inline(always)]
    #[must_use]
    pub fn cut(&self, n: usize) -> Self {
        Self {
            columns: self.columns.cut(n),
            new_tokens: &self.new_tokens[..n],
            cached_tokens: &self.cached_tokens[..n],
            decode_blocks: &self.decode_blocks[..n],
            shared_blocks: &self.shared_blocks[..n],
            device_blocks: &self.device_blocks[..n],
            pending_prefill_s: &self.pending_prefill_s[..n],
            pending_requests: &self.pending_requests[..n],
            ..*self
        }
    }

    /// The estimate of candidate `i`. O(1).
    ///
    /// Requests that wait at the router for the candidate count as ahead of this one, in time and in number.
    #[inline(always)]
    pub fn estimate(&self, i: usize) -> LatencyEstimate {
        let kv_blocks = large_f64(self.decode_blocks[i]);
        let new_blocks = self.request_blocks - small_f64(self.shared_blocks[i]);
        let inputs = CandidateInputs {
            new_tokens: self.new_tokens[i],
            cached_tokens: self.cached_tokens[i],
            kv_tokens: kv_blocks * self.block_tokens,
            kv_tokens_with: kv_blocks * self.block_tokens + new_blocks * self.block_tokens,
        };
        let mut found = estimate(&self.shared, &self.columns.row(i), &inputs);
        let held_tokens = small_f64(self.device_blocks[i]) * self.block_tokens;
        found.transfer_s = (self.input_tokens - held_tokens).max(0.0) * self.handoff_s_per_token;
        found.wait_s += self.pending_prefill_s[i];
        found.requests += small_f64(self.pending_requests[i]);
        found
    }

    /// Whether each candidate's curves have seen too few outcomes to be believed.
    pub fn newcomers(&self) -> &[bool] {
        self.columns.is_new
    }
}

/// The estimate of one candidate, without transfer and without what waits at the router.
///
/// With the curves p and d of the worker, n requests in flight, KV tokens K, K' with the request, capacity C, written
/// tokens w·n:
///
/// ```text
/// prefill   = p0 + p1·new + p2·new²/2 + p3·new·cached            0 for nothing new
/// step      = d0 + d1·n + d2·(K + w·n),  step_with = d0 + d1·(n + 1) + d2·(K' + w·n)
/// stay      = W + prefill + Ō·step_with
/// footprint = own/C · stay,              own = K' − K + Ō
/// short     = max(K + w·n + own − C, 0)
/// room wait = stay · max(k/(n + 1), short/C),  k = min(⌈short·n/(K + w·n)⌉, n)
/// memory    = max(room wait, now − due)
/// ```
///
/// Memory is a server that gives back C tokens per stay, but in lumps: k of n requests must end, each equally likely
/// anywhere in a stay. A fluid model alone (short/C) undercounts that wait on workers with few large requests.
///
/// A prompt whose first token is overdue is at the head of the engine's queue. It holds up all prompts behind
/// it, regardless of the booked backlog. A prompt that has been late for so long is likely to be late for as
/// long again.
///
/// No branch depends on the data, so that the compiler prices several candidates at a time.
#[inline(always)]
pub(super) fn estimate(
    shared: &SharedInputs,
    worker: &WorkerRow,
    inputs: &CandidateInputs,
) -> LatencyEstimate {
    let (new, cached) = (inputs.new_tokens, inputs.cached_tokens);
    let curve_s = worker.prefill_pass
        + worker.prefill_token * new
        + worker.prefill_square * (0.5 * new * new)
        + worker.prefill_cached * (new * cached);
    let prefill_s = if new == 0.0 { 0.0 } else { curve_s };
    let batch = worker.requests;
    let written = shared.written_tokens * batch;
    let step_s =
        worker.step_pass + worker.step_sequence * batch + worker.step_token * (inputs.kv_tokens + written);
    let step_with_s = worker.step_pass
        + worker.step_sequence * (batch + 1.0)
        + worker.step_token * (inputs.kv_tokens_with + written);
    let stay_s = worker.wait_s + prefill_s + shared.output_tokens * step_with_s;
    let own_tokens = (inputs.kv_tokens_with - inputs.kv_tokens) + shared.output_tokens;
    let capacity = worker.kv_capacity_tokens;
    let footprint_s = own_tokens / capacity * stay_s;
    let used = inputs.kv_tokens + written + own_tokens;
    let short = (used - capacity).max(0.0);
    let held = inputs.kv_tokens + written;
    let ends = (short * batch / held.max(1.0)).ceil().min(batch);
    let lumps = (ends / (batch + 1.0)).max(short / capacity);
    let room_wait_s = if short > 0.0 { lumps * stay_s } else { 0.0 };
    let late_s = (shared.late_from_s - worker.due_s).max(0.0);
    let rate_unit = shared.rate_unit * worker.seen;
    LatencyEstimate {
        prefill_s,
        wait_s: worker.wait_s,
        step_s,
        step_with_s,
        chunk_s: worker.chunk_s,
        memory_wait_s: room_wait_s.max(late_s),
        footprint_s,
        memory_share: (used / capacity).min(MAX_UTILISATION),
        arrivals_per_s: OWN_SHARE * (worker.arrivals / rate_unit) + shared.fleet_arrivals_per_s,
        utilisation: (OWN_SHARE * (worker.arriving_s / rate_unit) + shared.fleet_utilisation)
            .min(MAX_UTILISATION),
        requests: batch,
        token_s: worker.token_s,
        evicted_tokens: new * worker.evicted_per_block,
        reuse: shared.reuse,
        transfer_s: 0.0,
        is_new: worker.is_new,
    }
}
