//! Errors of the service's control calls.

/// What a control call can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A value that was handed in is wrong.
    #[error("{0}")]
    Config(String),
    /// The model is not registered.
    #[error("model {0:?} is not registered: call upsert_model first")]
    UnknownModel(String),
    /// The core refused.
    #[error(transparent)]
    Core(#[from] wardrop_core::Error),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Explanation it failed.
        source: std::io::Error,
    },
    /// A call that needs another state of the service.
    #[error("{0}")]
    State(String),
}
