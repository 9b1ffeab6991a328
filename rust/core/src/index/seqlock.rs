//! Reading data without a lock while one writer changes it in place.
//!
//! A version word guards the data. It has three parts:
//!
//! * Bit 0 is set while a write section is open.
//! * The low half counts sections. A reader accepts its copy when the word is the same before and after the
//!   copy.
//! * The high half is the identity. It changes when the data begins to describe another thing. A reader that
//!   went on from there can thus distinguish a change from a replacement.
//!
//! A read section looks like this; the writer's side is [`begin_write`], stores, [`end_write`]:
//!
//! ```text
//! stamp ◀ begin_read(version)          None: a write is open, try again
//! copy the words with relaxed loads    they may be torn
//! is_valid(version, stamp)?            yes: the copy is one state; no: throw it away
//! ```
//!
//! A reader may compute with unchecked words, as long as it does not combine them to a place. Holder words
//! name an extent only together: the layout of one state with the place of another would name a wrong one.
//! They are checked before the extent is read. A single id, such as that of a chunk, was valid once, and the
//! memory behind it stays mapped.
//!
//! Source: H.-J. Boehm, "Can seqlocks get along with programming language memory models?" (MSPC 2012), the
//! form with fences. The count wraps around after 2³¹ sections: a reader would have to sleep through exactly
//! that many to accept a torn copy. `models.rs` checks the protocol with loom.
//!
//! Other ways to read beside a writer were weighed. Two copies that are swapped take twice the memory.
//! Immutable frames behind counted pointers write a shared counter per frame read. A lock per shard makes all
//! readers of a shared system prompt meet at one lock (`docs/adr/0006-index-in-atomic-words.md`).

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// An atomic word. The loom models implement this trait, so they run the code of this file.
///
/// Every function of this module is generic over it. In the index the word is an [`AtomicU64`], and the calls
/// vanish.
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
///
/// It proves nothing by itself: only a later comparison with the word does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

/// Starts a read section; `None` while a write section is open. The caller decides whether to spin or to give
/// up.
#[inline]
pub(crate) fn begin_read<W: Word>(version: &W) -> Option<Stamp> {
    // Acquire: the reads of the section must not move before this load.
    let now = version.load(Ordering::Acquire);
    (now & 1 == 0).then_some(Stamp(now))
}

/// Whether all reads since `stamp` belong to one state of the data.
///
/// The acquire fence keeps the reads of the section before the second load of the version. If a read saw a
/// word of a later section, the fence pairs with that section's release fence. The load then sees the
/// section's odd version, or a later one.
#[inline]
pub(crate) fn is_valid<W: Word>(version: &W, stamp: Stamp) -> bool {
    W::fence(Ordering::Acquire);
    version.load(Ordering::Relaxed) == stamp.0
}

/// Whether the data still described the same thing at the last read, changed or not.
///
/// A walk needs less than validity of the frame it came from: holders of that frame may change, as long as
/// its blocks stay.
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
