//! Feeds of events: one task per publisher, with bounds on bytes and deadlines on reads.
//!
//! ```text
//!                     ┌─ Dynamo's event plane ─▶ dynamo: sequence window, decode ─▶ WorkerPool::apply
//! ZMTP ─▶ link::follow ┤
//!                     └─ engine without Dynamo ─▶ engine: order, holes, restarts ─▶ WorkerPool::apply_frame
//!                                                  ▲ replay socket
//! ```
//!
//! A feed stands at the start of an event's walk: feed → pool (order of events, trust) → index and curves of the router. A malformed
//! message is counted, and the feed lives on. A lost or silent connection makes the blocks of the feed's workers suspect until a
//! dump or a replay replaces them.
//!
//! Bounds: a message has `feed.frame_bytes` in at most 16 frames, a replay 128 MiB, all replays
//! together eight times that, and the set of feeds `feed.max_feeds`. Memory grows with bytes that
//! arrive, never with an announced length.

mod connection;
mod counts;
mod dynamo;
mod engine;
mod feeds;
mod link;
mod pings;
mod replay;
mod sequence;
mod subscription;
mod zmtp;

pub use self::counts::FeedReport;
pub(crate) use self::dynamo::malformed_reason;
pub(crate) use self::feeds::Feeds;
pub(crate) use self::link::FeedContext;
pub(crate) use self::subscription::Subscription;

/// Runs `work` to its end on an event loop of its own.
#[cfg(test)]
fn run_to_end<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work)
}
