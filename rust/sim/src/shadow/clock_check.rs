//! Is the simulated clock right? Measured and simulated times to first token of the same requests, side by side.
//!
//! Either side may come first: a request is simulated some seconds after it came, and a slow one is measured later still.
//! Only pairs count, so neither requests that nobody measured (answers in one piece) nor slow ones bend the comparison.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// Both times of one request, s, and the tick in which it came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    pub tick: u64,
    pub measured_s: f64,
    pub simulated_s: f64,
}

#[derive(Clone, Copy, Debug)]
struct Half {
    id: u64,
    tick: u64,
    measured_s: Option<f64>,
    simulated_s: Option<f64>,
}

/// Requests of which one side is known, or none. Beyond `most` the oldest is given up.
#[derive(Debug)]
pub(super) struct Clock {
    halves: FxHashMap<u64, Half>,
    row_of: FxHashMap<u64, u64>,
    order: VecDeque<u64>,
    most: usize,
}

impl Clock {
    pub fn new(most: usize) -> Self {
        Self {
            halves: FxHashMap::default(),
            row_of: FxHashMap::default(),
            order: VecDeque::new(),
            most,
        }
    }

    /// Request `id` is simulated as `row`; `measured_s` when that is known already.
    pub fn started(&mut self, row: u64, id: u64, tick: u64, measured_s: Option<f64>) {
        while self.order.len() >= self.most {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.forget(oldest);
        }
        let half = Half {
            id,
            tick,
            measured_s,
            simulated_s: None,
        };
        self.halves.insert(row, half);
        self.row_of.insert(id, row);
        self.order.push_back(row);
    }

    /// What production took for a request.
    pub fn measured(&mut self, id: u64, ttft_s: f64) -> Option<Pair> {
        let row = *self.row_of.get(&id)?;
        self.halves.get_mut(&row)?.measured_s = Some(ttft_s);
        self.whole(row)
    }

    /// What the first arm took for a row; `None` when it was refused there.
    pub fn simulated(&mut self, row: u64, ttft_s: Option<f64>) -> Option<Pair> {
        if ttft_s.is_none() {
            self.forget(row);
            return None;
        }
        self.halves.get_mut(&row)?.simulated_s = ttft_s;
        self.whole(row)
    }

    fn whole(&mut self, row: u64) -> Option<Pair> {
        let half = *self.halves.get(&row)?;
        let (measured_s, simulated_s) = half.measured_s.zip(half.simulated_s)?;
        self.forget(row);
        Some(Pair {
            tick: half.tick,
            measured_s,
            simulated_s,
        })
    }

    fn forget(&mut self, row: u64) {
        if let Some(half) = self.halves.remove(&row) {
            self.row_of.remove(&half.id);
        }
        // Rows that are over lie at the front sooner or later.
        while self
            .order
            .front()
            .is_some_and(|row| !self.halves.contains_key(row))
        {
            self.order.pop_front();
        }
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_side_may_come_first_and_a_refused_row_pairs_with_nothing() {
        let mut clock = Clock::new(8);
        clock.started(0, 70, 3, None);
        assert_eq!(clock.simulated(0, Some(0.2)), None);
        let pair = Pair {
            tick: 3,
            measured_s: 0.4,
            simulated_s: 0.2,
        };
        assert_eq!(clock.measured(70, 0.4), Some(pair));
        clock.started(1, 71, 3, Some(0.4));
        assert_eq!(clock.simulated(1, Some(0.2)), Some(pair));
        clock.started(2, 72, 3, Some(0.4));
        assert_eq!(clock.simulated(2, None), None);
        assert_eq!(clock.measured(72, 0.4), None);
        assert_eq!(clock.held(), 0);
    }

    #[test]
    fn what_never_pairs_is_given_up_oldest_first() {
        let mut clock = Clock::new(8);
        for row in 0..100 {
            clock.started(row, 1_000 + row, 0, None);
        }
        assert_eq!(clock.held(), 8);
        assert_eq!(clock.halves.len() + clock.row_of.len(), 16);
        assert_eq!(clock.measured(1_000, 0.1), None);
        assert!(clock.simulated(99, Some(0.1)).is_none());
        assert!(clock.measured(1_099, 0.1).is_some());
    }
}
