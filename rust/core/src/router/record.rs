//! Booked decisions as they are recorded for the price of anarchy.
//!
//! The meter ([`crate::anarchy`]) compares what was chosen with the best assignment of the same requests. It
//! needs every candidate's cost in seconds under every policy, also one that prices blocks, so the ledger
//! estimates them here.
//!
//! Recording is off unless the price of anarchy is measured: it costs O(candidates) and four allocations per
//! decision. It runs before the booking, so it reads the same figures as the decision.

use super::inspect::MAX_KEPT;
use super::state::RouterState;
use crate::anarchy::{DecisionCosts, RecordedDecision};
use crate::ledger::CandidateInputs;
use crate::matched::Matched;
use crate::request::{RequestId, RouteRequest};

impl RouterState {
    /// Records what each candidate costs in seconds, when the price of anarchy is measured.
    ///
    /// A full list drops the decision: the meter samples, and memory stays bounded when no reader takes the
    /// decisions. A request without an id has no outcome to compare with, so it is not recorded.
    pub(super) fn record(
        &mut self,
        request: &RouteRequest<'_>,
        matched: &Matched,
        chosen: usize,
        now_s: f64,
    ) {
        if self.records_decisions
            && self.kept.len() < MAX_KEPT
            && let Some(id) = request.request_id
        {
            let decision = self.recorded(id, matched, chosen, now_s);
            self.kept.push(decision);
        }
    }

    /// What every candidate costs in seconds, just before the booking. O(candidates).
    ///
    /// The estimates are those of the toll, so they are as good as the learned curves. The meter reports the
    /// error of the curves beside its result.
    fn recorded(
        &mut self,
        request: RequestId,
        matched: &Matched,
        chosen: usize,
        now_s: f64,
    ) -> RecordedDecision {
        self.ledger.advance(now_s);
        let output_tokens = self.output_tokens(matched);
        let block_tokens = f64::from(self.config.block_size);
        let count = matched.slots.len();
        let mut costs = DecisionCosts {
            at_s: now_s,
            chosen,
            prefill_s: Vec::with_capacity(count),
            decode_s: Vec::with_capacity(count),
            wait_s: Vec::with_capacity(count),
        };
        // The step of each candidate with and without the request, over a whole answer.
        // One more request in the batch makes each step of every peer longer. Over a whole answer that is
        // what the request costs a peer.
        let mut peer_decode_s = Vec::with_capacity(count);
        let mut step_s = 0.0;
        for (i, &slot) in matched.slots.iter().enumerate() {
            let work = self.work_of(matched, i);
            let kv_tokens = self.kv_tokens(slot);
            let inputs = CandidateInputs {
                new_tokens: work.new_tokens as f64,
                cached_tokens: work.cached_tokens as f64,
                kv_tokens,
                kv_tokens_with: kv_tokens + matched.new_blocks(i) as f64 * block_tokens,
            };
            let found = self.ledger.estimate(slot, &inputs, output_tokens, now_s);
            costs.prefill_s.push(found.prefill_s);
            costs.decode_s.push(output_tokens * found.step_with_s);
            costs.wait_s.push(found.wait_s);
            peer_decode_s.push(output_tokens * (found.step_with_s - found.step_s).max(0.0));
            if i == chosen {
                step_s = found.step_with_s;
            }
        }
        RecordedDecision {
            request,
            costs,
            peer_decode_s,
            step_s,
            generation: matched.generation,
        }
    }
}
