//! A request matched against its candidates: everything of a decision that does not change with the load.

use crate::error::Error;
use crate::fleet::Fleet;
use crate::index::slots::bits;
use crate::index::{Index, Prompt, Scratch, Slot, TierOverlap};
use crate::ledger::{Seconds, Work};
use crate::load::Load;
use crate::predicted::{Predicted, RaiseScratch};
use crate::request::{Candidate, RouteRequest};
use crate::worker::WorkerId;

/// What a match reads.
pub(crate) type State<'a> = (&'a Fleet, &'a Index, &'a Predicted, &'a Load);

/// By slot: what each available worker has of the prompt. Kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlaps {
    device: Vec<u32>,
    host: Vec<u32>,
    disk: Vec<u32>,
    shared: Vec<u32>,
    /// Whether `host` and `disk` are all 0, as they are on fleets without lower tiers.
    lower_is_zero: bool,
    scratch: Scratch,
    raise: RaiseScratch,
}

impl Overlaps {
    fn fill(&mut self, prompt: &Prompt<'_>, (fleet, index, predicted, load): State<'_>) {
        let slots = fleet.available();
        zero(&mut self.device, fleet.slots());
        zero(&mut self.shared, fleet.slots());
        index.device_overlap(prompt, slots, &mut self.device, &mut self.scratch);
        predicted.raise(prompt, slots, &mut self.device, &mut self.raise);
        load.shared_blocks(prompt, slots, &mut self.shared, &mut self.scratch);
        if index.any_lower() {
            zero(&mut self.host, fleet.slots());
            zero(&mut self.disk, fleet.slots());
            self.lower_is_zero = false;
            for slot in each(slots).filter(|&slot| index.has_lower(slot)) {
                let at = slot.index();
                [self.host[at], self.disk[at]] = index.lower_overlap(prompt, slot, self.device[at]);
            }
        } else if !self.lower_is_zero || self.host.len() != fleet.slots() {
            zero(&mut self.host, fleet.slots());
            zero(&mut self.disk, fleet.slots());
            self.lower_is_zero = true;
        }
    }
}

fn zero(column: &mut Vec<u32>, len: usize) {
    column.clear();
    column.resize(len, 0);
}

/// A request matched against every candidate: what of its price does not change with the load. One entry per candidate.
///
/// Valid while [`crate::Router::generation`] stays; the overlaps age as the caches change.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    pub(crate) input_tokens: u32,
    pub(crate) request_blocks: u32,
    pub(crate) expected_output_tokens: Option<u32>,
    pub(crate) prefix_key: u64,
    pub(crate) generation: u64,
    /// Whether candidate i is slot i, for every slot.
    pub(crate) everyone: bool,
    /// Whether no candidate has anything in host memory or on disk.
    lower_is_zero: bool,
    pub(crate) workers: Vec<WorkerId>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) device_blocks: Vec<u32>,
    pub(crate) host_blocks: Vec<u32>,
    pub(crate) disk_blocks: Vec<u32>,
    pub(crate) shared_blocks: Vec<u32>,
    pub(crate) work: Vec<Work>,
}

impl Matched {
    /// The candidates.
    pub fn workers(&self) -> &[WorkerId] {
        &self.workers
    }

    /// Dense positions of the candidates, below [`crate::Router::positions`].
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().map(|slot| slot.index())
    }

    /// Dense position of candidate `i`.
    pub fn position(&self, i: usize) -> usize {
        self.slots[i].index()
    }

    /// Leading blocks of the prompt that candidate `i` has in device memory.
    pub fn overlap_blocks(&self, i: usize) -> u32 {
        self.device_blocks[i]
    }

    /// Prompt tokens that candidate `i` would compute and find. Only after [`crate::Router::prepare`].
    pub fn work(&self, i: usize) -> Work {
        self.work[i]
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

    /// Match `request` against the available workers, all or the allowed ones.
    pub(crate) fn fill(
        &mut self,
        request: &RouteRequest<'_>,
        overlaps: &mut Overlaps,
        state: State<'_>,
        generation: u64,
    ) -> Result<(), Error> {
        let prompt = Prompt {
            locals: request.local_hashes,
            sequence: request.sequence_hashes,
        };
        overlaps.fill(&prompt, state);
        let fleet = state.0;
        self.input_tokens = request.input_tokens;
        self.request_blocks = request.local_hashes.len() as u32;
        self.expected_output_tokens = request.expected_output_tokens;
        self.prefix_key = request.local_hashes.first().map_or(0, |hash| hash.0);
        self.work.clear();
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

/// Load that a price must count although nothing is booked yet: requests that wait for a worker. By dense position.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// Prefill tokens.
    pub tokens: Vec<u64>,
    /// Their prefill seconds.
    pub prefill_s: Vec<f64>,
    /// Requests.
    pub requests: Vec<u32>,
}

/// The load of the candidates of the decision at hand, one entry each; kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns {
    /// Candidate i is slot i and nothing waits ahead: the load's own columns serve.
    straight: bool,
    pub prefill_tokens: Vec<u64>,
    pub decode_blocks: Vec<u64>,
    pub active_requests: Vec<u32>,
    pub seconds: Vec<Seconds>,
    pub costs: Vec<f64>,
}

impl Columns {
    /// The load of the candidates now, with what waits ahead of the request.
    pub fn fill(&mut self, matched: &Matched, load: &Load, ahead: Option<&Ahead>) {
        self.seconds.clear();
        self.costs.resize(matched.slots.len(), 0.0);
        self.straight = matched.everyone && ahead.is_none();
        if self.straight {
            return;
        }
        take(&mut self.prefill_tokens, &load.prefill_tokens, &matched.slots);
        take(&mut self.decode_blocks, &load.decode_blocks, &matched.slots);
        take(&mut self.active_requests, &load.active_requests, &matched.slots);
        if let Some(ahead) = ahead {
            for (i, slot) in matched.slots.iter().enumerate() {
                self.prefill_tokens[i] += ahead.tokens[slot.index()];
                self.active_requests[i] += ahead.requests[slot.index()];
            }
        }
    }

    /// Prefill tokens, blocks and requests in flight, one entry per candidate.
    pub fn loads<'a>(&'a self, load: &'a Load) -> (&'a [u64], &'a [u64], &'a [u32]) {
        if self.straight {
            return (&load.prefill_tokens, &load.decode_blocks, &load.active_requests);
        }
        (&self.prefill_tokens, &self.decode_blocks, &self.active_requests)
    }

    /// Candidate `i` with all its parts.
    pub fn candidate(&self, matched: &Matched, load: &Load, i: usize) -> Candidate {
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
