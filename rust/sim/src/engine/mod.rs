//! One simulated engine: continuous batching over a paged, prefix-shared KV cache.
//!
//! An iteration first gives every running sequence the tokens it still has to compute, then admits waiting ones in order
//! while sequences, tokens and blocks allow. It takes `prefill_ms(new prompt tokens) + decode_ms(batch, KV, context)`; at its
//! end every sequence that is fully computed emits one token. This is the schedule of Dynamo's mock vLLM engine
//! (`lib/mocker/src/scheduler/vllm`), and of vLLM v1 itself but for prompt and output tokens sharing one forward pass.
//!
//! While nothing but decoding happens, iterations differ only in how many blocks and tokens are held, which a histogram of
//! block offsets gives in O(1): a *run* of iterations is planned at once, one entry of [`Worker::ends_ms`] each, and cut at
//! the next boundary when something arrives. Cost: O(sequences) per run plus O(1) per iteration.
//!
//! Here is what an engine is and how requests come and go; `schedule.rs` fills an iteration, `memory.rs` finds and gives its
//! blocks, `pass.rs` says how long it takes and hands out its tokens.

mod memory;
mod pass;
mod schedule;

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::config::{EngineSpec, Role};
use crate::pool::{BlockPool, Evicted, NONE};
use crate::record::{GapHistogram, Requests, Totals};
use crate::tier::{TierChange, Tiers};
use crate::timing::{Cursor, Timing};
use crate::workload::{Naming, Workload};
use wardrop_core::latency::Pass;

/// A change of a worker's cache, to be told to routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheChange {
    /// Prompt blocks `from..to` of `request` can now be reused.
    Stored { request: u32, from: u32, to: u32 },
    /// A block left device memory.
    Removed { block: u32 },
    /// A block moved between lower tiers.
    Tier(TierChange),
}

/// What one iteration tells the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// First token out.
    First(u32),
    /// Last token out.
    Done(u32),
    /// Will never fit.
    Rejected(u32),
}

/// Everything an engine reads and writes beside itself.
pub(crate) struct Desk<'a> {
    pub workload: Cow<'a, Workload>,
    pub naming: Naming,
    pub requests: Requests,
    pub gaps: GapHistogram,
    pub totals: Totals,
    /// Cleared by the fleet after each call.
    pub changes: Vec<CacheChange>,
    /// Cleared by the fleet after each call.
    pub signals: Vec<Signal>,
    /// (request, when its blocks are back in device memory).
    pub parked: Vec<(u32, f64)>,
    /// (request, tokens' worth of whole blocks to send): room for its KV is reserved at its decode worker.
    pub reserved: Vec<(u32, u32)>,
}

impl<'a> Desk<'a> {
    pub fn new(workload: Cow<'a, Workload>, naming: Naming) -> Self {
        Self {
            requests: Requests::new(workload.len()),
            workload,
            naming,
            gaps: GapHistogram::new(),
            totals: Totals::default(),
            changes: Vec::new(),
            signals: Vec::new(),
            parked: Vec::new(),
            reserved: Vec::new(),
        }
    }

    /// The block before prompt block `index` of `request`.
    fn parent(&self, request: u32, index: u32) -> u32 {
        index
            .checked_sub(1)
            .map_or(NONE, |before| self.naming.block(&self.workload, request, before))
    }
}

#[derive(Debug, Default)]
struct Sequence {
    request: u32,
    prompt: u32,
    output: u32,
    /// Prompt and generated tokens.
    known: u32,
    /// Tokens whose KV exists (or will at the end of this iteration).
    computed: u32,
    generated: u32,
    /// Tokens given to this sequence by the iteration at hand.
    scheduled: u32,
    /// They are prompt (or computed again), not one new token.
    prefilling: bool,
    slots: Vec<u32>,
    started: bool,
    onboarded: bool,
    last_token_ms: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    prompts: u64,
    total: u64,
    prefix: u64,
    preempted: bool,
}

enum Placed {
    Scheduled,
    Blocked,
    Preempted,
}

/// One engine.
#[derive(Debug)]
pub(crate) struct Worker {
    spec: EngineSpec,
    role: Role,
    pub speed: f64,
    pool: BlockPool,
    tiers: Tiers,
    sequences: Vec<Sequence>,
    unused: Vec<u32>,
    waiting: VecDeque<u32>,
    running: Vec<u32>,
    /// Waiting for a read from the tiers, each with the slots of its device prefix, which must not go meanwhile.
    parked: Vec<(u32, Vec<u32>)>,
    /// Requests whose reads are over.
    landed: Vec<u32>,
    /// Prompts computed here whose KV still has to leave: their blocks stay.
    held: Vec<u32>,
    /// Requests whose KV has left.
    let_go: Vec<u32>,
    /// Requests that want room for KV from elsewhere.
    incoming: VecDeque<u32>,
    /// The first of them finds none until something ends.
    full: bool,
    /// Room is reserved, the KV on its way.
    reserved: Vec<u32>,
    /// Ends of the planned iterations; empty while idle.
    ends_ms: Vec<f64>,
    start_ms: f64,
    /// Nothing starts before this (a hang).
    pub not_before_ms: f64,
    next_epoch_ms: f64,
    /// The head of the queue cannot be admitted until something ends.
    blocked: bool,
    cursor: Cursor,
    offsets: Vec<u32>,
    evicted: Vec<Evicted>,
    tier_changes: Vec<TierChange>,
    /// Slots of the prefix that the last look-up found.
    found: Vec<u32>,
    /// Every iteration is told of, so they are planned one by one.
    reports: bool,
    /// What the iteration at hand does.
    pass: Pass,
}

impl Worker {
    pub fn new(spec: &EngineSpec, role: Role, speed: f64) -> Self {
        let block_bytes = spec.kv_bytes_per_token * f64::from(spec.block_size);
        Self {
            role,
            speed,
            pool: BlockPool::new(spec.num_blocks, spec.eviction),
            tiers: Tiers::new(&spec.tiers, block_bytes),
            sequences: Vec::new(),
            unused: Vec::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            parked: Vec::new(),
            landed: Vec::new(),
            held: Vec::new(),
            let_go: Vec::new(),
            incoming: VecDeque::new(),
            full: false,
            reserved: Vec::new(),
            ends_ms: Vec::new(),
            start_ms: 0.0,
            not_before_ms: 0.0,
            next_epoch_ms: spec.frequency_epoch_ms,
            blocked: false,
            cursor: Cursor::default(),
            offsets: vec![0; spec.block_size as usize],
            evicted: Vec::new(),
            tier_changes: Vec::new(),
            found: Vec::new(),
            reports: false,
            pass: Pass::default(),
            spec: spec.clone(),
        }
    }

    /// Tell of every iteration.
    pub fn with_reports(mut self, reports: bool) -> Self {
        self.reports = reports;
        self
    }

    /// The iteration that has just been finished.
    pub const fn last_pass(&self) -> &Pass {
        &self.pass
    }

    /// What it is made of.
    pub const fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    /// Another timing, from the next iteration on.
    pub fn set_timing(&mut self, timing: Timing) {
        self.spec.timing = timing;
        self.cursor = Cursor::default();
    }

    pub fn busy(&self) -> bool {
        !self.ends_ms.is_empty()
    }

    pub fn has_work(&self) -> bool {
        let queues = [self.running.len(), self.waiting.len(), self.incoming.len()];
        let chores = [self.landed.len(), self.let_go.len()];
        queues.iter().chain(&chores).any(|len| *len > 0)
    }

    pub fn running(&self) -> u32 {
        self.running.len() as u32
    }

    pub fn waiting(&self) -> u32 {
        (self.waiting.len() + self.parked.len() + self.incoming.len() + self.reserved.len()) as u32
    }

    /// Requests whose first token came by `now_ms` inside the planned run of iterations, and when.
    pub fn first_tokens(&self, now_ms: f64) -> Vec<(u32, f64)> {
        let Some(first_ms) = self.ends_ms.first().copied().filter(|end_ms| *end_ms <= now_ms) else {
            return Vec::new();
        };
        let sequences = self.running.iter().map(|at| &self.sequences[*at as usize]);
        let first = |sequence: &&Sequence| {
            self.role != Role::Prefill && sequence.generated == 0 && Self::is_ready(sequence)
        };
        sequences
            .filter(first)
            .map(|sequence| (sequence.request, first_ms))
            .collect()
    }

    pub fn active_blocks(&self) -> u32 {
        self.pool.active()
    }

    /// End of the planned iterations, ms; only while busy.
    pub fn end_ms(&self) -> f64 {
        self.ends_ms.last().copied().unwrap_or(self.start_ms)
    }

    /// Take a request.
    pub fn enqueue(&mut self, request: u32, desk: &Desk<'_>) {
        let at = self.sequence(request, 0, desk);
        self.waiting.push_back(at);
    }

    /// Ask for room for a prompt that was computed elsewhere. Granted when an iteration starts (see [`Desk::reserved`]);
    /// returns the new end if a run was cut for that.
    pub fn offer(&mut self, request: u32, now_ms: f64, desk: &Desk<'_>) -> Option<f64> {
        let prompt = desk.workload.input_tokens[request as usize];
        let at = self.sequence(request, prompt, desk);
        self.incoming.push_back(at);
        if self.full { None } else { self.cut(now_ms) }
    }

    /// The KV of a reserved request is here; returns the new end if a run was cut for it. It needs no blocks, so a queue that
    /// waits for some does not keep it out.
    pub fn activate(&mut self, request: u32, now_ms: f64) -> Option<f64> {
        if let Some(place) = self.find(&self.reserved, request) {
            let at = self.reserved.remove(place);
            self.waiting.push_back(at);
        }
        if self.running.len() >= self.spec.max_num_seqs as usize {
            None
        } else {
            self.cut(now_ms)
        }
    }

    /// The KV of a prompt computed here has left; its blocks go when the next iteration starts.
    pub fn let_go(&mut self, request: u32) {
        self.let_go.push(request);
    }

    fn find(&self, list: &[u32], request: u32) -> Option<usize> {
        list.iter()
            .position(|at| self.sequences[*at as usize].request == request)
    }

    fn sequence(&mut self, request: u32, computed: u32, desk: &Desk<'_>) -> u32 {
        let prompt = desk.workload.input_tokens[request as usize];
        let output = if self.role == Role::Prefill && !self.spec.prefill_answers {
            1
        } else {
            desk.workload.output_tokens[request as usize]
        };
        let at = self.unused.pop().unwrap_or_else(|| {
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
        sequence.onboarded = false;
        sequence.last_token_ms = f64::NAN;
        at
    }

    /// Cut a run of decode iterations at the first boundary at or after `now_ms`, because something wants in. Returns the new
    /// end when it changed.
    pub fn interrupt(&mut self, now_ms: f64) -> Option<f64> {
        if self.ends_ms.len() < 2 || self.blocked || self.running.len() >= self.spec.max_num_seqs as usize {
            return None;
        }
        self.cut(now_ms)
    }

    /// Cut the run whatever the queue looks like (the engine's speed changes).
    pub fn cut(&mut self, now_ms: f64) -> Option<f64> {
        let at = self.ends_ms.partition_point(|end| *end < now_ms);
        if at + 1 >= self.ends_ms.len() {
            return None;
        }
        self.ends_ms.truncate(at + 1);
        self.ends_ms.last().copied()
    }

    /// Stand still for `for_ms`. Returns the new end of the iteration in progress, if there is one.
    pub fn hang(&mut self, now_ms: f64, for_ms: f64) -> Option<f64> {
        self.not_before_ms = self.not_before_ms.max(now_ms + for_ms);
        self.cut(now_ms);
        let end = self.ends_ms.last_mut()?;
        *end += for_ms;
        Some(*end)
    }

    /// Keep only the iterations that are over by `now_ms`. True when there are any, to be finished.
    pub fn settle(&mut self, now_ms: f64) -> bool {
        let over = self.ends_ms.partition_point(|end| *end <= now_ms);
        self.ends_ms.truncate(over);
        over > 0
    }

    /// Lose everything; returns the requests that were here.
    pub fn crash(&mut self) -> Vec<u32> {
        let parked = self.parked.drain(..).map(|(at, _)| at);
        let coming = self.incoming.drain(..).chain(self.reserved.drain(..));
        let here = self
            .running
            .drain(..)
            .chain(self.waiting.drain(..))
            .chain(parked)
            .chain(coming);
        let requests = here.map(|at| self.sequences[at as usize].request).collect();
        *self = Self::new(&self.spec, self.role, self.speed).with_reports(self.reports);
        requests
    }

    /// Blocks of a parked request are back. The engine takes them in when its next iteration starts; returns the new end if a
    /// run was cut for that.
    pub fn landed(&mut self, request: u32, now_ms: f64) -> Option<f64> {
        self.landed.push(request);
        self.cut(now_ms)
    }

    fn is_ready(sequence: &Sequence) -> bool {
        sequence.computed >= sequence.known
    }
}
