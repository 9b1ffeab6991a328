//! Sequence numbers of a feed's messages: which message arrived twice, and how many are lost.
//!
//! A publisher numbers its messages, each one higher than the one before. Its threads may send neighbours in the wrong order,
//! so a window of [`WINDOW`] numbers separates a late message from a repeated one. Complexity: O(1) per message.
//!
//! Memory: 16 bytes per publisher, at most [`PUBLISHERS_MAX`] publishers per connection.

use std::collections::BTreeMap;

/// Numbers below the highest one that the window remembers.
const WINDOW: u64 = 64;
/// Highest number of publishers of one connection. Beyond it all numbers are forgotten.
const PUBLISHERS_MAX: usize = 1024;

/// Place of a message among the messages of its publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageOrder {
    /// No message is missing before it, or the message itself was missing.
    Next,
    /// The message arrived before.
    Seen,
    /// This many messages before it did not arrive.
    Gap(u64),
}

/// Numbers of the messages that arrived on one connection, by publisher.
#[derive(Debug, Default)]
pub(super) struct SequenceWindow {
    by_publisher: BTreeMap<u64, Seen>,
}

/// Numbers of one publisher.
#[derive(Debug)]
struct Seen {
    /// Highest number that arrived.
    highest: u64,
    /// Bit i: the number `highest - i` arrived.
    bits: u64,
}

impl SequenceWindow {
    /// Records a message and returns its place. The first message of a publisher shows no gap.
    ///
    /// Beyond [`PUBLISHERS_MAX`] publishers, all windows are dropped: a repeated message may then
    /// pass as new, which the numbers of the events themselves still catch.
    pub fn take(&mut self, publisher: u64, sequence: u64) -> MessageOrder {
        if let Some(seen) = self.by_publisher.get_mut(&publisher) {
            return seen.take(sequence);
        }
        if self.by_publisher.len() >= PUBLISHERS_MAX {
            self.by_publisher.clear();
        }
        let first = Seen {
            highest: sequence,
            bits: 1,
        };
        self.by_publisher.insert(publisher, first);
        MessageOrder::Next
    }
}

impl Seen {
    /// Records a number of this publisher and returns its place. A late number within the window is
    /// [`MessageOrder::Next`], although a gap was already reported for it.
    fn take(&mut self, sequence: u64) -> MessageOrder {
        if sequence > self.highest {
            let step = sequence - self.highest;
            self.bits = if step < WINDOW { self.bits << step | 1 } else { 1 };
            self.highest = sequence;
            return if step == 1 {
                MessageOrder::Next
            } else {
                MessageOrder::Gap(step - 1)
            };
        }
        let back = self.highest - sequence;
        // A number below the window has surely passed: connections keep the order, up to a few threads.
        if back >= WINDOW || self.bits >> back & 1 == 1 {
            return MessageOrder::Seen;
        }
        self.bits |= 1 << back;
        MessageOrder::Next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_arrival_is_seen_and_a_late_message_is_not() {
        let mut window = SequenceWindow::default();
        let mut take = |sequence| window.take(7, sequence);
        assert_eq!(take(5), MessageOrder::Next);
        assert_eq!(take(5), MessageOrder::Seen);
        assert_eq!(take(8), MessageOrder::Gap(2));
        assert_eq!((take(6), take(6)), (MessageOrder::Next, MessageOrder::Seen));
        assert_eq!(take(300), MessageOrder::Gap(291));
        assert_eq!(take(8), MessageOrder::Seen);
        assert_eq!(take(301), MessageOrder::Next);
    }

    #[test]
    fn publishers_have_numbers_of_their_own_and_are_bounded() {
        let mut window = SequenceWindow::default();
        for publisher in 0..5_000 {
            assert_eq!(window.take(publisher, publisher), MessageOrder::Next);
            assert!(window.by_publisher.len() <= PUBLISHERS_MAX);
        }
        assert_eq!(window.take(4_999, 4_999), MessageOrder::Seen);
        assert_eq!(window.take(4_998, u64::MAX), MessageOrder::Gap(u64::MAX - 4_999));
    }
}
