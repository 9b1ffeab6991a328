//! Who is next: the oldest K, by key.
//!
//! All requests stand in line by `start`; the first K of the line are kept sorted by key. Insert and remove are
//! O(log n + K), reading the window is a slice.

use std::collections::BTreeSet;

use crate::exact::ordered;
use crate::request::RequestId;

/// See the module. Invariant: the window holds the first `min(K, len)` of the line, sorted by key, then by id.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Beyond the window.
    line: BTreeSet<(u64, RequestId)>,
    /// In the window, by start.
    front: BTreeSet<(u64, RequestId)>,
    window: Vec<(f64, RequestId)>,
}

impl Order {
    /// The oldest K, by key.
    pub fn window(&self) -> &[(f64, RequestId)] {
        &self.window
    }

    /// Adds a request; when it displaces the youngest of a full window, that one goes back to the line, to be taken in
    /// again by [`Order::refill`].
    pub fn insert(&mut self, start_s: f64, key_s: f64, id: RequestId, limit: usize) {
        let place = (ordered(start_s), id);
        if self.window.len() < limit {
            self.front.insert(place);
            self.push(key_s, id);
        } else if self.front.last().is_some_and(|last| place < *last) {
            if let Some((start, youngest)) = self.front.pop_last() {
                self.window.retain(|&(_, waiting)| waiting != youngest);
                self.line.insert((start, youngest));
            }
            self.front.insert(place);
            self.push(key_s, id);
        } else {
            self.line.insert(place);
        }
    }

    /// Takes a request out, wherever it is.
    pub fn remove(&mut self, start_s: f64, key_s: f64, id: RequestId) {
        let place = (ordered(start_s), id);
        if self.line.remove(&place) {
            return;
        }
        if self.front.remove(&place) {
            let at = self
                .window
                .partition_point(|&(key, other)| (key, other) < (key_s, id));
            debug_assert_eq!(
                self.window.get(at).map(|entry| entry.1),
                Some(id),
                "the window must be sorted"
            );
            self.window.remove(at);
        }
    }

    /// Moves the next of the line into the window while there is space.
    pub fn refill(&mut self, limit: usize, key_of: impl Fn(RequestId) -> f64) {
        while self.window.len() < limit {
            let Some(place) = self.line.pop_first() else {
                return;
            };
            self.front.insert(place);
            self.push(key_of(place.1), place.1);
        }
    }

    fn push(&mut self, key_s: f64, id: RequestId) {
        let at = self
            .window
            .partition_point(|&(key, other)| (key, other) < (key_s, id));
        self.window.insert(at, (key_s, id));
    }
}
