//! One arm: a simulated fleet under its own routers, with at most one limit relaxed.

use rustc_hash::FxHashMap;
use wardrop_core::WorkerId;

use super::config::{ArmSpec, ShadowConfig};
use super::limit::Limit;
use crate::error::SimError;
use crate::live::LiveFleet;
use crate::spec::{EngineSpec, RouterSpec};
use crate::timing::Timing;

/// A live fleet under its own routers.
pub(super) struct Arm {
    /// Name of the arm, as in the report.
    pub name: String,
    /// The limit that the arm relaxes; `None` for another routing on the same fleet.
    pub limit: Option<Limit>,
    /// The simulated fleet.
    pub fleet: LiveFleet,
    /// Index over all pools of each (pool, worker) in the arm's fleet.
    members: FxHashMap<(usize, WorkerId), usize>,
    /// The worker that production does not have, where the limit asks for one.
    extra: Option<ExtraWorker>,
}

/// A worker that production does not have.
struct ExtraWorker {
    /// Index over all pools in the arm's fleet.
    index: usize,
    /// Its engine: that of a worker of the pool.
    engine: EngineSpec,
}

impl Arm {
    /// The production fleet behind the arm's own routers.
    ///
    /// # Errors
    /// [`SimError::Config`] when a field is out of range or a policy is unknown.
    pub fn new(config: &ShadowConfig, spec: &ArmSpec) -> Result<Self, SimError> {
        let mut arm = Self {
            name: spec.name.clone(),
            limit: spec.limit,
            fleet: fleet(config, spec)?,
            members: FxHashMap::default(),
            extra: None,
        };
        if let Some(pool) = arm.limit.and_then(Limit::pool) {
            arm.follow_extra(pool, &config.fleet.pools[pool].engine)?;
        }
        Ok(arm)
    }

    /// Names the workers that the fleet starts with, by pool.
    pub fn name_members(&mut self, members: &[Vec<WorkerId>]) {
        let pools = members.iter().enumerate();
        let named = pools.flat_map(|(pool, workers)| workers.iter().map(move |worker| (pool, *worker)));
        self.members = named.zip(0..).collect();
    }

    /// Adds a worker with an empty cache.
    pub fn join(&mut self, pool: usize, worker: WorkerId, engine: &EngineSpec) -> Result<(), SimError> {
        let index = self.fleet.join(pool, &self.relaxed(engine))?;
        self.members.insert((pool, worker), index);
        Ok(())
    }

    /// Removes a worker. An unknown worker is ignored.
    pub fn leave(&mut self, pool: usize, worker: WorkerId) -> Result<(), SimError> {
        let index = self.members.remove(&(pool, worker));
        index.map_or(Ok(()), |index| self.fleet.leave(index))
    }

    /// Changes the timing of a worker. An unknown worker is ignored.
    pub fn set_timing(&mut self, pool: usize, worker: WorkerId, timing: &Timing) {
        if let Some(&index) = self.members.get(&(pool, worker)) {
            self.fleet.set_worker_timing(index, timing);
        }
    }

    /// Makes the additional worker of this pool equal to `engine`, if the arm has one there.
    ///
    /// Its cache stays if only the timing differs. Otherwise another worker takes its place.
    pub fn follow_extra(&mut self, pool: usize, engine: &EngineSpec) -> Result<(), SimError> {
        if self.limit.and_then(Limit::pool) != Some(pool) {
            return Ok(());
        }
        if let Some(extra) = &mut self.extra {
            if extra.engine == *engine {
                return Ok(());
            }
            extra.engine.timing = engine.timing.clone();
            if extra.engine == *engine {
                self.fleet.set_worker_timing(extra.index, &engine.timing);
                return Ok(());
            }
            self.fleet.leave(extra.index)?;
        }
        self.extra = Some(ExtraWorker {
            index: self.fleet.join(pool, engine)?,
            engine: engine.clone(),
        });
        Ok(())
    }

    /// Engine of the worker that production does not have; `None` where the limit asks for none.
    #[cfg(test)]
    pub fn extra_engine(&self) -> Option<&EngineSpec> {
        self.extra.as_ref().map(|extra| &extra.engine)
    }

    fn relaxed(&self, engine: &EngineSpec) -> EngineSpec {
        self.limit
            .map_or_else(|| engine.clone(), |limit| limit.engine(engine))
    }
}

/// The production fleet behind an arm's routers, with the arm's limit relaxed.
fn fleet(config: &ShadowConfig, arm: &ArmSpec) -> Result<LiveFleet, SimError> {
    let mut spec = config.fleet.clone();
    spec.queues = arm.routers.iter().map(|router| router.queue).collect();
    if let Some(limit) = arm.limit {
        spec.shared_cache |= limit == Limit::SharedCache;
        for pool in &mut spec.pools {
            pool.engine = limit.engine(&pool.engine);
        }
    }
    let block_size = spec.pools[0].engine.block_size;
    let handoff_s_per_token = spec.handoff_s_per_token();
    let router = |(pool, router): (&crate::spec::PoolSpec, &RouterSpec)| {
        let made = router.config(pool.role, block_size).map(|made| {
            let made = made.with_handoff_s_per_token(handoff_s_per_token);
            // The arms start with the curves that production has learned.
            match &pool.engine.timing {
                Timing::Learned(curves) => made.with_curves(*curves),
                _ => made,
            }
        });
        made.map_err(|error| SimError::Config {
            field: "arm.routers",
            got: error.to_string(),
            need: "a known policy with parameters in range",
        })
    };
    let routers = spec.pools.iter().zip(&arm.routers).map(router);
    let configs = routers.collect::<Result<Vec<_>, SimError>>()?;
    LiveFleet::new(spec, &configs, config.max_open)
}
