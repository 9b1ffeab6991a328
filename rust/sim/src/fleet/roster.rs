//! A fleet that changes while it runs: workers that come and go, and another policy for a pool.

use super::{Fleet, Standing, refused};
use crate::config::{EngineSpec, SimError};
use crate::engine::Worker;
use crate::timing::Timing;
use wardrop_core::PolicyConfig;
use wardrop_core::queue::{LateQueue, QueueConfig};

impl Fleet<'_> {
    /// One more worker of pool `at`, with an empty cache; its index over all pools. A place that was left is taken first.
    pub(crate) fn add_worker(&mut self, at: usize, engine: &EngineSpec) -> Result<usize, SimError> {
        engine.validate()?;
        let made = Worker::new(engine, self.pools[at].role, 1.0).with_reports(self.spec.feed.metrics);
        let left = (0..self.workers.len()).find(|&worker| {
            let standing = &self.standing[worker];
            self.pool_of[worker] == at && !standing.alive && !standing.known
        });
        let worker = if let Some(worker) = left {
            self.workers[worker] = made;
            worker
        } else {
            self.workers.push(made);
            self.standing.push(Standing::default());
            self.pool_of.push(at);
            self.links.add();
            self.workers.len() - 1
        };
        self.join(worker)?;
        self.start_idle()?;
        Ok(worker)
    }

    /// A worker leaves: what was there is tried again elsewhere, and its cache is lost.
    pub(crate) fn remove_worker(&mut self, worker: usize) -> Result<(), SimError> {
        if !self.standing[worker].alive {
            return Ok(());
        }
        self.crash(worker, 0.0)?;
        let incarnation = self.standing[worker].incarnation;
        self.dropped(worker, incarnation)?;
        self.start_idle()
    }

    /// Another timing for one worker.
    pub(crate) fn set_worker_timing(&mut self, worker: usize, timing: &Timing) {
        self.workers[worker].set_timing(timing.clone());
    }

    /// Another policy and queue for pool `at`; its caches, bookings and curves stay. A queue that is taken away lets all who
    /// wait go at once.
    pub(crate) fn set_router(
        &mut self,
        at: usize,
        policy: PolicyConfig,
        queue: Option<QueueConfig>,
    ) -> Result<(), SimError> {
        let pool = &mut self.pools[at];
        pool.router.set_policy(policy).map_err(refused("a policy"))?;
        let made = |config| LateQueue::new(config).map_err(refused("a queue configuration"));
        match (&mut pool.queue, queue) {
            (Some(old), Some(config)) => old.set_config(config).map_err(refused("a queue configuration"))?,
            (none @ None, Some(config)) => *none = Some(made(config)?),
            (Some(old), None) => {
                let at_once = QueueConfig {
                    max_wait_s: f64::MIN_POSITIVE,
                    ..*old.config()
                };
                old.set_config(at_once)
                    .map_err(refused("a queue configuration"))?;
                self.pump_at(at, self.now_ms * 1e-3 + 1e-9)?;
                // Without a worker they wait for the next one, and go at once then.
                let pool = &mut self.pools[at];
                pool.queue = pool.queue.take().filter(|queue| !queue.is_empty());
            }
            (None, None) => {}
        }
        self.pump(at)?;
        self.start_idle()
    }
}
