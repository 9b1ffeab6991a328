//! Reading without a lock what one writer changes in place.
//!
//! A version word is odd while its data is written. A reader takes the version, reads, and believes what it read when the
//! version is still the same. Its high half is the identity: it changes when what the data stood for is gone, so that a reader
//! who went on from there can tell a change from a replacement.
//!
//! Source: H.-J. Boehm, "Can seqlocks get along with programming language memory models?" (MSPC 2012), the form with fences.
//! A version comes around after 2³¹ writes: a reader would have to sleep through exactly so many.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// An atomic word; a trait so that the models of the tests run this very code.
pub trait Word {
    /// Atomic load.
    fn load(&self, order: Ordering) -> u64;
    /// Atomic store.
    fn store(&self, value: u64, order: Ordering);
    /// Memory fence.
    fn fence(order: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }
    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// A version as a reader saw it, even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

/// Starts a read. `None`: a write is under way.
#[inline]
pub fn begin_read<W: Word>(version: &W) -> Option<Stamp> {
    let now = version.load(Ordering::Acquire);
    (now & 1 == 0).then_some(Stamp(now))
}

/// Whether everything read since `stamp` was taken is one state.
#[inline]
pub fn is_valid<W: Word>(version: &W, stamp: Stamp) -> bool {
    W::fence(Ordering::Acquire);
    version.load(Ordering::Relaxed) == stamp.0
}

/// Whether the data, changed or not, still stood for the same thing when what was read last was read.
#[inline]
pub fn has_same_identity<W: Word>(version: &W, stamp: Stamp) -> bool {
    W::fence(Ordering::Acquire);
    version.load(Ordering::Relaxed) >> 32 == stamp.0 >> 32
}

/// Starts a write. One writer at a time.
#[inline]
pub fn begin_write<W: Word>(version: &W) {
    let now = version.load(Ordering::Relaxed);
    debug_assert!(now & 1 == 0, "a write must end before the next");
    version.store(now | 1, Ordering::Relaxed);
    W::fence(Ordering::Release);
}

/// Ends a write; `replaced`: the data stands for something else now.
#[inline]
pub fn end_write<W: Word>(version: &W, replaced: bool) {
    let now = version.load(Ordering::Relaxed);
    let count = (now as u32).wrapping_add(1);
    let identity = ((now >> 32) as u32).wrapping_add(u32::from(replaced));
    version.store(u64::from(count) | u64::from(identity) << 32, Ordering::Release);
}
