//! Ids of arena units.

use std::sync::atomic::AtomicU64;

use super::arena::{get, low, set};

/// Numbers of places, of which those that are free make a list through a word of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdAllocator {
    /// Ever used: all ids are below.
    pub(super) end: u32,
    /// Of those, how many are free.
    pub(super) free_len: u32,
    /// The id freed last + 1, or 0.
    free_head: u32,
}

impl IdAllocator {
    /// Numbers of places that live.
    pub(super) const fn live(self) -> u32 {
        self.end - self.free_len
    }

    /// The id that was freed last. `next` is the word in which it has the one before it.
    pub(super) fn reuse<'a>(&mut self, next: impl FnOnce(u32) -> &'a AtomicU64) -> Option<u32> {
        let id = self.free_head.checked_sub(1)?;
        self.free_head = low(get(next(id)));
        self.free_len -= 1;
        Some(id)
    }

    /// Puts a id on the list; `next` as in [`IdAllocator::take`].
    pub(super) fn free(&mut self, id: u32, next: &AtomicU64) {
        set(next, u64::from(self.free_head));
        self.free_head = id + 1;
        self.free_len += 1;
    }
}
