//! The curves of a worker: seconds of a prefill and of a decode step. Each is monotone in every argument and
//! never negative, since every basis function is so and every coefficient is kept ≥ 0.
//!
//! Each curve is a weighted sum of a few basis functions, and the weights are what [`super::rls`] learns:
//!
//! ```text
//! prefill of n new tokens behind c cached ones   p0·1 + p1·n + p2·n²/2 + p3·n·c
//! decode step of b sequences over k tokens       d0·1 + d1·b + d2·k
//! ```
//!
//! `n²/2` counts the pairs of new tokens that attend to each other, and `n·c` the pairs of a new and a cached
//! token. A pass of several prompts is the sum of their work, with one `p0` for the pass ([`PrefillWork`]).
//!
//! Monotone curves matter more than close ones. A price must never fall because a prompt is longer.

use serde::{Deserialize, Serialize};

use super::rls::{Learning, Rls, RlsRecord};
use crate::error::Error;

/// Coefficients of a prefill and a step curve, as a start.
///
/// * Prefill of n new tokens behind c cached tokens: `p0 + p1·n + p2·n²/2 + p3·n·c` seconds. The terms are a
///   pass, its tokens, and their attention to each other and to the cache.
/// * Decode step of b sequences over k tokens of active KV cache: `d0 + d1·b + d2·k` seconds.
///
/// ```
/// use wardrop_core::latency::Prior;
///
/// let prior = Prior::default();
/// let cold = prior.prefill_s(4_000, 0);
/// let warm = prior.prefill_s(1_000, 3_000); // three quarters are cached
/// assert!(warm < 0.4 * cold);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    /// p0 to p3, each from 0 to 10⁶: s, s/token, s/token², s/token².
    pub prefill: [f64; 4],
    /// d0 to d2, each from 0 to 10⁶: s, s/sequence, s/token.
    pub step: [f64; 3],
}

/// Largest coefficient of a curve: seconds per unit of work. No engine comes near it.
pub(super) const MAX_COEFFICIENT: f64 = 1e6;

impl Default for Prior {
    /// Figures of a 70B model on one node, right to an order of magnitude. Their wide variance lets a few requests
    /// replace them.
    fn default() -> Self {
        Self {
            prefill: [1.2e-2, 3.0e-5, 1.0e-10, 1.0e-11],
            step: [8.0e-3, 3.0e-5, 1.0e-8],
        }
    }
}

/// One point of a timing table for prefill. Serialised as a list of its three numbers.
///
/// A struct and not a tuple in code, because new and cached tokens could be swapped unseen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, f64, f64)", into = "(f64, f64, f64)")]
pub struct PrefillPoint {
    /// Prompt tokens that the pass computes, 0 or above.
    pub new_tokens: f64,
    /// Prompt tokens that the cache holds, 0 or above.
    pub cached_tokens: f64,
    /// Duration of the pass, seconds above 0.
    pub seconds: f64,
}

/// One point of a timing table for decode. Serialised as a list of its three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, f64, f64)", into = "(f64, f64, f64)")]
pub struct StepPoint {
    /// Sequences in the batch, 0 or above.
    pub sequences: f64,
    /// Tokens of active KV cache, 0 or above.
    pub kv_tokens: f64,
    /// Duration of the step, seconds above 0.
    pub seconds: f64,
}

/// Whether a point has two finite counts of at least 0 and a finite duration above 0.
fn is_usable(counts: [f64; 2], seconds: f64) -> bool {
    let is_count = |count: f64| count.is_finite() && count >= 0.0;
    counts.into_iter().all(is_count) && seconds.is_finite() && seconds > 0.0
}

impl PrefillPoint {
    /// Whether every number is in its range.
    pub fn is_usable(&self) -> bool {
        is_usable([self.new_tokens, self.cached_tokens], self.seconds)
    }
}

impl StepPoint {
    /// Whether every number is in its range.
    pub fn is_usable(&self) -> bool {
        is_usable([self.sequences, self.kv_tokens], self.seconds)
    }
}

impl From<(f64, f64, f64)> for PrefillPoint {
    fn from((new_tokens, cached_tokens, seconds): (f64, f64, f64)) -> Self {
        Self {
            new_tokens,
            cached_tokens,
            seconds,
        }
    }
}

impl From<PrefillPoint> for (f64, f64, f64) {
    fn from(point: PrefillPoint) -> Self {
        (point.new_tokens, point.cached_tokens, point.seconds)
    }
}

impl From<(f64, f64, f64)> for StepPoint {
    fn from((sequences, kv_tokens, seconds): (f64, f64, f64)) -> Self {
        Self {
            sequences,
            kv_tokens,
            seconds,
        }
    }
}

impl From<StepPoint> for (f64, f64, f64) {
    fn from(point: StepPoint) -> Self {
        (point.sequences, point.kv_tokens, point.seconds)
    }
}

impl Prior {
    /// Checks every coefficient. A router does this once, when it is made.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let is_usable = |coefficient: &f64| (0.0..=MAX_COEFFICIENT).contains(coefficient);
        let all = || self.prefill.iter().chain(&self.step);
        match all().find(|coefficient| !is_usable(coefficient)) {
            None => Ok(()),
            Some(coefficient) => Err(Error::Parameter {
                field: "curves",
                got: coefficient.to_string(),
                expected: "coefficients from 0 to 1e6 seconds per unit",
            }),
        }
    }

    /// Seconds to prefill `new_tokens` behind `cached_tokens`. 0 for no new token.
    pub fn prefill_s(&self, new_tokens: u64, cached_tokens: u64) -> f64 {
        if new_tokens == 0 {
            return 0.0;
        }
        dot(
            &self.prefill,
            &prefill_basis(new_tokens as f64, cached_tokens as f64),
        )
    }

    /// Seconds of one decode step of `batch` sequences over `kv_tokens` tokens of active cache.
    pub fn step_s(&self, batch: f64, kv_tokens: f64) -> f64 {
        dot(&self.step, &step_basis(batch, kv_tokens))
    }

    /// Fits both curves to the points of a timing table, by relative errors. An empty list keeps the default.
    ///
    /// The recursion that learns online sees the points 200 times in their order, without forgetting, so the
    /// result keeps every guarantee of the curves. A coefficient that the table does not determine stays at a
    /// thousandth of the default at least, so that traffic can still teach it.
    ///
    /// Unusable points ([`PrefillPoint::is_usable`]) are the caller's to refuse. O(200 · points).
    pub fn fit(prefill: &[PrefillPoint], step: &[StepPoint]) -> Self {
        // One round would keep the pull of the prior; the recursion converges over repeated rounds.
        const ROUNDS: usize = 200;
        let learning = Learning {
            forgetting: 1.0,
            scale_doubt: 10.0,
            shape_doubt: 10.0,
            noise: 0.02,
        };
        let default = Self::default();
        let mut long = Rls::new(default.prefill, learning);
        let mut short = Rls::new(default.step, learning);
        for _ in 0..ROUNDS {
            for point in prefill {
                let basis = prefill_basis(point.new_tokens, point.cached_tokens);
                long.observe(&basis, point.seconds);
            }
            for point in step {
                let basis = step_basis(point.sequences, point.kv_tokens);
                short.observe(&basis, point.seconds);
            }
        }
        Self {
            prefill: floored(long.theta(), default.prefill),
            step: floored(short.theta(), default.step),
        }
    }
}

impl Prior {
    /// Seconds of a prefill pass of `work`, which may be of several prompts.
    pub(super) fn prefill_at(&self, work: &PrefillWork) -> f64 {
        work.basis()
            .iter()
            .zip(&self.prefill)
            .map(|(x, theta)| x * theta)
            .sum()
    }

    /// Seconds of a decode step at `load`.
    pub(super) fn step_at(&self, load: StepLoad) -> f64 {
        let basis = step_basis(load.batch, load.kv_tokens);
        basis.iter().zip(&self.step).map(|(x, theta)| x * theta).sum()
    }
}

/// The fitted coefficients, each at least a thousandth of the default's.
fn floored<const N: usize>(fitted: [f64; N], default: [f64; N]) -> [f64; N] {
    std::array::from_fn(|i| fitted[i].max(1e-3 * default[i]))
}

/// Σ coefficient · basis, in order.
fn dot<const N: usize>(coefficients: &[f64; N], basis: &[f64; N]) -> f64 {
    coefficients.iter().zip(basis).map(|(theta, x)| theta * x).sum()
}

/// Basis functions of the prefill curve for one prompt.
const fn prefill_basis(new: f64, cached: f64) -> [f64; 4] {
    [1.0, new, 0.5 * new * new, new * cached]
}

/// Basis functions of the step curve.
const fn step_basis(batch: f64, kv: f64) -> [f64; 3] {
    [1.0, batch, kv]
}

/// Work of a prefill pass, as sums over its prompts. Sums of the basis functions are all that a pass of
/// several prompts needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrefillWork {
    /// Σ new tokens.
    pub new_tokens: f64,
    /// Σ new²/2.
    pub half_square: f64,
    /// Σ new · cached.
    pub new_cached: f64,
}

impl PrefillWork {
    /// The work of one prompt.
    pub fn of(new_tokens: u64, cached_tokens: u64) -> Self {
        let (new, cached) = (new_tokens as f64, cached_tokens as f64);
        Self {
            new_tokens: new,
            half_square: 0.5 * new * new,
            new_cached: new * cached,
        }
    }

    /// Adds the work of another prompt in the same pass.
    pub fn add(&mut self, other: &Self) {
        self.new_tokens += other.new_tokens;
        self.half_square += other.half_square;
        self.new_cached += other.new_cached;
    }

    /// Basis functions of the prefill curve for the pass. The 1 stands for the pass, however many prompts it
    /// has.
    const fn basis(&self) -> [f64; 4] {
        [1.0, self.new_tokens, self.half_square, self.new_cached]
    }
}

/// Load of a decode step. Both numbers may be means over several steps, so they are not whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoad {
    /// Sequences in the batch.
    pub batch: f64,
    /// Tokens of active KV cache.
    pub kv_tokens: f64,
}

/// The prefill and the step curve of one worker. Some 400 bytes, copied freely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerCurves {
    /// Seconds of a prefill pass, in the four terms of [`Prior`].
    prefill: Rls<4>,
    /// Seconds of a decode step, in the three terms of [`Prior`].
    step: Rls<3>,
}

impl WorkerCurves {
    /// Curves that start at `prior`.
    pub fn new(prior: &Prior, learning: Learning) -> Self {
        Self {
            prefill: Rls::new(prior.prefill, learning),
            step: Rls::new(prior.step, learning),
        }
    }

    /// Restarts each curve without a sample at `fleet`. Returns whether there is one.
    ///
    /// A curve with a single sample of its own keeps its course from then on.
    pub(super) fn follow(&mut self, fleet: &Prior, learning: Learning) -> bool {
        let (prefill, step) = (self.prefill.samples() == 0, self.step.samples() == 0);
        if prefill {
            self.prefill = Rls::new(fleet.prefill, learning);
        }
        if step {
            self.step = Rls::new(fleet.step, learning);
        }
        prefill || step
    }

    /// Seconds to prefill `new_tokens` behind `cached_tokens`. 0 for no new token.
    #[inline]
    pub fn prefill_s(&self, new_tokens: u64, cached_tokens: u64) -> f64 {
        if new_tokens == 0 {
            return 0.0;
        }
        self.prefill
            .predict(&prefill_basis(new_tokens as f64, cached_tokens as f64))
    }

    /// Seconds of one decode step of `batch` sequences over `kv_tokens` tokens of active cache.
    #[inline]
    pub fn step_s(&self, batch: f64, kv_tokens: f64) -> f64 {
        self.step.predict(&step_basis(batch, kv_tokens))
    }

    /// Learns from a prefill pass that took `seconds`.
    pub fn observe_prefill(&mut self, work: &PrefillWork, seconds: f64) {
        self.prefill.observe(&work.basis(), seconds);
    }

    /// Learns from a decode step, or a mean of steps, that took `seconds`.
    pub fn observe_step(&mut self, load: StepLoad, seconds: f64) {
        self.step
            .observe(&step_basis(load.batch, load.kv_tokens), seconds);
    }

    /// The present coefficients. They are a prior for other workers.
    pub const fn coefficients(&self) -> Prior {
        Prior {
            prefill: self.prefill.theta(),
            step: self.step.theta(),
        }
    }

    /// Samples that the prefill and the step curve learned from.
    pub const fn samples(&self) -> (u64, u64) {
        (self.prefill.samples(), self.step.samples())
    }

    /// Running mean relative error of the prefill and the step curve.
    pub const fn residuals(&self) -> (f64, f64) {
        (self.prefill.residual(), self.step.residual())
    }

    /// Both curves as plain numbers, for a file.
    pub(super) fn record(&self) -> (RlsRecord, RlsRecord) {
        (self.prefill.record(), self.step.record())
    }

    /// Curves from plain numbers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for numbers that no curve can have.
    pub(super) fn restore(prefill: &RlsRecord, step: &RlsRecord, learning: Learning) -> Result<Self, Error> {
        Ok(Self {
            prefill: Rls::restore(prefill, learning)?,
            step: Rls::restore(step, learning)?,
        })
    }
}
