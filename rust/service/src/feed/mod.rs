//! Feeds: one task per publisher, each bounded, each with a freshness clock; a bad message is counted and the feed lives on.

mod subscription;
mod zmtp;

pub use self::subscription::FeedReport;
pub(crate) use self::subscription::{FeedContext, Feeds, Subscription};
