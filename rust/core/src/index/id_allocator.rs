//! Allocation of ids for arena units, with an intrusive free list.
//!
//! Frames and chunks both take their ids from here. The id freed last is used first, since its unit is most
//! likely still in a cache. O(1) per call.
//!
//! Freeing during reads is safe: a reader that still follows a freed unit finds that its section is no longer
//! valid.

use std::sync::atomic::AtomicU64;

use super::arena::{get, low, set};

/// Allocator of ids 0, 1, 2, …
///
/// Freed ids form a list: each freed unit stores the id freed before it in one of its own words, so the list
/// takes no memory.
///
/// Invariant: following `free_head` visits exactly `free_len` ids, all below `end` and all different.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdAllocator {
    /// Every id handed out so far is below this one.
    pub(super) end: u32,
    /// Ids below `end` that are free.
    pub(super) free_len: u32,
    /// The id freed last, plus 1, or 0 for an empty list.
    free_head: u32,
}

impl IdAllocator {
    /// Ids in use.
    pub(super) const fn live(self) -> u32 {
        self.end - self.free_len
    }

    /// Takes the id freed last. `next` returns the word in which that id's unit stores its successor in the
    /// list.
    pub(super) fn reuse<'a>(&mut self, next: impl FnOnce(u32) -> &'a AtomicU64) -> Option<u32> {
        let id = self.free_head.checked_sub(1)?;
        self.free_head = low(get(next(id)));
        self.free_len -= 1;
        Some(id)
    }

    /// Puts an id on the free list. `next` is the word in which its unit may store its successor.
    pub(super) fn free(&mut self, id: u32, next: &AtomicU64) {
        set(next, u64::from(self.free_head));
        self.free_head = id + 1;
        self.free_len += 1;
    }
}
