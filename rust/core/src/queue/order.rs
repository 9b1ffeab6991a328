//! The order of the queue: requests by their start, the first `K` of them by their key.
//!
//! Two orders, because one would be unfair or slow. By key alone a stream of short prompts could keep an old
//! long prompt out of sight. By start alone short prompts would wait for long ones. So the oldest K requests
//! are a window, and the key orders the window only.
//!
//! Insert and remove are O(log n + K). Reading the window is a slice.

use std::collections::BTreeSet;

use crate::exact::ordered;
use crate::request::RequestId;

/// The place of a request: its start as an ordered integer, then its id.
type Place = (u64, RequestId);

/// All waiting requests in order. Invariant: the window holds the first `min(K, len)` requests by start, sorted by
/// key, then by id.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Requests behind the window.
    behind: BTreeSet<Place>,
    /// Requests in the window, by start.
    front: BTreeSet<Place>,
    /// The same requests by key.
    window: Vec<(f64, RequestId)>,
}

impl Order {
    /// The window: keys and ids, lowest key first.
    pub fn window(&self) -> &[(f64, RequestId)] {
        &self.window
    }

    /// Whether a request is in the window. O(K).
    pub fn is_in_window(&self, id: RequestId) -> bool {
        self.window.iter().any(|&(_, other)| other == id)
    }

    /// Adds a request. A request that starts before the last one of a full window takes its place in the window.
    pub fn insert(&mut self, start_s: f64, key_s: f64, id: RequestId, limit: usize) {
        let place = (ordered(start_s), id);
        if self.window.len() < limit {
            self.front.insert(place);
            self.push(key_s, id);
        } else if self.front.last().is_some_and(|last| place < *last) {
            if let Some((start, last)) = self.front.pop_last() {
                self.window.retain(|&(_, waiting)| waiting != last);
                self.behind.insert((start, last));
            }
            self.front.insert(place);
            self.push(key_s, id);
        } else {
            self.behind.insert(place);
        }
    }

    /// Removes a request. The window may then have a free place: see [`Order::refill`].
    pub fn remove(&mut self, start_s: f64, key_s: f64, id: RequestId) {
        let place = (ordered(start_s), id);
        if self.behind.remove(&place) {
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

    /// Moves requests from behind into the window until it holds `limit`.
    pub fn refill(&mut self, limit: usize, key_of: impl Fn(RequestId) -> f64) {
        while self.window.len() < limit {
            let Some(place) = self.behind.pop_first() else {
                return;
            };
            self.front.insert(place);
            self.push(key_of(place.1), place.1);
        }
    }

    /// Inserts a request into the window by its key.
    fn push(&mut self, key_s: f64, id: RequestId) {
        let at = self
            .window
            .partition_point(|&(key, other)| (key, other) < (key_s, id));
        self.window.insert(at, (key_s, id));
    }
}
