//! The workers of a pool as a simulator needs them: size, life, and how fast they are.

use std::collections::BTreeMap;

use wardrop_core::WorkerId;
use wardrop_core::latency::Prior;

use super::WorkerPool;

/// One registered worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// Blocks of its KV cache, where it told.
    pub total_kv_blocks: Option<u64>,
    /// Sequences that it runs at once, where it told.
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step, where it told.
    pub max_num_batched_tokens: Option<u32>,
    /// Lives that its events have shown: each begins with an empty cache.
    pub incarnation: u64,
    /// What its curves have learned.
    pub curves: Prior,
}

impl WorkerPool {
    /// Every registered worker. O(workers).
    pub fn members(&self) -> BTreeMap<WorkerId, Member> {
        let state = self.state.lock();
        let views = state.router.curves();
        let curves: BTreeMap<WorkerId, Prior> = views
            .into_iter()
            .map(|view| (view.worker, view.coefficients))
            .collect();
        let member = |(id, worker): (&WorkerId, &super::Worker)| {
            let curves = *curves.get(id)?;
            let member = Member {
                total_kv_blocks: worker.spec.total_kv_blocks,
                max_num_seqs: worker.spec.max_num_seqs,
                max_num_batched_tokens: worker.spec.max_num_batched_tokens,
                incarnation: worker.cursor.incarnations,
                curves,
            };
            Some((*id, member))
        };
        state.workers.iter().filter_map(member).collect()
    }
}
