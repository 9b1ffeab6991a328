//! Who is registered: worker ids to dense slots, and which slots take requests.

use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::index::Slot;
use crate::worker::{WorkerId, WorkerSpec};

/// The registered workers. Slots of workers that left are given to those that come.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    slot_of: FxHashMap<WorkerId, Slot>,
    ids: Vec<WorkerId>,
    specs: Vec<WorkerSpec>,
    /// Bit per slot: registered and available.
    available: Vec<u64>,
    free: Vec<Slot>,
}

impl Fleet {
    /// Register a worker, available.
    pub fn add(&mut self, id: WorkerId, spec: WorkerSpec, workers_max: usize) -> Result<Slot, Error> {
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

    /// Forget a worker. Nobody else gets its slot before [`Fleet::free`].
    pub fn remove(&mut self, id: WorkerId) -> Result<Slot, Error> {
        let slot = self.slot_of.remove(&id).ok_or(Error::UnknownWorker(id))?;
        self.set_available(slot, false);
        Ok(slot)
    }

    /// Nothing is left of the worker that was in `slot`.
    pub fn free(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// The slot of a worker.
    pub fn slot(&self, id: WorkerId) -> Result<Slot, Error> {
        self.slot_of.get(&id).copied().ok_or(Error::UnknownWorker(id))
    }

    /// Whether the worker in `slot` takes requests.
    pub fn set_available(&mut self, slot: Slot, available: bool) {
        let (at, bit) = (slot.index() / 64, 1 << (slot.index() % 64));
        if available {
            self.available[at] |= bit;
        } else {
            self.available[at] &= !bit;
        }
    }

    /// Whether the worker in `slot` takes requests.
    pub fn is_available(&self, slot: Slot) -> bool {
        self.available[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }

    /// Slots that take requests, as words of bits.
    pub fn available(&self) -> &[u64] {
        &self.available
    }

    /// How many take requests.
    pub fn available_len(&self) -> usize {
        self.available.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Registered workers.
    pub fn len(&self) -> usize {
        self.slot_of.len()
    }

    /// Slots ever used: every column has this length.
    pub const fn slots(&self) -> usize {
        self.ids.len()
    }

    /// Who is in each slot; stale for slots that nobody has.
    pub fn ids(&self) -> &[WorkerId] {
        &self.ids
    }

    /// What the worker in `slot` said of its size.
    pub fn spec(&self, slot: Slot) -> &WorkerSpec {
        &self.specs[slot.index()]
    }

    /// Registered workers with their slots, in id order.
    pub fn sorted(&self) -> Vec<(WorkerId, Slot)> {
        let mut workers: Vec<_> = self.slot_of.iter().map(|(&id, &slot)| (id, slot)).collect();
        workers.sort_unstable();
        workers
    }
}
