//! Position of a worker's feed in the index, readable without the pool's lock while the index is saved.
//!
//! Saving holds the index's lock. Applying an event takes the pool's lock first and the index's lock second. A save that
//! asked for the pool's lock could therefore deadlock, so positions are atomics.
//!
//! The pool applies each event before it moves the position. A reader under the index's lock sees the exact position, or a
//! position one event too low. A low position costs one dump after a restart, and never a wrong block.

use std::sync::atomic::{AtomicU64, Ordering};

/// Part of a worker's cache that the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// The index may lack blocks.
    Partial,
    /// The index holds a complete dump, and no event has given the feed's event id yet.
    Dumped,
    /// The index holds every block up to the event with this id.
    UpTo(u64),
}

/// Word for [`Coverage::Partial`].
const PARTIAL: u64 = 0;
/// Word for [`Coverage::Dumped`].
const DUMPED: u64 = u64::MAX;

/// Position of one worker's feed in a complete index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedPosition {
    /// Id of the last event in the index; `None` after a dump that no event followed.
    pub event_id: Option<u64>,
    /// Id of the feed's publisher.
    pub publisher: u64,
}

/// Coverage and publisher of one worker's feed, as two atomics. The module text gives the protocol.
#[derive(Debug, Default)]
pub(crate) struct FeedPosition {
    /// [`PARTIAL`], [`DUMPED`], or the id of the last event plus 1.
    word: AtomicU64,
    /// Id of the feed's publisher; 0 while it is unknown.
    publisher: AtomicU64,
}

impl FeedPosition {
    /// Marks the index as incomplete for this worker.
    pub fn forget(&self) {
        self.set(Coverage::Partial);
    }

    /// Sets the coverage after a dump or an event.
    pub fn set(&self, coverage: Coverage) {
        let word = match coverage {
            Coverage::Partial => PARTIAL,
            Coverage::Dumped => DUMPED,
            Coverage::UpTo(event_id) => event_id.saturating_add(1),
        };
        self.word.store(word, Ordering::Release);
    }

    /// Sets coverage and publisher after an event.
    ///
    /// A change of publisher first stores partial coverage, so that no reader pairs the new publisher with an old event id.
    pub fn record(&self, publisher: u64, coverage: Coverage) {
        if self.publisher.load(Ordering::Relaxed) != publisher {
            self.forget();
            self.publisher.store(publisher, Ordering::Release);
        }
        self.set(coverage);
    }

    /// Sets the publisher of a new subscription, unless a publisher is known already.
    pub fn followed(&self, publisher: u64) {
        let _ = self
            .publisher
            .compare_exchange(0, publisher, Ordering::Release, Ordering::Relaxed);
    }

    /// Id of the feed's publisher; `None` while it is unknown.
    pub fn publisher(&self) -> Option<u64> {
        Some(self.publisher.load(Ordering::Acquire)).filter(|&publisher| publisher != 0)
    }

    /// Position of a complete index; `None` for partial coverage or an unknown publisher.
    ///
    /// The word is read before and after the publisher. A change between the reads gives `None`.
    ///
    /// Release stores and acquire loads pair up, so a reader that sees an event id also sees its
    /// publisher.
    pub fn get(&self) -> Option<SavedPosition> {
        let word = self.word.load(Ordering::Acquire);
        let publisher = self.publisher()?;
        let is_whole = word != PARTIAL && word == self.word.load(Ordering::Acquire);
        is_whole.then(|| SavedPosition {
            event_id: Some(word).filter(|&word| word != DUMPED).map(|word| word - 1),
            publisher,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "compared with an option")]
    fn at(event_id: Option<u64>, publisher: u64) -> Option<SavedPosition> {
        Some(SavedPosition { event_id, publisher })
    }

    #[test]
    fn position_is_reported_only_while_it_is_known() {
        let position = FeedPosition::default();
        position.set(Coverage::UpTo(7));
        assert_eq!(position.get(), None, "the publisher is unknown");
        position.record(3, Coverage::UpTo(7));
        assert_eq!(position.get(), at(Some(7), 3));
        position.record(3, Coverage::Partial);
        assert_eq!(position.get(), None);
        position.record(4, Coverage::UpTo(0));
        assert_eq!(position.get(), at(Some(0), 4));
        position.forget();
        assert_eq!((position.get(), position.publisher()), (None, Some(4)));
    }

    #[test]
    fn idle_worker_that_was_dumped_is_whole_by_its_followed_feed() {
        let position = FeedPosition::default();
        position.followed(3);
        position.followed(4);
        assert_eq!(position.get(), None);
        position.set(Coverage::Dumped);
        assert_eq!(position.get(), at(None, 3));
    }
}
