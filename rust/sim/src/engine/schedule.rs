//! Which sequences an iteration computes: the running ones first, then the waiting ones in order.

use super::memory::CachedPrefix;
use super::{Batch, RunState, Scheduling, Signal, Worker};
use crate::spec::{Preemption, Role};

impl Worker {
    /// Starts an iteration, or a run of iterations, at `now_ms`. [`Self::busy`] is true afterwards if one was planned.
    pub fn start(&mut self, now_ms: f64, state: &mut RunState<'_>) {
        self.age_until(now_ms);
        self.make_room(state);
        let mut onboarded = std::mem::take(&mut self.onboarded);
        for request in onboarded.drain(..) {
            self.onboard(request, state);
        }
        self.onboarded = onboarded;
        // A sequence that preempts itself leaves an empty iteration. The next attempt admits it again.
        while !self.iterate(now_ms, state) {
            self.make_room(state);
        }
        // A preempted sequence may be too large to return. Its blocks are free now, and no later event would say so.
        if !self.busy() && self.is_out_of_room {
            self.make_room(state);
        }
    }

    /// Ages the use counters of cached blocks by the epochs that have passed.
    pub(super) fn age_until(&mut self, now_ms: f64) {
        while self.next_epoch_ms <= now_ms {
            self.pool.age();
            self.next_epoch_ms += self.spec.frequency_epoch_ms;
        }
    }

    /// One attempt at an iteration. Returns false if it only preempted sequences.
    fn iterate(&mut self, now_ms: f64, state: &mut RunState<'_>) -> bool {
        let mut budget = self.spec.max_num_batched_tokens;
        let mut batch = Batch::default();
        let mut at = 0;
        let mut all_scheduled = true;
        for sequence in &self.running {
            self.sequences[*sequence as usize].scheduled = 0;
        }
        while at < self.running.len() && budget > 0 {
            let current = self.running[at];
            match self.schedule(current, CachedPrefix::default(), &mut budget, &mut batch, state) {
                // A preempted sequence earlier in the list shifts the position of this one.
                Scheduling::Scheduled if batch.preempted => {
                    at = self
                        .running
                        .iter()
                        .position(|other| *other == current)
                        .map_or(at, |place| place + 1);
                }
                Scheduling::Scheduled => at += 1,
                Scheduling::Blocked => {
                    all_scheduled = false;
                    break;
                }
                Scheduling::Preempted => {}
            }
        }
        all_scheduled &= at == self.running.len();
        self.blocked = false;
        if !batch.preempted {
            self.admit(now_ms, &mut budget, &mut batch, state);
        }
        self.publish_evictions(state);
        self.plan(now_ms, batch, all_scheduled, state);
        self.busy() || !batch.preempted
    }

    /// Admits waiting sequences in order, until tokens, sequences or blocks run out. No sequence overtakes
    /// the head of the queue.
    fn admit(&mut self, now_ms: f64, budget: &mut u32, batch: &mut Batch, state: &mut RunState<'_>) {
        while self.running.len() < self.spec.max_num_seqs as usize && *budget > 0 {
            self.prefer_arrived_kv();
            let Some(at) = self.waiting.front().copied() else {
                return;
            };
            // A sequence whose KV came from a prefill worker already has its blocks.
            let has_blocks = !self.sequences[at as usize].slots.is_empty();
            let cached = if has_blocks {
                CachedPrefix::default()
            } else {
                self.find_cached(at, state)
            };
            let sequence = &self.sequences[at as usize];
            let need = if has_blocks {
                0
            } else {
                sequence.known.div_ceil(self.spec.block_size)
            };
            if need > self.pool.capacity() {
                state.signals.push(Signal::Rejected(sequence.request));
                self.waiting.pop_front();
                self.free_sequences.push(at);
                continue;
            }
            let spare = (f64::from(self.pool.capacity()) * self.spec.watermark) as u32;
            let fresh = need - cached.active_blocks();
            let reserve = if has_blocks || self.pool.active() == 0 {
                0
            } else {
                spare
            };
            if fresh + reserve > self.pool.available() {
                self.blocked = true;
                return;
            }
            if self.role != Role::Decode
                && !self.tiers.is_empty()
                && self.start_onboarding(at, cached.blocks, now_ms, state)
            {
                self.waiting.pop_front();
                continue;
            }
            match self.schedule(at, cached, budget, batch, state) {
                Scheduling::Scheduled => {
                    debug_assert_eq!(self.waiting.front(), Some(&at), "admission must not preempt");
                    self.waiting.pop_front();
                    self.running.push(at);
                    let sequence = &mut self.sequences[at as usize];
                    if !sequence.started {
                        sequence.started = true;
                        let i = sequence.request as usize;
                        if self.role != Role::Decode {
                            state.requests.cached_tokens[i] =
                                (cached.blocks + cached.shared) * self.spec.block_size;
                            state.requests.admit_ms[i] = now_ms;
                        }
                    }
                }
                Scheduling::Blocked | Scheduling::Preempted => {
                    self.blocked = true;
                    return;
                }
            }
        }
    }

    /// Moves the first sequence whose KV has arrived to the head of the queue.
    ///
    /// Such a sequence holds blocks that the sequence before it may be waiting for.
    fn prefer_arrived_kv(&mut self) {
        if self.role != Role::Decode {
            return;
        }
        let has_kv = |at: &u32| !self.sequences[*at as usize].slots.is_empty();
        if let Some(place) = self.waiting.iter().position(has_kv).filter(|place| *place > 0)
            && let Some(at) = self.waiting.remove(place)
        {
            self.waiting.push_front(at);
        }
    }

    /// Gives a sequence as many tokens as it needs and the budget has, and the blocks for them.
    ///
    /// `cached` is the cached prefix of a sequence that is being admitted, and empty for a running sequence.
    fn schedule(
        &mut self,
        at: u32,
        cached: CachedPrefix,
        budget: &mut u32,
        batch: &mut Batch,
        state: &mut RunState<'_>,
    ) -> Scheduling {
        let size = self.spec.block_size;
        let sequence = &self.sequences[at as usize];

        let held = (sequence.computed + cached.blocks * size) / size;
        let before = sequence.computed + (cached.blocks + cached.shared) * size;
        let remaining = sequence.known - before;
        if before < sequence.prompt && !self.spec.chunked_prefill && remaining > *budget {
            return Scheduling::Blocked;
        }
        let tokens = remaining.min(*budget);
        if tokens == 0 && remaining > 0 {
            return Scheduling::Blocked;
        }
        let after = before + tokens;
        let target = after.div_ceil(size) as usize;
        while !self.allocate(at, cached.blocks, target) {
            let Some(victim) = self.preempt(budget, batch, state) else {
                return Scheduling::Blocked;
            };
            if victim == at {
                return Scheduling::Preempted;
            }
        }
        self.publish_blocks(at, held, after / size, state);
        let sequence = &mut self.sequences[at as usize];
        sequence.computed = after;
        sequence.scheduled = tokens;
        // Generated tokens that a preempted sequence computes again cost as much as prompt tokens.
        sequence.prefilling = before < sequence.prompt || remaining > 1;
        if sequence.prefilling {
            batch.prefills += 1;
            batch.tokens_after += u64::from(after);
            batch.tokens_before += u64::from(before);
            state.totals.prefill_tokens += u64::from(tokens);
        }
        *budget -= tokens;
        Scheduling::Scheduled
    }

    /// Takes the blocks of one running sequence and returns it to the queue. `None` if no sequence runs.
    fn preempt(&mut self, budget: &mut u32, batch: &mut Batch, state: &mut RunState<'_>) -> Option<u32> {
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
            batch.prefills -= 1;
            batch.tokens_after -= u64::from(sequence.computed);
            batch.tokens_before -= u64::from(sequence.computed - sequence.scheduled);
            state.totals.prefill_tokens -= u64::from(sequence.scheduled);
        }
        state.totals.preemptions += 1;
        state.requests.preemptions[sequence.request as usize] += 1;
        self.release(at);
        let sequence = &mut self.sequences[at as usize];
        sequence.computed = 0;
        sequence.scheduled = 0;
        self.waiting.push_front(at);
        Some(at)
    }
}
