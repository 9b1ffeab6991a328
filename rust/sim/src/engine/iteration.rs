//! Duration and output of an iteration, or of a run of iterations.

use super::{Batch, RunState, Signal, Worker};
use crate::spec::Role;
use crate::timing::DecodeStep;
use wardrop_core::latency::Pass;

impl Worker {
    /// Plans the end of this iteration, and of the decode iterations that can follow it without a decision.
    pub(super) fn plan(&mut self, now_ms: f64, batch: Batch, all_scheduled: bool, state: &mut RunState<'_>) {
        self.start_ms = now_ms.max(self.not_before_ms);
        // Dynamo's mock engine rounds means down to whole tokens. Equal results need the same rounding.
        let mean = |sum: u64| sum.checked_div(batch.prefills).unwrap_or(0);
        let new_tokens = batch.prefills * (mean(batch.tokens_after) - mean(batch.tokens_before));
        let prefill_ms = self.spec.timing.prefill_ms(new_tokens, mean(batch.tokens_before));
        let (mut ready, mut context, mut least_left) = (0u32, 0u64, u32::MAX);
        self.pass = Pass {
            prefills: batch.prefills,
            prefill_tokens: batch.tokens_after - batch.tokens_before,
            prefill_kv_tokens: batch.tokens_before,
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
        self.record_peak(0, state);
        if ready == 0 && batch.prefills == 0 {
            return;
        }
        let is_learned = self.spec.timing.is_learned();
        let mut step = DecodeStep {
            batch: ready,
            active_kv_tokens: u64::from(self.pool.active()) * u64::from(self.spec.block_size),
            context_tokens: if ready == 0 { 0 } else { context / u64::from(ready) },
            total_kv_tokens: self.spec.curve_tokens(),
        };
        if is_learned {
            // A learned prefill curve contains the prompts' first tokens, and a learned step counts only the contexts
            // of sequences that decode.
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
        let steady = !self.reports_iterations
            && batch.prefills == 0
            && all_scheduled
            && !batch.preempted
            && ready as usize == self.running.len()
            && self.role != Role::Prefill
            && (self.awaiting_room.is_empty() || self.is_out_of_room)
            && (self.waiting.is_empty()
                || self.blocked
                || self.running.len() >= self.spec.max_num_seqs as usize);
        if !steady || least_left < 2 {
            return;
        }
        let size = self.spec.block_size;
        for at in &self.running {
            self.block_offsets[((self.sequences[*at as usize].known - 1) % size) as usize] += 1;
        }
        let mut unused = self.pool.unused();
        for i in 1..least_left.min(self.spec.longest_run) {
            // A sequence whose length is 1 modulo `size` after this iteration needs a new block in it.
            let opened = self.block_offsets[((size - i % size) % size) as usize];
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
            self.block_offsets[((self.sequences[*at as usize].known - 1) % size) as usize] = 0;
        }
        self.record_peak(self.pool.unused() - unused, state);
    }

    /// Records the highest number of blocks that sequences hold, with `planned` blocks of the planned run.
    pub(super) fn record_peak(&self, planned: u32, state: &mut RunState<'_>) {
        let peak = &mut state.totals.peak_active_blocks;
        *peak = (*peak).max(self.pool.active() + planned);
    }

    /// Ends the planned iterations and emits their tokens.
    pub fn finish(&mut self, state: &mut RunState<'_>) {
        let count = self.ends_ms.len() as u32;
        // Counters age up to the start of the last iteration, as they do when iterations are planned one by one.
        self.age_until(self.ends_ms.iter().rev().nth(1).copied().unwrap_or(self.start_ms));
        state.totals.iterations += u64::from(count);
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
                    state.gaps.add(first_ms - sequence.last_token_ms, 1);
                }
            } else {
                if state.requests.first_token_ms[request].is_nan() && self.role != Role::Prefill {
                    state.requests.first_token_ms[request] = first_ms;
                }
                state.signals.push(Signal::FirstToken(sequence.request));
            }
            sequence.generated += count;
            sequence.known += count;
            sequence.computed = sequence.known - 1;
            sequence.last_token_ms = last_ms;
            state.totals.output_tokens += u64::from(count);
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
            state
                .signals
                .push(Signal::Finished(self.sequences[at as usize].request));
            if self.role == Role::Prefill {
                self.awaiting_send.push(at);
                continue;
            }
            self.release(at);
            self.free_sequences.push(at);
        }
        self.running.truncate(kept);
        for pair in self.ends_ms.windows(2) {
            state.gaps.add(pair[1] - pair[0], emitting);
        }
        self.ends_ms.clear();
        debug_assert!(self.evicted.is_empty(), "a run must not evict");
        debug_assert!(
            self.pool.active() <= self.pool.capacity(),
            "active blocks must not exceed the capacity"
        );
    }
}
