//! Bounded event queue from the request path to the shadow thread. The sender never waits.
//!
//! An arrival costs its sender a copy of the prompt's block hashes and one push.
//! A full queue drops the arrival, counts it and records its time, because the shadows must discard the affected ticks.
//!
//! Bounds: `shadows.max_events` events, and 8 MiB of hashes in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use wardrop_core::SequenceHash;

/// Maximum number of block hashes in the queue: 8 MiB.
const MAX_BLOCKS: usize = 1 << 20;

/// Event for the shadows: hashes, lengths and times, without tokens or text.
#[derive(Debug)]
pub(super) enum Event {
    /// A request arrived.
    Arrived {
        /// Number of the request, unique among arrivals.
        id: u64,
        /// Name of the model.
        model: Arc<str>,
        /// Time of the arrival, in seconds on the service's clock.
        at_s: f64,
        /// Tokens of the prompt.
        input_tokens: u32,
        /// Sequence hashes of the prompt's full blocks.
        hashes: Box<[u64]>,
    },
    /// The first token of a request arrived.
    FirstToken { id: u64, model: Arc<str>, ttft_s: f64 },
    /// The last token of a request arrived.
    Ended {
        id: u64,
        model: Arc<str>,
        output_tokens: u32,
    },
    /// A request failed; the shadows withdraw it because it caused no load.
    Failed { id: u64, model: Arc<str> },
}

/// Result of sending an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The arrival is in the queue.
    Yes,
    /// The queue was full.
    Dropped,
    /// The shadows accept no arrivals now, to keep their share of a core.
    PassedOver,
}

/// Interval that contains all dropped arrivals, in seconds on the service's clock; `first_s <= last_s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LostArrivals {
    /// Time of the first dropped arrival.
    pub first_s: f64,
    /// Time of the last dropped arrival.
    pub last_s: f64,
}

/// Sending side of the event queue.
pub(super) struct EventQueue {
    /// Channel to the shadow thread.
    events: SyncSender<Event>,
    /// Number of the next arrival.
    next_id: AtomicU64,
    /// Number of block hashes in the queue.
    blocks: AtomicUsize,
    /// Whether the queue refuses arrivals while the shadows work off their backlog.
    closed: AtomicBool,
    /// First and last time of the arrivals dropped since the last `take_lost`, as the bits of seconds.
    lost: [AtomicU64; 2],
}

impl EventQueue {
    /// A queue for `max_events` events, with the end that the shadow thread reads.
    pub fn new(max_events: usize) -> (Self, Receiver<Event>) {
        let (events, receiver) = sync_channel(max_events);
        let queue = Self {
            events,
            next_id: AtomicU64::new(0),
            blocks: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            lost: [AtomicU64::new(f64::INFINITY.to_bits()), AtomicU64::new(0)],
        };
        (queue, receiver)
    }

    /// Sends an arrival without waiting. Returns the new request id and the result. O(blocks).
    pub fn arrived(
        &self,
        model: &Arc<str>,
        at_s: f64,
        input_tokens: u32,
        sequence: &[SequenceHash],
    ) -> (u64, Admission) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            return (id, Admission::PassedOver);
        }
        let blocks = self.blocks.fetch_add(sequence.len(), Ordering::Relaxed) + sequence.len();
        let sent = blocks <= MAX_BLOCKS
            && self
                .events
                .try_send(Event::Arrived {
                    id,
                    model: model.clone(),
                    at_s,
                    input_tokens,
                    hashes: sequence.iter().map(|hash| hash.0).collect(),
                })
                .is_ok();
        if sent {
            return (id, Admission::Yes);
        }
        self.blocks.fetch_sub(sequence.len(), Ordering::Relaxed);
        // The bits of non-negative floats sort like the floats, so integer atomics find the minimum and the maximum.
        let bits = at_s.max(0.0).to_bits();
        self.lost[0].fetch_min(bits, Ordering::Relaxed);
        self.lost[1].fetch_max(bits, Ordering::Relaxed);
        (id, Admission::Dropped)
    }

    /// Sends an outcome without waiting. A full queue loses one measurement and nothing else.
    pub fn report(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// Frees the space of an event that the shadow thread received.
    pub fn received(&self, event: &Event) {
        if let Event::Arrived { hashes, .. } = event {
            self.blocks.fetch_sub(hashes.len(), Ordering::Relaxed);
        }
    }

    /// Sets whether the queue refuses arrivals.
    pub fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Returns the interval of the arrivals dropped since the last call, and resets it.
    ///
    /// The two bounds are read one after the other. An arrival that is dropped in between may widen
    /// the next interval, which spoils one more tick at most.
    pub fn take_lost(&self) -> Option<LostArrivals> {
        let first = self.lost[0].swap(f64::INFINITY.to_bits(), Ordering::Relaxed);
        let last = self.lost[1].swap(0, Ordering::Relaxed);
        let (first_s, last_s) = (f64::from_bits(first), f64::from_bits(last));
        first_s.is_finite().then_some(LostArrivals {
            first_s,
            last_s: last_s.max(first_s),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_beyond_the_room_are_counted_and_their_times_known() {
        let (queue, receiver) = EventQueue::new(2);
        let model: Arc<str> = Arc::from("m");
        let sequence = [SequenceHash(7), SequenceHash(8)];
        let sent: Vec<Admission> = (0..4)
            .map(|i| queue.arrived(&model, 10.0 + f64::from(i), 8, &sequence).1)
            .collect();
        assert_eq!(
            sent,
            [
                Admission::Yes,
                Admission::Yes,
                Admission::Dropped,
                Admission::Dropped
            ]
        );
        let lost = LostArrivals {
            first_s: 12.0,
            last_s: 13.0,
        };
        assert_eq!(queue.take_lost(), Some(lost));
        assert_eq!(queue.take_lost(), None);
        while let Ok(event) = receiver.try_recv() {
            queue.received(&event);
        }
        assert_eq!(queue.blocks.load(Ordering::Relaxed), 0);
        assert_eq!(queue.arrived(&model, 20.0, 8, &sequence).1, Admission::Yes);
        queue.set_closed(true);
        assert_eq!(queue.arrived(&model, 21.0, 8, &sequence).1, Admission::PassedOver);
        assert_eq!(queue.take_lost(), None);
    }

    #[test]
    fn hashes_under_way_are_bounded() {
        let (queue, _receiver) = EventQueue::new(1_000);
        let model: Arc<str> = Arc::from("m");
        let long = vec![SequenceHash(1); MAX_BLOCKS / 2];
        let sent: Vec<Admission> = (0..3).map(|_| queue.arrived(&model, 1.0, 1, &long).1).collect();
        assert_eq!(sent, [Admission::Yes, Admission::Yes, Admission::Dropped]);
    }
}
