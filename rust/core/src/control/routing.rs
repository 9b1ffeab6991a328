//! The policy and the queue in force, and a change of them. A change is valid as a whole or refused as a
//! whole.
//!
//! This is the audited door's vocabulary: everything that a controller or an operator may change while a
//! gateway runs. The rest of the configuration is fixed at the start.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::price::PolicyConfig;
use crate::queue::QueueConfig;

/// The part of a pool's configuration that may change while it runs. It is replaced as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Routing {
    /// The policy of every pool.
    pub policy: PolicyConfig,
    /// Parameters of the queue in front of every pool. `None`: requests are placed at once.
    pub queue: Option<QueueConfig>,
}

/// A change of [`Routing`]. A field that is absent stays as it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingChange {
    /// Another policy, with all its parameters.
    #[serde(default)]
    pub policy: Option<PolicyConfig>,
    /// Another queue, with all its parameters. `null` removes the queue.
    #[serde(default, deserialize_with = "present")]
    pub queue: Option<Option<QueueConfig>>,
}

/// Distinguishes a key that is `null` from a key that is absent.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

impl Routing {
    /// The routing after a change.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
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
