//! What changes in the fleet that is shadowed: kept until simulated time has come to it, so that every arm sees it at the moment
//! at which production did.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::Arm;
use crate::{EngineSpec, RouterSpec, SimError, Timing};
use wardrop_core::WorkerId;

/// Changes that wait for their time; beyond it the oldest is made early.
const MAX_WAITING: usize = 4_096;

/// One change of the fleet.
#[derive(Clone, Debug)]
pub enum Change {
    /// A worker joined a pool (by its index), with an empty cache.
    Join {
        /// The pool.
        pool: usize,
        /// The worker.
        worker: WorkerId,
        /// Its engine.
        engine: Box<EngineSpec>,
    },
    /// A worker left.
    Leave {
        /// The pool.
        pool: usize,
        /// The worker.
        worker: WorkerId,
    },
    /// An arm, by its index, runs another policy or queue from now on, one router per pool, and comparisons start over. The first
    /// one does when production does.
    Routers {
        /// The arm.
        arm: usize,
        /// Its routers.
        routers: Vec<RouterSpec>,
    },
}

fn unknown(error: &wardrop_core::Error) -> SimError {
    SimError::Config {
        field: "routers",
        got: error.to_string(),
        need: "a known policy and a queue with parameters in range",
    }
}

impl Change {
    /// Whether it can be made, before it waits for its time.
    pub(super) fn check(&self) -> Result<(), SimError> {
        match self {
            Self::Join { engine, .. } => engine.validate(),
            Self::Leave { .. } => Ok(()),
            Self::Routers { routers, .. } => routers.iter().try_for_each(|router| {
                router.policy().map_err(|error| unknown(&error))?;
                let queue = router.queue.map_or(Ok(()), |queue| queue.validate());
                queue.map_err(|error| unknown(&error))
            }),
        }
    }
}

/// Where each worker stands in the arms' fleets, and what waits to be changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: VecDeque<(f64, Change)>,
    /// (pool, worker) → index over all pools, the same in every arm.
    members: FxHashMap<(usize, WorkerId), usize>,
}

impl Changes {
    /// Names for the workers that the fleets begin with, by pool.
    pub fn name(&mut self, members: &[Vec<WorkerId>]) {
        let pools = members.iter().enumerate();
        let named = pools.flat_map(|(pool, workers)| workers.iter().map(move |worker| (pool, *worker)));
        self.members = named.zip(0..).collect();
    }

    /// Keeps a change; one that must be made now because too many wait comes back.
    pub fn push(&mut self, at_s: f64, change: Change) -> Option<Change> {
        self.waiting.push_back((at_s, change));
        if self.waiting.len() <= MAX_WAITING {
            return None;
        }
        self.waiting.pop_front().map(|(_, oldest)| oldest)
    }

    /// The next change not after `until_s`, with its time.
    pub fn pop_until(&mut self, until_s: f64) -> Option<(f64, Change)> {
        if self.waiting.front()?.0 > until_s {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Makes a change in every arm. True when comparisons start over.
    pub fn make(&mut self, change: Change, arms: &mut [Arm]) -> Result<bool, SimError> {
        match change {
            Change::Join { pool, worker, engine } => {
                if self.members.contains_key(&(pool, worker)) {
                    return Ok(false);
                }
                for arm in arms.iter_mut() {
                    let index = arm.fleet.join(pool, &engine)?;
                    self.members.insert((pool, worker), index);
                }
                Ok(false)
            }
            Change::Leave { pool, worker } => {
                if let Some(index) = self.members.remove(&(pool, worker)) {
                    arms.iter_mut().try_for_each(|arm| arm.fleet.leave(index))?;
                }
                Ok(false)
            }
            Change::Routers { arm, routers } => {
                let Some(arm) = arms.get_mut(arm) else {
                    return Ok(false);
                };
                for (pool, router) in routers.iter().enumerate() {
                    let policy = router.policy().map_err(|error| unknown(&error))?;
                    arm.fleet.set_router(pool, policy, router.queue)?;
                }
                Ok(true)
            }
        }
    }

    /// Another timing for one worker in every arm; nothing where it is not known (yet).
    pub fn set_timing(&self, pool: usize, worker: WorkerId, timing: &Timing, arms: &mut [Arm]) {
        if let Some(&index) = self.members.get(&(pool, worker)) {
            for arm in arms {
                arm.fleet.set_worker_timing(index, timing);
            }
        }
    }
}
