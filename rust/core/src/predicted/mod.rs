//! What the workers should hold by where requests were sent: the index of fleets without KV events, and beside events the
//! answer for the time until they arrive.
//!
//! ```text
//! routed ─▶ record (worker, prompt) ─▶ overlap of later prompts ─▶ gone: time, capacity, cleared, confirmed by events
//! ```
//!
//! A worker's prediction is the union of its records' prompts. The oldest record goes first when they exceed the worker's KV
//! capacity: a block stays as long as any younger record has it, which is least recently used at the grain of requests. An
//! engine evicts the tail of its oldest prompt first, so the prediction is short by at most a part of one prompt.
//!
//! Cost: a record O(blocks / 64), a match O(blocks / 64 + workers), an end O(blocks / 64). Nothing is known of generated
//! tokens or of requests that did not pass the router. Source of the two uses and of the 120 s: Dynamo 1.6.1's
//! `--no-router-kv-events` and `--router-predicted-ttl-secs`.

mod config;
mod reference;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use serde::Serialize;

pub use config::{PredictedConfig, PredictedUse};
pub use reference::ReferencePredicted;

use crate::index::{Index, Prompt, Scratch, Slot, TierOverlap, all_slots};
use crate::load::{ActiveBlocks, RequestPath};
use crate::request::RequestId;

/// Identity and age of a record: later ones are higher, and a record that was used again gets a new one.
type RecordId = u64;

/// One request that was sent to a worker.
#[derive(Clone, Debug)]
struct Record {
    slot: Slot,
    path: RequestPath,
    request: Option<RequestId>,
}

/// The records of one worker.
#[derive(Clone, Debug, Default)]
struct WorkerRecords {
    /// By age; those that are gone stay until they come up or are too many.
    by_age: VecDeque<RecordId>,
    /// Living records among them.
    records: usize,
    /// Distinct blocks of the records.
    blocks: u64,
    capacity_blocks: u64,
}

/// What is predicted, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PredictedSize {
    /// Records now.
    pub records: u64,
    /// Distinct blocks over all workers now.
    pub blocks: u64,
    /// Records ever made.
    pub inserted: u64,
    /// Of these, ended by their time.
    pub expired: u64,
    /// Ended to make room: the capacity of their worker, or the limit of records.
    pub evicted: u64,
    /// Ended with their worker or its cache.
    pub cleared: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Predicted {
    config: PredictedConfig,
    blocks: ActiveBlocks,
    records: FxHashMap<RecordId, Record>,
    workers: Vec<WorkerRecords>,
    record_of_request: FxHashMap<RequestId, RecordId>,
    /// Records by the end of their time; the queues share the rule of [`WorkerRecords::by_age`].
    by_expiry: VecDeque<(f64, RecordId)>,
    settling: VecDeque<(f64, RecordId)>,
    next_id: RecordId,
    size: PredictedSize,
}

impl Predicted {
    /// Nothing predicted. The configuration must be valid.
    pub fn new(config: PredictedConfig) -> Self {
        Self {
            config,
            blocks: ActiveBlocks::default(),
            records: FxHashMap::default(),
            workers: Vec::new(),
            record_of_request: FxHashMap::default(),
            by_expiry: VecDeque::new(),
            settling: VecDeque::new(),
            next_id: 0,
            size: PredictedSize::default(),
        }
    }

    /// Whether anything is predicted at all.
    pub const fn is_off(&self) -> bool {
        matches!(self.config.used, PredictedUse::Off)
    }

    /// What there is and what became of the rest.
    pub fn size(&self) -> PredictedSize {
        PredictedSize {
            records: self.records.len() as u64,
            blocks: self.workers.iter().map(|worker| worker.blocks).sum(),
            ..self.size
        }
    }

    /// A worker whose device cache has so many blocks, where that is known.
    pub fn add_worker(&mut self, slot: Slot, capacity_blocks: Option<u64>) {
        let len = self.workers.len().max(slot.index() + 1);
        self.workers.resize_with(len, WorkerRecords::default);
        self.workers[slot.index()].capacity_blocks =
            capacity_blocks.unwrap_or(self.config.capacity_blocks).max(1);
    }

    /// Forget what was predicted of a worker. O(its records).
    pub fn clear(&mut self, slot: Slot) {
        let Some(worker) = self.workers.get_mut(slot.index()) else {
            return;
        };
        for id in std::mem::take(&mut worker.by_age) {
            self.size.cleared += u64::from(self.remove_record(id));
        }
    }

    /// Raise `depth[slot]` to the leading blocks of the prompt that are predicted there, for the `slots` given as bits.
    pub fn raise_overlap(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        depth: &mut [u32],
        scratch: &mut RaiseScratch,
    ) {
        if self.records.is_empty() {
            return;
        }
        scratch.depth.clear();
        scratch.depth.resize(depth.len(), 0);
        self.blocks
            .shared(prompt, slots, &mut scratch.depth, &mut scratch.walk);
        for (depth, &predicted) in depth.iter_mut().zip(&scratch.depth) {
            *depth = (*depth).max(predicted);
        }
    }

    /// As [`Predicted::raise_overlap`] for every slot; what `index` knows of the lower tiers then goes on from there.
    pub fn raise_overlaps(&self, prompt: &Prompt<'_>, index: &Index, overlaps: &mut [TierOverlap]) {
        let mut depth = vec![0; overlaps.len()];
        let everyone = all_slots(overlaps.len());
        self.raise_overlap(prompt, &everyone, &mut depth, &mut RaiseScratch::default());
        let mut scratch = Scratch::default();
        index.follow(prompt, &mut scratch);
        for ((slot, overlap), predicted) in (0..).map(Slot).zip(overlaps).zip(depth) {
            if predicted > overlap[0] {
                let [host, disk] = index.lower_overlap(&scratch, slot, predicted);
                *overlap = [predicted, host, disk];
            }
        }
    }

    /// A request was sent to a worker.
    pub fn insert(&mut self, slot: Slot, prompt: &Prompt<'_>, request: Option<RequestId>, now_s: f64) {
        if self.is_off() || prompt.locals.is_empty() {
            return;
        }
        let capacity = self.workers[slot.index()].capacity_blocks;
        let fits = prompt
            .locals
            .len()
            .min(usize::try_from(capacity).unwrap_or(usize::MAX));
        let prompt = Prompt {
            locals: &prompt.locals[..fits],
            sequence: prompt.sequence.get(..fits).unwrap_or_default(),
        };
        let (path, added) = self.blocks.add(slot, &prompt);
        let worker = &mut self.workers[slot.index()];
        worker.blocks += added;
        worker.records += 1;
        self.size.inserted += 1;
        let record = Record { slot, path, request };
        let id = self.insert_record(record, now_s);
        self.make_room(slot, id);
    }

    fn insert_record(&mut self, record: Record, now_s: f64) -> RecordId {
        let id = self.next_id;
        self.next_id += 1;
        if let Some(request) = record.request {
            self.record_of_request.insert(request, id);
        }
        self.workers[record.slot.index()].by_age.push_back(id);
        enqueue(&mut self.by_expiry, now_s + self.config.ttl_s, id, &self.records);
        self.records.insert(id, record);
        id
    }

    /// End records, oldest first, until the worker's fit its capacity and all fit the limit; never the newest.
    fn make_room(&mut self, slot: Slot, newest: RecordId) {
        loop {
            let worker = &mut self.workers[slot.index()];
            if worker.blocks <= worker.capacity_blocks {
                break;
            }
            let oldest = worker
                .by_age
                .pop_front()
                .expect("counted blocks must have records");
            debug_assert!(oldest != newest, "one prompt must fit its worker");
            self.size.evicted += u64::from(self.remove_record(oldest));
        }
        while self.records.len() > self.config.max_records {
            let (_, oldest) = self.by_expiry.pop_front().expect("every record must expire");
            self.size.evicted += u64::from(self.remove_record(oldest));
        }
        let worker = &mut self.workers[slot.index()];
        if worker.by_age.len() > 64 + 2 * worker.records {
            worker.by_age.retain(|id| self.records.contains_key(id));
        }
    }

    /// The first token of a request is out: beside events, its prediction ends once they have had time to arrive.
    pub fn first_token(&mut self, request: RequestId, now_s: f64) {
        if self.config.used != PredictedUse::Beside {
            return;
        }
        if let Some(id) = self.record_of_request.remove(&request) {
            enqueue(
                &mut self.settling,
                now_s + self.config.settle_s,
                id,
                &self.records,
            );
        }
    }

    /// The request ended. Beside events as its first token, if that was not told; without events its blocks were used just
    /// now: its record is the youngest again.
    pub fn finished(&mut self, request: RequestId, now_s: f64) {
        if self.config.used == PredictedUse::Beside {
            self.first_token(request, now_s);
        } else if let Some(id) = self.record_of_request.remove(&request)
            && let Some(mut record) = self.records.remove(&id)
        {
            record.request = None;
            let slot = record.slot;
            let id = self.insert_record(record, now_s);
            self.make_room(slot, id);
        }
    }

    /// End what outlived its time; how many records. O(1) when nothing did.
    pub fn expire(&mut self, now_s: f64) -> usize {
        let mut ended = 0;
        while let Some(id) =
            pop_due(&mut self.settling, now_s).or_else(|| pop_due(&mut self.by_expiry, now_s))
        {
            ended += usize::from(self.remove_record(id));
        }
        self.size.expired += ended as u64;
        ended
    }

    /// Take a record away; whether it was there.
    fn remove_record(&mut self, id: RecordId) -> bool {
        let Some(record) = self.records.remove(&id) else {
            return false;
        };
        if let Some(request) = record.request
            && self.record_of_request.get(&request) == Some(&id)
        {
            self.record_of_request.remove(&request);
        }
        let removed = self.blocks.remove(record.slot, &record.path);
        let worker = &mut self.workers[record.slot.index()];
        worker.blocks -= removed;
        worker.records -= 1;
        true
    }
}

/// What [`Predicted::raise_overlap`] keeps between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub struct RaiseScratch {
    depth: Vec<u32>,
    walk: Scratch,
}

/// Put a record in line. A clock that goes back would break the order: such a record lives a little longer instead.
fn enqueue(
    line: &mut VecDeque<(f64, RecordId)>,
    at_s: f64,
    id: RecordId,
    records: &FxHashMap<RecordId, Record>,
) {
    let at_s = line.back().map_or(at_s, |&(last_s, _)| at_s.max(last_s));
    line.push_back((at_s, id));
    if line.len() > 64 + 2 * records.len() {
        line.retain(|(_, other)| *other == id || records.contains_key(other));
    }
}

fn pop_due(line: &mut VecDeque<(f64, RecordId)>, now_s: f64) -> Option<RecordId> {
    line.front().filter(|(at_s, _)| *at_s <= now_s)?;
    line.pop_front().map(|(_, id)| id)
}
