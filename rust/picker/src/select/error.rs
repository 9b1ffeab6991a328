//! Errors of the selection service, for both of its protocols.

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectError {
    /// A value of the caller is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The body is not declared as JSON.
    #[error("Expected request with `Content-Type: application/json`")]
    NoJson,
    /// No worker, selection or reservation has the id.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    Conflict(String),
    /// No worker can be chosen now.
    #[error("{0}")]
    NotReady(String),
    /// A limit of the service is reached.
    #[error("{0}")]
    Full(String),
}
