//! From the requests' path to the shadows' thread: a bounded queue that nobody waits for.
//!
//! An arrival costs its sender a copy of the prompt's block hashes and one push; when there is no room it is counted and
//! forgotten, and its time is noted, because the shadows must know that they did not see everything then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use wardrop_core::SequenceHash;

/// Block hashes that may wait: 8 MiB of them.
const MAX_BLOCKS: usize = 1 << 20;

/// What the shadows are told: hashes, lengths, times. No token, no text.
#[derive(Debug)]
pub(super) enum Event {
    /// A request came.
    Arrived {
        id: u64,
        model: Arc<str>,
        at_s: f64,
        input_tokens: u32,
        hashes: Box<[u64]>,
    },
    /// Its first token came.
    FirstToken { id: u64, model: Arc<str>, ttft_s: f64 },
    /// Its last one.
    Ended {
        id: u64,
        model: Arc<str>,
        output_tokens: u32,
    },
    /// It failed, and was no load.
    Failed { id: u64, model: Arc<str> },
}

/// What became of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is on its way.
    Yes,
    /// There was no room.
    Dropped,
    /// The shadows take nothing in at the moment.
    PassedOver,
}

/// Times between which arrivals found no room, seconds on the service's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LostArrivals {
    pub first_s: f64,
    pub last_s: f64,
}

/// The sending side.
pub(super) struct EventQueue {
    events: SyncSender<Event>,
    next_id: AtomicU64,
    /// Hashes under way.
    blocks: AtomicUsize,
    /// Nothing is taken in: the shadows work off what they have.
    closed: AtomicBool,
    /// Arrivals lost since the last look: first and last time, as bits.
    lost: [AtomicU64; 2],
}

impl EventQueue {
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

    /// Tells of an arrival; its id when it is on its way.
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
        // Times are positive: their bits are in the order of the numbers.
        let bits = at_s.max(0.0).to_bits();
        self.lost[0].fetch_min(bits, Ordering::Relaxed);
        self.lost[1].fetch_max(bits, Ordering::Relaxed);
        (id, Admission::Dropped)
    }

    /// Tells what came of an arrival. Without room a measurement is missing, and nothing else.
    pub fn report(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// An event was taken out of the queue.
    pub fn received(&self, event: &Event) {
        if let Event::Arrived { hashes, .. } = event {
            self.blocks.fetch_sub(hashes.len(), Ordering::Relaxed);
        }
    }

    /// Opens or closes the way for arrivals.
    pub fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// First and last time of the arrivals that were lost since the last call.
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
