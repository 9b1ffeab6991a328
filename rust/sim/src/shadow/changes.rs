//! Changes of the production fleet, kept until simulated time reaches them.
//!
//! Every arm therefore sees a change at the moment at which production made it.

use std::collections::{BTreeMap, VecDeque};

use wardrop_core::WorkerId;

use super::arm::Arm;
use crate::error::SimError;
use crate::spec::{EngineSpec, FleetSpec, RouterSpec};
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

/// Workers of production, as the arms have them, and the changes that wait.
#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: VecDeque<TimedChange>,
    /// Engines of the workers, by pool.
    engines: Vec<BTreeMap<WorkerId, EngineSpec>>,
}

impl Changes {
    /// Names the workers that the fleets start with, by pool.
    pub fn name_members(&mut self, members: &[Vec<WorkerId>], fleet: &FleetSpec) {
        let pools = members.iter().zip(&fleet.pools);
        self.engines = pools
            .map(|(workers, pool)| {
                workers
                    .iter()
                    .map(|worker| (*worker, pool.engine.clone()))
                    .collect()
            })
            .collect();
    }

    /// Engines of the workers of one pool.
    fn pool(&mut self, pool: usize) -> &mut BTreeMap<WorkerId, EngineSpec> {
        if self.engines.len() <= pool {
            self.engines.resize_with(pool + 1, BTreeMap::new);
        }
        &mut self.engines[pool]
    }

    /// Makes the additional workers of a pool equal to its worker with the lowest id. Without a worker they stay.
    fn follow_extra(&mut self, pool: usize, arms: &mut [Arm]) -> Result<(), SimError> {
        let Some((_, engine)) = self.pool(pool).first_key_value() else {
            return Ok(());
        };
        arms.iter_mut().try_for_each(|arm| arm.follow_extra(pool, engine))
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
                if self.pool(pool).contains_key(&worker) {
                    return Ok(false);
                }
                arms.iter_mut()
                    .try_for_each(|arm| arm.join(pool, worker, &engine))?;
                self.pool(pool).insert(worker, *engine);
                self.follow_extra(pool, arms)?;
                Ok(false)
            }
            Change::Leave { pool, worker } => {
                if self.pool(pool).remove(&worker).is_some() {
                    arms.iter_mut().try_for_each(|arm| arm.leave(pool, worker))?;
                    self.follow_extra(pool, arms)?;
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
    pub fn set_timing(
        &mut self,
        pool: usize,
        worker: WorkerId,
        timing: &Timing,
        arms: &mut [Arm],
    ) -> Result<(), SimError> {
        let Some(engine) = self.pool(pool).get_mut(&worker) else {
            return Ok(());
        };
        engine.timing = timing.clone();
        for arm in arms.iter_mut() {
            arm.set_timing(pool, worker, timing);
        }
        self.follow_extra(pool, arms)
    }
}
