//! One simulated engine: continuous batching over a paged, prefix-shared KV cache.
//!
//! An iteration first gives every running sequence the tokens that it still has to compute. It then admits waiting
//! sequences in order, while the limits on sequences, tokens and blocks allow. The iteration takes
//! `prefill_ms(new prompt tokens) + decode_ms(batch, KV, context)`. At its end, every sequence that is fully computed
//! emits one token. Dynamo's mock vLLM engine (`lib/mocker/src/scheduler/vllm`) has the same schedule. vLLM v1 differs
//! in one point: it computes prompt and output tokens in one forward pass.
//!
//! While every running sequence only decodes, iterations differ only in the number of blocks and tokens held. A
//! histogram of positions within the last block gives both in O(1). The engine therefore plans a run of iterations at
//! once, one entry of [`Worker::ends_ms`] each. A request that arrives cuts the run at its next boundary. Cost:
//! O(sequences) per run plus O(1) per iteration.
//!
//! This file defines the engine and how requests enter and leave it. `schedule` fills an iteration, `memory` finds and
//! allocates its blocks, and `iteration` computes its duration and emits its tokens.

pub(crate) mod block_pool;
mod iteration;
mod memory;
mod run_state;
mod schedule;
mod shared_blocks;
pub(crate) mod tiers;

use std::collections::VecDeque;

use wardrop_core::latency::Pass;

use block_pool::{BlockPool, Evicted};
pub(crate) use run_state::{CacheChange, Onboarding, Reservation, RunState, Signal};
pub(crate) use shared_blocks::SharedBlocks;
use tiers::{TierChange, Tiers};

use crate::spec::{EngineSpec, Role};
use crate::timing::{Cursor, Timing};

/// A request inside the engine. All lengths are tokens.
#[derive(Debug, Default)]
struct Sequence {
    request: u32,
    prompt: u32,
    /// Tokens to generate here.
    output: u32,
    /// Prompt tokens plus generated tokens.
    known: u32,
    /// Tokens whose KV exists, or will exist at the end of this iteration.
    computed: u32,
    generated: u32,
    /// Tokens that this iteration computes for the sequence.
    scheduled: u32,
    /// Whether the scheduled tokens are prompt or recomputed tokens, rather than one new token.
    prefilling: bool,
    /// Slots of the block pool, in order of the sequence.
    slots: Vec<u32>,
    /// Whether the sequence was admitted before.
    started: bool,
    /// Whether a read from lower tiers was started for it. One read per request is enough.
    tried_onboarding: bool,
    last_token_ms: f64,
}

/// A sequence that waits for a read from lower tiers.
#[derive(Debug)]
struct OnboardingSequence {
    /// Index of the sequence.
    at: u32,
    /// Slots of its prefix in device memory. They stay held, so that no eviction takes them meanwhile.
    held_slots: Vec<u32>,
}

/// What one iteration computes.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    /// Sequences that compute prompt tokens.
    prefills: u64,
    /// Sum over the prefills of the tokens computed after the iteration.
    tokens_after: u64,
    /// Sum over the prefills of the tokens computed or cached before the iteration.
    tokens_before: u64,
    /// Whether a sequence lost its blocks.
    preempted: bool,
}

/// Result of giving a sequence its tokens in an iteration.
enum Scheduling {
    /// The sequence has its tokens and blocks.
    Scheduled,
    /// The iteration has no tokens or blocks left for it.
    Blocked,
    /// The sequence itself was preempted.
    Preempted,
}

/// The first token of a request, inside a run of iterations that the engine has not reported yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstToken {
    pub request: u32,
    pub at_ms: f64,
}

/// One engine. `u32` lists hold indices into `sequences`, unless their documentation says otherwise.
#[derive(Debug)]
pub(crate) struct Worker {
    spec: EngineSpec,
    role: Role,
    /// Factor of the timing: 1 is the timing as given, 0.5 is half as fast.
    pub speed: f64,
    pool: BlockPool,
    tiers: Tiers,
    sequences: Vec<Sequence>,
    /// Sequences that can be used again.
    free_sequences: Vec<u32>,
    waiting: VecDeque<u32>,
    running: Vec<u32>,
    /// Sequences that wait for a read from lower tiers.
    onboarding: Vec<OnboardingSequence>,
    /// Requests whose read from lower tiers is over, until the next iteration takes them in.
    onboarded: Vec<u32>,
    /// Computed prompts whose KV has not been sent yet. They keep their blocks.
    awaiting_send: Vec<u32>,
    /// Requests whose KV has been sent, until the next iteration frees their blocks.
    sent: Vec<u32>,
    /// Sequences that need blocks for KV from a prefill worker, in order.
    awaiting_room: VecDeque<u32>,
    /// Whether the first entry of `awaiting_room` finds too few blocks until a sequence ends.
    is_out_of_room: bool,
    /// Sequences with reserved blocks whose KV has not arrived yet.
    reserved: Vec<u32>,
    /// End times of the planned iterations; empty while the engine is idle.
    ends_ms: Vec<f64>,
    start_ms: f64,
    /// No iteration starts before this time. A hang sets it.
    pub not_before_ms: f64,
    next_epoch_ms: f64,
    /// Whether the head of `waiting` cannot be admitted until a sequence ends.
    blocked: bool,
    cursor: Cursor,
    /// Number of running sequences per position in their last block. It is all 0 outside of planning.
    block_offsets: Vec<u32>,
    /// Blocks evicted since the last report of evictions.
    evicted: Vec<Evicted>,
    /// Working memory of a report of evictions.
    tier_changes: Vec<TierChange>,
    /// Slots of the prefix that the last look-up found.
    cached_slots: Vec<u32>,
    /// Whether the engine reports every iteration. Iterations are then planned one by one.
    reports_iterations: bool,
    /// Counts of the iteration that is planned or was finished last.
    pass: Pass,
}

impl Worker {
    /// An idle engine with empty caches.
    pub fn new(spec: &EngineSpec, role: Role, speed: f64) -> Self {
        let block_bytes = spec.kv_bytes_per_token * f64::from(spec.block_size);
        Self {
            role,
            speed,
            pool: BlockPool::new(spec.num_blocks, spec.eviction),
            tiers: Tiers::new(&spec.tiers, block_bytes),
            sequences: Vec::new(),
            free_sequences: Vec::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            onboarding: Vec::new(),
            onboarded: Vec::new(),
            awaiting_send: Vec::new(),
            sent: Vec::new(),
            awaiting_room: VecDeque::new(),
            is_out_of_room: false,
            reserved: Vec::new(),
            ends_ms: Vec::new(),
            start_ms: 0.0,
            not_before_ms: 0.0,
            next_epoch_ms: spec.frequency_epoch_ms,
            blocked: false,
            cursor: Cursor::default(),
            block_offsets: vec![0; spec.block_size as usize],
            evicted: Vec::new(),
            tier_changes: Vec::new(),
            cached_slots: Vec::new(),
            reports_iterations: false,
            pass: Pass::default(),
            spec: spec.clone(),
        }
    }

    /// Reports every iteration if `reports` is true.
    pub fn with_reports(mut self, reports: bool) -> Self {
        self.reports_iterations = reports;
        self
    }

    /// Counts and duration of the iteration finished last.
    pub const fn last_pass(&self) -> &Pass {
        &self.pass
    }

    /// The engine's specification.
    pub const fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    /// Changes the timing, from the next planned iteration on.
    pub fn set_timing(&mut self, timing: Timing) {
        self.spec.timing = timing;
        self.cursor = Cursor::default();
    }

    /// Whether iterations are planned that have not ended.
    pub fn busy(&self) -> bool {
        !self.ends_ms.is_empty()
    }

    /// Whether an iteration could do anything: sequences that run or wait, or transfers that ended.
    pub fn has_work(&self) -> bool {
        let queues = [self.running.len(), self.waiting.len(), self.awaiting_room.len()];
        let finished_transfers = [self.onboarded.len(), self.sent.len()];
        queues.iter().chain(&finished_transfers).any(|len| *len > 0)
    }

    /// Sequences in the batch.
    pub fn running(&self) -> u32 {
        self.running.len() as u32
    }

    /// Sequences that wait: in the queue, for a read from lower tiers, for room, or for KV from a prefill
    /// worker.
    pub fn waiting(&self) -> u32 {
        (self.waiting.len() + self.onboarding.len() + self.awaiting_room.len() + self.reserved.len()) as u32
    }

    /// Requests whose first token falls into the planned run and is due by `now_ms`, with the time of that token.
    ///
    /// The engine reports a run only at its end, so the fleet cannot know these tokens otherwise.
    pub fn first_tokens(&self, now_ms: f64) -> Vec<FirstToken> {
        let Some(at_ms) = self.ends_ms.first().copied().filter(|end_ms| *end_ms <= now_ms) else {
            return Vec::new();
        };
        let sequences = self.running.iter().map(|at| &self.sequences[*at as usize]);
        let is_first = |sequence: &&Sequence| {
            self.role != Role::Prefill && sequence.generated == 0 && Self::is_ready(sequence)
        };
        sequences
            .filter(is_first)
            .map(|sequence| FirstToken {
                request: sequence.request,
                at_ms,
            })
            .collect()
    }

    /// Blocks that sequences hold.
    pub fn active_blocks(&self) -> u32 {
        self.pool.active()
    }

    /// End of the last planned iteration, in milliseconds; meaningful only while the engine is busy.
    pub fn end_ms(&self) -> f64 {
        self.ends_ms.last().copied().unwrap_or(self.start_ms)
    }

    /// Appends a request to the queue.
    pub fn enqueue(&mut self, request: u32, state: &RunState<'_>) {
        let at = self.new_sequence(request, 0, state);
        self.waiting.push_back(at);
    }

    /// Asks for blocks for a prompt that a prefill worker computed.
    ///
    /// The next iteration that has enough blocks adds a [`Reservation`]. Returns the new end of the run if it was cut.
    pub fn request_room(&mut self, request: u32, now_ms: f64, state: &RunState<'_>) -> Option<f64> {
        let prompt = state.workload.input_tokens[request as usize];
        let at = self.new_sequence(request, prompt, state);
        self.awaiting_room.push_back(at);
        if self.is_out_of_room {
            None
        } else {
            self.cut(now_ms)
        }
    }

    /// Queues a reserved request whose KV has arrived. Returns the new end of the run if it was cut.
    ///
    /// The request already has its blocks, so it enters even while the head of the queue waits for blocks.
    pub fn kv_arrived(&mut self, request: u32, now_ms: f64) -> Option<f64> {
        if let Some(place) = self.position_in(&self.reserved, request) {
            let at = self.reserved.remove(place);
            self.waiting.push_back(at);
        }
        if self.running.len() >= self.spec.max_num_seqs as usize {
            None
        } else {
            self.cut(now_ms)
        }
    }

    /// Notes that the KV of a prompt computed here has been sent. The next iteration frees its blocks.
    pub fn kv_sent(&mut self, request: u32) {
        self.sent.push(request);
    }

    /// Position of a request in a list of sequences.
    fn position_in(&self, list: &[u32], request: u32) -> Option<usize> {
        list.iter()
            .position(|at| self.sequences[*at as usize].request == request)
    }

    /// Index of a new sequence, of which `computed` prompt tokens have their KV already.
    fn new_sequence(&mut self, request: u32, computed: u32, state: &RunState<'_>) -> u32 {
        let prompt = state.workload.input_tokens[request as usize];
        let output = if self.role == Role::Prefill && !self.spec.prefill_answers {
            1
        } else {
            state.workload.output_tokens[request as usize]
        };
        let at = self.free_sequences.pop().unwrap_or_else(|| {
            self.sequences.push(Sequence::default());
            self.sequences.len() as u32 - 1
        });
        let sequence = &mut self.sequences[at as usize];
        sequence.request = request;
        sequence.prompt = prompt;
        sequence.output = output;
        sequence.known = prompt;
        sequence.computed = computed;
        sequence.generated = 0;
        sequence.started = false;
        sequence.tried_onboarding = false;
        sequence.last_token_ms = f64::NAN;
        at
    }

    /// Cuts a run of iterations so that a waiting request can be admitted. Returns the new end if the run was cut.
    ///
    /// A run stays whole if no request could be admitted at its boundary.
    pub fn interrupt(&mut self, now_ms: f64) -> Option<f64> {
        if self.ends_ms.len() < 2 || self.blocked || self.running.len() >= self.spec.max_num_seqs as usize {
            return None;
        }
        self.cut(now_ms)
    }

    /// Cuts a run at its first boundary at or after `now_ms`, regardless of the queue. Returns the new end if it was cut.
    pub fn cut(&mut self, now_ms: f64) -> Option<f64> {
        let at = self.ends_ms.partition_point(|end| *end < now_ms);
        if at + 1 >= self.ends_ms.len() {
            return None;
        }
        self.ends_ms.truncate(at + 1);
        self.ends_ms.last().copied()
    }

    /// Stops the engine for `for_ms`. Returns the new end of the iteration in progress, if there is one.
    pub fn hang(&mut self, now_ms: f64, for_ms: f64) -> Option<f64> {
        self.not_before_ms = self.not_before_ms.max(now_ms + for_ms);
        self.cut(now_ms);
        let end = self.ends_ms.last_mut()?;
        *end += for_ms;
        Some(*end)
    }

    /// Drops the planned iterations that end after `now_ms`. Returns true if finished iterations remain.
    pub fn keep_finished_iterations(&mut self, now_ms: f64) -> bool {
        let over = self.ends_ms.partition_point(|end| *end <= now_ms);
        self.ends_ms.truncate(over);
        over > 0
    }

    /// Empties the engine, cache included. Returns the requests that it had not finished.
    pub fn crash(&mut self) -> Vec<u32> {
        let onboarding = self.onboarding.drain(..).map(|waiting| waiting.at);
        let without_kv = self.awaiting_room.drain(..).chain(self.reserved.drain(..));
        let all = self
            .running
            .drain(..)
            .chain(self.waiting.drain(..))
            .chain(onboarding)
            .chain(without_kv);
        let requests = all.map(|at| self.sequences[at as usize].request).collect();
        *self = Self::new(&self.spec, self.role, self.speed).with_reports(self.reports_iterations);
        requests
    }

    /// Notes that the read from lower tiers for `request` is over. The next iteration takes its blocks in.
    ///
    /// Returns the new end of the run if it was cut.
    pub fn blocks_onboarded(&mut self, request: u32, now_ms: f64) -> Option<f64> {
        self.onboarded.push(request);
        self.cut(now_ms)
    }

    fn is_ready(sequence: &Sequence) -> bool {
        sequence.computed >= sequence.known
    }
}
