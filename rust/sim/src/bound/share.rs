//! What one request costs at least when the time of a worker has a price.
//!
//! A pass of load `y` takes `T(y)`. A request that brings the load `h` pays the whole pass in latency, and the share
//! `h ÷ y` of the pass in worker time. At the price λ this is `T(y) · (1 + λ·h ÷ y)`. Company makes a pass longer and the
//! share smaller, and [`LoadCurve::least_ms`] is the least over all company. The loads of a pass sum to at most `y`, so the
//! shares of a pass sum to at most its whole price.

/// Prices of worker time, in units of latency: a price of 2 makes a second of a worker cost as much as two seconds of waiting.
///
/// The first price is 0. The steps between the others are small enough that a finer grid gains less than 1 %.
pub(super) const PRICES: [f64; 24] = [
    0.0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0, 23.0, 32.0,
    45.0, 64.0, 91.0, 128.0, 256.0,
];

/// One figure for each price.
pub(super) type ByPrice = [f64; PRICES.len()];

/// A part of a curve on which the time is at least `base_ms + per_load_ms · y`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// First load of the part.
    pub from: f64,
    /// Last load of the part, at least `from`.
    pub to: f64,
    /// Milliseconds at load 0 of the line; below 0 where the line is steep.
    pub base_ms: f64,
    /// Milliseconds per unit of load; below 0 where the line falls.
    pub per_load_ms: f64,
}

impl Segment {
    /// The line through two points.
    pub fn between(from: (f64, f64), to: (f64, f64)) -> Self {
        let per_load_ms = if to.0 > from.0 {
            (to.1 - from.1) / (to.0 - from.0)
        } else {
            0.0
        };
        Self {
            from: from.0,
            to: to.0,
            base_ms: from.1 - per_load_ms * from.0,
            per_load_ms,
        }
    }

    fn at(&self, load: f64) -> f64 {
        self.base_ms + self.per_load_ms * load
    }
}

/// The least time of a pass by its load, as segments by rising load.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadCurve(pub Vec<Segment>);

impl LoadCurve {
    /// Least latency and priced worker time of a pass, in milliseconds, for a request with the share `share` of a load of at
    /// least `least_load`. 0 where the curve has no such load. O(segments).
    pub fn least_ms(&self, price: f64, share: f64, least_load: f64) -> f64 {
        let mut least_ms = f64::INFINITY;
        for segment in &self.0 {
            let (from, to) = (segment.from.max(least_load), segment.to);
            if from > to {
                continue;
            }
            let cost_ms = |load: f64| segment.at(load) * (1.0 + price * share / load);
            least_ms = least_ms.min(cost_ms(from)).min(cost_ms(to));
            if segment.base_ms > 0.0 && segment.per_load_ms > 0.0 {
                // On the segment the cost is convex in the load, with its minimum here.
                let best = (price * share * segment.base_ms / segment.per_load_ms).sqrt();
                least_ms = least_ms.min(cost_ms(best.clamp(from, to)));
            }
        }
        if least_ms.is_finite() {
            least_ms.max(0.0)
        } else {
            0.0
        }
    }

    /// Least milliseconds per unit of load, over all loads; 0 for an empty curve.
    pub fn per_load_ms(&self) -> f64 {
        let ends = self
            .0
            .iter()
            .flat_map(|segment| [segment.from, segment.to].map(|load| segment.at(load) / load));
        let least = ends
            .filter(|ratio| ratio.is_finite())
            .fold(f64::INFINITY, f64::min);
        if least.is_finite() { least.max(0.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affine() -> LoadCurve {
        LoadCurve(vec![Segment {
            from: 1.0,
            to: 100.0,
            base_ms: 9.0,
            per_load_ms: 1.0,
        }])
    }

    #[test]
    fn company_is_chosen_by_the_price() {
        // (√9 + √(λ·h))² at the load √(λ·h·9), and the ends of the curve outside of it.
        let is = |found: f64, expected: f64| assert!((found - expected).abs() <= 1e-9 * expected, "{found}");
        is(affine().least_ms(4.0, 1.0, 1.0), 25.0);
        is(affine().least_ms(0.0, 1.0, 3.0), 12.0);
        is(affine().least_ms(1e6, 1.0, 1.0), 109.0 * (1.0 + 1e6 / 100.0));
        is(affine().least_ms(1.0, 1.0, 101.0), 0.0);
        is(affine().per_load_ms(), 1.09);
    }

    #[test]
    fn no_company_of_a_grid_is_cheaper() {
        let curve = LoadCurve(vec![
            Segment::between((1.0, 9.0), (10.0, 30.0)),
            Segment::between((10.0, 30.0), (80.0, 25.0)),
            Segment::between((80.0, 25.0), (100.0, 60.0)),
        ]);
        for price in PRICES {
            for share in [0.5, 1.0, 7.0] {
                let least = curve.least_ms(price, share, 2.0);
                for at in 20..=1_000 {
                    let load = f64::from(at) / 10.0;
                    let segment = curve
                        .0
                        .iter()
                        .find(|one| one.to >= load)
                        .expect("a load of the curve");
                    assert!(least <= segment.at(load) * (1.0 + price * share / load) + 1e-9);
                }
            }
        }
    }
}
