//! Policy and queue in force, and a change of them: what is not named stays, and all of it holds or nothing.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::price::PolicyConfig;
use crate::queue::QueueConfig;

/// What of a pool's routing may change while it runs; swapped whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Routing {
    /// The policy of every pool.
    pub policy: PolicyConfig,
    /// Late binding in front of it.
    pub queue: Option<QueueConfig>,
}

/// A change of [`Routing`]: what is not named stays.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingChange {
    /// Another policy, with all its parameters.
    #[serde(default)]
    pub policy: Option<PolicyConfig>,
    /// Another queue, with all its parameters; `null` takes it away.
    #[serde(default, deserialize_with = "present")]
    pub queue: Option<Option<QueueConfig>>,
}

/// Tells a key that is `null` from one that is not there.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

impl Routing {
    /// With a change, checked as a whole.
    ///
    /// Errors: [`Error::Parameter`] names what is out of range.
    pub fn with(&self, change: RoutingChange) -> Result<Self, Error> {
        let next = Self {
            policy: change.policy.unwrap_or_else(|| self.policy.clone()),
            queue: change.queue.unwrap_or(self.queue),
        };
        next.policy.build()?;
        if let Some(queue) = &next.queue {
            queue.validate()?;
        }
        Ok(next)
    }
}
