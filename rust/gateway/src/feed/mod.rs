//! Feeds: one task per publisher, each bounded, each with a freshness clock; a bad message is counted and the feed lives on.

mod subscription;
mod zmtp;

pub use subscription::{FeedReport, Feeds, Subscription};
pub use wardrop_engines::dynamo;
