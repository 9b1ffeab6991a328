//! Blocks of an engine: the cached prefix of a prompt, allocation, publication and eviction.

use super::block_pool::{GENERATED, NONE};
use super::{CacheChange, Onboarding, OnboardingSequence, Reservation, RunState, Signal, Worker};
use crate::spec::Role;

/// Prefix of a prompt that is in device memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CachedPrefix {
    /// Blocks of the prefix.
    pub blocks: u32,
    /// Blocks of the prefix that no running sequence holds.
    pub inactive: u32,
    /// Blocks after the prefix that need space and no computation, because workers share their caches.
    pub shared: u32,
}

impl CachedPrefix {
    /// Blocks of the prefix that a running sequence holds, and that therefore cost no further space.
    pub const fn active_blocks(self) -> u32 {
        self.blocks - self.inactive
    }
}

impl Worker {
    /// Frees the blocks of KV that has been sent, and reserves blocks for KV that is to come, in order.
    pub(super) fn make_room(&mut self, state: &mut RunState<'_>) {
        while let Some(request) = self.sent.pop() {
            if let Some(place) = self.position_in(&self.awaiting_send, request) {
                let at = self.awaiting_send.swap_remove(place);
                self.release(at);
                self.free_sequences.push(at);
            }
        }
        self.is_out_of_room = false;
        while let Some(at) = self.awaiting_room.front().copied() {
            let cached = self.find_cached(at, state);
            let sequence = &self.sequences[at as usize];
            let (request, prompt) = (sequence.request, sequence.prompt);
            let need = prompt.div_ceil(self.spec.block_size);
            if need > self.pool.capacity() {
                state.signals.push(Signal::Rejected(request));
                self.awaiting_room.pop_front();
                self.free_sequences.push(at);
                continue;
            }
            if need - cached.active_blocks() > self.pool.available() {
                self.is_out_of_room = true;
                break;
            }
            let allocated = self.allocate(at, cached.blocks, need as usize);
            debug_assert!(allocated, "the number of available blocks must have been checked");
            self.publish_blocks(at, cached.blocks, prompt / self.spec.block_size, state);
            self.awaiting_room.pop_front();
            self.reserved.push(at);
            state.reservations.push(Reservation {
                request,
                tokens: (need - cached.blocks) * self.spec.block_size,
            });
        }
        self.publish_evictions(state);
    }

    /// Caches the blocks read from lower tiers for `request`, and queues the request at the front.
    pub(super) fn onboard(&mut self, request: u32, state: &mut RunState<'_>) {
        let Some(place) = self
            .onboarding
            .iter()
            .position(|waiting| self.sequences[waiting.at as usize].request == request)
        else {
            return;
        };
        let OnboardingSequence { at, held_slots } = self.onboarding.swap_remove(place);
        let whole = state.names.whole_blocks(&state.workload, request);
        let mut first = 0;
        while first < whole && self.pool.find(state.block(request, first)).is_some() {
            first += 1;
        }
        let mut last = first;
        let mut held = Vec::new();
        while last < whole {
            let block = state.block(request, last);
            if self.pool.find(block).is_some() || self.tiers.holds(block).is_none() {
                break;
            }
            let Some(slot) = self.pool.take(&mut self.evicted) else {
                break;
            };
            let parent = state.parent(request, last);
            self.pool.publish(slot, block, parent);
            held.push(slot);
            last += 1;
        }
        held.iter().rev().for_each(|slot| self.pool.release(*slot));
        for slot in held_slots.iter().rev() {
            self.pool.release(*slot);
        }
        if last > first {
            state.changes.push(CacheChange::Stored {
                request,
                from: first,
                to: last,
            });
            state.totals.onboarded_tokens += u64::from((last - first) * self.spec.block_size);
        }
        self.publish_evictions(state);
        self.waiting.push_front(at);
    }

    /// Finds the prefix of a prompt in device memory, and keeps its slots in `cached_slots`.
    ///
    /// Except on a decode worker, at least one token stays to be computed: the first output token needs it.
    pub(super) fn find_cached(&mut self, at: u32, state: &mut RunState<'_>) -> CachedPrefix {
        self.cached_slots.clear();
        let sequence = &self.sequences[at as usize];
        if !self.spec.prefix_caching {
            return CachedPrefix::default();
        }
        let whole = sequence.prompt / self.spec.block_size;
        let most = if self.role == Role::Decode {
            whole
        } else {
            whole.min((sequence.known - 1) / self.spec.block_size)
        };
        let mut found = CachedPrefix::default();
        for index in 0..most {
            match self.pool.find(state.block(sequence.request, index)) {
                Some(slot) => {
                    found.blocks += 1;
                    found.inactive += u32::from(!self.pool.is_active(slot));
                    self.cached_slots.push(slot);
                }
                None => break,
            }
        }
        if let Some(shared) = state.shared_blocks.as_mut().filter(|_| self.role != Role::Decode) {
            let block = |index| state.names.block(&state.workload, sequence.request, index);
            (0..found.blocks).for_each(|index| shared.refresh(block(index)));
            let in_reach = |index: &u32| shared.contains(block(*index));
            found.shared = (found.blocks..most).take_while(in_reach).count() as u32;
        }
        found
    }

    /// Starts to read the blocks after the device prefix from lower tiers. Returns true if there are any.
    pub(super) fn start_onboarding(
        &mut self,
        at: u32,
        cached_blocks: u32,
        now_ms: f64,
        state: &mut RunState<'_>,
    ) -> bool {
        let sequence = &mut self.sequences[at as usize];
        if sequence.tried_onboarding || sequence.started {
            return false;
        }
        let most = (sequence.prompt - 1) / self.spec.block_size;
        let mut counts = vec![0u32; self.tiers.len()];
        for index in cached_blocks..most {
            match self.tiers.holds(state.block(sequence.request, index)) {
                Some(level) => counts[level] += 1,
                None => break,
            }
        }
        if counts.iter().all(|count| *count == 0) {
            return false;
        }
        sequence.tried_onboarding = true;
        let ready_ms = self.tiers.read(&counts, now_ms);
        state.onboardings.push(Onboarding {
            request: sequence.request,
            ready_ms,
        });
        for slot in &self.cached_slots {
            self.pool.hold(*slot);
        }
        self.onboarding.push(OnboardingSequence {
            at,
            held_slots: self.cached_slots.clone(),
        });
        true
    }

    /// Grows a sequence to `target` blocks, or returns false and changes nothing.
    ///
    /// The first `cached` blocks of a sequence without blocks come from `cached_slots`.
    pub(super) fn allocate(&mut self, at: u32, cached: u32, target: usize) -> bool {
        let have = self.sequences[at as usize].slots.len();
        if target <= have {
            return true;
        }
        let mut slots = std::mem::take(&mut self.sequences[at as usize].slots);
        let mut fresh = (target - have) as u32;
        if have == 0 && cached > 0 {
            fresh -= cached;
            slots.extend_from_slice(&self.cached_slots[..cached as usize]);
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

    /// Names the computed prompt blocks `from..to`, and reports the ones that the cache did not hold before.
    pub(super) fn publish_blocks(&mut self, at: u32, from: u32, to: u32, state: &mut RunState<'_>) {
        let sequence = &self.sequences[at as usize];
        let to = to.min(sequence.prompt / self.spec.block_size);
        if !self.spec.prefix_caching || from >= to {
            return;
        }
        let mut first = from;
        for index in from..to {
            let slot = sequence.slots[index as usize];
            let block = state.block(sequence.request, index);
            if let Some(shared) = state.shared_blocks.as_mut() {
                shared.insert(block);
            }
            if !self
                .pool
                .publish(slot, block, state.parent(sequence.request, index))
            {
                if first < index {
                    state.changes.push(CacheChange::Stored {
                        request: sequence.request,
                        from: first,
                        to: index,
                    });
                }
                first = index + 1;
            }
        }
        if first < to {
            state.changes.push(CacheChange::Stored {
                request: sequence.request,
                from: first,
                to,
            });
        }
    }

    /// Releases every block of a sequence. The last block goes first, so that a prefix outlives its continuations.
    pub(super) fn release(&mut self, at: u32) {
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

    /// Reports the evicted blocks, and offers them to the lower tiers.
    pub(super) fn publish_evictions(&mut self, state: &mut RunState<'_>) {
        for gone in self.evicted.drain(..) {
            state.totals.evictions += 1;
            if !self.tiers.is_empty() {
                // The tier's event comes before the removal, so that the router always knows one copy of the block.
                self.tiers.offload(gone, &mut self.tier_changes);
                state
                    .changes
                    .extend(self.tier_changes.drain(..).map(CacheChange::Tier));
            }
            state.changes.push(CacheChange::Removed { block: gone.block });
        }
    }
}
