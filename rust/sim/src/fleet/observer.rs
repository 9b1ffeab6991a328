//! What a controller observes at the routers of a running fleet, and the changes that it makes there.
//!
//! The counts equal a gateway's: a time to first token includes the wait in the queue, and each answer counts once.
//! Observation does not change the run.

use wardrop_core::control::{ControlSnapshot, OutcomeWindow, PoolSnapshot, Routing};
use wardrop_core::queue::{LateQueue, QueueConfig};

use super::Fleet;
use crate::error::{SimError, router_refused};
use crate::record::End;
use crate::spec::Role;

/// Outcomes since the last observation.
#[derive(Default)]
pub(super) struct Observer {
    interval: OutcomeWindow,
    /// Whether the first token of each request has been counted.
    first_token_counted: Vec<bool>,
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Aggregated => "aggregated",
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    }
}

impl Fleet<'_> {
    /// Starts to count outcomes.
    pub(crate) fn watch(&mut self) {
        self.observer = Some(Observer {
            first_token_counted: vec![false; self.state.workload.len()],
            ..Observer::default()
        });
    }

    pub(super) fn observe_arrival(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.interval.arrivals += 1;
        }
    }

    pub(super) fn observe_refusal(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.interval.refused += 1;
        }
    }

    /// Counts a first token at its recorded time.
    pub(super) fn observe_first_token(&mut self, request: u32) {
        self.observe_first_token_at(request, self.state.requests.first_token_ms[request as usize]);
    }

    fn observe_first_token_at(&mut self, request: u32, at_ms: f64) {
        let i = request as usize;
        if let Some(observer) = &mut self.observer
            && !std::mem::replace(&mut observer.first_token_counted[i], true)
        {
            observer
                .interval
                .first_token((at_ms - self.state.requests.arrival_ms[i]) * 1e-3);
        }
    }

    /// Counts the end of a request whose result is already recorded.
    pub(super) fn observe_end(&mut self, request: u32) {
        let (requests, i) = (&self.state.requests, request as usize);
        let gaps = f64::from(self.state.workload.output_tokens[i] - 1);
        let (first_ms, end_ms) = (requests.first_token_ms[i], requests.end_ms[i]);
        let Some(observer) = &mut self.observer else {
            return;
        };
        if requests.end[i] == End::Complete as u8 {
            let itl_s = (gaps > 0.0).then(|| (end_ms - first_ms) * 1e-3 / gaps);
            observer
                .interval
                .ended((end_ms - requests.arrival_ms[i]) * 1e-3, itl_s);
        } else if requests.end[i] == End::Failed as u8 {
            observer.interval.broken += 1;
        }
    }

    /// Outcomes since the last call, and the state of every pool. `at_ms` must not be before the last event.
    ///
    /// An engine reports a run of iterations only at its end. First tokens inside a planned run are counted here.
    pub(crate) fn look(&mut self, at_ms: f64) -> ControlSnapshot {
        let unreported = self.workers.iter().flat_map(|worker| worker.first_tokens(at_ms));
        for first_token in unreported.collect::<Vec<_>>() {
            self.observe_first_token_at(first_token.request, first_token.at_ms);
        }
        let interval = self
            .observer
            .as_mut()
            .map_or_else(OutcomeWindow::default, |observer| {
                std::mem::take(&mut observer.interval)
            });
        let now_s = at_ms * 1e-3;
        let pulses = self.pools.iter().map(|pool| {
            let queue = pool.queue.as_ref().map(LateQueue::stats).unwrap_or_default();
            PoolSnapshot::new(&pool.router, queue, "simulated", role_name(pool.role), now_s)
        });
        ControlSnapshot {
            now_s,
            outcomes: interval,
            pools: pulses.collect(),
        }
    }

    /// Changes the policy and the queue of every pool at `at_ms`.
    ///
    /// Waiting requests stay in the queue. If the queue is removed, they are placed at once.
    pub(crate) fn set_routing(&mut self, was: &Routing, next: &Routing, at_ms: f64) -> Result<(), SimError> {
        self.now_ms = self.now_ms.max(at_ms);
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            if next.policy != was.policy {
                let policy = next.policy.clone();
                pool.router
                    .set_policy(policy)
                    .map_err(router_refused("a policy"))?;
            }
            if next.queue == was.queue {
                continue;
            }
            match (&mut pool.queue, next.queue) {
                (Some(queue), Some(config)) => {
                    queue
                        .set_config(config)
                        .map_err(router_refused("a queue's change"))?;
                    self.place_waiting(at)?;
                }
                (none @ None, Some(config)) => {
                    *none = Some(LateQueue::new(config).map_err(router_refused("a queue configuration"))?);
                }
                (Some(_), None) => self.flush(at)?,
                (None, None) => {}
            }
        }
        self.start_idle_engines()
    }

    /// Places all requests that wait for pool `at`, and removes its queue.
    ///
    /// If no worker can take a request, the queue stays until one can, and then holds no request back.
    fn flush(&mut self, at: usize) -> Result<(), SimError> {
        if let Some(queue) = &mut self.pools[at].queue {
            let at_once = QueueConfig {
                max_wait_s: f64::MIN_POSITIVE,
                ..*queue.config()
            };
            queue
                .set_config(at_once)
                .map_err(router_refused("a queue's end"))?;
        }
        // A request that arrived at this very moment has waited 0 s, which is not longer than `max_wait_s`.
        self.now_ms += 1e-6;
        self.place_waiting(at)?;
        self.pools[at].queue.take_if(|queue| queue.is_empty());
        Ok(())
    }
}
