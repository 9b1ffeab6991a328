//! Load of the candidates of one decision, as columns: the part of a view that changes from decision to
//! decision.
//!
//! Stands between `match` and `price`. A [`Matched`] says what each candidate holds of the prompt. The
//! columns here say what each candidate has in flight, and what waits for it in the router's queue. A queue
//! prices one match several times, each time with other columns.
//!
//! In the usual case nothing is copied. Where every slot is a candidate and nothing waits, the columns of
//! [`Load`] and of the ledger are lent as they are. Otherwise the entries of the candidates are gathered into
//! buffers that live between calls.
//!
//! O(candidates) per decision, no allocation once the buffers have grown.

use crate::ledger::{ColumnSlices, LatencyView, SharedInputs, WorkerColumns};
use crate::load::Load;
use crate::matched::Matched;
use crate::overlaps::{gather, zero};
use crate::request::{Candidate, Parts};
use crate::trust::IndexTrust;

/// Load that a price counts although nothing is booked yet: requests of the router's queue that wait for a
/// worker. One entry per position.
///
/// Without it, every request of a queue would choose the same cheapest worker, as if no request before it
/// waited for that worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingLoad {
    /// Prompt tokens to compute of the waiting requests.
    pub tokens: Vec<u64>,
    /// Prefill seconds of the waiting requests.
    pub prefill_s: Vec<f64>,
    /// Waiting requests.
    pub requests: Vec<u32>,
}

impl PendingLoad {
    /// Nothing waits for any of `positions` workers.
    pub(crate) fn reset(&mut self, positions: usize) {
        zero(&mut self.tokens, positions);
        zero(&mut self.prefill_s, positions);
        zero(&mut self.requests, positions);
    }

    /// One more request of `tokens` to compute in `prefill_s` waits for the worker at `position`.
    pub(crate) fn add(&mut self, position: usize, tokens: u64, prefill_s: f64) {
        self.tokens[position] += tokens;
        self.prefill_s[position] += prefill_s;
        self.requests[position] += 1;
    }
}

/// Figures of the pool that an estimate needs. They are the same for all candidates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolFigures {
    /// Tokens per block.
    pub block_size: u32,
    /// Seconds to transfer the KV of one token from another pool. 0 in a pool that prefills.
    pub handoff_s_per_token: f64,
}

/// Load of the candidates of one decision, one entry each. The buffers live between calls to spare
/// allocations.
///
/// Invariant: after [`Columns::fill`] the columns belong to that match and that moment. They mean nothing for
/// another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns {
    /// Whether candidate i is slot i and nothing is pending, so that the columns of the load serve directly.
    /// The buffers below are then stale.
    borrows_load: bool,
    /// Uncached prompt tokens before their first token, pending ones included.
    pub prefill_tokens: Vec<u64>,
    /// Distinct blocks in flight.
    pub decode_blocks: Vec<u64>,
    /// Requests in flight, pending ones included.
    pub active_requests: Vec<u32>,
    /// Ledger columns of the candidates, filled when not every slot is a candidate.
    pub per_worker: WorkerColumns,
    /// Pending prefill seconds of each candidate; zeros where nothing is pending.
    pending_prefill_s: Vec<f64>,
    /// Pending requests of each candidate; zeros where nothing is pending.
    pending_requests: Vec<u32>,
    /// Cost of each candidate.
    pub costs: Vec<f64>,
}

impl Columns {
    /// Copies the present load of the candidates and adds the pending load. O(candidates), or O(1) where the
    /// load is lent.
    pub(crate) fn fill(&mut self, matched: &Matched, load: &Load, pending: Option<&PendingLoad>) {
        self.costs.resize(matched.slots.len(), 0.0);
        self.borrows_load = matched.everyone && pending.is_none();
        if self.borrows_load {
            return;
        }
        gather(&mut self.prefill_tokens, &load.prefill_tokens, &matched.slots);
        gather(&mut self.decode_blocks, &load.decode_blocks, &matched.slots);
        gather(&mut self.active_requests, &load.active_requests, &matched.slots);
        if let Some(pending) = pending {
            for (i, slot) in matched.slots.iter().enumerate() {
                self.prefill_tokens[i] += pending.tokens[slot.index()];
                self.active_requests[i] += pending.requests[slot.index()];
            }
        }
    }

    /// Copies what a price in seconds needs beyond the load. Call [`Columns::fill`] for the same candidates
    /// first.
    pub(crate) fn fill_latency(
        &mut self,
        matched: &Matched,
        all: &ColumnSlices<'_>,
        pending: Option<&PendingLoad>,
    ) {
        if !matched.everyone {
            self.per_worker.gather(all, matched.positions());
        }
        if let Some(pending) = pending {
            gather(&mut self.pending_prefill_s, &pending.prefill_s, &matched.slots);
            gather(&mut self.pending_requests, &pending.requests, &matched.slots);
        } else {
            // Filling once per decision spares a branch per candidate.
            zero(&mut self.pending_prefill_s, matched.slots.len());
            zero(&mut self.pending_requests, matched.slots.len());
        }
    }

    /// The candidates for a price in seconds. `all` are the ledger's columns of every slot. Nothing is
    /// copied.
    pub(crate) fn latency<'a>(
        &'a self,
        matched: &'a Matched,
        (all, load): (ColumnSlices<'a>, &'a Load),
        shared: SharedInputs,
        pool: &PoolFigures,
    ) -> LatencyView<'a> {
        let (_, decode_blocks, _) = self.loads(load);
        LatencyView {
            shared,
            columns: if matched.everyone {
                all
            } else {
                self.per_worker.slices()
            },
            new_tokens: &matched.new_tokens,
            cached_tokens: &matched.cached_tokens,
            decode_blocks,
            shared_blocks: &matched.shared_blocks,
            device_blocks: &matched.device_blocks,
            pending_prefill_s: &self.pending_prefill_s,
            pending_requests: &self.pending_requests,
            input_tokens: f64::from(matched.input_tokens),
            request_blocks: f64::from(matched.request_blocks),
            block_tokens: f64::from(pool.block_size),
            handoff_s_per_token: pool.handoff_s_per_token,
        }
    }

    /// Prefill tokens, decode blocks and active requests, one entry per candidate.
    pub(crate) fn loads<'a>(&'a self, load: &'a Load) -> (&'a [u64], &'a [u64], &'a [u32]) {
        if self.borrows_load {
            return (&load.prefill_tokens, &load.decode_blocks, &load.active_requests);
        }
        (&self.prefill_tokens, &self.decode_blocks, &self.active_requests)
    }

    /// Candidate `i` with the parts of its cost.
    pub(crate) fn candidate(
        &self,
        matched: &Matched,
        (load, trust): (&Load, &IndexTrust),
        parts: Parts,
        i: usize,
    ) -> Candidate {
        let (prefill_tokens, decode_blocks, active_requests) = self.loads(load);
        Candidate {
            worker: matched.workers[i],
            cost: self.costs[i],
            trust: trust.mode(matched.slots[i]),
            listed_blocks: matched.listed_blocks(i),
            device_blocks: matched.device_blocks[i],
            host_blocks: matched.host_blocks[i],
            disk_blocks: matched.disk_blocks[i],
            prefill_tokens: prefill_tokens[i],
            decode_blocks: decode_blocks[i],
            shared_blocks: matched.shared_blocks[i],
            active_requests: active_requests[i],
            parts,
        }
    }
}
