//! Errors of the simulator: a specification that cannot be simulated, or a router that refuses a step.

/// Why a fleet could not be built, changed or run to its end.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// An array of a timing file is not usable.
    #[error("timing array {name} is not usable: give {need}")]
    Timing {
        /// Name of the array in the timing file.
        name: &'static str,
        /// What the array must hold.
        need: &'static str,
    },
    /// A field of the fleet, the workload or a request is out of range.
    #[error("{field} is {got}: it must be {need}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// The value received.
        got: String,
        /// What the field must hold.
        need: &'static str,
    },
    /// The router refused a call that every fleet needs.
    #[error("the router refused {action}: {reason}")]
    Router {
        /// The call, as a noun phrase.
        action: &'static str,
        /// The router's own error text.
        reason: String,
    },
}

/// A [`SimError::Config`] for `field`.
pub(crate) fn out_of_range(field: &'static str, got: impl std::fmt::Display, need: &'static str) -> SimError {
    SimError::Config {
        field,
        got: got.to_string(),
        need,
    }
}

/// A closure that turns the router's error into [`SimError::Router`] for `action`.
pub(crate) fn router_refused(action: &'static str) -> impl Fn(wardrop_core::Error) -> SimError {
    move |error| SimError::Router {
        action,
        reason: error.to_string(),
    }
}
