//! A request matched against its candidates: everything of a decision that does not change with the load.

use std::cell::Cell;

use multiversion::multiversion;

use crate::error::Error;
use crate::exact::small_f64;
use crate::fleet::Fleet;
use crate::index::seqlock::Stamp;
use crate::index::slots::bits;
use crate::index::{Index, Prompt, Scratch, Slot, TierOverlap};
use crate::ledger::{ColumnSlices, LatencyView, SharedInputs, Work, WorkerColumns};
use crate::load::Load;
use crate::predicted::{Predicted, RaiseScratch};
use crate::request::{Candidate, Parts, RouteRequest};
use crate::roster::Roster;
use crate::worker::WorkerId;

/// By slot: what each available worker has of the prompt. Kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlaps {
    /// Of the fleet that was looked at; `None`: it was being changed.
    stamp: Option<Stamp>,
    /// The index's count of caches that were emptied at once.
    clears: u64,
    slots: usize,
    active: Vec<u64>,
    device: Vec<u32>,
    host: Vec<u32>,
    disk: Vec<u32>,
    shared: Vec<u32>,
    /// Whether `host` and `disk` are all 0, as they are on fleets without lower tiers.
    lower_is_zero: bool,
    scratch: Scratch,
    raise: RaiseScratch,
}

thread_local! {
    static KEPT: Cell<Option<Box<Overlaps>>> = const { Cell::new(None) };
}

impl Overlaps {
    /// Those that this thread used last.
    pub fn taken() -> Box<Self> {
        KEPT.take().unwrap_or_default()
    }

    /// For this thread's next match.
    pub fn keep(self: Box<Self>) {
        KEPT.set(Some(self));
    }

    /// What the index knows of the prompt: without a lock, whatever is written meanwhile.
    pub fn look(&mut self, prompt: &Prompt<'_>, roster: &Roster, index: &Index) {
        self.clears = index.clears();
        let fleet = roster.read(&mut self.active);
        self.stamp = fleet.map(|(_, stamp)| stamp);
        self.slots = fleet.map_or(0, |(slots, _)| slots);
        self.active.truncate(self.slots.div_ceil(64));
        // Written for every worker of interest; what stands for the others is not read.
        self.device.resize(self.slots, 0);
        index.device_overlap(prompt, &self.active, &mut self.device, &mut self.scratch);
        if index.any_lower() {
            index.follow(prompt, &mut self.scratch);
            zero(&mut self.host, self.slots);
            zero(&mut self.disk, self.slots);
            self.lower_is_zero = false;
            self.look_lower(index);
        } else if !self.lower_is_zero || self.host.len() != self.slots {
            zero(&mut self.host, self.slots);
            zero(&mut self.disk, self.slots);
            self.lower_is_zero = true;
        }
    }

    fn look_lower(&mut self, index: &Index) {
        for slot in each(&self.active).filter(|&slot| index.has_lower(slot)) {
            let at = slot.index();
            [self.host[at], self.disk[at]] = index.lower_overlap(&self.scratch, slot, self.device[at]);
        }
    }

    /// Whether the workers looked at are still those of the fleet, and none of their caches was emptied at once.
    pub fn is_current(&self, roster: &Roster, index: &Index) -> bool {
        self.clears == index.clears() && self.stamp.is_some_and(|stamp| roster.is_valid(stamp))
    }

    /// Adds what the router itself knows: what is predicted, and what is in flight. Under its lock.
    fn add_own(&mut self, prompt: &Prompt<'_>, index: &Index, predicted: &Predicted, load: &Load) {
        if !predicted.is_off() {
            predicted.raise_overlap(prompt, &self.active, &mut self.device, &mut self.raise);
            if !self.lower_is_zero {
                self.look_lower(index);
            }
        }
        self.shared.resize(self.slots, 0);
        load.shared_blocks(prompt, &self.active, &mut self.shared, &mut self.scratch);
    }
}

fn zero<T: Copy + Default>(column: &mut Vec<T>, len: usize) {
    column.clear();
    column.resize(len, T::default());
}

/// A request matched against every candidate: what of its price does not change with the load. One entry per candidate.
///
/// Valid while the generation of the fleet stays. The overlaps age as the caches change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matched {
    pub(crate) input_tokens: u32,
    pub(crate) request_blocks: u32,
    pub(crate) expected_output_tokens: Option<u32>,
    pub(crate) prefix_key: u64,
    pub(crate) generation: u64,
    /// Whether candidate i is slot i, for every slot.
    pub(crate) everyone: bool,
    /// Whether no candidate has anything in host memory or on disk.
    pub(crate) lower_is_zero: bool,
    pub(crate) workers: Vec<WorkerId>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) device_blocks: Vec<u32>,
    pub(crate) host_blocks: Vec<u32>,
    pub(crate) disk_blocks: Vec<u32>,
    pub(crate) shared_blocks: Vec<u32>,
    /// Prompt tokens to compute, and in the cache; exact, as floats since prices think in those. Empty unless asked
    /// for.
    pub(crate) new_tokens: Vec<f64>,
    pub(crate) cached_tokens: Vec<f64>,
}

impl Matched {
    /// Dense positions of the candidates, below [`crate::Router::positions`].
    pub fn positions(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.slots.iter().map(|slot| slot.index())
    }

    /// Dense position of candidate `i`.
    pub fn position(&self, i: usize) -> usize {
        self.slots[i].index()
    }

    /// Prompt tokens that candidate `i` would compute and find. Only after [`Matched::fill_work`].
    pub fn work(&self, i: usize) -> Work {
        Work {
            new_tokens: self.new_tokens[i] as u64,
            cached_tokens: self.cached_tokens[i] as u64,
        }
    }

    /// Prompt tokens to compute on the candidate that holds most. Only after [`Matched::fill_work`].
    pub fn least_tokens(&self) -> u64 {
        let least = self.new_tokens.iter().copied().reduce(f64::min);
        least.map_or(0, |tokens| tokens as u64)
    }

    /// In a pool that does not prefill nobody computes or finds anything.
    pub(crate) fn fill_no_work(&mut self) {
        zero(&mut self.new_tokens, self.slots.len());
        zero(&mut self.cached_tokens, self.slots.len());
    }

    /// Puts down what each candidate would compute and find: `tokens_of_block[tier]` of the prompt for each block
    /// that it has; `in_time`: that it will have, see [`Matched::overlap_in_time`].
    pub(crate) fn fill_work(&mut self, tokens_of_block: [f64; 3], in_time: bool) {
        self.new_tokens.resize(self.slots.len(), 0.0);
        self.cached_tokens.resize(self.slots.len(), 0.0);
        let input_tokens = f64::from(self.input_tokens);
        if self.lower_is_zero {
            let device = &self.device_blocks;
            work_of_device(
                (device, if in_time { &self.shared_blocks } else { device }),
                (input_tokens, tokens_of_block[0]),
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

    /// Blocks that candidate `i` would add to those in flight there.
    pub fn new_blocks(&self, i: usize) -> u64 {
        u64::from(self.request_blocks - self.shared_blocks[i])
    }

    /// The router's generation that it was matched in.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// What candidate `i` holds of the prompt, per tier.
    pub(crate) fn overlap(&self, i: usize) -> TierOverlap {
        [self.device_blocks[i], self.host_blocks[i], self.disk_blocks[i]]
    }

    /// What candidate `i` will hold of the prompt, per tier, once the prompts in flight there are computed.
    pub(crate) fn overlap_in_time(&self, i: usize) -> TierOverlap {
        let [device, host, disk] = self.overlap(i);
        let sooner = self.shared_blocks[i].saturating_sub(device);
        [
            device + sooner,
            host.saturating_sub(sooner),
            disk.saturating_sub(sooner.saturating_sub(host)),
        ]
    }

    /// Complete a match against the available workers, all or the allowed ones. `overlaps` must have looked at this
    /// fleet.
    pub(crate) fn fill(
        &mut self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        (fleet, index, predicted, load): (&Fleet, &Index, &Predicted, &Load),
        generation: u64,
    ) -> Result<(), Error> {
        overlaps.add_own(&request.prompt(), index, predicted, load);
        self.input_tokens = request.input_tokens;
        self.request_blocks = request.local_hashes.len() as u32;
        self.expected_output_tokens = request.expected_output_tokens;
        self.prefix_key = request.local_hashes.first().map_or(0, |hash| hash.0);
        self.new_tokens.clear();
        self.cached_tokens.clear();
        if request.allowed.is_none() && fleet.available_len() == fleet.slots() {
            self.take_everyone(overlaps, fleet, generation);
        } else {
            self.choose(fleet, request.allowed);
            self.everyone = false;
            take(&mut self.workers, fleet.ids(), &self.slots);
            take(&mut self.device_blocks, &overlaps.device, &self.slots);
            take(&mut self.host_blocks, &overlaps.host, &self.slots);
            take(&mut self.disk_blocks, &overlaps.disk, &self.slots);
            take(&mut self.shared_blocks, &overlaps.shared, &self.slots);
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

    fn choose(&mut self, fleet: &Fleet, allowed: Option<&[WorkerId]>) {
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

/// Prompt tokens that a worker with so many blocks finds, a whole number.
pub(crate) fn cached_tokens_of(blocks: TierOverlap, tokens_of_block: [f64; 3]) -> f64 {
    let parts = blocks.iter().zip(tokens_of_block);
    parts
        .map(|(&blocks, tokens)| f64::from(blocks) * tokens)
        .sum::<f64>()
        .round()
}

/// As above where all is in device memory, of which every block saves whole tokens: the more of two columns of blocks.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn work_of_device(
    (device, sooner): (&[u32], &[u32]),
    (input_tokens, block_tokens): (f64, f64),
    new_tokens: &mut [f64],
    cached_tokens: &mut [f64],
) {
    let blocks = device
        .iter()
        .zip(sooner)
        .map(|(&device, &sooner)| device.max(sooner));
    for ((blocks, new), cached) in blocks.zip(new_tokens).zip(cached_tokens) {
        let found = (small_f64(blocks) * block_tokens).min(input_tokens);
        *new = input_tokens - found;
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
    pub fn reset(&mut self, positions: usize) {
        zero(&mut self.tokens, positions);
        zero(&mut self.prefill_s, positions);
        zero(&mut self.requests, positions);
    }

    /// One more request of `tokens` to compute in `prefill_s` waits for the worker at `position`.
    pub fn add(&mut self, position: usize, tokens: u64, prefill_s: f64) {
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

/// The load of the candidates of the decision at hand, one entry each; kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns {
    /// Candidate i is slot i and nothing is pending: the columns of the load serve.
    straight: bool,
    pub prefill_tokens: Vec<u64>,
    pub decode_blocks: Vec<u64>,
    pub active_requests: Vec<u32>,
    /// How the candidates stand, where not every slot is one.
    pub worker_columns: WorkerColumns,
    /// What is pending at the router; zeros where nothing is.
    pending_prefill_s: Vec<f64>,
    pending_requests: Vec<u32>,
    pub costs: Vec<f64>,
}

impl Columns {
    /// The load of the candidates now, with what is pending at the router.
    pub fn fill(&mut self, matched: &Matched, load: &Load, pending: Option<&PendingLoad>) {
        self.costs.resize(matched.slots.len(), 0.0);
        self.straight = matched.everyone && pending.is_none();
        if self.straight {
            return;
        }
        take(&mut self.prefill_tokens, &load.prefill_tokens, &matched.slots);
        take(&mut self.decode_blocks, &load.decode_blocks, &matched.slots);
        take(&mut self.active_requests, &load.active_requests, &matched.slots);
        if let Some(pending) = pending {
            for (i, slot) in matched.slots.iter().enumerate() {
                self.prefill_tokens[i] += pending.tokens[slot.index()];
                self.active_requests[i] += pending.requests[slot.index()];
            }
        }
    }

    /// What a price in seconds needs beyond the load: after [`Columns::fill`] for the same candidates.
    pub fn fill_latency(&mut self, matched: &Matched, all: &ColumnSlices<'_>, pending: Option<&PendingLoad>) {
        if !matched.everyone {
            self.worker_columns.gather(all, matched.positions());
        }
        if let Some(pending) = pending {
            take(&mut self.pending_prefill_s, &pending.prefill_s, &matched.slots);
            take(&mut self.pending_requests, &pending.requests, &matched.slots);
        } else {
            // One stroke per decision, and nothing to ask per candidate.
            zero(&mut self.pending_prefill_s, matched.slots.len());
            zero(&mut self.pending_requests, matched.slots.len());
        }
    }

    /// The candidates for a price in seconds. `all`: how every slot stands.
    pub fn latency<'a>(
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
                self.worker_columns.slices()
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

    /// Prefill tokens, blocks and requests in flight, one entry per candidate.
    pub fn loads<'a>(&'a self, load: &'a Load) -> (&'a [u64], &'a [u64], &'a [u32]) {
        if self.straight {
            return (&load.prefill_tokens, &load.decode_blocks, &load.active_requests);
        }
        (&self.prefill_tokens, &self.decode_blocks, &self.active_requests)
    }

    /// Candidate `i`, with the parts of its cost.
    pub fn candidate(&self, matched: &Matched, load: &Load, parts: Parts, i: usize) -> Candidate {
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

fn copy<T: Copy>(into: &mut Vec<T>, from: &[T]) {
    into.clear();
    into.extend_from_slice(from);
}

fn take<T: Copy>(into: &mut Vec<T>, from: &[T], slots: &[Slot]) {
    into.clear();
    into.extend(slots.iter().map(|slot| from[slot.index()]));
}

fn each(words: &[u64]) -> impl Iterator<Item = Slot> + '_ {
    (0..)
        .zip(words)
        .flat_map(|(at, &word)| bits(word).map(move |bit| Slot(at * 64 + bit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_comes_before_the_lower_tiers() {
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
