//! Recursive least squares with forgetting on relative errors, in a fixed number of coefficients.
//!
//! The model is `y ≈ θ·x` with θ ≥ 0. Every sample is divided by the present prediction, so that an error of 10 %
//! counts the same at 10 ms and at 10 s. It is the standard recursion (Ljung, "System Identification", 1999, section
//! 11.2) with five guards:
//!
//! * **Outliers**: the relative residual is clipped at three times its running mean size (Huber's ψ). The mean counts
//!   clipped residuals, so one outlier moves little, and a lasting change passes after a few samples.
//! * **Signs**: θ is projected onto θ ≥ 0 after each step.
//! * **Wind-up**: a ceiling on the covariance, in proportion to θ, stops forgetting in directions without new
//!   information.
//! * **Change**: the running *signed* residual feeds the covariance along θ. A worker that slows down long after its
//!   curve settled is followed within tens of samples, while noise averages out and feeds nearly nothing.
//! * **Scale first**: the prior covariance is widest along θ itself. A worker that is uniformly slower than its prior
//!   is found from a few samples, before the shape of its curve is.
//!
//! O(N²) per sample, N ≤ 4 here: tens of nanoseconds, no allocation.

use serde::{Deserialize, Serialize};

use super::curve::MAX_COEFFICIENT;
use crate::error::Error;

/// How fast a curve learns, and how wide its prior is.
///
/// The default suits engines: noise of 15 % between equal passes, a memory of 100 samples, and a prior that
/// may be off by its own size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learning {
    /// Weight of the past per sample, in (0, 1]: 0.99 remembers about 100 samples.
    pub forgetting: f64,
    /// Prior standard deviation of a common factor on all coefficients, as a share.
    pub scale_doubt: f64,
    /// Prior standard deviation of each coefficient on its own, as a share of it.
    pub shape_doubt: f64,
    /// Standard deviation of a sample's relative noise.
    pub noise: f64,
}

impl Default for Learning {
    fn default() -> Self {
        Self {
            forgetting: 0.99,
            scale_doubt: 1.0,
            shape_doubt: 0.3,
            noise: 0.15,
        }
    }
}

/// The coefficients of one curve, with the covariance of their errors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rls<const N: usize> {
    /// The coefficients θ. Invariant: each is from 0 to [`MAX_COEFFICIENT`].
    theta: [f64; N],
    /// Covariance P of the errors of θ. Invariant: symmetric, with a diagonal ≥ 0.
    covariance: [[f64; N]; N],
    /// The coefficients at the start. A curve that shrank to 0 restarts there. The ceiling of the covariance is never
    /// below the ceiling at these coefficients.
    prior: [f64; N],
    /// How fast this curve learns. It never changes after the start.
    learning: Learning,
    /// Running mean of the clipped relative residual's size.
    residual: f64,
    /// Running mean of the clipped residual with its sign. Away from 0 it means that the worker changed.
    drift: f64,
    /// Samples that were learned from, restarts included.
    samples: u64,
}

/// Durations that teach a curve, seconds. Nothing that an engine does takes less or more.
///
/// Outlier clipping bounds one sample to a share of the present prediction. A curve that shrank to 0 has no such share
/// and restarts at the sample, so the sample itself needs bounds: 10¹²⁰ s would make every later price infinite.
const SAMPLE_S: std::ops::RangeInclusive<f64> = 1e-9..=1e5;
/// Bounds of the factor by which a restart scales the prior.
const RESTART_SCALE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
/// Largest variance of a coefficient in a record. It is above the ceiling of every curve within its bounds.
const MAX_VARIANCE: f64 = 1e15;
/// Relative residual up to which no sample is clipped.
const MIN_CLIP: f64 = 0.3;
/// Step of the signed residual: a mean over about 10 samples.
const DRIFT_STEP: f64 = 0.1;

impl<const N: usize> Rls<N> {
    /// A curve that starts at `theta` (≥ 0) with the prior covariance of `learning`.
    pub fn new(theta: [f64; N], learning: Learning) -> Self {
        let mut covariance = [[0.0; N]; N];
        for i in 0..N {
            for j in 0..N {
                covariance[i][j] = learning.scale_doubt.powi(2) * theta[i] * theta[j];
            }
            covariance[i][i] += learning.shape_doubt.powi(2) * theta[i].powi(2);
        }
        Self {
            theta,
            covariance,
            prior: theta,
            learning,
            residual: learning.noise,
            drift: 0.0,
            samples: 0,
        }
    }

    /// The coefficients, each ≥ 0.
    pub const fn theta(&self) -> [f64; N] {
        self.theta
    }

    /// Samples that were learned from.
    pub const fn samples(&self) -> u64 {
        self.samples
    }

    /// Running mean size of the relative residual: the error of the curve.
    pub const fn residual(&self) -> f64 {
        self.residual
    }

    /// `θ·x`.
    #[inline]
    pub fn predict(&self, x: &[f64; N]) -> f64 {
        dot(&self.theta, x)
    }

    /// Learns from one sample `y` at `x`. A sample outside [`SAMPLE_S`] is ignored.
    ///
    /// With z = x/(θ·x), e the clipped relative residual, λ the forgetting factor and σ the noise:
    ///
    /// ```text
    /// k = P·z / (λ·σ² + zᵀ·P·z),   θ ← max(θ + k·e, 0),   P ← (P − k·(P·z)ᵀ) / λ
    /// ```
    ///
    /// A curve that shrank to 0 has no relative errors to learn from. It restarts at its prior, scaled to the sample.
    pub fn observe(&mut self, x: &[f64; N], y: f64) {
        let predicted = self.predict(x);
        if !(SAMPLE_S.contains(&y) && predicted.is_finite()) {
            return;
        }
        // A prediction of 0 has no relative errors. Without a restart such a curve would ignore every further
        // sample, and its prefill would cost nothing for ever.
        if predicted <= 0.0 {
            self.restart(x, y);
            return;
        }
        let mut z = *x;
        for value in &mut z {
            *value /= predicted;
        }
        // The bound follows the curve's own error, so that a noisy worker is not taken for one that changed.
        let clip = (3.0 * self.residual).max(MIN_CLIP);
        let error = (y / predicted - 1.0).clamp(-clip, clip);
        // A plain mean at first, so that a good prior is recognised soon. Later a mean over about 20 samples.
        self.samples += 1;
        let step = (1.0 / self.samples as f64).max(0.05);
        self.residual += step * (error.abs() - self.residual);
        self.drift += DRIFT_STEP * (error - self.drift);
        self.doubt_scale(self.drift.powi(2));

        // The standard step of the recursion, with the gain P·z scaled by the innovation's variance.
        let pz: [f64; N] = std::array::from_fn(|i| dot(&self.covariance[i], &z));
        let forgetting = self.learning.forgetting;
        let scale = 1.0 / (forgetting * self.learning.noise.powi(2) + dot(&pz, &z));
        for i in 0..N {
            self.theta[i] = (self.theta[i] + scale * pz[i] * error).clamp(0.0, MAX_COEFFICIENT);
            for j in 0..N {
                self.covariance[i][j] = (self.covariance[i][j] - scale * pz[i] * pz[j]) / forgetting;
            }
        }
        // Forgetting grows the covariance in directions that no sample informs. The ceiling ends that.
        self.bound_covariance();
    }

    /// Starts again at the prior, scaled so that it predicts `y` at `x`. A scale outside [`RESTART_SCALE`]
    /// changes nothing: such a sample is taken for a fault.
    fn restart(&mut self, x: &[f64; N], y: f64) {
        let scale = y / dot(&self.prior, x);
        if RESTART_SCALE.contains(&scale) {
            let samples = self.samples + 1;
            let theta = self
                .prior
                .map(|coefficient| (scale * coefficient).min(MAX_COEFFICIENT));
            *self = Self {
                prior: self.prior,
                samples,
                ..Self::new(theta, self.learning)
            };
        }
    }

    /// Adds `share²` of relative variance along θ itself. The curve then accepts that all its coefficients
    /// are off by one factor.
    fn doubt_scale(&mut self, share_squared: f64) {
        for i in 0..N {
            for j in 0..N {
                self.covariance[i][j] += share_squared * self.theta[i] * self.theta[j];
            }
        }
    }

    /// Scales rows and columns back under the ceiling. The matrix stays symmetric and positive.
    ///
    /// Row and column i are scaled by the same number, so the matrix becomes S·P·S with a diagonal S: that
    /// keeps it positive.
    fn bound_covariance(&mut self) {
        let doubt = self.learning.scale_doubt.powi(2) + self.learning.shape_doubt.powi(2);
        for i in 0..N {
            let ceiling = doubt * self.theta[i].max(self.prior[i]).powi(2);
            let excess = self.covariance[i][i] / ceiling;
            if excess > 1.0 {
                let shrink = excess.sqrt().recip();
                for j in 0..N {
                    self.covariance[i][j] *= shrink;
                    self.covariance[j][i] *= shrink;
                }
            }
        }
    }
}

/// [`Rls`] as plain numbers, for files. Invariant: `theta` and `prior` have N entries, `covariance` has N²
/// entries.
///
/// [`Rls::restore`] checks it, because the file may come from anywhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RlsRecord {
    /// The coefficients.
    theta: Vec<f64>,
    /// The coefficients at the start.
    prior: Vec<f64>,
    /// The covariance, row after row.
    covariance: Vec<f64>,
    residual: f64,
    drift: f64,
    samples: u64,
}

impl<const N: usize> Rls<N> {
    /// Everything except the learning parameters.
    pub fn record(&self) -> RlsRecord {
        RlsRecord {
            theta: self.theta.to_vec(),
            prior: self.prior.to_vec(),
            covariance: self.covariance.as_flattened().to_vec(),
            residual: self.residual,
            drift: self.drift,
            samples: self.samples,
        }
    }

    /// The curve of a record.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another number of coefficients, or for values that no curve can have.
    pub fn restore(record: &RlsRecord, learning: Learning) -> Result<Self, Error> {
        let sizes = [record.theta.len(), record.prior.len(), record.covariance.len()];
        if sizes != [N, N, N * N] {
            let got = format!("sizes {sizes:?} for {N} coefficients");
            return Err(Error::Parameter {
                field: "curve record",
                got,
                expected: "N, N and N² numbers",
            });
        }
        let finite = |values: &[f64]| values.iter().all(|v| v.abs() <= MAX_VARIANCE);
        let positive = |values: &[f64]| values.iter().all(|v| (0.0..=MAX_COEFFICIENT).contains(v));
        let diagonal: Vec<f64> = (0..N).map(|i| record.covariance[i * (N + 1)]).collect();
        if !positive(&record.theta)
            || !positive(&record.prior)
            || !diagonal.iter().all(|v| (0.0..=MAX_VARIANCE).contains(v))
            || !finite(&record.covariance)
            || record.drift.abs() > MAX_COEFFICIENT
            || record.drift.is_nan()
            || !positive(&[record.residual])
        {
            let expected = "coefficients from 0 to 1e6 and variances from 0 to 1e15";
            return Err(Error::Parameter {
                field: "curve record",
                got: "numbers outside their range".to_owned(),
                expected,
            });
        }
        let array = |values: &[f64]| std::array::from_fn(|i| values[i]);
        Ok(Self {
            theta: array(&record.theta),
            prior: array(&record.prior),
            covariance: std::array::from_fn(|i| array(&record.covariance[i * N..(i + 1) * N])),
            learning,
            residual: record.residual,
            drift: record.drift,
            samples: record.samples,
        })
    }
}

/// Σ aᵢ·bᵢ, in order: another order would change the last bits of every prediction.
#[inline]
fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    let mut sum = 0.0;
    for i in 0..N {
        sum += a[i] * b[i];
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curve_that_shrank_to_nothing_learns_again() {
        let learning = Learning::default();
        let mut record = Rls::new([1.0, 0.1], learning).record();
        record.theta = vec![0.0, 0.0];
        let mut curve = Rls::<2>::restore(&record, learning).expect("a fair record");
        for i in 0..200 {
            let x = [1.0, f64::from(i % 20)];
            curve.observe(&x, 3.0 + 0.5 * x[1]);
        }
        let error = curve.predict(&[1.0, 10.0]) / 8.0 - 1.0;
        assert!(error.abs() < 0.05, "{error}");
        assert_eq!(curve.samples(), 200);
    }

    #[test]
    fn no_sample_takes_a_restarted_curve_out_of_its_bounds() {
        let learning = Learning::default();
        let mut record = Rls::new([1.0, 0.1], learning).record();
        record.theta = vec![0.0, 0.0];
        let nothing = Rls::<2>::restore(&record, learning).expect("a fair record");
        for sample in [1e120, 1e6, 1e-300, f64::INFINITY, f64::NAN, 0.0, -1.0] {
            let mut curve = nothing;
            curve.observe(&[1.0, 5.0], sample);
            assert_eq!(curve.predict(&[1.0, 5.0]), 0.0, "{sample} s teaches nothing");
        }
        let mut curve = nothing;
        curve.observe(&[1.0, 5.0], 100.0);
        assert!(
            (curve.predict(&[1.0, 5.0]) - 100.0).abs() < 1e-9,
            "a fair sample restarts it"
        );
        for (at, value) in [(0, 1e127), (1, f64::NAN), (0, -1.0)] {
            let mut record = Rls::new([1.0, 0.1], learning).record();
            record.theta[at] = value;
            assert!(Rls::<2>::restore(&record, learning).is_err(), "{value}");
        }
    }
}
