//! The figures of the live page: one compact JSON object per second for all viewers, read from live state.
//!
//! A status report has every field of every worker, for programs. An observation has the fields of a tile, the price of anarchy,
//! and counts of latencies since the start. The reader takes differences. O(workers).
//!
//! A field with the name of a field of [`WorkerReport`] has its meaning and its unit.

use std::collections::HashMap;

use serde::Serialize;
use wardrop_core::latency::CurveView;
use wardrop_core::{Misfit, TrustMode, WorkerId};

use super::Service;
use super::control::json;
use crate::bound::BoundReport;
use crate::latency_bins::BinCount;
use crate::models::Model;
use crate::pool::{AnarchyReport, Fault, Role, StreamState, WorkerPool, WorkerReport};

/// Prompt lengths at which the curve of a worker is drawn, in tokens.
const CURVE_TOKENS: [u64; 5] = [256, 2_048, 4_096, 6_144, 8_192];
/// Sequences of the decode step that a tile shows.
const STEP_SEQUENCES: f64 = 8.0;
/// KV tokens of that decode step: 1,024 for each sequence.
const STEP_KV_TOKENS: f64 = STEP_SEQUENCES * 1_024.0;

/// All figures of one moment.
#[derive(Serialize)]
struct Observation {
    /// Seconds on the service's monotonic clock.
    now_s: f64,
    /// Every model, by name.
    models: Vec<ModelObservation>,
}

/// Figures of one model.
#[derive(Serialize)]
struct ModelObservation {
    name: String,
    block_size: u32,
    /// Counts of times to first token by the middle of a bin, in seconds.
    ttft_counts: Vec<BinCount>,
    /// Counts of times between tokens, in the same form.
    itl_counts: Vec<BinCount>,
    /// Paid over lower bound; `None` while it is off.
    price_of_anarchy: Option<BoundReport>,
    pools: Vec<PoolObservation>,
}

/// Figures of one pool that has workers.
#[derive(Serialize)]
struct PoolObservation {
    role: Role,
    /// Requests in the router's queue.
    waiting: usize,
    /// Prefill seconds of these requests, each on its best worker.
    waiting_prefill_s: f64,
    /// Why a static rule decides in place of the policy; `None` while the policy decides.
    misfit: Option<Misfit>,
    /// Loss of a decision given the state that it met; `None` before the first solved window.
    anarchy: Option<AnarchyObservation>,
    /// Workers in id order.
    workers: Vec<WorkerObservation>,
}

/// Loss of the decisions of one pool given the state that they met, with the parts of the cost that they lose.
#[derive(Serialize)]
struct AnarchyObservation {
    /// Loss of a decision as a ratio; 1 is optimal.
    poa: f64,
    /// Bounds of the 95 % interval; `None` with too few windows.
    low: Option<f64>,
    high: Option<f64>,
    /// Solved windows behind the figures.
    windows: usize,
    /// Shares of the placements' cost. A share is negative where the optimum pays more of that part.
    lost_to_cache: f64,
    lost_to_load: f64,
    lost_to_split: f64,
}

/// One worker's tile.
#[derive(Serialize)]
struct WorkerObservation {
    /// Text, because a browser rounds a number of 64 bits.
    instance: String,
    dp_rank: u32,
    available: bool,
    fault: Option<Fault>,
    feed_state: StreamState,
    trust_mode: TrustMode,
    trust_score: f64,
    /// Booked prompt tokens whose prefill is not done.
    prefill_tokens: u64,
    decode_blocks: u64,
    active_requests: u32,
    /// Blocks of the device tier in the index.
    held_blocks: u64,
    /// KV blocks of the worker; `None` when the worker did not report them.
    total_kv_blocks: Option<u64>,
    event_age_s: Option<f64>,
    events_lost: u64,
    audited_requests: u64,
    predicted_cached_tokens: u64,
    reported_cached_tokens: u64,
    /// Learned curve; `None` for a worker without curves yet.
    curve: Option<CurveObservation>,
}

/// Points of a learned curve, in seconds.
#[derive(Serialize)]
struct CurveObservation {
    /// Prefill of prompts without cached tokens, at the lengths of [`CURVE_TOKENS`].
    prefill_s: [f64; CURVE_TOKENS.len()],
    /// One decode step of [`STEP_SEQUENCES`] sequences.
    step_s: f64,
    /// Samples of each curve; a curve without samples is the prior.
    prefill_samples: u64,
    step_samples: u64,
}

impl Service {
    /// The figures of the live page, as JSON. O(workers).
    pub fn observation(&self) -> String {
        let now_s = self.clock.now_s();
        let models = self.models.all();
        json(&Observation {
            now_s,
            models: models.iter().map(|model| observe_model(model, now_s)).collect(),
        })
    }
}

/// Figures of a model; pools without workers are left out.
fn observe_model(model: &Model, now_s: f64) -> ModelObservation {
    let pools = Role::ALL.into_iter();
    ModelObservation {
        name: model.spec.name.clone(),
        block_size: model.spec.block_size,
        ttft_counts: model.latency.ttft.counts(),
        itl_counts: model.latency.itl.counts(),
        price_of_anarchy: model.bound.as_ref().map(|meter| meter.report(now_s)),
        pools: pools
            .filter_map(|role| observe_pool(model.pool(role), role, now_s))
            .collect(),
    }
}

/// Figures of a pool; `None` without workers.
fn observe_pool(pool: &WorkerPool, role: Role, now_s: f64) -> Option<PoolObservation> {
    let reports = pool.report(now_s);
    if reports.is_empty() {
        return None;
    }
    let views = pool.curve_views().into_iter();
    let curves: HashMap<WorkerId, CurveView> = views.map(|view| (view.worker, view)).collect();
    let queue = pool.queue_stats().unwrap_or_default();
    let workers = reports.iter().map(|report| {
        let id = WorkerId::new(report.instance, report.dp_rank);
        observe_worker(report, curves.get(&id).map(observe_curve))
    });
    Some(PoolObservation {
        role,
        waiting: queue.waiting,
        waiting_prefill_s: queue.prefill_s,
        misfit: pool.price_guard().misfit,
        anarchy: pool.anarchy().as_ref().map(observe_anarchy),
        workers: workers.collect(),
    })
}

/// Shares of the lost cost, by its parts. A total of 0 gives shares of 0.
fn observe_anarchy(report: &AnarchyReport) -> AnarchyObservation {
    let meter = &report.meter;
    let loss = &meter.loss;
    let total_s = loss.total_s().max(f64::MIN_POSITIVE);
    AnarchyObservation {
        poa: meter.poa,
        low: meter.poa_interval.map(|interval| interval.low),
        high: meter.poa_interval.map(|interval| interval.high),
        windows: meter.windows,
        lost_to_cache: loss.cache_s / total_s,
        lost_to_load: loss.load_s / total_s,
        lost_to_split: loss.split_s / total_s,
    }
}

fn observe_worker(report: &WorkerReport, curve: Option<CurveObservation>) -> WorkerObservation {
    WorkerObservation {
        instance: report.instance.to_string(),
        dp_rank: report.dp_rank,
        available: report.available,
        fault: report.fault,
        feed_state: report.feed_state,
        trust_mode: report.trust_mode,
        trust_score: report.trust_score,
        prefill_tokens: report.prefill_tokens,
        decode_blocks: report.decode_blocks,
        active_requests: report.active_requests,
        held_blocks: report.held_blocks[0],
        total_kv_blocks: report.total_kv_blocks,
        event_age_s: report.event_age_s,
        events_lost: report.events_lost,
        audited_requests: report.audited_requests,
        predicted_cached_tokens: report.predicted_cached_tokens,
        reported_cached_tokens: report.reported_cached_tokens,
        curve,
    }
}

fn observe_curve(view: &CurveView) -> CurveObservation {
    let curves = &view.coefficients;
    CurveObservation {
        prefill_s: CURVE_TOKENS.map(|tokens| curves.prefill_s(tokens, 0)),
        step_s: curves.step_s(STEP_SEQUENCES, STEP_KV_TOKENS),
        prefill_samples: view.prefill_samples,
        step_samples: view.step_samples,
    }
}
