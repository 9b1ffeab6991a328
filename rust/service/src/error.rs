//! Errors of the service's control calls.
//!
//! A request never gets one of these errors: [`crate::Refusal`] and [`crate::Abstention`] are its
//! outcomes. The bindings turn each variant into a Python exception.

/// Error of a control call of the service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A value from the caller is invalid; the text names the value and the accepted values.
    #[error("{0}")]
    Config(String),
    /// The model is not registered.
    #[error("model {0:?} is not registered: call upsert_model first")]
    UnknownModel(String),
    /// The router core refused the call.
    #[error(transparent)]
    Core(#[from] wardrop_core::Error),
    /// A call to the operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// Action that failed.
        what: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The call would exceed a limit; the text names the limit and the way out.
    #[error("{0}")]
    Limit(String),
    /// The service is in a state that does not allow the call.
    #[error("{0}")]
    State(String),
}
