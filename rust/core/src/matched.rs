//! Matching a request against its candidates: the part of a decision that does not change with the load.
//!
//! Stands in the flow `look up ─▶ match ─▶ price`. The look-up reads index and roster without a lock
//! ([`crate::overlaps`]). The match adds what only the state knows, under its lock: predicted caches, blocks
//! in flight, and which workers the request allows. A queue keeps the match of a waiting request and prices
//! it again with each change of the load.
//!
//! A match has three kinds of overlap per candidate, in blocks:
//!
//! ```text
//! device   held by KV events or by prediction, from the start of the prompt
//! host     after the device blocks        disk   after the host blocks
//! shared   in flight on the worker: computed before this prompt's turn comes
//! ```
//!
//! From these come the tokens that the candidate would compute and find, once a price or a queue asks for
//! them ([`Matched::fill_work`]).
//!
//! Cost: O(candidates). Where every worker is a candidate, columns change places with the buffers of the
//! look-up, and nothing is copied.

use multiversion::multiversion;

use crate::error::Error;
use crate::exact::small_f64;
use crate::fleet::Fleet;
use crate::index::{Index, Slot, TierOverlap};
use crate::ledger::Work;
use crate::load::Load;
use crate::overlaps::{ListedBlocks, Overlaps, each, gather, zero};
use crate::predicted::Predicted;
use crate::request::{MAX_OUTPUT_TOKENS, RouteRequest};
use crate::trust::{Claim, IndexTrust};
use crate::worker::WorkerId;

/// What a match reads beside the request: the parts of a router's state, under its lock.
#[derive(Clone, Copy)]
pub(crate) struct MatchSources<'a> {
    /// Registered workers.
    pub fleet: &'a Fleet,
    /// Blocks by KV events.
    pub index: &'a Index,
    /// Blocks by placed requests.
    pub predicted: &'a Predicted,
    /// Blocks in flight.
    pub load: &'a Load,
    /// Trust in the index.
    pub trust: &'a IndexTrust,
}

/// A request matched against every candidate. Columns have one entry per candidate.
///
/// It is valid in one generation of the router's fleet; the overlaps grow old as the caches change.
///
/// Invariant: `slots` is ascending, and every column that is filled has its length.
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
    /// Generation of the fleet at the time of the match. In another generation a slot may belong to another
    /// worker.
    pub(crate) generation: u64,
    /// Whether candidate i is slot i, for every slot. The columns of the load then serve without a copy.
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
    /// What was listed before the trust in the index shortened it. Empty while every worker is exact.
    pub(crate) listed: ListedBlocks,
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

    /// Sets the work of each candidate, from the prompt tokens that one block per tier saves. O(candidates).
    ///
    /// `in_time`: count the blocks that the candidate will have, as in [`Matched::overlap_in_time`]. A block
    /// in host memory or on disk saves a part of its tokens only, since reading it back takes time.
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
    ///
    /// Example. The worker has 2 device and 2 host blocks, and 3 blocks of the prompt are in flight. The
    /// first 3 blocks will be in device memory: the overlap becomes 3 device blocks and 1 host block.
    pub(crate) fn overlap_in_time(&self, i: usize) -> TierOverlap {
        let [device, host, disk] = self.overlap(i);
        let sooner = self.shared_blocks[i].saturating_sub(device);
        [
            device + sooner,
            host.saturating_sub(sooner),
            disk.saturating_sub(sooner.saturating_sub(host)),
        ]
    }

    /// Counts `blocks` leading blocks of the prompt as in flight on candidate `i`. Returns whether these are more than before.
    ///
    /// Only after [`Matched::fill_work`] with `in_time`. Nothing changes where the trust in the index shortened the match: a
    /// cache that lost blocks may lose the blocks in flight too.
    pub(crate) fn count_in_flight(&mut self, i: usize, blocks: u32, tokens_of_block: [f64; 3]) -> bool {
        if blocks <= self.shared_blocks[i].max(self.device_blocks[i]) || !self.listed.is_empty() {
            return false;
        }
        self.shared_blocks[i] = blocks;
        let input_tokens = f64::from(self.input_tokens);
        let found = cached_tokens_of(self.overlap_in_time(i), tokens_of_block).min(input_tokens);
        (self.new_tokens[i], self.cached_tokens[i]) = (input_tokens - found, found);
        true
    }

    /// The candidate at a position, where it is one. O(log candidates).
    pub(crate) fn candidate_at(&self, position: usize) -> Option<usize> {
        if self.everyone {
            return (position < self.slots.len()).then_some(position);
        }
        self.slots.binary_search(&Slot(position as u32)).ok()
    }

    /// What was said of candidate `i`'s cache, before any discount.
    pub(crate) fn claim(&self, i: usize, trust: &IndexTrust) -> Claim {
        let epoch = trust.epoch(self.slots[i]);
        let request_blocks = self.request_blocks;
        match self.listed.device.get(i) {
            Some(&device_blocks) => Claim {
                request_blocks,
                device_blocks,
                all_tiers_blocks: self.listed.all_tiers[i],
                in_flight_blocks: self.listed.in_flight[i],
                placed_blocks: Some(self.listed.placed[i]),
                epoch,
            },
            None => Claim {
                request_blocks,
                device_blocks: self.device_blocks[i],
                all_tiers_blocks: self.overlap(i).iter().sum(),
                in_flight_blocks: self.shared_blocks[i],
                placed_blocks: None,
                epoch,
            },
        }
    }

    /// Leading blocks that the index lists for candidate `i` in device memory.
    pub(crate) fn listed_blocks(&self, i: usize) -> u32 {
        self.listed
            .device
            .get(i)
            .copied()
            .unwrap_or(self.device_blocks[i])
    }

    /// Completes a match with the candidates: all available workers, or the allowed ones of them. `overlaps`
    /// must be current. O(slots).
    ///
    /// # Errors
    /// [`Error::NoWorker`] when no worker is both available and allowed.
    pub(crate) fn fill(
        &mut self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        sources: MatchSources<'_>,
        generation: u64,
    ) -> Result<(), Error> {
        let MatchSources {
            fleet,
            index,
            predicted,
            load,
            trust,
        } = sources;
        overlaps.add_router_state(&request.prompt(), index, predicted, load, trust);
        self.input_tokens = request.input_tokens;
        self.request_blocks = request.local_hashes.len() as u32;
        self.expected_output_tokens = request
            .expected_output_tokens
            .filter(|&tokens| tokens <= MAX_OUTPUT_TOKENS);
        self.prefix_key = request.local_hashes.first().map_or(0, |hash| hash.0);
        self.new_tokens.clear();
        self.cached_tokens.clear();
        // The usual case by far: every worker is available and allowed.
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
            self.gather_listed(&overlaps.listed);
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
        if !(self.listed.is_empty() && overlaps.listed.is_empty()) {
            std::mem::swap(&mut self.listed, &mut overlaps.listed);
        }
        if !(self.lower_is_zero && overlaps.lower_is_zero) {
            copy(&mut self.host_blocks, &overlaps.host);
            copy(&mut self.disk_blocks, &overlaps.disk);
            self.lower_is_zero = overlaps.lower_is_zero;
        }
    }

    /// Takes the listed blocks of the candidates.
    fn gather_listed(&mut self, by_slot: &ListedBlocks) {
        let slots = if by_slot.device.is_empty() {
            &[][..]
        } else {
            &self.slots
        };
        gather(&mut self.listed.device, &by_slot.device, slots);
        gather(&mut self.listed.all_tiers, &by_slot.all_tiers, slots);
        gather(&mut self.listed.in_flight, &by_slot.in_flight, slots);
        gather(&mut self.listed.placed, &by_slot.placed, slots);
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

/// Copies a column into a buffer that keeps its memory.
fn copy<T: Copy>(into: &mut Vec<T>, from: &[T]) {
    into.clear();
    into.extend_from_slice(from);
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
