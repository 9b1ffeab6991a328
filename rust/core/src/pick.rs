//! From costs to one candidate: argmin with fair ties, or a softmax.
//!
//! Stands in the flow `price ─▶ pick ─▶ book`. Ties are common, not an edge case: idle workers without the
//! prefix all cost the same. Always taking the first would send a cold fleet's traffic to one worker, so ties
//! are drawn at random.
//!
//! Three passes of vector instructions: the lowest cost, how many candidates have it, and where the drawn one
//! is. Price and pick together take 2 µs among 4,096 workers by Dynamo's cost
//! (`docs/adr/0009-candidates-by-columns.md`).

use multiversion::multiversion;

use crate::rng::Rng;

/// Picks a candidate by its cost. Returns its position, or `None` when no cost is finite.
///
/// * `temperature` ≤ 0: the lowest cost. Tied candidates have the same chance.
/// * `temperature` T > 0: position j with probability `∝ exp(−(c_j − c_min) / ((c_max − c_min)·T))`, a softmax over
///   costs that are normalised by their range. Equal costs are equally likely.
///
/// A candidate with an infinite or undefined cost is never picked. O(candidates), no allocation.
///
/// ```text
/// costs 3.0 1.0 ∞ 1.0   temperature 0: candidate 1 or 3, half each
///                       temperature 1: candidate 0 with weight e^−1, 1 and 3 with weight 1 each
/// ```
pub fn pick(costs: &[f64], temperature: f64, rng: &mut Rng) -> Option<usize> {
    let lowest = lowest(costs);
    // A comparison with NaN is false, so an undefined cost is never the lowest.
    if !lowest.is_finite() {
        return None;
    }
    if temperature > 0.0 {
        let highest = costs
            .iter()
            .filter(|cost| cost.is_finite())
            .fold(lowest, |highest, &cost| highest.max(cost));
        if highest > lowest {
            return Some(softmax(costs, lowest, (highest - lowest) * temperature, rng));
        }
    }
    let ties = count(costs, lowest);
    position(costs, lowest, if ties == 1 { 0 } else { rng.below(ties) })
}

/// Number of costs equal to `wanted`. Equality is exact on purpose: costs that are computed alike are alike
/// to the last bit.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn count(costs: &[f64], wanted: f64) -> usize {
    count_run(costs, wanted) as usize
}

/// The sum wraps in type only. A checked sum would stop the compiler from adding several costs at a time.
#[inline(always)]
fn count_run(costs: &[f64], wanted: f64) -> u64 {
    let equal = costs.iter().map(|&cost| u64::from(cost == wanted));
    equal.fold(0, u64::wrapping_add)
}

/// Position of the cost equal to `wanted` that follows `before` other such costs. Runs of 64 are counted several
/// costs at a time, and only the run that holds the position is searched.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn position(costs: &[f64], wanted: f64, before: usize) -> Option<usize> {
    const RUN: usize = 64;
    let mut left = before as u64;
    for (run, costs) in costs.chunks(RUN).enumerate() {
        let found = count_run(costs, wanted);
        if left < found {
            let mut tied = (0..costs.len()).filter(|&at| costs[at] == wanted);
            return tied.nth(left as usize).map(|at| run * RUN + at);
        }
        left -= found;
    }
    None
}

/// The lowest cost. Infinite when no cost is finite. Eight lanes at a time, since a plain fold waits for each
/// comparison.
///
/// NaN never compares as less, so it is passed over like infinity.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn lowest(costs: &[f64]) -> f64 {
    let less = |a: f64, b: f64| if b < a { b } else { a };
    let mut lanes = [f64::INFINITY; 8];
    let chunks = costs.chunks_exact(8);
    let rest = chunks
        .remainder()
        .iter()
        .fold(f64::INFINITY, |lowest, &cost| less(lowest, cost));
    for chunk in chunks {
        for (lane, &cost) in lanes.iter_mut().zip(chunk) {
            *lane = less(*lane, cost);
        }
    }
    lanes.into_iter().fold(rest, less)
}

/// A sample by the weights `exp(−(cost − lowest) / scale)`. `scale` is above 0, and `lowest` is one of the costs.
///
/// The lowest cost has weight 1, so the total is never 0 and no weight overflows. Rounding may leave the sum short of
/// the sample: the last candidate with a weight then wins, never one without.
fn softmax(costs: &[f64], lowest: f64, scale: f64, rng: &mut Rng) -> usize {
    let weight = |cost: f64| {
        if cost.is_finite() {
            (-(cost - lowest) / scale).exp()
        } else {
            0.0
        }
    };
    let total: f64 = costs.iter().map(|&cost| weight(cost)).sum();
    let mut left = rng.unit() * total;
    let mut last = 0;
    for (position, &cost) in costs.iter().enumerate() {
        let share = weight(cost);
        if share > 0.0 {
            last = position;
            left -= share;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn pick_is_one_of_the_lowest_and_each_comes_up(
            costs in proptest::collection::vec(prop_oneof![4 => (0u8..4).prop_map(f64::from), 1 => Just(f64::INFINITY), 1 => Just(f64::NAN)], 1..200),
        ) {
            let lowest = costs.iter().copied().filter(|cost| cost.is_finite()).reduce(f64::min);
            let tied: Vec<usize> = (0..costs.len()).filter(|&at| Some(costs[at]) == lowest).collect();
            let mut rng = Rng::new(7);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..30 * tied.len().max(1) {
                match pick(&costs, 0.0, &mut rng) {
                    None => prop_assert_eq!(lowest, None),
                    Some(at) => {
                        prop_assert!(tied.contains(&at));
                        seen.insert(at);
                    }
                }
            }
            prop_assert_eq!(seen.len(), tied.len());
        }
    }
}
