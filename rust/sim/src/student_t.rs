//! Student's t distribution: two-sided probability and critical value, without a dependency.

/// Two-sided level of every interval: 5 % gives 95 % intervals.
const LEVEL: f64 = 0.05;

/// `P(|T| ≥ t)` for Student's t: the incomplete beta function `I_x(ν/2, 1/2)` at `x = ν/(ν + t²)`.
pub(crate) fn two_sided(t: f64, freedom: usize) -> f64 {
    let nu = freedom as f64;
    incomplete_beta(nu / 2.0, 0.5, nu / (nu + t * t))
}

/// The t at which [`two_sided`] equals [`LEVEL`], by bisection.
pub(crate) fn critical(freedom: usize) -> f64 {
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

/// Regularised incomplete beta function `I_x(a, b)` by its continued fraction; a and b above 0, x in [0, 1].
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

/// Continued fraction of the incomplete beta function, by Lentz's method.
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

/// Logarithm of the gamma function, by Lanczos' approximation with g = 7 and n = 9.
///
/// It has 15 digits for x above 0.5, and callers ask for no smaller x.
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
}
