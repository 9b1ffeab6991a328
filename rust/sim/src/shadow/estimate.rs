//! Means with what is known of their error, and ratios of two arms over the same requests.
//!
//! Ticks next to each other are alike, so their sums go into batches, and batches count as independent. A mean is a ratio
//! of sums `R = ΣN/ΣD`, its standard error that of the linearised residuals `N_b − R·D_b`; the logarithm of a ratio of two
//! means has the error of the *difference* of both arms' residuals over their sums, batch by batch: what both suffer from
//! a burst cancels. With B batches both are referred to Student's t with B − 1 degrees of freedom. (Cochran, Sampling
//! Techniques, ch. 6; batch means: Law, Simulation Modeling and Analysis, 9.5.3.)

use serde::Serialize;

/// A figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Best guess.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Two-sided: how likely a ratio this far from 1 is if it were 1. NaN for a plain mean.
    pub p: f64,
}

impl Estimate {
    /// Whether the interval leaves 1 out.
    pub fn differs_from_one(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// Sums of one batch: (numerator, denominator).
pub(super) type Pair = (f64, f64);

/// Fewer batches have no error worth the name.
const LEAST_BATCHES: usize = 4;
const LEVEL: f64 = 0.05;

fn totals(batches: &[Pair]) -> Pair {
    batches
        .iter()
        .fold((0.0, 0.0), |sum, batch| (sum.0 + batch.0, sum.1 + batch.1))
}

/// Sample error of a sum of `residuals`.
fn error_of_sum(residuals: &[f64]) -> f64 {
    let count = residuals.len() as f64;
    let mean = residuals.iter().sum::<f64>() / count;
    let squares: f64 = residuals.iter().map(|r| (r - mean) * (r - mean)).sum();
    (squares * count / (count - 1.0)).sqrt()
}

/// ΣN/ΣD. None without a denominator or with too few batches.
pub(super) fn mean(batches: &[Pair]) -> Option<Estimate> {
    let (n, d) = totals(batches);
    if batches.len() < LEAST_BATCHES || d <= 0.0 {
        return None;
    }
    let value = n / d;
    let residuals: Vec<f64> = batches.iter().map(|(n, d)| n - value * d).collect();
    let half = critical(batches.len() - 1) * error_of_sum(&residuals) / d;
    Some(Estimate {
        value,
        low: value - half,
        high: value + half,
        p: f64::NAN,
    })
}

/// Mean of `arm` ÷ mean of `base`, paired by batch. None where one of them is 0 or unknown.
pub(super) fn ratio(arm: &[Pair], base: &[Pair]) -> Option<Estimate> {
    let ((n, d), (base_n, base_d)) = (totals(arm), totals(base));
    if arm.len() < LEAST_BATCHES || arm.len() != base.len() || n.min(d).min(base_n).min(base_d) <= 0.0 {
        return None;
    }
    let (mean, base_mean) = (n / d, base_n / base_d);
    let residual =
        |(arm, base): (&Pair, &Pair)| (arm.0 - mean * arm.1) / n - (base.0 - base_mean * base.1) / base_n;
    let residuals: Vec<f64> = arm.iter().zip(base).map(residual).collect();
    let error = error_of_sum(&residuals);
    let log = (mean / base_mean).ln();
    let freedom = arm.len() - 1;
    let half = critical(freedom) * error;
    Some(Estimate {
        value: mean / base_mean,
        low: (log - half).exp(),
        high: (log + half).exp(),
        // Two equal arms have no error: they do not differ, and that is certain.
        p: if error > 0.0 {
            two_sided(log.abs() / error, freedom)
        } else {
            f64::from(u8::from(log.abs() < 1e-12))
        },
    })
}

/// A figure that is no ratio of sums, here the logarithm `whole` of one, with its error from what it becomes without each batch
/// in turn (jackknife by groups; Efron, The Jackknife, ch. 3). `floor` is an error that it has in any case. `value` and its
/// ends are no logarithms.
pub(super) fn jackknife(whole: f64, without: &[f64], floor: f64) -> Option<Estimate> {
    if without.len() < LEAST_BATCHES || !whole.is_finite() || without.iter().any(|value| !value.is_finite()) {
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

/// P(|t| ≥ `t`) of Student's t: the incomplete beta function `I_x(ν/2, 1/2)` at x = ν/(ν + t²).
pub(super) fn two_sided(t: f64, freedom: usize) -> f64 {
    let nu = freedom as f64;
    incomplete_beta(nu / 2.0, 0.5, nu / (nu + t * t))
}

/// The t beyond which two-sided p is below [`LEVEL`], by bisection.
fn critical(freedom: usize) -> f64 {
    let (mut low, mut high) = (0.0, 100.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if two_sided(middle, freedom) > LEVEL {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// `I_x(a, b)` by its continued fraction (Lentz); a, b > 0, x in [0, 1].
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(a, b, x) / a
    } else {
        1.0 - front * fraction(b, a, 1.0 - x) / b
    }
}

fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut upper = 1.0;
    let mut lower = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut result = lower;
    for step in 1..200 {
        let i = f64::from(step);
        let even = i * (b - i) * x / ((a + 2.0 * i - 1.0) * (a + 2.0 * i));
        let odd = -(a + i) * (a + b + i) * x / ((a + 2.0 * i) * (a + 2.0 * i + 1.0));
        let before = result;
        for term in [even, odd] {
            lower = 1.0 / away(1.0 + term * lower);
            upper = away(1.0 + term / upper);
            result *= lower * upper;
        }
        if (result / before - 1.0).abs() < 1e-14 {
            break;
        }
    }
    result
}

/// Lanczos, g = 7, n = 9: 15 digits for x > 0.5, which is all that is asked here.
fn ln_gamma(x: f64) -> f64 {
    const LANCZOS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let base = x + 7.5;
    let sum: f64 = LANCZOS[0]
        + LANCZOS[1..]
            .iter()
            .zip(1..)
            .map(|(weight, i)| weight / (x + f64::from(i)))
            .sum::<f64>();
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * base.ln() - base + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardrop_core::rng::Rng;

    #[test]
    fn students_t_has_the_tabulated_quantiles() {
        for (freedom, t) in [(3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)] {
            assert!(
                (critical(freedom) - t).abs() < 1e-3,
                "{freedom}: {}",
                critical(freedom)
            );
        }
        assert!((two_sided(1.0, 1) - 0.5).abs() < 1e-9);
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

    /// Two arms that share a slowly moving load: `effect` is what the second really has.
    fn significant(effect: f64, seed: u64) -> bool {
        let mut rng = Rng::new(seed);
        let (mut drift, mut a, mut b) = (0.0, Vec::new(), Vec::new());
        for _ in 0..10 {
            drift = 0.8 * drift + 0.4 * normal(&mut rng);
            let load = f64::exp(drift);
            let count = 40.0 + 20.0 * rng.unit();
            a.push((count * load * (1.0 + 0.05 * normal(&mut rng)), count));
            b.push((count * load * effect * (1.0 + 0.05 * normal(&mut rng)), count));
        }
        ratio(&b, &a).expect("ten batches").differs_from_one()
    }

    #[test]
    fn without_a_difference_about_one_in_twenty_looks_like_one_and_ten_percent_is_found() {
        let false_alarms = (0..2_000).filter(|seed| significant(1.0, *seed)).count();
        assert!((40..=180).contains(&false_alarms), "{false_alarms} of 2000");
        let found = (0..200).filter(|seed| significant(1.1, 10_000 + *seed)).count();
        assert!(found > 150, "{found} of 200");
    }

    #[test]
    fn equal_arms_do_not_differ() {
        let arm = vec![(2.0, 1.0), (3.0, 2.0), (1.0, 1.0), (5.0, 2.0)];
        let same = ratio(&arm, &arm).expect("four batches");
        assert_eq!((same.value, same.p), (1.0, 1.0));
        assert!(!same.differs_from_one());
        assert!(ratio(&arm[..3], &arm[..3]).is_none());
    }
}
