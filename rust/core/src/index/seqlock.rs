//! Reading data without a lock while one writer changes it in place.
//!
//! A version word guards the data. It has three parts:
//!
//! * Bit 0 is set while a write section is open.
//! * The low half counts sections. A reader accepts its copy when the word is the same before and after the
//!   copy.
//! * The high half is the identity. It changes when the data begins to describe another thing, so that a
//!   reader who went on from there can tell a change from a replacement.
//!
//! Source: H.-J. Boehm, "Can seqlocks get along with programming language memory models?" (MSPC 2012), the
//! form with fences. The count wraps around after 2³¹ sections: a reader would have to sleep through exactly
//! that many to accept a torn copy. `models.rs` checks the protocol with loom.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// An atomic word. The loom models implement this trait, so they run the code of this file.
pub(crate) trait Word {
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

/// An even version word, as a reader saw it at the start of its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

/// Starts a read section; `None` while a write section is open.
#[inline]
pub(crate) fn begin_read<W: Word>(version: &W) -> Option<Stamp> {
    // Acquire: the reads of the section must not move before this load.
    let now = version.load(Ordering::Acquire);
    (now & 1 == 0).then_some(Stamp(now))
}

/// Whether all reads since `stamp` belong to one state of the data.
#[inline]
pub(crate) fn is_valid<W: Word>(version: &W, stamp: Stamp) -> bool {
    W::fence(Ordering::Acquire);
    version.load(Ordering::Relaxed) == stamp.0
}

/// Whether the data still described the same thing at the last read, changed or not.
#[inline]
pub(crate) fn has_same_identity<W: Word>(version: &W, stamp: Stamp) -> bool {
    W::fence(Ordering::Acquire);
    version.load(Ordering::Relaxed) >> 32 == stamp.0 >> 32
}

/// Starts a write section. One writer at a time.
#[inline]
pub(crate) fn begin_write<W: Word>(version: &W) {
    let now = version.load(Ordering::Relaxed);
    debug_assert!(now & 1 == 0, "a write must end before the next");
    // The fence keeps the section's writes after the odd version; a release store would not.
    version.store(now | 1, Ordering::Relaxed);
    W::fence(Ordering::Release);
}

/// Ends a write section. `replaced` says that the data now describes another thing, which changes the
/// identity.
#[inline]
pub(crate) fn end_write<W: Word>(version: &W, replaced: bool) {
    let now = version.load(Ordering::Relaxed);
    let count = (now as u32).wrapping_add(1);
    let identity = ((now >> 32) as u32).wrapping_add(u32::from(replaced));
    version.store(u64::from(count) | u64::from(identity) << 32, Ordering::Release);
}
