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

use std::borrow::Cow;
use std::collections::VecDeque;

use super::config::{EngineSpec, Preemption, Role};
use super::pool::{BlockPool, Evicted, GENERATED, NONE};
use super::record::{GapHistogram, Requests, Totals};
use super::tier::{TierChange, Tiers};
use super::timing::{Cursor, DecodeStep, Timing};
use super::workload::{Naming, Workload};
use crate::latency::Pass;

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

    /// Cache the blocks that came back for `request` and let it run.
    fn onboard(&mut self, request: u32, desk: &mut Desk<'_>) {
        let Some(place) = self
            .parked
            .iter()
            .position(|(at, _)| self.sequences[*at as usize].request == request)
        else {
            return;
        };
        let (at, pinned) = self.parked.swap_remove(place);
        let whole = desk.naming.whole_blocks(&desk.workload, request);
        let mut first = 0;
        while first < whole
            && self
                .pool
                .find(desk.naming.block(&desk.workload, request, first))
                .is_some()
        {
            first += 1;
        }
        let mut last = first;
        let mut held = Vec::new();
        while last < whole {
            let block = desk.naming.block(&desk.workload, request, last);
            if self.pool.find(block).is_some() || self.tiers.holds(block).is_none() {
                break;
            }
            let Some(slot) = self.pool.take(&mut self.evicted) else {
                break;
            };
            let parent = desk.parent(request, last);
            self.pool.publish(slot, block, parent);
            held.push(slot);
            last += 1;
        }
        held.iter().rev().for_each(|slot| self.pool.release(*slot));
        for slot in pinned.iter().rev() {
            self.pool.release(*slot);
        }
        if last > first {
            desk.changes.push(CacheChange::Stored {
                request,
                from: first,
                to: last,
            });
            desk.totals.onboarded_tokens += u64::from((last - first) * self.spec.block_size);
        }
        self.tell_evictions(desk);
        self.waiting.push_front(at);
    }

    /// Start an iteration (or a run of them) at `now_ms`. Afterwards [`Self::busy`] tells whether there is an end to wait for.
    pub fn start(&mut self, now_ms: f64, desk: &mut Desk<'_>) {
        self.age_until(now_ms);
        self.make_room(desk);
        let mut landed = std::mem::take(&mut self.landed);
        for request in landed.drain(..) {
            self.onboard(request, desk);
        }
        self.landed = landed;
        // A sequence that had to give way to itself leaves an empty iteration: the next one admits it again.
        while !self.iterate(now_ms, desk) {
            self.make_room(desk);
        }
        // What gave way may have been too large ever to come back: its room is free now, and nothing else will tell.
        if !self.busy() && self.full {
            self.make_room(desk);
        }
    }

    /// Drop what has left, and reserve for what wants to come, in order.
    fn make_room(&mut self, desk: &mut Desk<'_>) {
        while let Some(request) = self.let_go.pop() {
            if let Some(place) = self.find(&self.held, request) {
                let at = self.held.swap_remove(place);
                self.release(at);
                self.unused.push(at);
            }
        }
        self.full = false;
        while let Some(at) = self.incoming.front().copied() {
            let (cached_blocks, inactive_blocks) = self.cached(at, desk);
            let sequence = &self.sequences[at as usize];
            let (request, prompt) = (sequence.request, sequence.prompt);
            let need = prompt.div_ceil(self.spec.block_size);
            if need > self.pool.capacity() {
                desk.signals.push(Signal::Rejected(request));
                self.incoming.pop_front();
                self.unused.push(at);
                continue;
            }
            if need - (cached_blocks - inactive_blocks) > self.pool.available() {
                self.full = true;
                break;
            }
            let held = self.allocate(at, cached_blocks, need as usize);
            debug_assert!(held, "room must have been checked");
            self.announce(at, cached_blocks, prompt / self.spec.block_size, desk);
            self.incoming.pop_front();
            self.reserved.push(at);
            desk.reserved
                .push((request, (need - cached_blocks) * self.spec.block_size));
        }
        self.tell_evictions(desk);
    }

    fn age_until(&mut self, now_ms: f64) {
        while self.next_epoch_ms <= now_ms {
            self.pool.age();
            self.next_epoch_ms += self.spec.frequency_epoch_ms;
        }
    }

    /// One attempt at an iteration; false when it was spent on preemption alone.
    fn iterate(&mut self, now_ms: f64, desk: &mut Desk<'_>) -> bool {
        let mut budget = self.spec.max_num_batched_tokens;
        let mut batch = Batch::default();
        let mut at = 0;
        let mut all_scheduled = true;
        for sequence in &self.running {
            self.sequences[*sequence as usize].scheduled = 0;
        }
        while at < self.running.len() && budget > 0 {
            let current = self.running[at];
            match self.schedule(current, None, &mut budget, &mut batch, desk) {
                // A victim further up the list moves this one down.
                Placed::Scheduled if batch.preempted => {
                    at = self
                        .running
                        .iter()
                        .position(|other| *other == current)
                        .map_or(at, |place| place + 1);
                }
                Placed::Scheduled => at += 1,
                Placed::Blocked => {
                    all_scheduled = false;
                    break;
                }
                Placed::Preempted => {}
            }
        }
        all_scheduled &= at == self.running.len();
        self.blocked = false;
        if !batch.preempted {
            self.admit(now_ms, &mut budget, &mut batch, desk);
        }
        self.tell_evictions(desk);
        self.plan(now_ms, batch, all_scheduled, desk);
        self.busy() || !batch.preempted
    }

    fn admit(&mut self, now_ms: f64, budget: &mut u32, batch: &mut Batch, desk: &mut Desk<'_>) {
        while self.running.len() < self.spec.max_num_seqs as usize && *budget > 0 {
            self.prefer_present();
            let Some(at) = self.waiting.front().copied() else {
                return;
            };
            // KV that came from elsewhere has its blocks already.
            let here = !self.sequences[at as usize].slots.is_empty();
            let (cached_blocks, inactive_blocks) = if here { (0, 0) } else { self.cached(at, desk) };
            let sequence = &self.sequences[at as usize];
            let need = if here {
                0
            } else {
                sequence.known.div_ceil(self.spec.block_size)
            };
            if need > self.pool.capacity() {
                desk.signals.push(Signal::Rejected(sequence.request));
                self.waiting.pop_front();
                self.unused.push(at);
                continue;
            }
            let spare = (f64::from(self.pool.capacity()) * self.spec.watermark) as u32;
            let fresh = need - (cached_blocks - inactive_blocks);
            let reserve = if here || self.pool.active() == 0 { 0 } else { spare };
            if fresh + reserve > self.pool.available() {
                self.blocked = true;
                return;
            }
            if self.role != Role::Decode
                && !self.tiers.is_empty()
                && self.park(at, cached_blocks, now_ms, desk)
            {
                self.waiting.pop_front();
                continue;
            }
            match self.schedule(at, Some(cached_blocks), budget, batch, desk) {
                Placed::Scheduled => {
                    debug_assert_eq!(self.waiting.front(), Some(&at), "admission must not preempt");
                    self.waiting.pop_front();
                    self.running.push(at);
                    let sequence = &mut self.sequences[at as usize];
                    if !sequence.started {
                        sequence.started = true;
                        let i = sequence.request as usize;
                        if self.role != Role::Decode {
                            desk.requests.cached_tokens[i] = cached_blocks * self.spec.block_size;
                            desk.requests.admit_ms[i] = now_ms;
                        }
                    }
                }
                Placed::Blocked | Placed::Preempted => {
                    self.blocked = true;
                    return;
                }
            }
        }
    }

    /// KV that is here already runs first: it holds blocks that a sequence ahead of it may be waiting for.
    fn prefer_present(&mut self) {
        if self.role != Role::Decode {
            return;
        }
        let present = |at: &u32| !self.sequences[*at as usize].slots.is_empty();
        if let Some(place) = self.waiting.iter().position(present).filter(|place| *place > 0)
            && let Some(at) = self.waiting.remove(place)
        {
            self.waiting.push_front(at);
        }
    }

    /// Blocks of the prompt found in device memory, and how many of them nobody holds. At least one token stays to compute.
    fn cached(&mut self, at: u32, desk: &Desk<'_>) -> (u32, u32) {
        self.found.clear();
        let sequence = &self.sequences[at as usize];
        if !self.spec.prefix_caching {
            return (0, 0);
        }
        let whole = sequence.prompt / self.spec.block_size;
        let most = if self.role == Role::Decode {
            whole
        } else {
            whole.min((sequence.known - 1) / self.spec.block_size)
        };
        let mut inactive = 0;
        for index in 0..most {
            match self
                .pool
                .find(desk.naming.block(&desk.workload, sequence.request, index))
            {
                Some(slot) => {
                    inactive += u32::from(!self.pool.is_active(slot));
                    self.found.push(slot);
                }
                None => return (index, inactive),
            }
        }
        (most, inactive)
    }

    /// Read back from the tiers what follows the device prefix; true when the request has to wait for it.
    fn park(&mut self, at: u32, cached_blocks: u32, now_ms: f64, desk: &mut Desk<'_>) -> bool {
        let sequence = &mut self.sequences[at as usize];
        if sequence.onboarded || sequence.started {
            return false;
        }
        let most = (sequence.prompt - 1) / self.spec.block_size;
        let mut counts = vec![0u32; self.tiers.len()];
        for index in cached_blocks..most {
            match self
                .tiers
                .holds(desk.naming.block(&desk.workload, sequence.request, index))
            {
                Some(level) => counts[level] += 1,
                None => break,
            }
        }
        if counts.iter().all(|count| *count == 0) {
            return false;
        }
        sequence.onboarded = true;
        let ready_ms = self.tiers.read(&counts, now_ms);
        desk.parked.push((sequence.request, ready_ms));
        for slot in &self.found {
            self.pool.hold(*slot);
        }
        self.parked.push((at, self.found.clone()));
        true
    }

    /// Give a sequence as many tokens as it wants and the budget has, and the blocks for them.
    fn schedule(
        &mut self,
        at: u32,
        admission: Option<u32>,
        budget: &mut u32,
        batch: &mut Batch,
        desk: &mut Desk<'_>,
    ) -> Placed {
        let size = self.spec.block_size;
        let sequence = &self.sequences[at as usize];
        let cached_blocks = admission.unwrap_or(0);
        let before = sequence.computed + cached_blocks * size;
        let remaining = sequence.known - before;
        if before < sequence.prompt && !self.spec.chunked_prefill && remaining > *budget {
            return Placed::Blocked;
        }
        let tokens = remaining.min(*budget);
        if tokens == 0 && remaining > 0 {
            return Placed::Blocked;
        }
        let after = before + tokens;
        let target = after.div_ceil(size) as usize;
        while !self.allocate(at, cached_blocks, target) {
            let Some(victim) = self.preempt(budget, batch, desk) else {
                return Placed::Blocked;
            };
            if victim == at {
                return Placed::Preempted;
            }
        }
        self.announce(at, before / size, after / size, desk);
        let sequence = &mut self.sequences[at as usize];
        sequence.computed = after;
        sequence.scheduled = tokens;
        // Generated tokens that a preempted sequence computes again cost what a prompt costs.
        sequence.prefilling = before < sequence.prompt || remaining > 1;
        if sequence.prefilling {
            batch.prompts += 1;
            batch.total += u64::from(after);
            batch.prefix += u64::from(before);
            desk.totals.prefill_tokens += u64::from(tokens);
        }
        *budget -= tokens;
        Placed::Scheduled
    }

    /// Grow a sequence to `target` blocks, its first `cached` from the cache when it has none yet. All or nothing.
    fn allocate(&mut self, at: u32, cached: u32, target: usize) -> bool {
        let have = self.sequences[at as usize].slots.len();
        if target <= have {
            return true;
        }
        let mut slots = std::mem::take(&mut self.sequences[at as usize].slots);
        let mut fresh = (target - have) as u32;
        if have == 0 && cached > 0 {
            fresh -= cached;
            slots.extend_from_slice(&self.found[..cached as usize]);
            for slot in &slots {
                self.pool.hold(*slot);
            }
        }
        let enough = fresh <= self.pool.available();
        if enough {
            for _ in 0..fresh {
                let slot = self.pool.take(&mut self.evicted);
                slots.push(slot.expect("availability must have been checked"));
            }
        } else if have == 0 {
            slots.drain(..).rev().for_each(|slot| self.pool.release(slot));
        }
        self.sequences[at as usize].slots = slots;
        enough
    }

    /// Name the prompt blocks `from..to` that are now computed, and tell of those that are new.
    fn announce(&mut self, at: u32, from: u32, to: u32, desk: &mut Desk<'_>) {
        let sequence = &self.sequences[at as usize];
        let to = to.min(sequence.prompt / self.spec.block_size);
        if !self.spec.prefix_caching || from >= to {
            return;
        }
        let mut first = from;
        for index in from..to {
            let slot = sequence.slots[index as usize];
            let block = desk.naming.block(&desk.workload, sequence.request, index);
            if !self
                .pool
                .publish(slot, block, desk.parent(sequence.request, index))
            {
                if first < index {
                    desk.changes.push(CacheChange::Stored {
                        request: sequence.request,
                        from: first,
                        to: index,
                    });
                }
                first = index + 1;
            }
        }
        if first < to {
            desk.changes.push(CacheChange::Stored {
                request: sequence.request,
                from: first,
                to,
            });
        }
    }

    fn preempt(&mut self, budget: &mut u32, batch: &mut Batch, desk: &mut Desk<'_>) -> Option<u32> {
        let place = match self.spec.preemption {
            Preemption::Lifo => self.running.len().checked_sub(1)?,
            Preemption::Fifo if self.running.is_empty() => return None,
            Preemption::Fifo => 0,
        };
        let at = self.running.remove(place);
        batch.preempted = true;
        let sequence = &mut self.sequences[at as usize];
        *budget += sequence.scheduled;
        if sequence.scheduled > 0 && sequence.prefilling {
            batch.prompts -= 1;
            batch.total -= u64::from(sequence.computed);
            batch.prefix -= u64::from(sequence.computed - sequence.scheduled);
            desk.totals.prefill_tokens -= u64::from(sequence.scheduled);
        }
        desk.totals.preemptions += 1;
        desk.requests.preemptions[sequence.request as usize] += 1;
        self.release(at);
        let sequence = &mut self.sequences[at as usize];
        sequence.computed = 0;
        sequence.scheduled = 0;
        self.waiting.push_front(at);
        Some(at)
    }

    /// Give back every block of a sequence, last first, so that a prefix outlives its continuations.
    fn release(&mut self, at: u32) {
        let sequence = &mut self.sequences[at as usize];
        let whole = sequence.prompt / self.spec.block_size;
        let full = sequence.computed / self.spec.block_size;
        let mut slots = std::mem::take(&mut sequence.slots);
        for (index, slot) in slots.iter().enumerate().rev() {
            if self.spec.prefix_caching && (whole..full).contains(&(index as u32)) {
                self.pool.publish(*slot, GENERATED, NONE);
            }
            self.pool.release(*slot);
        }
        slots.clear();
        self.sequences[at as usize].slots = slots;
    }

    fn tell_evictions(&mut self, desk: &mut Desk<'_>) {
        for gone in self.evicted.drain(..) {
            desk.totals.evictions += 1;
            if !self.tiers.is_empty() {
                // Told first, so that routers never lose sight of a block that only moves down.
                self.tiers.offload(gone, &mut self.tier_changes);
                desk.changes
                    .extend(self.tier_changes.drain(..).map(CacheChange::Tier));
            }
            desk.changes.push(CacheChange::Removed { block: gone.block });
        }
    }

    fn is_ready(sequence: &Sequence) -> bool {
        sequence.computed >= sequence.known
    }

    /// How long the iteration at hand takes, and how many equal ones may follow it.
    fn plan(&mut self, now_ms: f64, batch: Batch, all_scheduled: bool, desk: &mut Desk<'_>) {
        self.start_ms = now_ms.max(self.not_before_ms);
        // Dynamo's engine passes whole-token means; the difference matters for parity, not for physics.
        let mean = |sum: u64| sum.checked_div(batch.prompts).unwrap_or(0);
        let new_tokens = batch.prompts * (mean(batch.total) - mean(batch.prefix));
        let prefill_ms = self.spec.timing.prefill_ms(new_tokens, mean(batch.prefix));
        let (mut ready, mut context, mut least_left) = (0u32, 0u64, u32::MAX);
        self.pass = Pass {
            prefills: batch.prompts,
            prefill_tokens: batch.total - batch.prefix,
            prefill_kv_tokens: batch.prefix,
            ..Pass::default()
        };
        for at in &self.running {
            let sequence = &self.sequences[*at as usize];
            if Self::is_ready(sequence) {
                ready += 1;
                context += u64::from(sequence.known);
                if !sequence.prefilling {
                    self.pass.decodes += 1;
                    self.pass.decode_kv_tokens += u64::from(sequence.known);
                }
                least_left = least_left.min(sequence.output - sequence.generated);
            }
        }
        self.note_peak(0, desk);
        if ready == 0 && batch.prompts == 0 {
            return;
        }
        let is_learned = self.spec.timing.is_learned();
        let mut step = DecodeStep {
            batch: ready,
            active_kv_tokens: u64::from(self.pool.active()) * u64::from(self.spec.block_size),
            context_tokens: if ready == 0 { 0 } else { context / u64::from(ready) },
            total_kv_tokens: u64::from(self.spec.num_blocks) * u64::from(self.spec.block_size),
        };
        if is_learned {
            // A learned pass of prompts holds their first tokens, and a learned step the contexts of those that only decode.
            step.batch = self.pass.decodes as u32;
            step.active_kv_tokens = self.pass.decode_kv_tokens;
        }
        let decode_ms = if self.role == Role::Prefill {
            0.0
        } else {
            self.spec.timing.decode_ms(step, &mut self.cursor)
        };
        let mut end_ms = self.start_ms + (prefill_ms + decode_ms) / self.speed;
        self.ends_ms.push(end_ms);
        let steady = !self.reports
            && batch.prompts == 0
            && all_scheduled
            && !batch.preempted
            && ready as usize == self.running.len()
            && self.role != Role::Prefill
            && (self.incoming.is_empty() || self.full)
            && (self.waiting.is_empty()
                || self.blocked
                || self.running.len() >= self.spec.max_num_seqs as usize);
        if !steady || least_left < 2 {
            return;
        }
        let size = self.spec.block_size;
        for at in &self.running {
            self.offsets[((self.sequences[*at as usize].known - 1) % size) as usize] += 1;
        }
        let mut unused = self.pool.unused();
        for i in 1..least_left.min(self.spec.longest_run) {
            // A sequence whose length is 1 mod `size` after this iteration opens a block in it.
            let opened = self.offsets[((size - i % size) % size) as usize];
            if opened > unused {
                break;
            }
            unused -= opened;
            step.active_kv_tokens += if is_learned {
                u64::from(ready)
            } else {
                u64::from(opened) * u64::from(size)
            };
            step.context_tokens += 1;
            end_ms += self.spec.timing.decode_ms(step, &mut self.cursor) / self.speed;
            self.ends_ms.push(end_ms);
        }
        for at in &self.running {
            self.offsets[((self.sequences[*at as usize].known - 1) % size) as usize] = 0;
        }
        self.note_peak(self.pool.unused() - unused, desk);
    }

    fn note_peak(&self, planned: u32, desk: &mut Desk<'_>) {
        let peak = &mut desk.totals.peak_active_blocks;
        *peak = (*peak).max(self.pool.active() + planned);
    }

    /// The planned iterations are over: hand out their tokens.
    pub fn finish(&mut self, desk: &mut Desk<'_>) {
        let count = self.ends_ms.len() as u32;
        // As far as the start of the last iteration, where it would be without runs.
        self.age_until(self.ends_ms.iter().rev().nth(1).copied().unwrap_or(self.start_ms));
        desk.totals.iterations += u64::from(count);
        let (first_ms, last_ms) = (self.ends_ms[0], self.ends_ms[count as usize - 1]);
        self.pass.seconds = (last_ms - self.start_ms) * 1e-3;
        let mut kept = 0;
        let mut emitting = 0u64;
        for place in 0..self.running.len() {
            let at = self.running[place];
            let sequence = &mut self.sequences[at as usize];
            if !Self::is_ready(sequence) {
                self.running[kept] = at;
                kept += 1;
                continue;
            }
            emitting += 1;
            let request = sequence.request as usize;
            if sequence.generated > 0 {
                if self.role != Role::Prefill {
                    desk.gaps.add(first_ms - sequence.last_token_ms, 1);
                }
            } else {
                if desk.requests.first_token_ms[request].is_nan() && self.role != Role::Prefill {
                    desk.requests.first_token_ms[request] = first_ms;
                }
                desk.signals.push(Signal::First(sequence.request));
            }
            sequence.generated += count;
            sequence.known += count;
            sequence.computed = sequence.known - 1;
            sequence.last_token_ms = last_ms;
            desk.totals.output_tokens += u64::from(count);
            if sequence.generated < sequence.output {
                if count > 1 {
                    let target = sequence.computed.div_ceil(self.spec.block_size) as usize;
                    let grown = self.allocate(at, 0, target);
                    debug_assert!(grown, "a run must have counted its blocks");
                }
                self.running[kept] = at;
                kept += 1;
                continue;
            }
            if count > 1 {
                let target = sequence.computed.div_ceil(self.spec.block_size) as usize;
                self.allocate(at, 0, target);
            }
            desk.signals
                .push(Signal::Done(self.sequences[at as usize].request));
            if self.role == Role::Prefill {
                self.held.push(at);
                continue;
            }
            self.release(at);
            self.unused.push(at);
        }
        self.running.truncate(kept);
        for pair in self.ends_ms.windows(2) {
            desk.gaps.add(pair[1] - pair[0], emitting);
        }
        self.ends_ms.clear();
        debug_assert!(self.evicted.is_empty(), "a run must not evict");
        debug_assert!(
            self.pool.active() <= self.pool.capacity(),
            "no more blocks than there are"
        );
    }
}
