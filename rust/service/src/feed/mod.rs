//! Feeds of the event plane: one task per publisher, with bounds on bytes and deadlines on reads.
//!
//! ```text
//! ZMTP (frames, PING) ─▶ sequence window (duplicates, lost messages) ─▶ decode ─▶ WorkerPool::apply
//! ```
//!
//! Feeds of engines without Dynamo pass through [`engine`], which repairs holes by the engine's replay socket:
//!
//! ```text
//! ZMTP ─▶ engine: order, holes, restarts ◀─ replay socket ─▶ decode ─▶ WorkerPool::apply_frame
//! ```
//!
//! A malformed message is counted, and the feed lives on. A lost or silent connection makes the blocks of the feed's workers
//! suspect, until a dump replaces them.

mod engine;
mod replay;
mod sequence;
mod subscription;
mod zmtp;

pub use self::subscription::FeedReport;
pub(crate) use self::subscription::{FeedContext, Feeds, Subscription};
