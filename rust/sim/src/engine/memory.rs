//! Blocks: what a prompt finds, what it is given, and what leaves for that.

use super::{CacheChange, Desk, Signal, Worker};
use crate::config::Role;
use crate::pool::{GENERATED, NONE};

impl Worker {
    /// Drop what has left, and reserve for what wants to come, in order.
    pub(super) fn make_room(&mut self, desk: &mut Desk<'_>) {
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

    /// Cache the blocks that came back for `request` and let it run.
    pub(super) fn onboard(&mut self, request: u32, desk: &mut Desk<'_>) {
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

    /// Blocks of the prompt found in device memory, and how many of them nobody holds. At least one token stays to compute.
    pub(super) fn cached(&mut self, at: u32, desk: &Desk<'_>) -> (u32, u32) {
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
    pub(super) fn park(&mut self, at: u32, cached_blocks: u32, now_ms: f64, desk: &mut Desk<'_>) -> bool {
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

    /// Grow a sequence to `target` blocks, its first `cached` from the cache when it has none yet. All or nothing.
    pub(super) fn allocate(&mut self, at: u32, cached: u32, target: usize) -> bool {
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
    pub(super) fn announce(&mut self, at: u32, from: u32, to: u32, desk: &mut Desk<'_>) {
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

    /// Give back every block of a sequence, last first, so that a prefix outlives its continuations.
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

    pub(super) fn tell_evictions(&mut self, desk: &mut Desk<'_>) {
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
}
