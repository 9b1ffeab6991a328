//! The calls by which a control plane reads and changes a running pool: policy, queue, load, learned curves.
//!
//! None of these calls is on the path of a request. Each takes the pool's lock for O(workers) or
//! less.

use std::sync::atomic::Ordering;

use serde::Serialize;
use wardrop_core::control::PoolSnapshot;
use wardrop_core::latency::{CurveView, FleetRecord};
use wardrop_core::queue::QueueConfig;
use wardrop_core::{Error, PolicyConfig};

use super::queue::PoolQueue;
use super::{Role, WorkerPool};

/// Learned curves of a pool.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PoolCurves {
    /// Name of the model.
    pub model: String,
    /// Role of the workers.
    pub role: Role,
    /// Coefficients of each worker's curves.
    pub workers: Vec<CurveView>,
    /// Everything that was learned, as [`WorkerPool::restore_curves`] takes it.
    pub record: FleetRecord,
}

impl WorkerPool {
    /// Puts another policy in force. The caller has checked its parameters.
    ///
    /// # Errors
    /// The router refuses the policy; the policy in force stays.
    pub(crate) fn set_policy(&self, policy: PolicyConfig) -> Result<(), Error> {
        let state = &mut *self.state.lock();
        state.router.set_policy(policy)?;
        self.turn_price_guard(state);
        Ok(())
    }

    /// Puts a queue in front of the router, changes its configuration, or removes it. Without a queue, all waiting requests are placed
    /// at once.
    ///
    /// # Errors
    /// The configuration is out of bounds; the queue in force stays, with its requests.
    pub(crate) fn set_queue(&self, config: Option<QueueConfig>, now_s: f64) -> Result<(), Error> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let longest_s = config.map_or(0.0, |config| config.max_wait_s);
        match (&mut state.queue, config) {
            (Some(queue), Some(config)) => {
                queue.set_config(config)?;
                queue.pump(&state.router, now_s);
            }
            (none @ None, Some(config)) => *none = Some(PoolQueue::new(config)?),
            (Some(queue), None) => {
                queue.flush(&state.router, now_s);
                state.queue = None;
            }
            (None, None) => {}
        }
        self.turn_price_guard(state);
        self.longest_wait_bits
            .store(longest_s.to_bits(), Ordering::Relaxed);
        self.unlock(guard);
        Ok(())
    }

    /// Longest wait in the queue, seconds; `None` without a queue. Read without the lock.
    ///
    /// It bounds the wait of each queued request, which reads it without the lock.
    pub(crate) fn longest_wait_s(&self) -> Option<f64> {
        let longest_s = f64::from_bits(self.longest_wait_bits.load(Ordering::Relaxed));
        (longest_s > 0.0).then_some(longest_s)
    }

    /// Load and capacity of the pool, for the regime; `None` without workers. O(workers).
    ///
    /// Only available workers count as routable and add the load that their engines report.
    pub(crate) fn pulse(&self, now_s: f64) -> Option<PoolSnapshot> {
        let state = self.state.lock();
        if state.workers.is_empty() {
            return None;
        }
        let queue = state.queue.as_ref().map(PoolQueue::stats).unwrap_or_default();
        let mut pulse = PoolSnapshot::new(&state.router, queue, &self.model, self.role.name(), now_s);
        pulse.routable = 0;
        for worker in state.workers.values().filter(|worker| worker.available) {
            pulse.routable += 1;
            if let Some(step) = &worker.forward_pass {
                let age_s = worker.health.heartbeat_age_s(now_s);
                pulse.add_engine(&state.router, step.queued_requests.sum_prefill_tokens, age_s);
            }
        }
        Some(pulse)
    }

    /// The learned curves; `None` without workers.
    pub(crate) fn curves(&self) -> Option<PoolCurves> {
        let state = self.state.lock();
        (!state.workers.is_empty()).then(|| PoolCurves {
            model: self.model.to_string(),
            role: self.role,
            workers: state.router.curves(),
            record: state.router.curve_record(),
        })
    }

    /// The present coefficients of every worker. O(workers).
    pub(crate) fn curve_views(&self) -> Vec<CurveView> {
        self.router.curves()
    }

    /// Takes over the learned curves of the fleet and of registered workers. Returns the number of these workers.
    ///
    /// Workers that are not registered are passed over.
    ///
    /// # Errors
    /// The record is damaged or has figures out of bounds; nothing has changed then.
    pub(crate) fn restore_curves(&self, record: &FleetRecord) -> Result<usize, Error> {
        self.state.lock().router.restore_curves(record)
    }
}
