//! Limits of the production fleet. An arm relaxes one of them and otherwise does what production does.
//!
//! Every limit answers a purchase decision: how much time would it save? `wardrop advise` answers the same question
//! from records, with the same worlds (`python/wardrop/replay/limits.py`). Three bounds differ, because a shadow fleet
//! has no end: the memory, the shared cache and the wait of a queue.

use serde::{Deserialize, Serialize};
use wardrop_core::queue::QueueConfig;

use crate::live::SHARED_MEMORIES;
use crate::spec::EngineSpec;

/// KV memory of a worker whose memory is no limit, as a multiple of its own.
///
/// An endless memory would keep every block that production ever computes. What does not fit into 16 memories is
/// seldom used again.
const KV_MEMORIES: u32 = 16;

/// Longest wait in the queue of an arm, in seconds. A prompt that the order never reaches would keep its tick open, and
/// the tick would then count for no arm.
const MAX_WAIT_S: f64 = 60.0;

/// Memory of a name in a shared cache, as a share of the memory of a simulated worker's KV block, rounded up: at most
/// 10 bytes in a hash set, of about 60 bytes.
const SHARED_NAME_BLOCKS: f64 = 0.25;

/// A limit of the production fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Every worker finds every block that any worker has computed, at no cost.
    SharedCache,
    /// Every worker has 16 times its KV memory.
    KvMemory,
    /// One queue, first come, first served, in front of a policy without a queue.
    PooledQueue,
    /// One queue that prefers short prompts, however long the others have waited.
    ShortestFirst,
    /// One more worker in an aggregated pool.
    OneMoreWorker,
    /// One more worker in the prefill pool.
    OneMorePrefillWorker,
    /// One more worker in the decode pool.
    OneMoreDecodeWorker,
}

impl Limit {
    /// The limits of a fleet with this number of pools.
    ///
    /// A queue in force is pooled already, so only its order is then a limit.
    pub fn of_fleet(pools: usize, has_queue: bool) -> Vec<Self> {
        let mut limits = vec![Self::SharedCache, Self::KvMemory];
        if !has_queue {
            limits.push(Self::PooledQueue);
        }
        limits.push(Self::ShortestFirst);
        if pools == 1 {
            limits.push(Self::OneMoreWorker);
        } else {
            limits.extend([Self::OneMorePrefillWorker, Self::OneMoreDecodeWorker]);
        }
        limits
    }

    /// Name of the limit in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SharedCache => "shared_cache",
            Self::KvMemory => "kv_memory",
            Self::PooledQueue => "pooled_queue",
            Self::ShortestFirst => "shortest_first",
            Self::OneMoreWorker => "one_more_worker",
            Self::OneMorePrefillWorker => "one_more_prefill_worker",
            Self::OneMoreDecodeWorker => "one_more_decode_worker",
        }
    }

    /// The queue of the arm, given the queue in force. Only the two limits of order change it.
    ///
    /// Room and other parameters stay as in force, or as by default where no queue is in force.
    pub fn queue(self, in_force: Option<QueueConfig>) -> Option<QueueConfig> {
        let kappa = match self {
            Self::PooledQueue => 0.0,
            Self::ShortestFirst => 1e6,
            _ => return in_force,
        };
        let defaults = in_force.unwrap_or_default();
        Some(QueueConfig {
            kappa,
            patience: 0.0,
            window: 1024,
            max_requests: defaults.max_requests.max(1 << 20),
            max_requests_per_tenant: defaults.max_requests_per_tenant.max(1 << 20),
            max_wait_s: MAX_WAIT_S,
            ..defaults
        })
    }

    /// KV blocks whose memory the arm takes at most in this process, for a fleet with these pools.
    ///
    /// Each pool is given as the KV blocks of its workers. An arm that relaxes no memory takes as many blocks as the
    /// fleet has.
    pub fn blocks(self, pools: &[Vec<u64>]) -> u64 {
        let fleet: u64 = pools.iter().flatten().sum();
        let extra = |pool: usize| pools.get(pool).and_then(|blocks| blocks.iter().max());
        match self {
            Self::KvMemory => fleet.saturating_mul(u64::from(KV_MEMORIES)),
            Self::SharedCache => {
                // Two generations of names, see `SharedBlocks`.
                let names = (2 * SHARED_MEMORIES) as f64 * SHARED_NAME_BLOCKS;
                fleet.saturating_mul(1 + names.ceil() as u64)
            }
            _ => fleet + self.pool().and_then(extra).copied().unwrap_or(0),
        }
    }

    /// Index of the pool that has one more worker.
    pub(super) const fn pool(self) -> Option<usize> {
        match self {
            Self::OneMoreWorker | Self::OneMorePrefillWorker => Some(0),
            Self::OneMoreDecodeWorker => Some(1),
            _ => None,
        }
    }

    /// Whether the limit can be relaxed in a fleet with this number of pools.
    pub(super) const fn fits(self, pools: usize) -> bool {
        match self {
            Self::OneMoreWorker => pools == 1,
            Self::OneMorePrefillWorker | Self::OneMoreDecodeWorker => pools == 2,
            _ => true,
        }
    }

    /// The engine of a worker in the arm.
    pub(super) fn engine(self, engine: &EngineSpec) -> EngineSpec {
        let mut relaxed = engine.clone();
        if self == Self::KvMemory {
            relaxed.num_blocks = engine
                .num_blocks
                .saturating_mul(KV_MEMORIES)
                .min(u32::MAX / 2 - 1);
            // Step times stay those of the true memory.
            relaxed.curve_blocks = Some(engine.curve_blocks.unwrap_or(engine.num_blocks));
        }
        relaxed
    }
}
