//! From costs to one candidate: argmin with fair ties, or a softmax.

use crate::rng::Rng;

/// Position of the chosen cost, `None` when there is no candidate with a finite cost.
///
/// * `temperature` ≤ 0: the lowest cost; each of the tied lowest has the same chance.
/// * `temperature` T > 0: position j with probability `∝ exp(−(c_j − c_min) / ((c_max − c_min)·T))`: a softmax whose
///   logits are normalised by their range; equal costs are equally likely.
///
/// Candidates with an infinite or undefined cost are never chosen. O(candidates), no allocation.
pub fn pick(costs: &[f64], temperature: f64, rng: &mut Rng) -> Option<usize> {
    let mut lowest = f64::INFINITY;
    let mut highest = f64::NEG_INFINITY;
    for &cost in costs.iter().filter(|cost| cost.is_finite()) {
        lowest = lowest.min(cost);
        highest = highest.max(cost);
    }
    if !lowest.is_finite() {
        return None;
    }
    if temperature > 0.0 && highest > lowest {
        return Some(softmax(costs, lowest, (highest - lowest) * temperature, rng));
    }
    let ties = costs.iter().filter(|&&cost| cost == lowest).count();
    let chosen = if ties == 1 { 0 } else { rng.below(ties) };
    costs
        .iter()
        .enumerate()
        .filter(|&(_, &cost)| cost == lowest)
        .nth(chosen)
        .map(|(position, _)| position)
}

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
