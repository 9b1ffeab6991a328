//! What a controller would see of the fleet at its router, and what it may change there while the fleet runs.
//!
//! The same counts as a gateway's: from the request to its first token with the wait in the queue, per answer. Counting changes
//! nothing of the run.

use super::{Fleet, refused};
use crate::config::{Role, SimError};
use crate::record::End;
use wardrop_core::control::{Interval, Look, Pulse, Routing};
use wardrop_core::queue::{LateQueue, QueueConfig};

/// Outcomes since the last look.
#[derive(Default)]
pub(super) struct Seen {
    interval: Interval,
    /// Requests whose first token has been counted.
    told: Vec<bool>,
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Aggregated => "aggregated",
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    }
}

impl Fleet<'_> {
    /// Count from now on.
    pub(crate) fn watch(&mut self) {
        self.seen = Some(Seen {
            told: vec![false; self.desk.workload.len()],
            ..Seen::default()
        });
    }

    pub(super) fn saw_arrival(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.interval.arrivals += 1;
        }
    }

    pub(super) fn saw_refusal(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.interval.refused += 1;
        }
    }

    /// A first token came, at the recorded time.
    pub(super) fn saw_first(&mut self, request: u32) {
        self.saw_first_at(request, self.desk.requests.first_token_ms[request as usize]);
    }

    fn saw_first_at(&mut self, request: u32, at_ms: f64) {
        let i = request as usize;
        if let Some(seen) = &mut self.seen
            && !std::mem::replace(&mut seen.told[i], true)
        {
            seen.interval
                .first_token((at_ms - self.desk.requests.arrival_ms[i]) * 1e-3);
        }
    }

    /// A request ended; its end is recorded.
    pub(super) fn saw_end(&mut self, request: u32) {
        let (requests, i) = (&self.desk.requests, request as usize);
        let gaps = f64::from(self.desk.workload.output_tokens[i] - 1);
        let (first_ms, end_ms) = (requests.first_token_ms[i], requests.end_ms[i]);
        let Some(seen) = &mut self.seen else {
            return;
        };
        if requests.end[i] == End::Complete as u8 {
            let itl_s = (gaps > 0.0).then(|| (end_ms - first_ms) * 1e-3 / gaps);
            seen.interval
                .ended((end_ms - requests.arrival_ms[i]) * 1e-3, itl_s);
        } else if requests.end[i] == End::Failed as u8 {
            seen.interval.broken += 1;
        }
    }

    /// Outcomes since the last look, and every pool's pulse. `at_ms` is not before what happened last.
    ///
    /// A decode worker tells of a run of iterations at its end; who saw its first token inside a run is counted all the same.
    pub(crate) fn look(&mut self, at_ms: f64) -> Look {
        let under_way = self.workers.iter().flat_map(|worker| worker.first_tokens(at_ms));
        for (request, first_ms) in under_way.collect::<Vec<_>>() {
            self.saw_first_at(request, first_ms);
        }
        let interval = self
            .seen
            .as_mut()
            .map_or_else(Interval::default, |seen| std::mem::take(&mut seen.interval));
        let now_s = at_ms * 1e-3;
        let pulses = self.pools.iter().map(|pool| {
            let queue = pool.queue.as_ref().map(LateQueue::stats).unwrap_or_default();
            Pulse::of(&pool.router, queue, "simulated", role_name(pool.role), now_s)
        });
        Look {
            now_s,
            outcomes: interval,
            pools: pulses.collect(),
        }
    }

    /// Puts another policy or queue in force in every pool, at `at_ms`. Requests that wait stay; without a queue they are placed
    /// at once.
    pub(crate) fn set_routing(&mut self, was: &Routing, next: &Routing, at_ms: f64) -> Result<(), SimError> {
        self.now_ms = self.now_ms.max(at_ms);
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            if next.policy != was.policy {
                let policy = next.policy.clone();
                pool.router.set_policy(policy).map_err(refused("a policy"))?;
            }
            if next.queue == was.queue {
                continue;
            }
            match (&mut pool.queue, next.queue) {
                (Some(queue), Some(config)) => {
                    queue.set_config(config).map_err(refused("a queue's change"))?;
                    self.pump(at)?;
                }
                (none @ None, Some(config)) => {
                    *none = Some(LateQueue::new(config).map_err(refused("a queue configuration"))?);
                }
                (Some(_), None) => self.flush(at)?,
                (None, None) => {}
            }
        }
        self.start_idle()
    }

    /// Places all who wait for pool `at`, and takes its queue away; where nobody can be placed it stays until somebody can, and
    /// holds nobody back.
    fn flush(&mut self, at: usize) -> Result<(), SimError> {
        if let Some(queue) = &mut self.pools[at].queue {
            let at_once = QueueConfig {
                max_wait_s: f64::MIN_POSITIVE,
                ..*queue.config()
            };
            queue.set_config(at_once).map_err(refused("a queue's end"))?;
        }
        // Who came at this very moment has not waited yet.
        self.now_ms += 1e-6;
        self.pump(at)?;
        self.pools[at].queue.take_if(|queue| queue.is_empty());
        Ok(())
    }
}
