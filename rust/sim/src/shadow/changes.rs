//! Changes of the production fleet, kept until simulated time reaches them.
//!
//! Every arm therefore sees a change at the moment at which production made it.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use wardrop_core::WorkerId;

use super::fleets::Arm;
use crate::error::SimError;
use crate::spec::{EngineSpec, RouterSpec};
use crate::timing::Timing;

/// Number of changes that can wait. Beyond it, the oldest change is applied early.
const MAX_WAITING: usize = 4_096;

/// One change of the production fleet.
#[derive(Clone, Debug)]
pub enum Change {
    /// A worker joined a pool with an empty cache.
    Join {
        /// Index of the pool.
        pool: usize,
        /// Id of the worker.
        worker: WorkerId,
        /// Engine of the worker.
        engine: Box<EngineSpec>,
    },
    /// A worker left a pool.
    Leave {
        /// Index of the pool.
        pool: usize,
        /// Id of the worker.
        worker: WorkerId,
    },
    /// An arm has other policies or queues from now on, and all comparisons start again.
    ///
    /// Arm 0 runs what production runs, so it changes when production does.
    Routers {
        /// Index of the arm.
        arm: usize,
        /// One router per pool.
        routers: Vec<RouterSpec>,
    },
}

/// The error for a policy or queue that cannot be built.
fn unknown(error: &wardrop_core::Error) -> SimError {
    SimError::Config {
        field: "routers",
        got: error.to_string(),
        need: "a known policy and a queue with parameters in range",
    }
}

impl Change {
    /// Checks the change before it waits for its time.
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

/// A change that waits for its time.
#[derive(Debug)]
pub(super) struct TimedChange {
    /// Time of the change in production, in seconds.
    pub at_s: f64,
    pub change: Change,
}

/// Index of each worker in the arms' fleets, and the changes that wait.
#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: VecDeque<TimedChange>,
    /// Index over all pools of each (pool, worker); it is the same in every arm.
    members: FxHashMap<(usize, WorkerId), usize>,
}

impl Changes {
    /// Names the workers that the fleets start with, by pool.
    pub fn name(&mut self, members: &[Vec<WorkerId>]) {
        let pools = members.iter().enumerate();
        let named = pools.flat_map(|(pool, workers)| workers.iter().map(move |worker| (pool, *worker)));
        self.members = named.zip(0..).collect();
    }

    /// Keeps a change. Returns the oldest change if too many wait, to be applied now.
    pub fn push(&mut self, at_s: f64, change: Change) -> Option<Change> {
        self.waiting.push_back(TimedChange { at_s, change });
        if self.waiting.len() <= MAX_WAITING {
            return None;
        }
        self.waiting.pop_front().map(|oldest| oldest.change)
    }

    /// The next change, if its time is not after `until_s`.
    pub fn pop_until(&mut self, until_s: f64) -> Option<TimedChange> {
        if self.waiting.front()?.at_s > until_s {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Applies a change to the arms. Returns true if comparisons start again.
    pub fn apply(&mut self, change: Change, arms: &mut [Arm]) -> Result<bool, SimError> {
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

    /// Changes the timing of one worker in every arm. An unknown worker is ignored.
    pub fn set_timing(&self, pool: usize, worker: WorkerId, timing: &Timing, arms: &mut [Arm]) {
        if let Some(&index) = self.members.get(&(pool, worker)) {
            for arm in arms {
                arm.fleet.set_worker_timing(index, timing);
            }
        }
    }
}
