//! Overlaps: how much of a prompt each worker holds, read without a lock before the decision takes one.
//!
//! Stands first in a decision: `look up ─▶ match ─▶ price ─▶ pick ─▶ book`. The look-up is the long part, so
//! it runs beside other decisions. Two things can make it useless: the fleet changed, or a whole cache was
//! dropped. The read therefore begins with a stamp of the roster and the count of dropped caches.
//! [`Overlaps::is_current`] compares both under the lock, and the caller reads again where they differ.
//!
//! A store or a removal during the read needs no such check: each counted block was held at some moment of
//! the read (`docs/explanation/prefix-index.md`).
//!
//! Order matters in [`Overlaps::read`]: the counts come before the roster, the roster before the index. A
//! change after the first read then shows in the comparison.
//!
//! Cost: O(blocks / 64 + workers), no allocation once the thread's buffers have grown.

use std::cell::Cell;

use crate::index::seqlock::Stamp;
use crate::index::slots::bits;
use crate::index::{Index, Prompt, Scratch, Slot};
use crate::load::Load;
use crate::predicted::{Predicted, RaiseScratch, raise};
use crate::roster::Roster;
use crate::trust::IndexTrust;

/// Overlap of a prompt on each available worker, by slot. Threads keep the buffers between calls to spare
/// allocations.
///
/// Entries of workers that are not available are left over from earlier calls and mean nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlaps {
    /// State of the fleet at the time of the read; `None`: the fleet was changing.
    stamp: Option<Stamp>,
    /// Count of dropped caches before the read, from [`Index::clears`].
    clears: u64,
    /// Slots of the fleet at the time of the read.
    pub slots: usize,
    /// Slots of the available workers, as words of bits.
    active: Vec<u64>,
    /// Leading blocks in device memory.
    pub device: Vec<u32>,
    /// Blocks after the device blocks, in host memory.
    pub host: Vec<u32>,
    /// Blocks after the host blocks, on disk.
    pub disk: Vec<u32>,
    /// Leading blocks in flight.
    pub shared: Vec<u32>,
    /// Whether `host` and `disk` are all 0, as on fleets without lower tiers.
    pub lower_is_zero: bool,
    /// What was listed of workers whose index is not believed as it is. Empty while every worker is exact.
    pub listed: ListedBlocks,
    /// Buffers of the index.
    scratch: Scratch,
    /// Buffers of the predicted caches.
    raise: RaiseScratch,
}

thread_local! {
    /// The buffers of this thread, while no call uses them. A call inside a call would find `None` and make
    /// its own.
    static KEPT: Cell<Option<Box<Overlaps>>> = const { Cell::new(None) };
}

/// Leading blocks of a prompt by slot or by candidate, before the trust in the index shortens them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListedBlocks {
    /// Blocks in device memory, by the index.
    pub device: Vec<u32>,
    /// Blocks in any tier, by the index.
    pub all_tiers: Vec<u32>,
    /// Blocks in flight.
    pub in_flight: Vec<u32>,
    /// Blocks of the requests that were placed on the worker.
    pub placed: Vec<u32>,
}

impl ListedBlocks {
    /// Whether the columns have no entry, because every worker was exact.
    pub fn is_empty(&self) -> bool {
        self.device.is_empty()
    }

    /// Makes every column a column of `len` zeros.
    fn reset(&mut self, len: usize) {
        for column in [
            &mut self.device,
            &mut self.all_tiers,
            &mut self.in_flight,
            &mut self.placed,
        ] {
            zero(column, len);
        }
    }
}

impl Overlaps {
    /// The buffers that this thread used last, or new ones.
    pub(crate) fn take_kept() -> Box<Self> {
        KEPT.take().unwrap_or_default()
    }

    /// Keeps the buffers for the next match of this thread.
    pub(crate) fn keep(self: Box<Self>) {
        KEPT.set(Some(self));
    }

    /// Reads the overlaps from the index, without a lock, regardless of concurrent writes.
    ///
    /// Lower tiers cost a second walk. It is skipped while no worker of the fleet holds a block there.
    pub(crate) fn read(&mut self, prompt: &Prompt<'_>, roster: &Roster, index: &Index) {
        self.clears = index.clears();
        let fleet = roster.read(&mut self.active);
        self.stamp = fleet.map(|(_, stamp)| stamp);
        self.slots = fleet.map_or(0, |(slots, _)| slots);
        self.active.truncate(self.slots.div_ceil(64));
        // The index writes the entry of every available worker; no code reads the other entries.
        self.device.resize(self.slots, 0);
        index.device_overlap(prompt, &self.active, &mut self.device, &mut self.scratch);
        if index.any_lower() {
            index.follow(prompt, &mut self.scratch);
            zero(&mut self.host, self.slots);
            zero(&mut self.disk, self.slots);
            self.lower_is_zero = false;
            self.read_lower(index);
        } else if !self.lower_is_zero || self.host.len() != self.slots {
            zero(&mut self.host, self.slots);
            zero(&mut self.disk, self.slots);
            self.lower_is_zero = true;
        }
    }

    /// Reads the overlaps of the lower tiers.
    fn read_lower(&mut self, index: &Index) {
        for slot in each(&self.active).filter(|&slot| index.has_lower(slot)) {
            let at = slot.index();
            [self.host[at], self.disk[at]] = index.lower_overlap(&self.scratch, slot, self.device[at]);
        }
    }

    /// Whether the fleet is unchanged since the read, and no cache was dropped.
    pub(crate) fn is_current(&self, roster: &Roster, index: &Index) -> bool {
        self.clears == index.clears() && self.stamp.is_some_and(|stamp| roster.is_valid(stamp))
    }

    /// Adds the router's own knowledge, under its lock: predicted caches, blocks in flight and the trust in the index.
    ///
    /// A predicted overlap can exceed the reported one. The lower tiers follow the device blocks, so they are
    /// read again then.
    pub(crate) fn add_router_state(
        &mut self,
        prompt: &Prompt<'_>,
        index: &Index,
        predicted: &Predicted,
        load: &Load,
        trust: &IndexTrust,
    ) {
        if !predicted.is_empty() {
            predicted.overlap(prompt, &self.active, self.slots, &mut self.raise);
            if !predicted.is_off() {
                raise(&mut self.device, &self.raise.depth);
                if !self.lower_is_zero {
                    self.read_lower(index);
                }
            }
        }
        self.shared.resize(self.slots, 0);
        load.shared_blocks(prompt, &self.active, &mut self.shared, &mut self.scratch);
        if trust.is_exact() {
            // Nearly all decisions find the columns empty. Resetting, swapping and claiming regardless took 3.5 % of the
            // instructions of `route_miss`.
            if !self.listed.is_empty() {
                self.listed.reset(0);
            }
        } else {
            self.shorten(trust, !predicted.is_empty());
        }
    }

    /// Replaces what is listed by what the trust in the index lets a price believe. O(workers).
    fn shorten(&mut self, trust: &IndexTrust, has_placed: bool) {
        self.listed.reset(self.slots);
        for slot in each(&self.active) {
            let at = slot.index();
            let listed = [self.device[at], self.host[at], self.disk[at]];
            let placed = if has_placed { self.raise.depth[at] } else { 0 };
            self.listed.device[at] = listed[0];
            self.listed.all_tiers[at] = listed.iter().sum();
            self.listed.in_flight[at] = self.shared[at];
            self.listed.placed[at] = placed;
            let (believed, counts_in_flight) = trust.believed(slot, listed, placed);
            [self.device[at], self.host[at], self.disk[at]] = believed;
            if !counts_in_flight {
                self.shared[at] = 0;
            }
        }
    }
}

/// Makes `column` a column of `len` zeros.
pub(crate) fn zero<T: Copy + Default>(column: &mut Vec<T>, len: usize) {
    column.clear();
    column.resize(len, T::default());
}

/// Slots of a set, lowest first.
pub(crate) fn each(words: &[u64]) -> impl Iterator<Item = Slot> + '_ {
    (0..)
        .zip(words)
        .flat_map(|(at, &word)| bits(word).map(move |bit| Slot(at * 64 + bit)))
}

/// Copies the entries of `slots`, in that order.
pub(crate) fn gather<T: Copy>(into: &mut Vec<T>, from: &[T], slots: &[Slot]) {
    into.clear();
    into.extend(slots.iter().map(|slot| from[slot.index()]));
}
