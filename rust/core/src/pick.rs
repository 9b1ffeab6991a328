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
    let lowest = lowest(costs);
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
    let first = costs.iter().position(|&cost| cost == lowest)?;
    let ties = costs[first..].iter().filter(|&&cost| cost == lowest).count();
    if ties == 1 {
        return Some(first);
    }
    let tied = (first..costs.len()).filter(|&at| costs[at] == lowest);
    tied.take(ties).nth(rng.below(ties))
}

/// The lowest cost; infinite when there is none. Eight lanes at a time: a plain fold waits for each comparison.
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
