//! What a control plane reads of a pool and changes in it while it runs.

use std::sync::atomic::Ordering;

use serde::Serialize;
use wardrop_core::latency::{CurveView, FleetRecord};
use wardrop_core::queue::QueueConfig;
use wardrop_core::{Error, PolicyConfig};

use super::{Role, WorkerPool};
use crate::fleet::waiting::Waiters;

/// A prompt whose length is beyond a pass's fixed cost.
const LONG_TOKENS: u64 = 1024;

/// How busy a pool is: figures that a controller takes differences of.
#[derive(Clone, Debug, Serialize)]
pub struct Pulse {
    /// The model.
    pub model: String,
    /// What its workers do.
    pub role: Role,
    /// Workers that may be chosen.
    pub routable: usize,
    /// Requests booked since the start.
    pub booked: u64,
    /// Prefill seconds that they were expected to take.
    pub booked_prefill_s: f64,
    /// Prefill seconds of the requests in flight before their first token.
    pub backlog_s: f64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests in the router's queue.
    pub waiting: usize,
    /// Prefill seconds of them.
    pub waiting_prefill_s: f64,
    /// Prompt tokens that wait inside the engines, by their own count, of workers that report.
    pub engine_queued_tokens: u64,
    /// Prefill seconds of them, by the workers' curves.
    pub engine_queued_s: f64,
    /// A decode step of one worker at the mean load of now, by the fleet's curve: what each prefill pass is longer by.
    pub step_s: f64,
    /// Age of the stalest engine report among the workers that may be chosen; `None` where none reports.
    pub engine_age_s: Option<f64>,
}

/// Learned curves of a pool.
#[derive(Clone, Debug, Serialize)]
pub struct PoolCurves {
    /// The model.
    pub model: String,
    /// What its workers do.
    pub role: Role,
    /// Each worker's coefficients.
    pub workers: Vec<CurveView>,
    /// All that was learned, to be taken over by [`WorkerPool::restore_curves`].
    pub record: FleetRecord,
}

impl WorkerPool {
    /// Puts another policy in force. Its parameters were checked before.
    pub fn set_policy(&self, policy: PolicyConfig) -> Result<(), Error> {
        self.state.lock().router.set_policy(policy)
    }

    /// Puts late binding in front of the router, changes its configuration, or takes it away: then all who wait are placed
    /// at once.
    pub fn set_queue(&self, config: Option<QueueConfig>, now_s: f64) -> Result<(), Error> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let longest_s = config.map_or(0.0, |config| config.max_wait_s);
        match (&mut state.waiters, config) {
            (Some(waiters), Some(config)) => {
                waiters.set_config(config)?;
                waiters.pump(&state.router, now_s);
            }
            (none @ None, Some(config)) => *none = Some(Waiters::new(config)?),
            (Some(waiters), None) => {
                waiters.flush(&state.router, now_s);
                state.waiters = None;
            }
            (None, None) => {}
        }
        self.longest_wait_bits
            .store(longest_s.to_bits(), Ordering::Relaxed);
        self.unlock(guard);
        Ok(())
    }

    /// Longest wait in the queue, seconds; `None` without a queue. Read without the lock.
    pub fn longest_wait_s(&self) -> Option<f64> {
        let longest_s = f64::from_bits(self.longest_wait_bits.load(Ordering::Relaxed));
        (longest_s > 0.0).then_some(longest_s)
    }

    /// How busy the pool is; `None` without workers. O(workers).
    pub fn pulse(&self, now_s: f64) -> Option<Pulse> {
        let state = self.state.lock();
        if state.workers.is_empty() {
            return None;
        }
        let router = &state.router;
        let pressures = (0..router.positions())
            .filter(|&position| router.serves(position))
            .map(|position| router.pressure(position, now_s));
        let (mut backlog_s, mut in_flight, mut kv_tokens, mut serving) = (0.0, 0, 0.0, 0_u32);
        for pressure in pressures {
            backlog_s += pressure.backlog_s;
            in_flight += u64::from(pressure.requests);
            kv_tokens += pressure.kv_tokens;
            serving += 1;
        }
        let curves = router.fleet_curves();
        let per_worker = 1.0 / f64::from(serving.max(1));
        let step_s = if self.role == Role::Aggregated && in_flight > 0 {
            curves.step_s(in_flight as f64 * per_worker, kv_tokens * per_worker)
        } else {
            0.0
        };
        let token_s =
            (curves.prefill_s(2 * LONG_TOKENS, 0) - curves.prefill_s(LONG_TOKENS, 0)) / LONG_TOKENS as f64;
        let (booked, booked_prefill_s) = router.booked_prefill();
        let queue = state.waiters.as_ref().map(Waiters::stats).unwrap_or_default();
        let mut pulse = Pulse {
            model: self.model.to_string(),
            role: self.role,
            routable: 0,
            booked,
            booked_prefill_s,
            backlog_s,
            in_flight,
            waiting: queue.waiting,
            waiting_prefill_s: queue.prefill_s,
            engine_queued_tokens: 0,
            engine_queued_s: 0.0,
            step_s,
            engine_age_s: None,
        };
        for worker in state.workers.values().filter(|worker| worker.available) {
            pulse.routable += 1;
            let Some(step) = &worker.forward_pass else {
                continue;
            };
            let tokens = step.queued_requests.sum_prefill_tokens;
            pulse.engine_queued_tokens += tokens;
            pulse.engine_queued_s += tokens as f64 * token_s;
            if let Some(age_s) = worker.health.heartbeat_age_s(now_s) {
                pulse.engine_age_s = Some(
                    pulse
                        .engine_age_s
                        .map_or(age_s, |stalest: f64| stalest.max(age_s)),
                );
            }
        }
        Some(pulse)
    }

    /// The learned curves; `None` without workers.
    pub fn curves(&self) -> Option<PoolCurves> {
        let state = self.state.lock();
        (!state.workers.is_empty()).then(|| PoolCurves {
            model: self.model.to_string(),
            role: self.role,
            workers: state.router.curves(),
            record: state.router.curve_record(),
        })
    }

    /// Takes over learned curves: the fleet's, and those of workers that are known; how many those were.
    pub fn restore_curves(&self, record: &FleetRecord) -> Result<usize, Error> {
        self.state.lock().router.restore_curves(record)
    }
}
