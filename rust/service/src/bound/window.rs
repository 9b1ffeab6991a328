//! A window of requests on its way from the first arrival to its bound.

use std::collections::BTreeMap;

use wardrop_core::WorkerId;
use wardrop_sim::Role as SimRole;
use wardrop_sim::bound::{BoundFleet, BoundPool, BoundWorker, StreamRequest};

use crate::models::Model;
use crate::pool::Role;

/// Most requests of a window.
pub(super) const MAX_REQUESTS: usize = 4_096;
/// Most block hashes in the requests of a window, 4 MB. A window with more closes early.
pub(super) const MAX_BLOCKS: usize = 1 << 19;

/// The requests that arrived in a window, and every worker that could serve them.
pub(super) struct Window {
    /// Number of the window. It exceeds that of the window before by more than 1 where requests between were not recorded.
    pub number: u64,
    /// Whether requests before this window were not recorded.
    pub is_after_hole: bool,
    /// Time of the first arrival, seconds of the service's clock.
    pub opened_s: f64,
    /// Requests that arrived.
    pub arrived: usize,
    /// Requests that arrived and have not ended.
    pub in_flight: usize,
    /// Block hashes of the requests that arrived.
    pub blocks: usize,
    /// Requests that ended.
    pub ended: Vec<StreamRequest>,
    /// Workers seen since the window opened.
    pub fleet: SeenFleet,
}

impl Window {
    pub fn new(number: u64, is_after_hole: bool, opened_s: f64) -> Self {
        Self {
            number,
            is_after_hole,
            opened_s,
            arrived: 0,
            in_flight: 0,
            blocks: 0,
            ended: Vec::new(),
            fleet: SeenFleet::default(),
        }
    }

    /// Whether no further request may arrive in the window.
    pub fn is_full(&self) -> bool {
        self.arrived >= MAX_REQUESTS || self.blocks >= MAX_BLOCKS
    }
}

/// Every worker that was in the fleet at some time of a window. More workers only lower a bound, so it holds for a fleet
/// that grew or shrank in the window.
#[derive(Clone, Default)]
pub(super) struct SeenFleet {
    roles: &'static [Role],
    block_size: u32,
    workers: Vec<BTreeMap<WorkerId, BoundWorker>>,
    /// Whether the fleet changed between aggregated and split within the window.
    pub is_mixed: bool,
}

impl SeenFleet {
    /// The workers of a model now. O(workers).
    pub fn of(model: &Model) -> Self {
        let roles = model.roles();
        let workers = roles.iter().map(|role| {
            let members = model.pool(*role).members().into_iter();
            let worker = |member: crate::pool::Member| BoundWorker {
                curves: member.curves,
                kv_blocks: member
                    .total_kv_blocks
                    .filter(|blocks| *blocks > 0)
                    .map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX)),
                max_num_seqs: member.max_num_seqs,
                max_num_batched_tokens: member.max_num_batched_tokens,
            };
            members.map(|(id, member)| (id, worker(member))).collect()
        });
        Self {
            roles,
            block_size: model.spec.block_size,
            workers: workers.collect(),
            is_mixed: false,
        }
    }

    /// Adds the workers that are in the fleet now, and takes over their newest curves.
    pub fn follow(&mut self, now: &Self) {
        if self.workers.is_empty() {
            *self = now.clone();
            return;
        }
        if self.roles != now.roles {
            self.is_mixed = true;
            return;
        }
        for (seen, now) in self.workers.iter_mut().zip(&now.workers) {
            seen.extend(now);
        }
    }

    /// Whether some role has no worker.
    pub fn lacks_workers(&self) -> bool {
        self.workers.is_empty() || self.workers.iter().any(BTreeMap::is_empty)
    }

    /// The fleet in the terms of the bound.
    pub fn bound_fleet(&self) -> BoundFleet {
        let pools = self
            .roles
            .iter()
            .zip(&self.workers)
            .map(|(role, workers)| BoundPool {
                role: match role {
                    Role::Aggregated => SimRole::Aggregated,
                    Role::Prefill => SimRole::Prefill,
                    Role::Decode => SimRole::Decode,
                },
                workers: workers.values().copied().collect(),
            });
        BoundFleet {
            block_size: self.block_size,
            pools: pools.collect(),
        }
    }
}
