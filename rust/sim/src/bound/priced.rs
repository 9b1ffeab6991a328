//! A price on the time of workers: the limit that knows company, and prefill that stops decode.
//!
//! Let a worker's time cost λ(t) ≥ 0 at each moment. Every routing pays its latency, and at most `speed · ∫λ` for all time of
//! all workers. The latency of all requests is therefore at least the sum of what each request must pay, less
//! `speed · ∫λ`. The price is free, so the bound takes the best prices that it finds. This is Lagrange's relaxation of the
//! limit that a worker runs one pass at a time.
//!
//! A request may wait for a low price, and waiting costs latency. Cost: O(prices tried · requests · slots of a wait).

use super::share::{ByPrice, PRICES};

/// Slots of time, each with a price of its own. More slots follow the load more closely.
const SLOTS: usize = 48;
/// Rounds over all slots in which a price may move.
const ROUNDS: usize = 4;

/// A request, or a conversation whose turns follow each other.
#[derive(Clone, Debug)]
#[allow(clippy::struct_field_names, reason = "the unit is the same")]
pub(super) struct Buyer {
    /// Earliest time at which it can be served, milliseconds.
    pub release_ms: f64,
    /// Part of its time that is no latency, milliseconds: pauses between turns.
    pub pause_ms: f64,
    /// Least latency and worker time at each price, milliseconds, rising with the price.
    pub least_ms: ByPrice,
}

/// Prices over time, from the first release on. After the last slot the price is 0.
struct Prices {
    start_ms: f64,
    slot_ms: f64,
    /// Index into [`PRICES`] of each slot.
    slots: Vec<usize>,
}

impl Prices {
    /// Least that a buyer pays over all times at which it can end.
    fn least_ms(&self, buyer: &Buyer) -> f64 {
        let first = ((buyer.release_ms - self.start_ms) / self.slot_ms).max(0.0) as usize;
        let mut lowest = usize::MAX;
        let mut least_ms = f64::INFINITY;
        for slot in first..=self.slots.len() {
            let begin_ms = self.start_ms + slot as f64 * self.slot_ms;
            let waited_ms = (begin_ms - buyer.release_ms).max(0.0) - buyer.pause_ms;
            if waited_ms >= least_ms {
                break;
            }
            // A buyer that ends in this slot buys at no less than the lowest price since its release.
            lowest = lowest.min(self.slots.get(slot).copied().unwrap_or(0));
            least_ms = least_ms.min(waited_ms.max(buyer.least_ms[lowest]));
            if lowest == 0 {
                break;
            }
        }
        least_ms
    }

    /// The bound on the sum of all latencies.
    fn bound_ms(&self, buyers: &[Buyer], speed: f64) -> f64 {
        let bought: f64 = buyers.iter().map(|buyer| self.least_ms(buyer)).sum();
        let sold: f64 = self.slots.iter().map(|slot| PRICES[*slot]).sum();
        bought - speed * self.slot_ms * sold
    }
}

/// A search for good prices.
struct Search<'a> {
    buyers: &'a [Buyer],
    /// Speed of all workers together.
    speed: f64,
    prices: Prices,
    /// The bound at `prices`.
    bound_ms: f64,
}

impl Search<'_> {
    /// Moves the price of one slot up or down for as long as the bound rises.
    fn climb(&mut self, slot: usize, is_up: bool) {
        loop {
            let now = self.prices.slots[slot];
            let next = if is_up { now + 1 } else { now.wrapping_sub(1) };
            if next >= PRICES.len() {
                return;
            }
            self.prices.slots[slot] = next;
            let bound_ms = self.prices.bound_ms(self.buyers, self.speed);
            if bound_ms <= self.bound_ms {
                self.prices.slots[slot] = now;
                return;
            }
            self.bound_ms = bound_ms;
        }
    }
}

/// The best bound found on the sum of latencies of all buyers, on workers of the speed `speed` together. At least the sum
/// at price 0.
pub(super) fn best_bound_ms(buyers: &[Buyer], speed: f64) -> f64 {
    let free_ms: f64 = buyers.iter().map(|buyer| buyer.least_ms[0]).sum();
    let releases = || buyers.iter().map(|buyer| buyer.release_ms);
    let start_ms = releases().fold(f64::INFINITY, f64::min);
    let mean_ms = free_ms / buyers.len().max(1) as f64;
    let length_ms = releases().fold(0.0, f64::max) + 4.0 * mean_ms - start_ms;
    if buyers.is_empty() || !length_ms.is_finite() || length_ms <= 0.0 {
        return free_ms;
    }
    let mut search = Search {
        buyers,
        speed,
        prices: Prices {
            start_ms,
            slot_ms: length_ms / SLOTS as f64,
            slots: vec![0; SLOTS],
        },
        bound_ms: f64::NEG_INFINITY,
    };
    let mut best = 0;
    for index in 0..PRICES.len() {
        search.prices.slots.fill(index);
        let bound_ms = search.prices.bound_ms(buyers, speed);
        if bound_ms > search.bound_ms {
            (best, search.bound_ms) = (index, bound_ms);
        }
    }
    search.prices.slots.fill(best);
    for _ in 0..ROUNDS {
        let before_ms = search.bound_ms;
        for slot in 0..SLOTS {
            search.climb(slot, true);
            search.climb(slot, false);
        }
        if search.bound_ms <= before_ms {
            break;
        }
    }
    search.bound_ms.max(free_ms)
}
