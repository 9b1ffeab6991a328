//! Matching a request against its candidates: the part of a decision that does not change with the load.
//!
//! The load of the candidates is here too ([`Columns`]), because a price reads both as columns with one entry
//! per candidate.

use multiversion::multiversion;

use crate::error::Error;
use crate::exact::small_f64;
use crate::fleet::Fleet;
use crate::index::{Index, Slot, TierOverlap};
use crate::ledger::{ColumnSlices, LatencyView, SharedInputs, Work, WorkerColumns};
use crate::load::Load;
use crate::overlaps::{Overlaps, each, zero};
use crate::predicted::Predicted;
use crate::request::{Candidate, MAX_OUTPUT_TOKENS, Parts, RouteRequest};
use crate::worker::WorkerId;

/// A request matched against every candidate. Columns have one entry per candidate.
///
/// It is valid in one generation of the router's fleet; the overlaps grow old as the caches change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matched {
    /// Tokens of the prompt.
    pub(crate) input_tokens: u32,
    /// Full blocks of the prompt.
    pub(crate) request_blocks: u32,
    /// Expected tokens of the answer.
    pub(crate) expected_output_tokens: Option<u32>,
    /// Local hash of the first block, or 0: requests with equal prefixes share it.
    pub(crate) prefix_key: u64,
    /// Generation of the fleet at the time of the match.
    pub(crate) generation: u64,
    /// Whether candidate i is slot i, for every slot.
    pub(crate) everyone: bool,
    /// Whether no candidate holds blocks in host memory or on disk.
    pub(crate) lower_is_zero: bool,
    /// Ids of the candidates.
    pub(crate) workers: Vec<WorkerId>,
    /// Slots of the candidates, in ascending order.
    pub(crate) slots: Vec<Slot>,
    /// Leading blocks in device memory.
    pub(crate) device_blocks: Vec<u32>,
    /// Blocks after the device blocks, in host memory.
    pub(crate) host_blocks: Vec<u32>,
    /// Blocks after the host blocks, on disk.
    pub(crate) disk_blocks: Vec<u32>,
    /// Leading blocks in flight.
    pub(crate) shared_blocks: Vec<u32>,
    /// Prompt tokens that the candidate must compute. Whole numbers, as floats because prices are floats.
    /// Empty until [`Matched::fill_work`].
    pub(crate) new_tokens: Vec<f64>,
    /// Prompt tokens that the candidate finds in its cache; otherwise as `new_tokens`.
    pub(crate) cached_tokens: Vec<f64>,
}

impl Matched {
    /// Slots of the candidates.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.slots.iter().map(|slot| slot.index())
    }

    /// Slot of candidate `i`.
    pub(crate) fn position(&self, i: usize) -> usize {
        self.slots[i].index()
    }

    /// Prompt tokens that candidate `i` would compute and find. Only after [`Matched::fill_work`].
    pub(crate) fn work(&self, i: usize) -> Work {
        Work {
            new_tokens: self.new_tokens[i] as u64,
            cached_tokens: self.cached_tokens[i] as u64,
        }
    }

    /// Prompt tokens to compute on the candidate with the largest overlap. Only after [`Matched::fill_work`].
    pub(crate) fn least_tokens(&self) -> u64 {
        let least = self.new_tokens.iter().copied().reduce(f64::min);
        least.map_or(0, |tokens| tokens as u64)
    }

    /// Sets the work of a pool without prefill: no candidate computes or finds any token.
    pub(crate) fn fill_no_work(&mut self) {
        zero(&mut self.new_tokens, self.slots.len());
        zero(&mut self.cached_tokens, self.slots.len());
    }

    /// Sets the work of each candidate, from the prompt tokens that one block per tier saves.
    ///
    /// `in_time`: count the blocks that the candidate will have, as in [`Matched::overlap_in_time`].
    pub(crate) fn fill_work(&mut self, tokens_of_block: [f64; 3], in_time: bool) {
        self.new_tokens.resize(self.slots.len(), 0.0);
        self.cached_tokens.resize(self.slots.len(), 0.0);
        let input_tokens = f64::from(self.input_tokens);
        if self.lower_is_zero {
            let device = &self.device_blocks;
            work_of_device(
                [device, if in_time { &self.shared_blocks } else { device }],
                PromptTokens {
                    input: input_tokens,
                    per_block: tokens_of_block[0],
                },
                &mut self.new_tokens,
                &mut self.cached_tokens,
            );
            return;
        }
        for i in 0..self.slots.len() {
            let blocks = if in_time {
                self.overlap_in_time(i)
            } else {
                self.overlap(i)
            };
            let found = cached_tokens_of(blocks, tokens_of_block).min(input_tokens);
            (self.new_tokens[i], self.cached_tokens[i]) = (input_tokens - found, found);
        }
    }

    /// Blocks that candidate `i` would add to the blocks in flight.
    pub(crate) fn new_blocks(&self, i: usize) -> u64 {
        u64::from(self.request_blocks - self.shared_blocks[i])
    }

    /// Generation of the fleet at the time of the match.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Blocks that candidate `i` holds, per tier.
    pub(crate) fn overlap(&self, i: usize) -> TierOverlap {
        [self.device_blocks[i], self.host_blocks[i], self.disk_blocks[i]]
    }

    /// Blocks that candidate `i` will hold, per tier, once the prompts in flight are computed.
    pub(crate) fn overlap_in_time(&self, i: usize) -> TierOverlap {
        let [device, host, disk] = self.overlap(i);
        let sooner = self.shared_blocks[i].saturating_sub(device);
        [
            device + sooner,
            host.saturating_sub(sooner),
            disk.saturating_sub(sooner.saturating_sub(host)),
        ]
    }

    /// Completes a match with the candidates: all available workers, or the allowed ones of them. `overlaps`
    /// must be current.
    pub(crate) fn fill(
        &mut self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        (fleet, index, predicted, load): (&Fleet, &Index, &Predicted, &Load),
        generation: u64,
    ) -> Result<(), Error> {
        overlaps.add_router_state(&request.prompt(), index, predicted, load);
        self.input_tokens = request.input_tokens;
        self.request_blocks = request.local_hashes.len() as u32;
        self.expected_output_tokens = request
            .expected_output_tokens
            .filter(|&tokens| tokens <= MAX_OUTPUT_TOKENS);
        self.prefix_key = request.local_hashes.first().map_or(0, |hash| hash.0);
        self.new_tokens.clear();
        self.cached_tokens.clear();
        if request.allowed.is_none() && fleet.available_len() == fleet.slots() {
            self.take_everyone(overlaps, fleet, generation);
        } else {
            self.select(fleet, request.allowed);
            self.everyone = false;
            gather(&mut self.workers, fleet.ids(), &self.slots);
            gather(&mut self.device_blocks, &overlaps.device, &self.slots);
            gather(&mut self.host_blocks, &overlaps.host, &self.slots);
            gather(&mut self.disk_blocks, &overlaps.disk, &self.slots);
            gather(&mut self.shared_blocks, &overlaps.shared, &self.slots);
            self.lower_is_zero = overlaps.lower_is_zero;
        }
        self.generation = generation;
        if self.slots.is_empty() {
            let (registered, available) = (fleet.len(), fleet.available_len());
            return Err(Error::NoWorker {
                registered,
                available,
                allowed: 0,
            });
        }
        Ok(())
    }

    /// Takes every slot as a candidate. The columns swap places instead of being copied.
    fn take_everyone(&mut self, overlaps: &mut Overlaps, fleet: &Fleet, generation: u64) {
        if !self.everyone || self.generation != generation {
            self.workers.clear();
            self.workers.extend_from_slice(fleet.ids());
            self.slots.clear();
            self.slots.extend((0..fleet.slots() as u32).map(Slot));
            self.everyone = true;
            self.lower_is_zero = false;
        }
        std::mem::swap(&mut self.device_blocks, &mut overlaps.device);
        std::mem::swap(&mut self.shared_blocks, &mut overlaps.shared);
        if !(self.lower_is_zero && overlaps.lower_is_zero) {
            copy(&mut self.host_blocks, &overlaps.host);
            copy(&mut self.disk_blocks, &overlaps.disk);
            self.lower_is_zero = overlaps.lower_is_zero;
        }
    }

    /// Selects the available candidates among the allowed workers.
    fn select(&mut self, fleet: &Fleet, allowed: Option<&[WorkerId]>) {
        self.slots.clear();
        match allowed {
            None => self.slots.extend(each(fleet.available())),
            Some(allowed) => {
                let known = allowed.iter().filter_map(|&id| fleet.slot(id).ok());
                self.slots.extend(known.filter(|&slot| fleet.is_available(slot)));
                self.slots.sort_unstable();
                self.slots.dedup();
            }
        }
    }
}

/// Prompt tokens that `blocks` save, rounded to a whole number.
pub(crate) fn cached_tokens_of(blocks: TierOverlap, tokens_of_block: [f64; 3]) -> f64 {
    let parts = blocks.iter().zip(tokens_of_block);
    parts
        .map(|(&blocks, tokens)| f64::from(blocks) * tokens)
        .sum::<f64>()
        .round()
}

/// Tokens of a prompt, whole numbers.
#[derive(Clone, Copy)]
struct PromptTokens {
    /// All tokens of the prompt.
    input: f64,
    /// Tokens that one block in device memory saves.
    per_block: f64,
}

/// Work of candidates without lower tiers. Each candidate has the larger of two overlaps, and each block
/// saves whole tokens.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn work_of_device(
    [device, sooner]: [&[u32]; 2],
    prompt: PromptTokens,
    new_tokens: &mut [f64],
    cached_tokens: &mut [f64],
) {
    let blocks = device
        .iter()
        .zip(sooner)
        .map(|(&device, &sooner)| device.max(sooner));
    for ((blocks, new), cached) in blocks.zip(new_tokens).zip(cached_tokens) {
        let found = (small_f64(blocks) * prompt.per_block).min(prompt.input);
        *new = prompt.input - found;
        *cached = found;
    }
}

/// Load that a price counts although nothing is booked yet: requests of the router's queue that wait for a worker.
/// One entry per position.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingLoad {
    /// Prompt tokens to compute of the waiting requests.
    pub tokens: Vec<u64>,
    /// Prefill seconds of the waiting requests.
    pub prefill_s: Vec<f64>,
    /// Waiting requests.
    pub requests: Vec<u32>,
}

impl PendingLoad {
    /// Nothing waits for any of `positions` workers.
    pub(crate) fn reset(&mut self, positions: usize) {
        zero(&mut self.tokens, positions);
        zero(&mut self.prefill_s, positions);
        zero(&mut self.requests, positions);
    }

    /// One more request of `tokens` to compute in `prefill_s` waits for the worker at `position`.
    pub(crate) fn add(&mut self, position: usize, tokens: u64, prefill_s: f64) {
        self.tokens[position] += tokens;
        self.prefill_s[position] += prefill_s;
        self.requests[position] += 1;
    }
}

/// Figures of the pool that an estimate needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolFigures {
    /// Tokens per block.
    pub block_size: u32,
    /// Seconds to transfer the KV of one token from another pool. 0 in a pool that prefills.
    pub handoff_s_per_token: f64,
}

/// Load of the candidates of one decision, one entry each. The buffers live between calls to spare
/// allocations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns {
    /// Whether candidate i is slot i and nothing is pending, so that the columns of the load serve directly.
    borrows_load: bool,
    /// Uncached prompt tokens before their first token, pending ones included.
    pub prefill_tokens: Vec<u64>,
    /// Distinct blocks in flight.
    pub decode_blocks: Vec<u64>,
    /// Requests in flight, pending ones included.
    pub active_requests: Vec<u32>,
    /// Ledger columns of the candidates, filled when not every slot is a candidate.
    pub per_worker: WorkerColumns,
    /// Pending prefill seconds of each candidate; zeros where nothing is pending.
    pending_prefill_s: Vec<f64>,
    /// Pending requests of each candidate; zeros where nothing is pending.
    pending_requests: Vec<u32>,
    /// Cost of each candidate.
    pub costs: Vec<f64>,
}

impl Columns {
    /// Copies the present load of the candidates and adds the pending load.
    pub(crate) fn fill(&mut self, matched: &Matched, load: &Load, pending: Option<&PendingLoad>) {
        self.costs.resize(matched.slots.len(), 0.0);
        self.borrows_load = matched.everyone && pending.is_none();
        if self.borrows_load {
            return;
        }
        gather(&mut self.prefill_tokens, &load.prefill_tokens, &matched.slots);
        gather(&mut self.decode_blocks, &load.decode_blocks, &matched.slots);
        gather(&mut self.active_requests, &load.active_requests, &matched.slots);
        if let Some(pending) = pending {
            for (i, slot) in matched.slots.iter().enumerate() {
                self.prefill_tokens[i] += pending.tokens[slot.index()];
                self.active_requests[i] += pending.requests[slot.index()];
            }
        }
    }

    /// Copies what a price in seconds needs beyond the load. Call [`Columns::fill`] for the same candidates
    /// first.
    pub(crate) fn fill_latency(
        &mut self,
        matched: &Matched,
        all: &ColumnSlices<'_>,
        pending: Option<&PendingLoad>,
    ) {
        if !matched.everyone {
            self.per_worker.gather(all, matched.positions());
        }
        if let Some(pending) = pending {
            gather(&mut self.pending_prefill_s, &pending.prefill_s, &matched.slots);
            gather(&mut self.pending_requests, &pending.requests, &matched.slots);
        } else {
            // Filling once per decision spares a branch per candidate.
            zero(&mut self.pending_prefill_s, matched.slots.len());
            zero(&mut self.pending_requests, matched.slots.len());
        }
    }

    /// The candidates for a price in seconds. `all`: how every slot stands.
    pub(crate) fn latency<'a>(
        &'a self,
        matched: &'a Matched,
        (all, load): (ColumnSlices<'a>, &'a Load),
        shared: SharedInputs,
        pool: &PoolFigures,
    ) -> LatencyView<'a> {
        let (_, decode_blocks, _) = self.loads(load);
        LatencyView {
            shared,
            columns: if matched.everyone {
                all
            } else {
                self.per_worker.slices()
            },
            new_tokens: &matched.new_tokens,
            cached_tokens: &matched.cached_tokens,
            decode_blocks,
            shared_blocks: &matched.shared_blocks,
            device_blocks: &matched.device_blocks,
            pending_prefill_s: &self.pending_prefill_s,
            pending_requests: &self.pending_requests,
            input_tokens: f64::from(matched.input_tokens),
            request_blocks: f64::from(matched.request_blocks),
            block_tokens: f64::from(pool.block_size),
            handoff_s_per_token: pool.handoff_s_per_token,
        }
    }

    /// Prefill tokens, decode blocks and active requests, one entry per candidate.
    pub(crate) fn loads<'a>(&'a self, load: &'a Load) -> (&'a [u64], &'a [u64], &'a [u32]) {
        if self.borrows_load {
            return (&load.prefill_tokens, &load.decode_blocks, &load.active_requests);
        }
        (&self.prefill_tokens, &self.decode_blocks, &self.active_requests)
    }

    /// Candidate `i` with the parts of its cost.
    pub(crate) fn candidate(&self, matched: &Matched, load: &Load, parts: Parts, i: usize) -> Candidate {
        let (prefill_tokens, decode_blocks, active_requests) = self.loads(load);
        Candidate {
            worker: matched.workers[i],
            cost: self.costs[i],
            device_blocks: matched.device_blocks[i],
            host_blocks: matched.host_blocks[i],
            disk_blocks: matched.disk_blocks[i],
            prefill_tokens: prefill_tokens[i],
            decode_blocks: decode_blocks[i],
            shared_blocks: matched.shared_blocks[i],
            active_requests: active_requests[i],
            parts,
        }
    }
}

/// Copies a column.
fn copy<T: Copy>(into: &mut Vec<T>, from: &[T]) {
    into.clear();
    into.extend_from_slice(from);
}

/// Copies the entries of `slots`.
fn gather<T: Copy>(into: &mut Vec<T>, from: &[T], slots: &[Slot]) {
    into.clear();
    into.extend(slots.iter().map(|slot| from[slot.index()]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_flight_replace_blocks_of_the_lower_tiers() {
        let matched = |shared_blocks| Matched {
            device_blocks: vec![2],
            host_blocks: vec![2],
            disk_blocks: vec![3],
            shared_blocks: vec![shared_blocks],
            ..Matched::default()
        };
        assert_eq!(matched(1).overlap_in_time(0), [2, 2, 3]);
        assert_eq!(matched(3).overlap_in_time(0), [3, 1, 3]);
        assert_eq!(matched(5).overlap_in_time(0), [5, 0, 2]);
        assert_eq!(matched(9).overlap_in_time(0), [9, 0, 0]);
    }
}
