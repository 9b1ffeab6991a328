//! An iteration, or a run of them: how long, and what comes out.

use super::{Batch, Desk, Signal, Worker};
use crate::config::Role;
use crate::timing::DecodeStep;
use wardrop_core::latency::Pass;

impl Worker {
    /// How long the iteration at hand takes, and how many equal ones may follow it.
    pub(super) fn plan(&mut self, now_ms: f64, batch: Batch, all_scheduled: bool, desk: &mut Desk<'_>) {
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

    pub(super) fn note_peak(&self, planned: u32, desk: &mut Desk<'_>) {
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
