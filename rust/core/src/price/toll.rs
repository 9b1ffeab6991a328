//! The toll: one price in seconds. Each request pays its own time and the delay that it causes to others (Pigou 1920).
//!
//! The figures of one candidate come from its learned curves. `s` is the prefill seconds of the request, `W`
//! the prefill seconds ahead of it, and `n` the requests in flight. `Ō` is the expected output tokens, `λ`
//! the arrivals per second, and `ρ` the utilisation. `M` is the wait for KV memory, `f` the KV-memory time,
//! and `m` the share of the KV memory in use.
//!
//! ```text
//! price = own · [(W + s)·(1 + step/chunk) + transfer]           own first token            [`own_first_token_s`]
//!       + decode · Ō·step_with                                   own decode                 [`own_decode_s`]
//!       + stall · s·n                                            requests in flight wait    [`stall_s`]
//!       + busy · s·λ·(W + M + s)·min(1/(1 − ρ), 2)               arriving requests wait     [`busy_period_s`]
//!       + memory · [M + (f + s·m)·λ·(M/(1 − m) + min(f/(1 − m), stay))]  KV blocks            [`memory_s`]
//!       + eviction · evicted·reuse·token                         blocks that it evicts      [`eviction_s`]
//! ```
//!
//! Every term is ≥ 0, in seconds, and a function of one candidate alone, so it can be tested and explained alone. On
//! an idle fleet all but the first two terms vanish, and the price is cache affinity. The busier the fleet, the more
//! the price avoids congestion. It has no threshold, no switch and no noise. Only the weights come from the user's
//! [`Objective`]. Source: the study in `docs/reports/pricing.md`.

use multiversion::multiversion;

use super::objective::{Objective, TollWeights};
use super::{Policy, View};
use crate::error::Error;
use crate::ledger::{LatencyEstimate, LatencyView};
use crate::request::Parts;
use crate::rng::Rng;

/// Bound of the factor by which arrivals stretch the time that a backlog takes to clear. [`busy_period_s`]
/// has the reason.
const MAX_STRETCH: f64 = 2.0;

/// Error factor of a curve that has seen no outcome: it is right to an order of magnitude. A new worker with
/// a tenth of the work is thus faster than a known one even if its curve is ten times too optimistic.
const GUESS_FACTOR: u64 = 10;

/// (W + s)·(1 + step/chunk) + transfer: seconds to the own first token. The factor is the decode step that shares the
/// pass of every prefill chunk.
///
/// Where no request decodes, no step shares the passes and the factor is 1.
#[inline(always)]
pub fn own_first_token_s(c: &LatencyEstimate) -> f64 {
    let shared = if c.chunk_s > 0.0 && c.requests > 0.0 {
        c.step_s / c.chunk_s
    } else {
        0.0
    };
    (c.wait_s + c.prefill_s) * (1.0 + shared) + c.transfer_s
}

/// `Ō·step_with`: seconds of the own decode at the load with this request in the batch.
///
/// The term separates fast workers from slow workers. Without it, unequal hardware gets equal load.
#[inline(always)]
pub fn own_decode_s(c: &LatencyEstimate, output_tokens: f64) -> f64 {
    output_tokens * c.step_with_s
}

/// s·n: this prefill holds up every request in flight on the worker.
///
/// The passes that compute this prompt lengthen every decode step that shares them. The product with n is why
/// `LMetric` works at all.
#[inline(always)]
pub fn stall_s(c: &LatencyEstimate) -> f64 {
    c.prefill_s * c.requests
}

/// s·λ·(W + M + s)·min(1/(1 − ρ), 2): s seconds for each request that is expected to arrive before the backlog is gone.
///
/// The busy period of an isolated queue grows with 1/(1 − ρ) without bound. A worker behind a router is not isolated:
/// arrivals that meet its backlog go elsewhere. Without the bound, the term held a prefix family on its worker
/// through minutes of backlog (`docs/reports/pricing.md`).
#[inline(always)]
pub fn busy_period_s(c: &LatencyEstimate) -> f64 {
    let backlog_s = c.wait_s + c.memory_wait_s + c.prefill_s;
    let stretch = (1.0 / (1.0 - c.utilisation)).min(MAX_STRETCH);
    c.prefill_s * c.arrivals_per_s * backlog_s * stretch
}

/// M + (f + s·m)·λ·(M/(1 − m) + min(f/(1 − m), stay)): the wait for KV blocks, of the request and of requests that
/// arrive meanwhile. m is the share of the KV memory in use with the request. Memory is the server here, so its own
/// utilisation stretches the wait, not that of prefill. `stay = W + s + Ō·step_with` is how long the request holds
/// its blocks.
///
/// The request takes two parts of that server: its own footprint f, and s·m. While its prompt is computed, the
/// requests in flight stand still and keep their blocks for s seconds more. Without s·m long prompts went where few
/// requests ran, regardless of the memory that these held. Workers then came apart: some had many small requests and
/// free memory, the others were full (`docs/reports/pricing.md`).
///
/// A shortage (M) delays every request until memory is free again. While the request fits, it can hold up
/// only requests that arrive during its stay, so the stay bounds the term. Without the bound, f/(1 − m) of a
/// prompt that takes half of a cache was minutes. It sent the prompt away from its own prefix
/// (`docs/reports/pricing.md`).
#[inline(always)]
pub fn memory_s(c: &LatencyEstimate, output_tokens: f64) -> f64 {
    let (wait_s, own_s) = (c.memory_wait_s, c.footprint_s);
    let held_s = own_s + c.prefill_s * c.memory_share;
    let stay_s = c.wait_s + c.prefill_s + own_decode_s(c, output_tokens);
    let stretch = 1.0 / (1.0 - c.memory_share);
    wait_s + held_s * c.arrivals_per_s * (wait_s * stretch + (own_s * stretch).min(stay_s))
}

/// Evicted tokens · chance that one is wanted again · seconds to compute it again.
///
/// 0 while the cache of the worker has space. The term made about 1 % of difference in the study.
#[inline(always)]
pub fn eviction_s(c: &LatencyEstimate) -> f64 {
    c.evicted_tokens * c.reuse * c.token_s
}

/// The price of one candidate in seconds: the weighted sum of the terms above.
#[inline(always)]
pub fn toll_s(c: &LatencyEstimate, output_tokens: f64, w: &TollWeights) -> f64 {
    w.own * own_first_token_s(c)
        + w.decode * own_decode_s(c, output_tokens)
        + w.stall * stall_s(c)
        + w.busy * busy_period_s(c)
        + w.memory * memory_s(c, output_tokens)
        + w.eviction * eviction_s(c)
}

/// Bounded ramp of new workers: a worker whose curves have seen next to nothing ([`LatencyEstimate::is_new`]) gets at
/// most its share of `⌈(requests in flight + 1) / candidates⌉` requests. Beyond its share its cost is infinite.
/// O(candidates).
///
/// A known worker always keeps its finite cost. When all workers are new, none is held, since there is none to fall
/// back on.
///
/// The curve of a new worker is a guess. The worker is empty, so it looks best to every request until its
/// first answers come. What it holds of a prompt is no guess. It may have at most a tenth to compute of the
/// least that any known worker has. It is then faster regardless of its curve, and is not held. `new_tokens`
/// gives the tokens to compute by candidate. A shared system prompt alone is not enough for that, or a new
/// worker would take the whole traffic of a cold fleet (`docs/reports/pricing.md`).
pub fn hold_newcomers(
    is_new: &[bool],
    requests: impl Fn(usize) -> f64,
    new_tokens: impl Fn(usize) -> u64,
    costs: &mut [f64],
) {
    let new = is_new.iter().filter(|&&is_new| is_new).count();
    if new == 0 || new == is_new.len() {
        return;
    }
    let in_flight: f64 = (0..is_new.len()).map(&requests).sum();
    let share = ((in_flight + 1.0) / is_new.len() as f64).ceil();
    let known = (0..is_new.len()).filter(|&i| !is_new[i]);
    let least_tokens = known.map(&new_tokens).min().unwrap_or(0);
    for (i, cost) in costs.iter_mut().enumerate() {
        if is_new[i] && requests(i) >= share && GUESS_FACTOR * new_tokens(i) > least_tokens {
            *cost = f64::INFINITY;
        }
    }
}

/// [`toll_s`] of every candidate, several at a time.
///
/// The formula is written once, in [`toll_s`], for one candidate. The compiler makes it eight at a time: 44
/// ns per worker became 2.3 ns (4,096 workers, a busy machine).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn price_all(latency: &LatencyView<'_>, output_tokens: f64, weights: &TollWeights, costs: &mut [f64]) {
    let latency = latency.cut(costs.len());
    for (i, cost) in costs.iter_mut().enumerate() {
        *cost = toll_s(&latency.estimate(i), output_tokens, weights);
    }
}

/// The toll as a policy. The module's page has the formula.
#[derive(Clone, Copy, Debug)]
pub struct Toll {
    weights: TollWeights,
}

impl Toll {
    /// The toll with the weights of an objective.
    ///
    /// # Errors
    /// [`Error::Parameter`], as [`Objective::weights`].
    pub fn new(objective: &Objective) -> Result<Self, Error> {
        Ok(Self {
            weights: objective.weights()?,
        })
    }
}

impl Policy for Toll {
    fn name(&self) -> &'static str {
        "toll"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        price_all(&view.latency, view.output_tokens, &self.weights, costs);
        let requests = |i| view.latency.estimate(i).requests;
        hold_newcomers(
            view.latency.newcomers(),
            requests,
            |i| view.tokens_to_compute(i),
            costs,
        );
    }

    /// The weighted terms, seconds. The cost of a new worker beyond its share is infinite, regardless of its terms.
    fn parts(&self, view: &View<'_>, i: usize) -> Parts {
        let (c, w) = (view.latency.estimate(i), &self.weights);
        Parts::new([
            ("own_first_token_s", w.own * own_first_token_s(&c)),
            ("own_decode_s", w.decode * own_decode_s(&c, view.output_tokens)),
            ("stall_s", w.stall * stall_s(&c)),
            ("busy_period_s", w.busy * busy_period_s(&c)),
            ("memory_s", w.memory * memory_s(&c, view.output_tokens)),
            ("eviction_s", w.eviction * eviction_s(&c)),
        ])
    }

    fn needs_latency(&self) -> bool {
        true
    }
}
