//! The candidates of a decision in seconds: one formula for one of them and for thousands.

use super::standing::{Lanes, Stand};
use super::{MAX_UTILISATION, OWN_SHARE};
use crate::exact::{large_f64, small_f64};

/// One candidate, in seconds, for one request. See `docs/pricing.md` for the price that is made of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Prefill of this request there, alone.
    pub prefill_s: f64,
    /// Prefill in flight ahead of its first token.
    pub wait_s: f64,
    /// A decode step now.
    pub step_s: f64,
    /// A decode step with this request in the batch.
    pub step_with_s: f64,
    /// A full prefill chunk.
    pub chunk_s: f64,
    /// Until enough KV blocks are free; no less than the first token that is awaited longest there is late.
    pub memory_wait_s: f64,
    /// KV-memory time that this request takes: its share of the memory × the time it stays.
    pub footprint_s: f64,
    /// Share of the KV memory in use with this request; below 1.
    pub memory_share: f64,
    /// Arrivals per second, 0.7 of the fleet's mean and 0.3 of its own.
    pub arrivals_per_s: f64,
    /// Prefill seconds that arrive per second, in the same mixture; below 1.
    pub utilisation: f64,
    /// Requests in flight, as a number that a queue may add to.
    pub requests: f64,
    /// Seconds to compute one evicted token again.
    pub token_s: f64,
    /// Tokens that its new blocks push out.
    pub evicted_tokens: f64,
    /// Chance that an evicted token is wanted again, 0 to 1.
    pub reuse: f64,
    /// Moving its KV cache here from another pool.
    pub transfer_s: f64,
    /// Too few outcomes were seen of this worker to believe its curves.
    pub is_new: bool,
}

/// What all candidates of a decision share.
#[derive(Clone, Copy, Debug, Default)]
pub struct Climate {
    /// Expected tokens of the answer.
    pub output_tokens: f64,
    /// Tokens that a running answer has written on average: half of an answer.
    pub written_tokens: f64,
    /// What a decayed sum of 1 per second comes to, see [`super::rates::Rate`].
    pub per_rate: f64,
    /// The fleet's part of a worker's arrivals per second.
    pub fleet_arrivals_per_s: f64,
    /// The fleet's part of a worker's utilisation.
    pub fleet_utilisation: f64,
    /// Chance that an evicted token is wanted again, 0 to 1.
    pub reuse: f64,
    /// The time, seconds: first tokens that were expected before it are late. Before all time where nobody tells of them.
    pub late_from_s: f64,
}

/// The request as one candidate meets it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Prompt tokens to compute.
    pub new_tokens: f64,
    /// Prompt tokens in the worker's cache.
    pub cached_tokens: f64,
    /// Distinct prompt tokens in flight there.
    pub kv_tokens: f64,
    /// The same with this request.
    pub kv_tokens_with: f64,
}

/// Everything, by candidate. Empty for a policy that does not think in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Books<'a> {
    pub(crate) climate: Climate,
    pub(crate) lanes: Lanes<'a>,
    /// Prompt tokens to compute, and in the worker's cache.
    pub(crate) new_tokens: &'a [f64],
    pub(crate) cached_tokens: &'a [f64],
    /// Distinct blocks in flight, and those of this prompt among them.
    pub(crate) decode_blocks: &'a [u64],
    pub(crate) shared_blocks: &'a [u32],
    pub(crate) device_blocks: &'a [u32],
    /// Prefill seconds and requests that wait at the router for the same worker.
    pub(crate) pending_prefill_s: &'a [f64],
    pub(crate) pending_requests: &'a [u32],
    pub(crate) input_tokens: f64,
    pub(crate) request_blocks: f64,
    pub(crate) block_tokens: f64,
    /// Seconds to move a token's KV here; 0 where this pool computes it.
    pub(crate) handoff_s_per_token: f64,
}

impl Books<'_> {
    /// Candidates.
    pub const fn len(&self) -> usize {
        self.new_tokens.len()
    }

    /// Whether there are none: the policy does not think in seconds.
    pub const fn is_empty(&self) -> bool {
        self.new_tokens.is_empty()
    }

    /// The first `n` candidates: a loop over them then needs no further checks.
    #[inline(always)]
    #[must_use]
    pub fn cut(&self, n: usize) -> Self {
        Self {
            lanes: self.lanes.cut(n),
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

    /// Candidate `i` in seconds. O(1).
    #[inline(always)]
    pub fn seconds(&self, i: usize) -> Seconds {
        let kv_blocks = large_f64(self.decode_blocks[i]);
        let new_blocks = self.request_blocks - small_f64(self.shared_blocks[i]);
        let asked = Asked {
            new_tokens: self.new_tokens[i],
            cached_tokens: self.cached_tokens[i],
            kv_tokens: kv_blocks * self.block_tokens,
            kv_tokens_with: kv_blocks * self.block_tokens + new_blocks * self.block_tokens,
        };
        let mut seconds = seconds_of(&self.climate, &self.lanes.at(i), &asked);
        let held_tokens = small_f64(self.device_blocks[i]) * self.block_tokens;
        seconds.transfer_s = (self.input_tokens - held_tokens).max(0.0) * self.handoff_s_per_token;
        seconds.wait_s += self.pending_prefill_s[i];
        seconds.requests += small_f64(self.pending_requests[i]);
        seconds
    }

    /// Candidates of whom too few outcomes were seen.
    pub fn newcomers(&self) -> &[bool] {
        self.lanes.is_new
    }
}

/// The formula. Without branches, so that several candidates are done at a time.
#[inline(always)]
pub(super) fn seconds_of(climate: &Climate, of: &Stand, asked: &Asked) -> Seconds {
    let (new, cached) = (asked.new_tokens, asked.cached_tokens);
    let curve_s = of.prefill_pass
        + of.prefill_token * new
        + of.prefill_square * (0.5 * new * new)
        + of.prefill_cached * (new * cached);
    let prefill_s = if new == 0.0 { 0.0 } else { curve_s };
    let batch = of.requests;
    let written = climate.written_tokens * batch;
    let step_s = of.step_pass + of.step_sequence * batch + of.step_token * (asked.kv_tokens + written);
    let step_with_s =
        of.step_pass + of.step_sequence * (batch + 1.0) + of.step_token * (asked.kv_tokens_with + written);
    let stay_s = of.wait_s + prefill_s + climate.output_tokens * step_with_s;
    let own_tokens = (asked.kv_tokens_with - asked.kv_tokens) + climate.output_tokens;
    let capacity = of.kv_capacity_tokens;
    // Memory as a server: it hands back `capacity` tokens per stay.
    let footprint_s = own_tokens / capacity * stay_s;
    let used = asked.kv_tokens + written + own_tokens;
    let short = (used - capacity).max(0.0);
    // Memory comes back in lumps, a request's share at a time: k of n ends are awaited, each equally likely anywhere in a stay.
    let held = asked.kv_tokens + written;
    let ends = (short * batch / held.max(1.0)).ceil().min(batch);
    let lumps = (ends / (batch + 1.0)).max(short / capacity);
    let room_wait_s = if short > 0.0 { lumps * stay_s } else { 0.0 };
    // A prompt whose first token is overdue stands at the head of the engine's line and holds up all behind it, whatever the
    // books say: who has waited so long is likely to wait as long again.
    let late_s = (climate.late_from_s - of.due_s).max(0.0);
    let memory_wait_s = room_wait_s.max(late_s);
    let per_s = climate.per_rate * of.seen;
    Seconds {
        prefill_s,
        wait_s: of.wait_s,
        step_s,
        step_with_s,
        chunk_s: of.chunk_s,
        memory_wait_s,
        footprint_s,
        memory_share: (used / capacity).min(MAX_UTILISATION),
        arrivals_per_s: OWN_SHARE * (of.arrivals / per_s) + climate.fleet_arrivals_per_s,
        utilisation: (OWN_SHARE * (of.arriving_s / per_s) + climate.fleet_utilisation).min(MAX_UTILISATION),
        requests: batch,
        token_s: of.token_s,
        evicted_tokens: new * of.evicted_per_block,
        reuse: climate.reuse,
        transfer_s: 0.0,
        is_new: of.is_new,
    }
}
