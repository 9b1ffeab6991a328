//! Who gets tokens of an iteration: those that run, then those that wait, in order.

use super::{Batch, Desk, Placed, Signal, Worker};
use crate::config::{Preemption, Role};

impl Worker {
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

    pub(super) fn age_until(&mut self, now_ms: f64) {
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
}
