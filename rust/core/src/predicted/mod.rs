//! Predicted caches: what workers should hold, judged by the requests sent to them.
//!
//! They serve as the index of fleets without KV events. Beside events, they bridge the time until the events
//! arrive.
//!
//! ```text
//! routed ─▶ record (worker, prompt) ─▶ overlap of later prompts ─▶ ended: time, capacity, cleared, confirmed by events
//! ```
//!
//! The prediction for a worker is the union of its records' prompts. When they exceed the KV capacity of the
//! worker, the oldest record ends first. A block thus stays while any younger record has it: least recently
//! used, at the grain of requests. An engine evicts the tail of its oldest prompt first, so the prediction
//! lacks at most a part of one prompt.
//!
//! Example. A worker has room for 100 blocks. Prompts of 60, 30 and 40 blocks are sent to it, and the third
//! shares its first 30 blocks with the second. The union is 60 + 30 + 10 = 100 blocks, and all three records
//! stay. A fourth prompt of 20 new blocks ends the first record: 60 blocks are left.
//!
//! It reuses the structure of the blocks in flight ([`crate::load`]), with another rule for the end of a
//! record.
//!
//! Cost: O(blocks / 64) to add or end a record, O(blocks / 64 + workers) per match. The prediction ignores
//! generated tokens and requests that bypass the router. Source of both uses and of the 120 s:
//! `--no-router-kv-events` and `--router-predicted-ttl-secs` of Dynamo 1.6.1.

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

/// Id and age of a record: a younger record has a higher id. A record that is used again gets a new id.
type RecordId = u64;

/// One request that was sent to a worker, and the blocks that it should have left there.
#[derive(Clone, Debug)]
struct Record {
    /// Worker of the request.
    slot: Slot,
    /// Blocks of the prompt, cut to the capacity of the worker.
    path: RequestPath,
    /// Id of the request until it ends.
    request: Option<RequestId>,
}

/// Records of one worker.
#[derive(Clone, Debug, Default)]
struct WorkerRecords {
    /// Ids by age. Ended records stay until they become the oldest or outnumber the live ones.
    by_age: VecDeque<RecordId>,
    /// Live records.
    records: usize,
    /// Distinct blocks of the live records.
    blocks: u64,
    /// Blocks of the worker's device cache, at least 1.
    capacity_blocks: u64,
    /// Whether the prediction stands in place of events for this worker, regardless of the configured use.
    is_alone: bool,
}

/// Size of the prediction, and counts of ended records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PredictedSize {
    /// Live records.
    pub records: u64,
    /// Distinct blocks of the live records, summed over the workers.
    pub blocks: u64,
    /// Records ever made.
    pub inserted: u64,
    /// Records that ended by their time.
    pub expired: u64,
    /// Records that ended to make room: the capacity of their worker, or the limit of records.
    pub evicted: u64,
    /// Records that ended because their worker left or its cache was cleared.
    pub cleared: u64,
}

/// Predicted caches of all workers; the module describes them.
#[derive(Debug)]
pub struct Predicted {
    /// Parameters.
    config: PredictedConfig,
    /// Blocks of the records, by worker.
    blocks: ActiveBlocks,
    /// Live records.
    records: FxHashMap<RecordId, Record>,
    /// Records by slot.
    workers: Vec<WorkerRecords>,
    /// Records of requests in flight. After the first token (beside events) or the end, a record is no longer
    /// named by its request.
    record_of_request: FxHashMap<RequestId, RecordId>,
    /// Records by the end of their life. Ended records stay as in [`WorkerRecords::by_age`].
    by_expiry: VecDeque<(f64, RecordId)>,
    /// Records whose events should arrive, by the time at which the records end.
    settling: VecDeque<(f64, RecordId)>,
    /// Id of the next record.
    next_id: RecordId,
    /// Counts; `records` and `blocks` stay 0 here.
    size: PredictedSize,
}

impl Predicted {
    /// An empty prediction. The configuration must be valid.
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

    /// Whether predictions are off. Then no record is made and no match asks.
    pub(crate) const fn is_off(&self) -> bool {
        matches!(self.config.used, PredictedUse::Off)
    }

    /// Whether no record is live.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Use of the prediction for one worker.
    fn use_of(&self, slot: Slot) -> PredictedUse {
        match self.workers.get(slot.index()) {
            Some(worker) if worker.is_alone => PredictedUse::Alone,
            _ => self.config.used,
        }
    }

    /// Sets whether the prediction stands in place of events for one worker. With predictions off, the end of this use
    /// ends the records of the worker.
    pub(crate) fn set_alone(&mut self, slot: Slot, is_alone: bool) {
        let Some(worker) = self.workers.get_mut(slot.index()) else {
            return;
        };
        worker.is_alone = is_alone;
        if !is_alone && self.is_off() {
            self.clear(slot);
        }
    }

    /// Size of the prediction, and counts of ended records.
    pub fn size(&self) -> PredictedSize {
        PredictedSize {
            records: self.records.len() as u64,
            blocks: self.workers.iter().map(|worker| worker.blocks).sum(),
            ..self.size
        }
    }

    /// Adds a worker with a device cache of `capacity_blocks` blocks; `None`: the configured default.
    pub fn add_worker(&mut self, slot: Slot, capacity_blocks: Option<u64>) {
        let len = self.workers.len().max(slot.index() + 1);
        self.workers.resize_with(len, WorkerRecords::default);
        self.workers[slot.index()].capacity_blocks =
            capacity_blocks.unwrap_or(self.config.capacity_blocks).max(1);
    }

    /// Ends every record of a worker. O(records of the worker).
    pub fn clear(&mut self, slot: Slot) {
        let Some(worker) = self.workers.get_mut(slot.index()) else {
            return;
        };
        for id in std::mem::take(&mut worker.by_age) {
            self.size.cleared += u64::from(self.remove_record(id));
        }
    }

    /// Raises `depth[slot]` to the predicted leading blocks of the prompt, for the slots given as bits.
    ///
    /// Events may report more than the prediction, so the larger of the two counts.
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
        self.overlap(prompt, slots, depth.len(), scratch);
        raise(depth, &scratch.depth);
    }

    /// Writes the predicted leading blocks of the prompt into `scratch.depth`, for the slots given as bits.
    pub(crate) fn overlap(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        count: usize,
        scratch: &mut RaiseScratch,
    ) {
        scratch.depth.clear();
        scratch.depth.resize(count, 0);
        self.blocks
            .shared(prompt, slots, &mut scratch.depth, &mut scratch.walk);
    }

    /// As [`Predicted::raise_overlap`], for every slot and tier: the overlap of the lower tiers follows the
    /// raised device overlap.
    pub(crate) fn raise_overlaps(&self, prompt: &Prompt<'_>, index: &Index, overlaps: &mut [TierOverlap]) {
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

    /// Records that a request was sent to a worker.
    ///
    /// O(blocks / 64) amortised, with the records that end to make room.
    pub fn insert(&mut self, slot: Slot, prompt: &Prompt<'_>, request: Option<RequestId>, now_s: f64) {
        if self.use_of(slot) == PredictedUse::Off || prompt.locals.is_empty() {
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

    /// Adds a record as the youngest.
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

    /// Ends the oldest records until the worker's fit its capacity and all fit the limit. The newest record
    /// stays.
    fn make_room(&mut self, slot: Slot, newest: RecordId) {
        loop {
            let worker = &mut self.workers[slot.index()];
            if worker.blocks <= worker.capacity_blocks {
                break;
            }
            let oldest = worker
                .by_age
                .pop_front()
                .expect("a worker with blocks must have records");
            debug_assert!(
                oldest != newest,
                "one prompt must fit into the capacity of its worker"
            );
            self.size.evicted += u64::from(self.remove_record(oldest));
        }
        while self.records.len() > self.config.max_records {
            // Ended records may stand before live ones. They end nothing, and the loop continues to a live
            // one.
            let (_, oldest) = self.by_expiry.pop_front().expect("every record must expire");
            self.size.evicted += u64::from(self.remove_record(oldest));
        }
        let worker = &mut self.workers[slot.index()];
        if worker.by_age.len() > 64 + 2 * worker.records {
            worker.by_age.retain(|id| self.records.contains_key(id));
        }
    }

    /// Reacts to the first token of a request. Beside events, its record ends once the events had time to
    /// arrive.
    pub fn first_token(&mut self, request: RequestId, now_s: f64) {
        if self.use_of_request(request) != PredictedUse::Beside {
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

    /// Reacts to the end of a request. Beside events it counts as the first token, if none was reported.
    /// Without events the request used its blocks just now, so its record becomes the youngest.
    pub fn finished(&mut self, request: RequestId, now_s: f64) {
        if self.use_of_request(request) == PredictedUse::Beside {
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

    /// Use of the prediction for the worker of a request; off for a request without a record.
    fn use_of_request(&self, request: RequestId) -> PredictedUse {
        let id = self.record_of_request.get(&request);
        let record = id.and_then(|id| self.records.get(id));
        record.map_or(PredictedUse::Off, |record| self.use_of(record.slot))
    }

    /// Ends the records whose time is over; their number. O(1) when there are none.
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

    /// Ends a record; whether it was live.
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

/// Buffers of [`Predicted::raise_overlap`] that live between calls and spare allocations.
#[derive(Clone, Debug, Default)]
pub struct RaiseScratch {
    /// Predicted leading blocks by slot, from the last call.
    pub(crate) depth: Vec<u32>,
    /// Buffers of the walk.
    walk: Scratch,
}

/// Raises each entry of `depth` to the predicted one.
pub(crate) fn raise(depth: &mut [u32], predicted: &[u32]) {
    for (depth, &predicted) in depth.iter_mut().zip(predicted) {
        *depth = (*depth).max(predicted);
    }
}

/// Appends a record to a queue of times. The times must stay in order: with a clock that goes back, a record
/// lives a little longer.
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

/// Takes the first record of a queue if its time has come.
fn pop_due(line: &mut VecDeque<(f64, RecordId)>, now_s: f64) -> Option<RecordId> {
    line.front().filter(|(at_s, _)| *at_s <= now_s)?;
    line.pop_front().map(|(_, id)| id)
}
