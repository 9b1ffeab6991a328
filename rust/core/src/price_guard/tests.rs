//! The guard falls by evidence of each kind, returns when the evidence ends, and stays where the price is right.

use super::*;
use crate::rng::Rng;

/// A guard with `n` first tokens whose logarithms differ from the prediction by up to `off`, and vary by up to `varied`.
fn fed(guard: &mut PriceGuard, n: u32, off: f64, varied: f64) -> u32 {
    let mut rng = Rng::new(u64::from(n));
    let mut changes = 0;
    for _ in 0..n {
        let observed_s = (varied * (rng.unit() - 0.5)).exp();
        let predicted_s = observed_s * (off * 2.0 * (rng.unit() - 0.5)).exp();
        changes += u32::from(guard.first_token(&Observation {
            predicted_s,
            observed_s,
        }));
    }
    changes
}

#[test]
fn price_that_errs_more_than_the_recent_mean_falls_with_enough_evidence() {
    let mut guard = PriceGuard::new(true);
    assert_eq!(fed(&mut guard, 64 + FALL_EVIDENCE - 1, 4.0, 0.5), 0);
    assert_eq!(guard.misfit(), None);
    assert_eq!(fed(&mut guard, 1, 4.0, 0.5), 1);
    assert_eq!(guard.misfit(), Some(Misfit::FirstTokensUnpredicted));
    assert_eq!(guard.report().falls, 1);
    assert!(guard.report().first_tokens.error_factor > 2.0);
}

#[test]
fn price_that_errs_less_than_the_recent_mean_stays() {
    let mut guard = PriceGuard::new(true);
    // A typical error of e^1 where times vary by a typical factor of e^1.5.
    assert_eq!(fed(&mut guard, 4_000, 2.0, 6.0), 0);
    assert!(guard.report().first_tokens.error_factor > 2.0);
}

#[test]
fn price_that_errs_by_little_stays_where_the_recent_mean_is_better() {
    let mut guard = PriceGuard::new(true);
    assert_eq!(fed(&mut guard, 4_000, 1.2, 0.1), 0);
    let report = guard.report().first_tokens;
    assert!(report.error_factor > report.reference_factor);
}

#[test]
fn guard_returns_once_the_price_fits_and_asks_for_more_evidence_each_time() {
    let mut guard = PriceGuard::new(true);
    fed(&mut guard, 200, 4.0, 0.5);
    let mut needed = Vec::new();
    for _ in 0..6 {
        assert!(guard.misfit().is_some());
        let mut fits = 0;
        while guard.misfit().is_some() {
            fed(&mut guard, 1, 0.1, 0.5);
            fits += 1;
        }
        needed.push(fits);
        while guard.misfit().is_none() {
            fed(&mut guard, 16, 4.0, 0.5);
        }
    }
    assert!(needed.is_sorted(), "{needed:?}");
    assert!(needed[0] <= 400 && needed[5] >= 1_500, "{needed:?}");
}

#[test]
fn price_that_held_for_long_returns_as_after_its_first_fall() {
    let mut guard = PriceGuard::new(true);
    for _ in 0..3 {
        fed(&mut guard, 400, 4.0, 0.5);
        fed(&mut guard, 4_000, 0.1, 0.5);
    }
    assert_eq!(guard.doublings, 2);
    fed(&mut guard, HELD_EVIDENCE, 0.1, 0.5);
    fed(&mut guard, 400, 4.0, 0.5);
    assert_eq!((guard.report().falls, guard.doublings), (4, 0));
}

#[test]
fn steps_have_evidence_of_their_own() {
    let mut guard = PriceGuard::new(true);
    fed(&mut guard, 1_000, 0.1, 0.5);
    let seen = Observation {
        predicted_s: 0.01,
        observed_s: 0.1,
    };
    let changes = (0..64 + FALL_EVIDENCE).filter(|_| guard.step(&seen)).count();
    assert_eq!((changes, guard.misfit()), (1, Some(Misfit::StepsUnpredicted)));
}

#[test]
fn first_tokens_that_go_unreported_fall_and_return() {
    let mut guard = PriceGuard::new(true);
    let changes = |guard: &mut PriceGuard, n: u32, reported: bool| -> usize {
        (0..n).filter(|_| guard.ended(reported)).count()
    };
    assert_eq!(changes(&mut guard, REPORT_EVIDENCE - 1, false), 0);
    assert_eq!(changes(&mut guard, 1, false), 1);
    assert_eq!(guard.misfit(), Some(Misfit::FirstTokensUnreported));
    assert_eq!(changes(&mut guard, 200, true), 1);
    assert_eq!(guard.misfit(), None);
}

#[test]
fn one_lost_report_in_five_is_no_misfit() {
    let mut guard = PriceGuard::new(true);
    let changes = (0..5_000).filter(|n| guard.ended(n % 5 != 0)).count();
    assert_eq!(changes, 0);
}

#[test]
fn guard_that_is_off_measures_and_never_falls() {
    let mut guard = PriceGuard::new(false);
    assert_eq!(fed(&mut guard, 1_000, 4.0, 0.5), 0);
    assert!(guard.report().first_tokens.error_factor > 2.0);
    guard.turn(true);
    fed(&mut guard, 1, 4.0, 0.5);
    assert!(guard.misfit().is_some());
    guard.turn(false);
    assert_eq!(guard.misfit(), None);
}

#[test]
fn times_without_a_logarithm_say_nothing() {
    let mut guard = PriceGuard::new(true);
    for (predicted_s, observed_s) in [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)] {
        for _ in 0..1_000 {
            guard.first_token(&Observation {
                predicted_s,
                observed_s,
            });
        }
    }
    assert_eq!(guard.report(), PriceGuard::new(true).report());
}
