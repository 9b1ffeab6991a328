//! How busy a pool is, as its own router and queue tell it. O(workers).

use serde::Serialize;

use crate::queue::QueueStats;
use crate::router::Router;

/// A prompt whose length is beyond a pass's fixed cost.
const LONG_TOKENS: u64 = 1024;

/// Figures of a pool that a controller takes differences of.
#[derive(Clone, Debug, Serialize)]
pub struct Pulse {
    /// The model.
    pub model: String,
    /// What its workers do: `aggregated`, `prefill` or `decode`.
    pub role: &'static str,
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

impl Pulse {
    /// What `router` and the queue before it tell; nothing is known of engines yet, see [`Pulse::engine`].
    pub fn of(router: &Router, queue: QueueStats, model: &str, role: &'static str, now_s: f64) -> Self {
        let load = router.fleet_load(now_s);
        let per_worker = 1.0 / f64::from(load.workers.max(1));
        let step_s = if role == "aggregated" && load.requests > 0 {
            router
                .fleet_curves()
                .step_s(load.requests as f64 * per_worker, load.kv_tokens * per_worker)
        } else {
            0.0
        };
        Self {
            model: model.to_owned(),
            role,
            routable: load.workers as usize,
            booked: load.booked,
            booked_prefill_s: load.booked_prefill_s,
            backlog_s: load.backlog_s,
            in_flight: load.requests,
            waiting: queue.waiting,
            waiting_prefill_s: queue.prefill_s,
            engine_queued_tokens: 0,
            engine_queued_s: 0.0,
            step_s,
            engine_age_s: None,
        }
    }

    /// A worker's engine told, `age_s` ago where it reports at all, that so many prompt tokens wait in it.
    pub fn engine(&mut self, router: &Router, queued_tokens: u64, age_s: Option<f64>) {
        let curves = router.fleet_curves();
        let token_s =
            (curves.prefill_s(2 * LONG_TOKENS, 0) - curves.prefill_s(LONG_TOKENS, 0)) / LONG_TOKENS as f64;
        self.engine_queued_tokens += queued_tokens;
        self.engine_queued_s += queued_tokens as f64 * token_s;
        if let Some(age_s) = age_s {
            self.engine_age_s = Some(self.engine_age_s.map_or(age_s, |stalest| stalest.max(age_s)));
        }
    }
}
