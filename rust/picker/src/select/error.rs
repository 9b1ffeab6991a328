//! Errors of the selection service, for both of its protocols.

use axum::http::StatusCode;
use wardrop_service::ReservedTrail;

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

impl SelectError {
    /// Status of the error over HTTP.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::NoJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Full(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The same error, after what is written down about the request says that it was refused.
    pub fn written_down(self, trail: Option<ReservedTrail>) -> Self {
        if let Some(trail) = trail {
            trail.refused(self.status().as_u16());
        }
        self
    }
}
