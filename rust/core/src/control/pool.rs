//! How busy a pool is, by its router, its queue and the reports of its engines. O(workers).
//!
//! Sums over the pool and no figures per worker: a controller decides about a pool. Work is in seconds, so
//! that pools of different models and hardware compare.

use serde::Serialize;

use crate::price_guard::Misfit;
use crate::queue::QueueStats;
use crate::router::Router;

/// Length of a prompt, tokens, from which the fixed cost of an engine pass matters little.
const LONG_TOKENS: u64 = 1024;

/// Figures of one pool. A controller takes differences of two snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct PoolSnapshot {
    /// The model.
    pub model: String,
    /// Role of the workers: `aggregated`, `prefill` or `decode`.
    pub role: &'static str,
    /// Workers that take requests.
    pub routable: usize,
    /// Requests booked since the start.
    pub booked: u64,
    /// Prefill seconds that these requests were expected to take.
    pub booked_prefill_s: f64,
    /// Prefill seconds of the requests in flight before their first token.
    pub backlog_s: f64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Why a static rule decides in place of the price; `None` while the predictions of the price fit.
    pub misfit: Option<Misfit>,
    /// Requests in the router's queue.
    pub waiting: usize,
    /// Prefill seconds of these requests.
    pub waiting_prefill_s: f64,
    /// Prompt tokens that wait inside the engines, by the reports of the engines.
    pub engine_queued_tokens: u64,
    /// Prefill seconds of these tokens, by the curves of the fleet.
    pub engine_queued_s: f64,
    /// Seconds of a decode step at the present mean load, by the curves of the fleet. Each prefill pass is longer by
    /// that. 0 in a split pool.
    pub step_s: f64,
    /// Age of the oldest engine report among the workers that take requests, seconds. `None` when no engine reports.
    pub engine_age_s: Option<f64>,
}

impl PoolSnapshot {
    /// The figures of a router and of the queue in front of it. [`PoolSnapshot::add_engine`] adds the engines' figures.
    pub fn new(router: &Router, queue: QueueStats, model: &str, role: &'static str, now_s: f64) -> Self {
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
            misfit: router.misfit(),
            waiting: queue.waiting,
            waiting_prefill_s: queue.prefill_s,
            engine_queued_tokens: 0,
            engine_queued_s: 0.0,
            step_s,
            engine_age_s: None,
        }
    }

    /// Adds the report of one engine: `queued_tokens` prompt tokens wait in it. `age_s` is the age of the report,
    /// `None` where no report came.
    pub fn add_engine(&mut self, router: &Router, queued_tokens: u64, age_s: Option<f64>) {
        let curves = router.fleet_curves();
        let token_s =
            (curves.prefill_s(2 * LONG_TOKENS, 0) - curves.prefill_s(LONG_TOKENS, 0)) / LONG_TOKENS as f64;
        self.engine_queued_tokens += queued_tokens;
        self.engine_queued_s += queued_tokens as f64 * token_s;
        if let Some(age_s) = age_s {
            self.engine_age_s = Some(self.engine_age_s.map_or(age_s, |oldest| oldest.max(age_s)));
        }
    }
}
