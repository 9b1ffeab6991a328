//! Means with confidence intervals, and ratios of two arms over the same requests.
//!
//! Neighbouring ticks are correlated, so their sums are added into batches, and batches count as independent.
//!
//! * A mean is a ratio of sums `R = ΣN/ΣD`. Its standard error is that of the linearised residuals `N_b − R·D_b`.
//! * A ratio of two means is taken as a logarithm. Its error is that of the difference of both arms' residuals, each
//!   divided by the arm's sum, batch by batch. What both arms suffer from a burst cancels.
//!
//! With B batches, both errors are referred to Student's t with B − 1 degrees of freedom. Sources: Cochran, Sampling
//! Techniques, chapter 6; Law, Simulation Modeling and Analysis, section 9.5.3 (batch means).

use serde::Serialize;

use crate::student_t::{critical, two_sided};

/// A figure with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Point estimate.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Two-sided p-value of a ratio, for the hypothesis that the ratio is 1. NaN for a mean.
    pub p: f64,
}

impl Estimate {
    /// Whether the interval excludes 1.
    pub fn differs_from_one(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// Numerator and denominator of a mean, summed over one batch of ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BatchSums {
    pub numerator: f64,
    pub denominator: f64,
}

impl BatchSums {
    fn is_positive(self) -> bool {
        self.numerator > 0.0 && self.denominator > 0.0
    }

    fn mean(self) -> f64 {
        self.numerator / self.denominator
    }
}

/// Fewer batches give no usable standard error.
const MIN_BATCHES: usize = 4;

fn totals(batches: &[BatchSums]) -> BatchSums {
    batches.iter().fold(BatchSums::default(), |sum, batch| BatchSums {
        numerator: sum.numerator + batch.numerator,
        denominator: sum.denominator + batch.denominator,
    })
}

/// Standard error of the sum of `residuals`.
fn error_of_sum(residuals: &[f64]) -> f64 {
    let count = residuals.len() as f64;
    let mean = residuals.iter().sum::<f64>() / count;
    let squares: f64 = residuals.iter().map(|r| (r - mean) * (r - mean)).sum();
    (squares * count / (count - 1.0)).sqrt()
}

/// The mean `ΣN/ΣD`. `None` if the denominator is 0 or there are fewer than [`MIN_BATCHES`] batches.
pub(crate) fn mean(batches: &[BatchSums]) -> Option<Estimate> {
    let sums = totals(batches);
    if batches.len() < MIN_BATCHES || sums.denominator <= 0.0 {
        return None;
    }
    let value = sums.mean();
    let residual = |batch: &BatchSums| batch.numerator - value * batch.denominator;
    let residuals: Vec<f64> = batches.iter().map(residual).collect();
    let half = critical(batches.len() - 1) * error_of_sum(&residuals) / sums.denominator;
    Some(Estimate {
        value,
        low: value - half,
        high: value + half,
        p: f64::NAN,
    })
}

/// Mean of `arm` divided by the mean of `base`, paired by batch. `None` if one of the means is 0 or unknown.
pub(crate) fn ratio(arm: &[BatchSums], base: &[BatchSums]) -> Option<Estimate> {
    let (sums, base_sums) = (totals(arm), totals(base));
    let is_usable = sums.is_positive() && base_sums.is_positive();
    if arm.len() < MIN_BATCHES || arm.len() != base.len() || !is_usable {
        return None;
    }
    let (mean, base_mean) = (sums.mean(), base_sums.mean());
    let residual = |(arm, base): (&BatchSums, &BatchSums)| {
        (arm.numerator - mean * arm.denominator) / sums.numerator
            - (base.numerator - base_mean * base.denominator) / base_sums.numerator
    };
    let residuals: Vec<f64> = arm.iter().zip(base).map(residual).collect();
    let error = error_of_sum(&residuals);
    let log = (mean / base_mean).ln();
    let freedom = arm.len() - 1;
    let half = critical(freedom) * error;
    Some(Estimate {
        value: mean / base_mean,
        low: (log - half).exp(),
        high: (log + half).exp(),
        // Two equal arms have no error. They certainly do not differ, so their p-value is 1.
        p: if error > 0.0 {
            two_sided(log.abs() / error, freedom)
        } else {
            f64::from(u8::from(log.abs() < 1e-12))
        },
    })
}

/// Interval of a figure that is not a ratio of sums, by the grouped jackknife (Efron, The Jackknife, chapter 3).
///
/// `whole` is the logarithm of the figure over all batches, and `without` its logarithm without each batch in turn.
/// `floor` is a standard error that the figure has in addition. The result is the figure itself, not its logarithm.
pub(crate) fn jackknife(whole: f64, without: &[f64], floor: f64) -> Option<Estimate> {
    if without.len() < MIN_BATCHES || !whole.is_finite() || without.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let count = without.len() as f64;
    let mean = without.iter().sum::<f64>() / count;
    let squares: f64 = without.iter().map(|value| (value - mean) * (value - mean)).sum();
    let error = (squares * (count - 1.0) / count).sqrt().hypot(floor);
    let freedom = without.len() - 1;
    let half = critical(freedom) * error;
    Some(Estimate {
        value: whole.exp(),
        low: (whole - half).exp(),
        high: (whole + half).exp(),
        p: two_sided(whole.abs() / error, freedom),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardrop_core::rng::Rng;

    fn sums(numerator: f64, denominator: f64) -> BatchSums {
        BatchSums {
            numerator,
            denominator,
        }
    }

    fn normal(rng: &mut Rng) -> f64 {
        (-2.0 * rng.unit().max(1e-12).ln()).sqrt() * (2.0 * std::f64::consts::PI * rng.unit()).cos()
    }

    #[test]
    fn a_jackknifed_mean_has_the_error_of_the_mean() {
        let mut rng = Rng::new(4);
        let values: Vec<f64> = (0..10).map(|_| 0.2 + 0.1 * normal(&mut rng)).collect();
        let sum: f64 = values.iter().sum();
        let without: Vec<f64> = values.iter().map(|value| (sum - value) / 9.0).collect();
        let found = jackknife(sum / 10.0, &without, 0.0).expect("ten batches");
        let deviations = values.iter().map(|value| (value - sum / 10.0).powi(2));
        let error = (deviations.sum::<f64>() / 90.0).sqrt();
        let half = (found.high.ln() - found.low.ln()) / 2.0;
        assert!((half / (2.262 * error) - 1.0).abs() < 1e-3, "{half} for {error}");
        assert!(jackknife(0.0, &without[..3], 0.0).is_none());
    }

    /// Whether a difference is found between two arms that share a slowly moving load. `effect` is the true ratio.
    fn significant(effect: f64, seed: u64) -> bool {
        let mut rng = Rng::new(seed);
        let (mut drift, mut a, mut b) = (0.0, Vec::new(), Vec::new());
        for _ in 0..10 {
            drift = 0.8 * drift + 0.4 * normal(&mut rng);
            let load = f64::exp(drift);
            let count = 40.0 + 20.0 * rng.unit();
            a.push(sums(count * load * (1.0 + 0.05 * normal(&mut rng)), count));
            b.push(sums(
                count * load * effect * (1.0 + 0.05 * normal(&mut rng)),
                count,
            ));
        }
        ratio(&b, &a).expect("ten batches").differs_from_one()
    }

    #[test]
    fn equal_arms_differ_in_about_one_of_twenty_cases_and_a_ratio_of_1_1_is_found() {
        let false_alarms = (0..2_000).filter(|seed| significant(1.0, *seed)).count();
        assert!((40..=180).contains(&false_alarms), "{false_alarms} of 2000");
        let found = (0..200).filter(|seed| significant(1.1, 10_000 + *seed)).count();
        assert!(found > 150, "{found} of 200");
    }

    #[test]
    fn equal_arms_do_not_differ() {
        let arm = [(2.0, 1.0), (3.0, 2.0), (1.0, 1.0), (5.0, 2.0)].map(|(n, d)| sums(n, d));
        let same = ratio(&arm, &arm).expect("four batches");
        assert_eq!((same.value, same.p), (1.0, 1.0));
        assert!(!same.differs_from_one());
        assert!(ratio(&arm[..3], &arm[..3]).is_none());
    }
}
