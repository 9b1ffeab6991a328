//! The registered workers: worker ids to dense slots, and the slots that take requests.
//!
//! It belongs to the state of the router and changes under its lock. [`crate::roster`] is the copy of it that
//! matches read without the lock.
//!
//! A slot has four states, in a circle:
//!
//! ```text
//! never used ─▶ registered, available ◀─▶ registered, unavailable ─▶ removed ─▶ free ─▶ registered …
//! ```
//!
//! Between `remove` and `free` the index drops what the former worker held. A new worker in the slot would
//! otherwise be credited with it.

use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::index::Slot;
use crate::worker::{WorkerId, WorkerSpec};

/// Registered workers. A new worker reuses the slot of a worker that left. O(1) per call, except
/// [`Fleet::sorted`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    /// Slot of each registered worker.
    slot_of: FxHashMap<WorkerId, Slot>,
    /// Worker of each slot; outdated for free slots.
    ids: Vec<WorkerId>,
    /// Reported sizes by slot.
    specs: Vec<WorkerSpec>,
    /// Bit per slot: the worker is registered and takes requests.
    available: Vec<u64>,
    /// Slots that a new worker may take. The slot freed last goes first, so columns stay short.
    free: Vec<Slot>,
}

impl Fleet {
    /// Registers a worker as available, in a free slot.
    ///
    /// # Errors
    /// [`Error::WorkerExists`], and [`Error::TooManyWorkers`] at the limit. Nothing changes then.
    pub(crate) fn add(&mut self, id: WorkerId, spec: WorkerSpec, workers_max: usize) -> Result<Slot, Error> {
        if self.slot_of.contains_key(&id) {
            return Err(Error::WorkerExists(id));
        }
        if self.slot_of.len() >= workers_max {
            return Err(Error::TooManyWorkers { limit: workers_max });
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.ids.push(id);
            self.specs.push(WorkerSpec::default());
            Slot(self.ids.len() as u32 - 1)
        });
        self.ids[slot.index()] = id;
        self.specs[slot.index()] = spec;
        self.available.resize(self.ids.len().div_ceil(64), 0);
        self.slot_of.insert(id, slot);
        self.set_available(slot, true);
        Ok(slot)
    }

    /// Forgets a worker. No other worker gets its slot before [`Fleet::free`].
    pub(crate) fn remove(&mut self, id: WorkerId) -> Result<Slot, Error> {
        let slot = self.slot_of.remove(&id).ok_or(Error::UnknownWorker(id))?;
        self.set_available(slot, false);
        Ok(slot)
    }

    /// Releases a slot, once the index holds nothing of its former worker.
    pub(crate) fn free(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// Slot of a worker.
    pub(crate) fn slot(&self, id: WorkerId) -> Result<Slot, Error> {
        self.slot_of.get(&id).copied().ok_or(Error::UnknownWorker(id))
    }

    /// Sets whether the worker in `slot` takes requests.
    pub(crate) fn set_available(&mut self, slot: Slot, available: bool) {
        let (at, bit) = (slot.index() / 64, 1 << (slot.index() % 64));
        if available {
            self.available[at] |= bit;
        } else {
            self.available[at] &= !bit;
        }
    }

    /// Whether the worker in `slot` takes requests.
    pub(crate) fn is_available(&self, slot: Slot) -> bool {
        self.available[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }

    /// Slots that take requests, as words of bits.
    pub(crate) fn available(&self) -> &[u64] {
        &self.available
    }

    /// Number of workers that take requests.
    pub(crate) fn available_len(&self) -> usize {
        self.available.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Number of registered workers.
    pub(crate) fn len(&self) -> usize {
        self.slot_of.len()
    }

    /// Number of slots ever used, which is the length of every column.
    pub(crate) const fn slots(&self) -> usize {
        self.ids.len()
    }

    /// Worker of each slot; outdated for free slots.
    pub(crate) fn ids(&self) -> &[WorkerId] {
        &self.ids
    }

    /// Size that the worker in `slot` reported.
    pub(crate) fn spec(&self, slot: Slot) -> &WorkerSpec {
        &self.specs[slot.index()]
    }

    /// Replaces the reported size of the worker in `slot`.
    pub(crate) fn set_spec(&mut self, slot: Slot, spec: WorkerSpec) {
        self.specs[slot.index()] = spec;
    }

    /// Registered workers with their slots, by worker id. O(workers · log workers), for views and files.
    pub(crate) fn sorted(&self) -> Vec<(WorkerId, Slot)> {
        let mut workers: Vec<_> = self.slot_of.iter().map(|(&id, &slot)| (id, slot)).collect();
        workers.sort_unstable();
        workers
    }
}
