//! Feeds of the event plane: one task per publisher, with bounds on bytes and deadlines on reads.
//!
//! ```text
//! ZMTP (frames, PING) ─▶ sequence window (duplicates, lost messages) ─▶ decode ─▶ WorkerPool::apply
//! ```
//!
//! A malformed message is counted, and the feed lives on. A lost or silent connection makes the blocks of the feed's workers
//! suspect, until a dump replaces them.

mod sequence;
mod subscription;
mod zmtp;

pub use self::subscription::FeedReport;
pub(crate) use self::subscription::{FeedContext, Feeds, Subscription};
