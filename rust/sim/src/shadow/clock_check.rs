//! Check of the simulated clock: measured and simulated times to first token of the same requests, paired.
//!
//! Either time can come first. A request is simulated some seconds after its arrival, and a slow request is measured
//! later still. Only pairs count. Requests without a measurement, such as answers that are not streamed, therefore do
//! not bias the comparison.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// Measured and simulated time to first token of one request, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TtftPair {
    /// Tick in which the request arrived.
    pub tick: u64,
    /// Time to first token in production, seconds.
    pub measured_s: f64,
    /// Time to first token in the first arm, seconds.
    pub simulated_s: f64,
}

/// A request that lacks at least one of its two times.
#[derive(Clone, Copy, Debug)]
struct Incomplete {
    id: u64,
    tick: u64,
    measured_s: Option<f64>,
    simulated_s: Option<f64>,
}

/// Requests that lack one of their two times. Beyond `capacity` requests the oldest is dropped.
#[derive(Debug)]
pub(super) struct ClockCheck {
    /// Incomplete requests, by simulated row.
    incomplete: FxHashMap<u64, Incomplete>,
    /// Simulated row of each incomplete request, by its id.
    row_of: FxHashMap<u64, u64>,
    /// Simulated rows in order of their start. Complete rows stay until they reach the front.
    order: VecDeque<u64>,
    /// Largest number of incomplete requests.
    capacity: usize,
}

impl ClockCheck {
    pub fn new(capacity: usize) -> Self {
        Self {
            incomplete: FxHashMap::default(),
            row_of: FxHashMap::default(),
            order: VecDeque::new(),
            capacity,
        }
    }

    /// Adds request `id`, simulated as `row`. `measured_s` is its measured time if that is known already.
    pub fn started(&mut self, row: u64, id: u64, tick: u64, measured_s: Option<f64>) {
        while self.order.len() >= self.capacity {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.forget(oldest);
        }
        let request = Incomplete {
            id,
            tick,
            measured_s,
            simulated_s: None,
        };
        self.incomplete.insert(row, request);
        self.row_of.insert(id, row);
        self.order.push_back(row);
    }

    /// Adds the measured time of a request. Returns the pair if it is complete.
    pub fn measured(&mut self, id: u64, ttft_s: f64) -> Option<TtftPair> {
        let row = *self.row_of.get(&id)?;
        self.incomplete.get_mut(&row)?.measured_s = Some(ttft_s);
        self.take_complete(row)
    }

    /// Adds the time of a row in the first arm, or `None` if the arm refused it. Returns the pair if it is complete.
    pub fn simulated(&mut self, row: u64, ttft_s: Option<f64>) -> Option<TtftPair> {
        if ttft_s.is_none() {
            self.forget(row);
            return None;
        }
        self.incomplete.get_mut(&row)?.simulated_s = ttft_s;
        self.take_complete(row)
    }

    fn take_complete(&mut self, row: u64) -> Option<TtftPair> {
        let request = *self.incomplete.get(&row)?;
        let (measured_s, simulated_s) = request.measured_s.zip(request.simulated_s)?;
        self.forget(row);
        Some(TtftPair {
            tick: request.tick,
            measured_s,
            simulated_s,
        })
    }

    fn forget(&mut self, row: u64) {
        if let Some(request) = self.incomplete.remove(&row) {
            self.row_of.remove(&request.id);
        }
        // Rows leave `order` only at its front, which every row reaches in the end.
        while self
            .order
            .front()
            .is_some_and(|row| !self.incomplete.contains_key(row))
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
    fn either_time_can_come_first_and_a_refused_row_makes_no_pair() {
        let mut clock = ClockCheck::new(8);
        clock.started(0, 70, 3, None);
        assert_eq!(clock.simulated(0, Some(0.2)), None);
        let pair = TtftPair {
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
    fn requests_that_never_pair_are_dropped_oldest_first() {
        let mut clock = ClockCheck::new(8);
        for row in 0..100 {
            clock.started(row, 1_000 + row, 0, None);
        }
        assert_eq!(clock.held(), 8);
        assert_eq!(clock.incomplete.len() + clock.row_of.len(), 16);
        assert_eq!(clock.measured(1_000, 0.1), None);
        assert!(clock.simulated(99, Some(0.1)).is_none());
        assert!(clock.measured(1_099, 0.1).is_some());
    }
}
