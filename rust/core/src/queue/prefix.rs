//! Prefixes that a waiting request finds once another request of the queue has been placed.
//!
//! A placed prompt is in flight on its worker, and its blocks are in the cache before the turn of a later prompt comes. A
//! waiting request was matched before that placement, so its match gets the blocks that both prompts share.
//!
//! Counting the prompts of requests that still wait was tried and lost. At 1.3 of the knee of 4 prefill and 4 decode workers
//! the p99 of TTFT was 2.0 times as long: a request waited for a worker that its prefix never reached.

use super::LateQueue;
use super::request::Entry;
use crate::hash::LocalHash;
use crate::router::Decisions;

impl LateQueue {
    /// Counts the prompt of a request that was just placed at `position` as in flight in the matches of waiting requests.
    ///
    /// O(window), and O(shared blocks) for each request that shares more with the prompt than the worker already has.
    pub(super) fn share_prefix(&mut self, decisions: &Decisions<'_>, placed: &Entry, position: usize) {
        let Some(tokens_of_block) = decisions.tokens_of_block_in_time() else {
            return;
        };
        for (_, id) in self.order.window() {
            if let Some(entry) = self.entries.get_mut(id)
                && entry.matched.prefix_key == placed.matched.prefix_key
                && decisions.is_current(&entry.matched)
                && let Some(i) = entry.matched.candidate_at(position)
                && let Some(blocks) = shared_blocks(entry, i, &placed.request.local_hashes)
                && entry.matched.count_in_flight(i, blocks, tokens_of_block)
            {
                entry.least_tokens = entry.matched.least_tokens();
            }
        }
    }
}

/// Leading blocks that a waiting request shares with another prompt, where these are more than candidate `i` has.
fn shared_blocks(entry: &Entry, i: usize, other: &[LocalHash]) -> Option<u32> {
    let own = &entry.request.local_hashes;
    let known = entry.matched.device_blocks[i].max(entry.matched.shared_blocks[i]) as usize;
    // The block behind the known blocks differs in most pairs, which spares the long comparison.
    if own.get(known)? != other.get(known)? || own[..known] != other[..known] {
        return None;
    }
    let further = own[known..].iter().zip(&other[known..]);
    let shared = known + further.take_while(|(own, other)| own == other).count();
    u32::try_from(shared).ok()
}
