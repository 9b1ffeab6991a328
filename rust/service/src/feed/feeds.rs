//! All feeds that the service follows, one task per publisher. A subscription comes from the control plane.
//!
//! The number of feeds is bounded by `feed.max_feeds`. Subscribing and leaving are O(log feeds)
//! under one lock, which no message takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::counts::{FeedCounts, FeedReport};
use super::dynamo::DynamoFeed;
use super::engine::EngineFeed;
use super::link::{FeedContext, FeedLink, follow};
use super::subscription::{Subscription, Topic};
use crate::ServiceError;

/// One feed that is followed. Dropping it does not end its task: [`Feeds`] aborts the task first.
struct Feed {
    /// What the feed is about, for the comparison with a repeated subscription.
    subscription: Subscription,
    /// Counts that the task writes and a status report reads.
    counts: Arc<FeedCounts>,
    /// Ends the task that follows the feed.
    task: AbortHandle,
}

/// All feeds that are followed.
pub(crate) struct Feeds {
    /// State of the service that every feed's task uses.
    context: Arc<FeedContext>,
    /// The event loop that reads the feeds.
    runtime: Handle,
    /// Feeds by the id of their publisher; at most `feed.max_feeds`.
    by_publisher: Mutex<BTreeMap<u64, Feed>>,
}

impl Feeds {
    /// Creates an empty set of feeds. `runtime` is the event loop that reads the feeds.
    pub fn new(context: FeedContext, runtime: Handle) -> Self {
        Self {
            context: Arc::new(context),
            runtime,
            by_publisher: Mutex::default(),
        }
    }

    /// Follows a feed. The same subscription again changes nothing; another subscription of the publisher replaces it.
    ///
    /// # Errors
    /// An unknown model, an endpoint that is not TCP, or too many feeds.
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), ServiceError> {
        let context = &self.context;
        if context.models.find(&subscription.model).is_none() {
            return Err(ServiceError::UnknownModel(subscription.model));
        }
        for endpoint in [Some(&subscription.endpoint), subscription.replay.as_ref()] {
            if let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.starts_with("tcp://")) {
                return Err(ServiceError::Config(format!(
                    "a feed's endpoint must be tcp://host:port, got {endpoint:?}"
                )));
            }
        }
        let engine_worker = subscription.engine_worker()?;
        let mut feeds = self.by_publisher.lock();
        if let Some(known) = feeds.get(&subscription.publisher_id) {
            if known.subscription == subscription {
                return Ok(());
            }
            known.task.abort();
        } else if feeds.len() >= context.options.max_feeds {
            return Err(ServiceError::State(format!(
                "{} feeds are open, the limit; raise feed.max_feeds",
                feeds.len()
            )));
        }
        // The pool learns the publisher before its first event, which separates a former
        // incarnation from the present one.
        if let (Topic::KvEvents | Topic::EngineEvents, Some(instance)) =
            (subscription.topic, subscription.instance)
            && let Some((model, _)) = context.models.find(&subscription.model)
        {
            let pool = model.pool(subscription.role);
            pool.feed_followed(instance, subscription.publisher_id);
        }
        let counts = Arc::new(FeedCounts::default());
        let link = FeedLink {
            subscription: subscription.clone(),
            counts: counts.clone(),
            context: context.clone(),
        };
        let task = match engine_worker {
            Some(worker) => self.runtime.spawn(follow(EngineFeed::new(link, worker))),
            None => self.runtime.spawn(follow(DynamoFeed::new(link))),
        };
        let task = task.abort_handle();
        feeds.insert(
            subscription.publisher_id,
            Feed {
                subscription,
                counts,
                task,
            },
        );
        Ok(())
    }

    /// Leaves a feed. Returns whether the feed was followed.
    ///
    /// Without its feed, the index learns of no removed block, so the blocks of the feed's workers are suspect.
    pub fn unsubscribe(&self, publisher_id: u64) -> bool {
        let feed = self.by_publisher.lock().remove(&publisher_id);
        if let Some(feed) = &feed {
            feed.task.abort();
            let subscription = &feed.subscription;
            if matches!(subscription.topic, Topic::KvEvents | Topic::EngineEvents)
                && let Some((model, _)) = self.context.models.find(&subscription.model)
            {
                let publisher = (!subscription.any_publisher).then_some(publisher_id);
                model
                    .pool(subscription.role)
                    .feed_ended(subscription.instance, publisher);
            }
        }
        feed.is_some()
    }

    /// Leaves the feeds of a model.
    ///
    /// The model's pools are on their way out, so no block has to be marked as suspect.
    pub fn leave_model(&self, model: &str) {
        self.by_publisher.lock().retain(|_, feed| {
            let keep = feed.subscription.model != model;
            if !keep {
                feed.task.abort();
            }
            keep
        });
    }

    /// All feeds for a status report.
    pub fn report(&self, now_s: f64) -> Vec<FeedReport> {
        let feeds = self.by_publisher.lock();
        feeds
            .values()
            .map(|feed| feed.counts.report(&feed.subscription, now_s))
            .collect()
    }
}
