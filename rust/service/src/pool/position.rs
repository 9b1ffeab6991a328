//! Where a worker's feed stands in the index: read by who saves the index, without the pool's lock.
//!
//! An image of the index is taken under the index's own lock, which those who apply events take inside the pool's: to ask the pool
//! there could wait for ever. So each event is applied first and told here after. A reader under the index's lock sees a position
//! that is exact or one event too low, and one too low costs a dump after the restart, never a wrong block.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the index holds of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// Perhaps not all.
    Partial,
    /// All, by a dump: no event has told yet how far its feed is.
    Dumped,
    /// All up to the event of this id.
    UpTo(u64),
}

const PARTIAL: u64 = 0;
const DUMPED: u64 = u64::MAX;

/// How far the index is in one worker's feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedPosition {
    /// Last event that the index holds; `None` after a dump that no event followed.
    pub event_id: Option<u64>,
    /// Publisher of the feed.
    pub publisher: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FeedPosition {
    /// [`PARTIAL`], [`DUMPED`], or one more than the last event's id.
    word: AtomicU64,
    /// Whose feed it is; 0 before it is known.
    publisher: AtomicU64,
}

impl FeedPosition {
    /// The index is not known to hold all any more.
    pub fn forget(&self) {
        self.set(Coverage::Partial);
    }

    /// What the index holds of this worker now.
    pub fn set(&self, coverage: Coverage) {
        let word = match coverage {
            Coverage::Partial => PARTIAL,
            Coverage::Dumped => DUMPED,
            Coverage::UpTo(event_id) => event_id.saturating_add(1),
        };
        self.word.store(word, Ordering::Release);
    }

    /// The same, by an event of this publisher.
    pub fn record(&self, publisher: u64, coverage: Coverage) {
        if self.publisher.load(Ordering::Relaxed) != publisher {
            self.forget();
            self.publisher.store(publisher, Ordering::Release);
        }
        self.set(coverage);
    }

    /// A feed of this publisher is followed: whose it is where no event has said so.
    pub fn followed(&self, publisher: u64) {
        let _ = self
            .publisher
            .compare_exchange(0, publisher, Ordering::Release, Ordering::Relaxed);
    }

    /// Whose feed it is.
    pub fn publisher(&self) -> Option<u64> {
        Some(self.publisher.load(Ordering::Acquire)).filter(|&publisher| publisher != 0)
    }

    /// How far the index is, if it holds all, and whose feed it is by.
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
    fn position_is_told_only_while_it_is_known() {
        let position = FeedPosition::default();
        position.set(Coverage::UpTo(7));
        assert_eq!(position.get(), None, "whose is not known");
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
