//! What one worker owes to its requests in flight, and what arrived there.
//!
//! An account has three parts. Sums of the requests before their first token give the backlog. Integrals of
//! the load over time give the mean load that a finished answer saw. The prompts that the engine reports
//! correct the sums ([`super::prompt_queue`]).
//!
//! Example for the integrals. Between its first token at 10 s and its end at 12 s, an answer shared the batch
//! with one other request for 1 s. The integral of the batch grew by 1 · 1 + 1 · 2 = 3 request-seconds, so
//! the mean batch was 1.5. No list of past loads is kept.
//!
//! O(1) per call.

use std::collections::VecDeque;

use super::Work;
use super::evictions::EvictionRate;
use super::prompt_queue::{PromptQueue, WaitingPrompts};
use super::rates::Rate;
use crate::index::Slot;
use crate::latency::{FleetCurves, StepLoad, WorkerCurves};
use crate::request::RequestId;
use crate::worker::WorkerSpec;

/// Tokens of a prefill chunk where the worker does not report its own.
const DEFAULT_CHUNK_TOKENS: u64 = 8192;

/// One request in flight, as of its booking. What it adds to the account is stored here, so that its end
/// takes away exactly that.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenRequest {
    /// Worker that the request is booked on.
    pub slot: Slot,
    /// What the worker has to compute of the prompt, as of the booking.
    pub work: Work,
    /// Expected prefill seconds, as of the booking.
    pub prefill_s: f64,
    /// When the request was booked, seconds.
    pub booked_at_s: f64,
    /// When the booking expires, seconds.
    pub expires_at_s: f64,
    /// When the first token was expected, as of the booking, seconds.
    pub due_s: f64,
    /// Seconds from the booking to the first token, as predicted at the booking. 0 where no first token is expected.
    pub predicted_s: f64,
    /// Whether the answer comes in one piece, so that no first token is reported. Its prefill counts as over at
    /// `due_s`.
    pub is_unstreamed: bool,
    /// Whether the index may misjudge `work`, because it misleads about the worker.
    pub is_unsure: bool,
    /// Pass of the first token, where the prefill curve waits for the engine's count of cached tokens.
    pub waiting_pass: Option<u64>,
    /// Whether another router made the booking. Nothing is learned from it.
    pub is_of_peer: bool,
    /// Set at the first token.
    pub first_token: Option<FirstToken>,
}

impl OpenRequest {
    /// Whether the request waits for its first token.
    pub const fn is_prefilling(&self) -> bool {
        self.first_token.is_none()
    }

    /// Whether this router placed the request and expects a report of its first token.
    ///
    /// A prompt without a new token has its first token at once, and an answer in one piece reports none.
    pub const fn expects_report(&self) -> bool {
        !self.is_unstreamed && !self.is_of_peer && self.work.new_tokens > 0
    }
}

/// The first token of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstToken {
    /// When the first token came, seconds.
    pub at_s: f64,
    /// The worker's integrals at that time.
    pub integrals: Integrals,
}

/// Integrals over time of a worker's load. A difference of two readings over the time between them is a mean.
///
/// They grow for ever; as 64-bit floats they stay exact enough for years of traffic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Integrals {
    /// Decoding requests · seconds.
    pub batch: f64,
    /// Distinct prompt tokens in flight · seconds.
    pub kv_tokens: f64,
    /// Prefill seconds of finished prefills.
    pub prefill_s: f64,
}

/// The account of one worker. All sums are 0 when no request is in flight, up to rounding.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerAccount {
    /// Prefill seconds of requests before their first token.
    pub prefill_s: f64,
    /// Prompt tokens to compute of the same requests.
    pub prefill_tokens: u64,
    /// Requests in flight.
    pub requests: u32,
    /// Requests in flight after their first token.
    pub decoding: u32,
    /// Distinct prompt tokens in flight.
    pub kv_tokens: f64,
    /// Time up to which the integrals are complete.
    at_s: f64,
    /// Integrals of the load up to `at_s`.
    pub integrals: Integrals,
    /// Arriving requests.
    pub arrivals: Rate,
    /// Arriving prefill seconds.
    pub prefill: Rate,
    /// Tokens of the KV cache. Infinite when unknown.
    pub kv_capacity_tokens: f64,
    /// Tokens of one engine pass, above 0.
    pub chunk_tokens: u64,
    /// Sequences that run at once. The maximum when unknown.
    pub max_requests: u32,
    /// Blocks that a stored block evicts.
    pub evictions: EvictionRate,
    /// Prompts that wait in the engine, by its reports.
    pub queue: PromptQueue,
    /// Expected first tokens in order of booking. Requests whose first token came stay until they reach the front, or
    /// until they are too many.
    pub due: VecDeque<(f64, RequestId)>,
}

/// How full a worker is: what a queue needs to know to hold a request back.
///
/// A request is held back only for figures that the engine or its outcomes confirm. A worker that reports
/// nothing always has room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    /// Whether the engine or the outcomes of its requests confirm the figures below. Where neither does, they are no
    /// reason to wait.
    pub is_reported: bool,
    /// Prefill seconds of requests before their first token.
    pub backlog_s: f64,
    /// Requests before their first token.
    pub prefills: u32,
    /// Prompt tokens to compute of the same requests.
    pub prefill_tokens: u64,
    /// Tokens of one engine pass.
    pub chunk_tokens: u64,
    /// Requests in flight.
    pub requests: u32,
    /// Sequences that run at once.
    pub max_requests: u32,
    /// Distinct prompt tokens in flight.
    pub kv_tokens: f64,
    /// Tokens of the KV cache. Infinite when unknown.
    pub kv_capacity_tokens: f64,
}

impl WorkerAccount {
    /// Replaces the sizes of the worker; work in flight stays.
    pub fn set_spec(&mut self, spec: &WorkerSpec, block_size: u32) {
        let sizes = Self::new(spec, block_size);
        self.kv_capacity_tokens = sizes.kv_capacity_tokens;
        self.chunk_tokens = sizes.chunk_tokens;
        self.max_requests = sizes.max_requests;
    }

    /// An empty account of a worker with this specification.
    pub fn new(spec: &WorkerSpec, block_size: u32) -> Self {
        Self {
            kv_capacity_tokens: spec
                .total_kv_blocks
                .map_or(f64::INFINITY, |blocks| blocks as f64 * f64::from(block_size)),
            chunk_tokens: spec
                .max_num_batched_tokens
                .map_or(DEFAULT_CHUNK_TOKENS, u64::from)
                .max(1),
            max_requests: spec.max_num_seqs.unwrap_or(u32::MAX),
            ..Self::default()
        }
    }

    /// How full the worker is. O(1).
    ///
    /// Its prompts are the prompts that its engine reports, corrected by what the report cannot have seen.
    /// Without a fresh report they are the prompts that are booked here.
    ///
    /// The backlog of reported prompts is their tokens at the speed of a full chunk, since their lengths are
    /// not reported.
    pub fn occupancy(&self, curves: &WorkerCurves, now_s: f64) -> Occupancy {
        let booked = WaitingPrompts {
            count: self.requests.saturating_sub(self.decoding),
            tokens: self.prefill_tokens,
        };
        let reported = self.queue.prompts(booked, now_s);
        let prompts = reported.unwrap_or(booked);
        let backlog_s = if prompts.tokens == booked.tokens {
            self.prefill_s
        } else {
            prompts.tokens as f64 * chunk_token_s(curves, self.chunk_tokens)
        };
        Occupancy {
            is_reported: reported.is_some(),
            backlog_s,
            prefills: prompts.count,
            prefill_tokens: prompts.tokens,
            chunk_tokens: self.chunk_tokens,
            requests: self.requests,
            max_requests: self.max_requests,
            kv_tokens: self.kv_tokens,
            kv_capacity_tokens: self.kv_capacity_tokens,
        }
    }

    /// Seconds of decode steps per second of prefill: every chunk of a prompt shares its pass with one step of the
    /// batch.
    pub fn steps_per_prefill(&self, curves: &WorkerCurves) -> f64 {
        let chunk_s = curves.prefill_s(self.chunk_tokens, 0);
        if self.decoding == 0 || chunk_s <= 0.0 {
            return 0.0;
        }
        curves.step_s(f64::from(self.decoding), self.kv_tokens) / chunk_s
    }

    /// Ends the prefill of a request and starts its decode.
    pub fn first_token(&mut self, request: &mut OpenRequest, now_s: f64) {
        self.advance(now_s);
        self.end_prefill(request);
        self.queue.end(request.booked_at_s, request.work.new_tokens);
        self.integrals.prefill_s += request.prefill_s;
        self.decoding += 1;
        request.first_token = Some(FirstToken {
            at_s: now_s,
            integrals: self.integrals,
        });
    }

    /// Takes the prompt of a request out of the backlog. Sums never fall below 0, regardless of rounding.
    pub fn end_prefill(&mut self, request: &OpenRequest) {
        self.prefill_s = (self.prefill_s - request.prefill_s).max(0.0);
        self.prefill_tokens = self.prefill_tokens.saturating_sub(request.work.new_tokens);
    }

    /// Completes the integrals up to `now_s`. Time never runs backwards.
    pub fn advance(&mut self, now_s: f64) {
        let span_s = (now_s - self.at_s).max(0.0);
        self.integrals.batch += span_s * f64::from(self.decoding);
        self.integrals.kv_tokens += span_s * self.kv_tokens;
        self.at_s = self.at_s.max(now_s);
    }
}

/// Fewest gaps between tokens that teach the step curve. A mean over fewer gaps is mostly noise.
const MIN_GAPS: u32 = 4;
/// Share of an answer's time that prefills of others may account for at most. Their seconds are estimates,
/// and the decode of the answer took some of the time.
const MAX_STALLED_SHARE: f64 = 0.8;

/// The mean step that a finished answer saw, and the load of its decode: what the step curve learns from it.
///
/// ```text
/// step = (end − first token − stalled) / (output tokens − 1),  stalled = prefill seconds of others in between
/// ```
///
/// `None` for answers of fewer than five tokens. `written_tokens` is the mean of tokens written so far by a running
/// answer.
pub(super) fn mean_step(
    account: &WorkerAccount,
    first: &FirstToken,
    output_tokens: u32,
    written_tokens: f64,
    now_s: f64,
) -> Option<(StepLoad, f64)> {
    let gaps = output_tokens.saturating_sub(1);
    let span_s = now_s - first.at_s;
    if gaps < MIN_GAPS || span_s <= 0.0 {
        return None;
    }
    let (from, to) = (&first.integrals, &account.integrals);
    let stalled_s = (to.prefill_s - from.prefill_s).min(MAX_STALLED_SHARE * span_s);
    let batch = (to.batch - from.batch) / span_s;
    let written = written_tokens * batch;
    let kv_tokens = (to.kv_tokens - from.kv_tokens) / span_s + written;
    Some((
        StepLoad { batch, kv_tokens },
        (span_s - stalled_s) / f64::from(gaps),
    ))
}

/// Seconds per token of a full chunk.
pub(super) fn chunk_token_s(curves: &WorkerCurves, chunk_tokens: u64) -> f64 {
    curves.prefill_s(chunk_tokens, 0) / chunk_tokens as f64
}

/// Decode seconds that a first token shared its passes with: one step of the batch per chunk of the prompt.
pub(super) fn shared_steps_s(account: &WorkerAccount, curves: &FleetCurves, slot: Slot, work: Work) -> f64 {
    let batch = f64::from(account.decoding);
    if batch > 0.0 {
        let chunks = work.new_tokens.div_ceil(account.chunk_tokens) as f64;
        chunks * curves.of(slot.index()).step_s(batch, account.kv_tokens)
    } else {
        0.0
    }
}
