//! The toll: one price in seconds. Each request pays its own time and the delay that it causes to others (Pigou).
//!
//! With `u` uncached tokens, `s` their prefill seconds, `W` the prefill seconds ahead, `n` the requests in flight, `Ō` the
//! expected answer, all of one candidate and from its learned curves:
//!
//! ```text
//! price = own · [(W + s)·(1 + step/chunk) + transfer]           own first token            [`own_first_token_s`]
//!       + decode · Ō·step_with                                   own decode                 [`own_decode_s`]
//!       + stall · s·n                                            those in flight wait       [`stall_s`]
//!       + busy · s·λ·(W + M + s)·min(1/(1 − ρ), 2)               those who will arrive      [`busy_period_s`]
//!       + memory · [M + (f + s·m)·λ·(M/(1 − m) + min(f/(1 − m), stay))]  KV blocks            [`memory_s`]
//!       + eviction · evicted·reuse·token                         what its blocks push out   [`eviction_s`]
//! ```
//!
//! Every term is ≥ 0, in seconds, and a function of one candidate alone, so it can be tested and explained alone. On an
//! idle fleet all but the first two vanish and this is cache affinity; the busier, the more it avoids congestion. No
//! threshold, no switch, no noise. Only the weights come from the user's [`Objective`](super::Objective). Source: the
//! prototype study behind `docs/pricing.md`.

use multiversion::multiversion;

use super::objective::{Objective, TollWeights};
use super::{Policy, View};
use crate::error::Error;
use crate::ledger::{Books, Seconds};
use crate::request::Parts;
use crate::rng::Rng;

/// How much arrivals may stretch the time that a backlog takes to clear.
const MAX_STRETCH: f64 = 2.0;

/// A curve that nobody has seen at work is good to an order of magnitude.
const GUESS_FACTOR: u64 = 10;

/// (W + s)·(1 + step/chunk) + transfer: seconds to the own first token. The factor is the decode step that every
/// prefill chunk shares its pass with.
#[inline(always)]
pub fn own_first_token_s(c: &Seconds) -> f64 {
    let shared = if c.chunk_s > 0.0 && c.requests > 0.0 {
        c.step_s / c.chunk_s
    } else {
        0.0
    };
    (c.wait_s + c.prefill_s) * (1.0 + shared) + c.transfer_s
}

/// `Ō·step_with`: seconds of the own decode at the load with this request in the batch.
#[inline(always)]
pub fn own_decode_s(c: &Seconds, output_tokens: f64) -> f64 {
    output_tokens * c.step_with_s
}

/// s·n: every request in flight there is held up by this prefill.
#[inline(always)]
pub fn stall_s(c: &Seconds) -> f64 {
    c.prefill_s * c.requests
}

/// s·λ·(W + M + s)·min(1/(1 − ρ), 2): s seconds for each of the requests expected to arrive before the backlog is gone.
///
/// An isolated queue's busy period grows with 1/(1 − ρ) without bound. A worker behind a router is not isolated: arrivals
/// that meet its backlog go elsewhere. Unbounded, the term held a prefix family on its worker through minutes of backlog
/// (`docs/pricing.md`).
#[inline(always)]
pub fn busy_period_s(c: &Seconds) -> f64 {
    let backlog_s = c.wait_s + c.memory_wait_s + c.prefill_s;
    let stretch = (1.0 / (1.0 - c.utilisation)).min(MAX_STRETCH);
    c.prefill_s * c.arrivals_per_s * backlog_s * stretch
}

/// M + (f + s·m)·λ·(M/(1 − m) + min(f/(1 − m), stay)): waiting for KV blocks, own and of those who arrive meanwhile. m is the
/// share of the KV memory in use with this request: memory is the server here, so its own utilisation stretches the wait, not
/// that of prefill. `stay = W + s + Ō·step_with` is how long the request holds its blocks.
///
/// What it takes of that server is its own footprint f, and s·m: while its prompt is computed, those in flight stand still and
/// keep what they hold for s seconds more. Without that part long prompts went where few requests run, whatever memory these
/// held, and workers came apart: some with many small requests and free memory, the others full (`docs/pricing.md`).
///
/// What is short already (M) delays everybody until memory is free again. While it still fits, only those who arrive during
/// the stay can be held up by it, however full: unbounded, f/(1 − m) of a prompt that takes half of a cache was minutes, and
/// sent it away from its own prefix (`docs/pricing.md`).
#[inline(always)]
pub fn memory_s(c: &Seconds, output_tokens: f64) -> f64 {
    let (wait_s, own_s) = (c.memory_wait_s, c.footprint_s);
    let held_s = own_s + c.prefill_s * c.memory_share;
    let stay_s = c.wait_s + c.prefill_s + own_decode_s(c, output_tokens);
    let stretch = 1.0 / (1.0 - c.memory_share);
    wait_s + held_s * c.arrivals_per_s * (wait_s * stretch + (own_s * stretch).min(stay_s))
}

/// evicted tokens × how likely somebody wants one again × seconds to compute it again.
#[inline(always)]
pub fn eviction_s(c: &Seconds) -> f64 {
    c.evicted_tokens * c.reuse * c.token_s
}

/// The price of one candidate in seconds: the weighted sum of the terms above.
#[inline(always)]
pub fn toll_s(c: &Seconds, output_tokens: f64, w: &TollWeights) -> f64 {
    w.own * own_first_token_s(c)
        + w.decode * own_decode_s(c, output_tokens)
        + w.stall * stall_s(c)
        + w.busy * busy_period_s(c)
        + w.memory * memory_s(c, output_tokens)
        + w.eviction * eviction_s(c)
}

/// Bounded ramp: a worker whose curves have seen next to nothing ([`Seconds::is_new`]) gets at most its share,
/// `⌈(requests in flight + 1) / candidates⌉`, beyond that its cost is infinite. Where nobody is known, nobody is held: there
/// is nothing to fall back on. One that is known always keeps its finite cost. O(candidates).
///
/// A newcomer's curve is a guess; empty as it is, it looks best to every request until the first answers tell. What it holds
/// of a prompt is no guess: where it has a tenth to compute of what all who are known have (`new_tokens`, by candidate), it is
/// faster whatever its curve, and is not held. A shared system prompt alone does not open it, or it would take a cold
/// fleet's whole traffic (`docs/pricing.md`).
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
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn price_all(books: &Books<'_>, output_tokens: f64, weights: &TollWeights, costs: &mut [f64]) {
    let books = books.cut(costs.len());
    for (i, cost) in costs.iter_mut().enumerate() {
        *cost = toll_s(&books.seconds(i), output_tokens, weights);
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Toll {
    weights: TollWeights,
}

impl Toll {
    /// Validates the objective.
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
        price_all(&view.books, view.output_tokens, &self.weights, costs);
        let requests = |i| view.books.seconds(i).requests;
        hold_newcomers(
            view.books.newcomers(),
            requests,
            |i| view.tokens_to_compute(i),
            costs,
        );
    }

    /// The weighted terms, seconds. A newcomer beyond its share is out whatever they are: its cost is infinite.
    fn parts(&self, view: &View<'_>, i: usize) -> Parts {
        let (c, w) = (view.books.seconds(i), &self.weights);
        Parts::new([
            ("own_first_token_s", w.own * own_first_token_s(&c)),
            ("own_decode_s", w.decode * own_decode_s(&c, view.output_tokens)),
            ("stall_s", w.stall * stall_s(&c)),
            ("busy_period_s", w.busy * busy_period_s(&c)),
            ("memory_s", w.memory * memory_s(&c, view.output_tokens)),
            ("eviction_s", w.eviction * eviction_s(&c)),
        ])
    }

    fn wants_seconds(&self) -> bool {
        true
    }
}
