//! The slow, readable prediction: a list of records, searched in full. Tests compare
//! [`Predicted`](super::Predicted) with it.
//!
//! Every rule is a line here: the list is in the order of use, the held blocks are a set made anew at each
//! question, and records end from the front.

use std::collections::HashSet;

use super::{PredictedConfig, PredictedUse};
use crate::hash::{LocalHash, SequenceHash, sequence_hashes};
use crate::index::Slot;
use crate::request::RequestId;

/// One request that was sent to a worker.
#[derive(Clone, Debug)]
struct Record {
    /// Worker of the request.
    slot: Slot,
    /// Blocks of the prompt, cut to the capacity of the worker.
    chain: Vec<SequenceHash>,
    /// Id of the request until it ends.
    request: Option<RequestId>,
    /// End beside events, seconds. Infinite before the first token.
    ends_at_s: f64,
    /// End of the longest life, seconds.
    expires_at_s: f64,
}

/// Reference implementation of predicted caches. Every call costs O(records · blocks).
#[derive(Clone, Debug)]
pub struct ReferencePredicted {
    /// Parameters, as of the fast prediction.
    config: PredictedConfig,
    /// Blocks of each worker's device cache, by slot.
    capacities: Vec<u64>,
    /// Records, least recently used first.
    records: Vec<Record>,
}

impl ReferencePredicted {
    /// An empty prediction for workers with these capacities in blocks, by slot.
    pub const fn new(config: PredictedConfig, capacities: Vec<u64>) -> Self {
        Self {
            config,
            capacities,
            records: Vec::new(),
        }
    }

    /// Distinct blocks of a worker.
    pub fn held(&self, slot: Slot) -> HashSet<SequenceHash> {
        let of_slot = self.records.iter().filter(|record| record.slot == slot);
        of_slot.flat_map(|record| record.chain.iter().copied()).collect()
    }

    /// Number of records.
    pub const fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Leading blocks of a prompt on a worker.
    pub fn overlap(&self, locals: &[LocalHash], slot: Slot) -> u32 {
        let held = self.held(slot);
        let chain = sequence_hashes(locals);
        chain.iter().take_while(|hash| held.contains(hash)).count() as u32
    }

    /// Records that a request was sent to a worker.
    pub fn insert(&mut self, slot: Slot, locals: &[LocalHash], request: Option<RequestId>, now_s: f64) {
        let capacity = self.capacities[slot.index()] as usize;
        let mut chain = sequence_hashes(locals);
        chain.truncate(capacity);
        if chain.is_empty() {
            return;
        }
        self.forget_request(request);
        self.records.push(Record {
            slot,
            chain,
            request,
            ends_at_s: f64::INFINITY,
            expires_at_s: now_s + self.config.ttl_s,
        });
        self.make_room(slot);
    }

    /// Takes the name of a request off its earlier record: an id that is used again names the new record.
    fn forget_request(&mut self, request: Option<RequestId>) {
        for record in self.records.iter_mut().filter(|_| request.is_some()) {
            if record.request == request {
                record.request = None;
            }
        }
    }

    /// Ends the oldest records of a worker beyond its capacity, and the oldest of all beyond the limit.
    fn make_room(&mut self, slot: Slot) {
        while self.held(slot).len() as u64 > self.capacities[slot.index()] {
            let oldest = self.records.iter().position(|record| record.slot == slot);
            self.records
                .remove(oldest.expect("held blocks must have a record"));
        }
        if self.records.len() > self.config.max_records {
            self.records.remove(0);
        }
    }

    /// Reacts to the first token of a request.
    pub fn first_token(&mut self, request: RequestId, now_s: f64) {
        if self.config.used == PredictedUse::Beside {
            let ends_at_s = now_s + self.config.settle_s;
            let mut records = self.records.iter_mut();
            if let Some(record) = records.find(|record| record.request == Some(request)) {
                record.request = None;
                record.ends_at_s = ends_at_s;
            }
        }
    }

    /// Reacts to the end of a request.
    pub fn finished(&mut self, request: RequestId, now_s: f64) {
        if self.config.used == PredictedUse::Beside {
            return self.first_token(request, now_s);
        }
        let at = self
            .records
            .iter()
            .position(|record| record.request == Some(request));
        if let Some(at) = at {
            let mut record = self.records.remove(at);
            record.request = None;
            record.expires_at_s = now_s + self.config.ttl_s;
            self.records.push(record);
        }
    }

    /// Ends the records whose time is over.
    pub fn expire(&mut self, now_s: f64) {
        self.records
            .retain(|record| record.ends_at_s > now_s && record.expires_at_s > now_s);
    }

    /// Ends every record of a worker.
    pub fn clear(&mut self, slot: Slot) {
        self.records.retain(|record| record.slot != slot);
    }
}
