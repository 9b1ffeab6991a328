//! Changes to a running fleet: workers that join and leave, timings, and a pool's policy and queue.

use wardrop_core::PolicyConfig;
use wardrop_core::queue::{LateQueue, QueueConfig};

use super::{Fleet, WorkerStatus};
use crate::engine::Worker;
use crate::error::{SimError, router_refused};
use crate::spec::EngineSpec;
use crate::timing::Timing;

impl Fleet<'_> {
    /// Adds a worker with an empty cache to pool `at`, and returns its index over all pools.
    ///
    /// The index of a worker that left the pool is used again first.
    pub(crate) fn add_worker(&mut self, at: usize, engine: &EngineSpec) -> Result<usize, SimError> {
        engine.validate()?;
        let made = Worker::new(engine, self.pools[at].role, 1.0).with_reports(self.spec.feed.metrics);
        let reusable = (0..self.workers.len()).find(|&worker| {
            let status = &self.status[worker];
            self.pool_of[worker] == at && !status.is_alive && !status.is_registered
        });
        let worker = if let Some(worker) = reusable {
            self.workers[worker] = made;
            worker
        } else {
            self.workers.push(made);
            self.status.push(WorkerStatus::default());
            self.pool_of.push(at);
            self.links.add();
            self.workers.len() - 1
        };
        self.join(worker)?;
        self.start_idle_engines()?;
        Ok(worker)
    }

    /// Removes a worker: its requests are tried again elsewhere, and its cache is lost.
    pub(crate) fn remove_worker(&mut self, worker: usize) -> Result<(), SimError> {
        if !self.status[worker].is_alive {
            return Ok(());
        }
        self.crash(worker, 0.0)?;
        let incarnation = self.status[worker].incarnation;
        self.discovery_removes(worker, incarnation)?;
        self.start_idle_engines()
    }

    /// Bounds the names of shared blocks to `memories` times the blocks of all workers. Without shared caches nothing
    /// happens.
    pub(crate) fn bound_shared_blocks(&mut self, memories: usize) {
        let alive = self
            .workers
            .iter()
            .zip(&self.status)
            .filter(|(_, status)| status.is_alive);
        let blocks: usize = alive.map(|(worker, _)| worker.spec().num_blocks as usize).sum();
        if let Some(shared) = &mut self.state.shared_blocks {
            shared.set_room(blocks.saturating_mul(memories));
        }
    }

    /// Changes the timing of one worker.
    pub(crate) fn set_worker_timing(&mut self, worker: usize, timing: &Timing) {
        self.workers[worker].set_timing(timing.clone());
    }

    /// Changes the policy and the queue of pool `at`; its caches, bookings and curves stay.
    ///
    /// Without a queue, all waiting requests are placed at once.
    pub(crate) fn set_router(
        &mut self,
        at: usize,
        policy: PolicyConfig,
        queue: Option<QueueConfig>,
    ) -> Result<(), SimError> {
        let pool = &mut self.pools[at];
        pool.router
            .set_policy(policy)
            .map_err(router_refused("a policy"))?;
        let made = |config| LateQueue::new(config).map_err(router_refused("a queue configuration"));
        match (&mut pool.queue, queue) {
            (Some(old), Some(config)) => old
                .set_config(config)
                .map_err(router_refused("a queue configuration"))?,
            (none @ None, Some(config)) => *none = Some(made(config)?),
            (Some(old), None) => {
                let at_once = QueueConfig {
                    max_wait_s: f64::MIN_POSITIVE,
                    ..*old.config()
                };
                old.set_config(at_once)
                    .map_err(router_refused("a queue configuration"))?;
                self.place_waiting_at(at, self.now_ms * 1e-3 + 1e-9)?;
                // Without a worker the requests wait for the next worker, and are placed as soon as it joins.
                let pool = &mut self.pools[at];
                pool.queue = pool.queue.take().filter(|queue| !queue.is_empty());
            }
            (None, None) => {}
        }
        self.place_waiting(at)?;
        self.start_idle_engines()
    }
}
