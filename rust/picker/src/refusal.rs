//! Refusals of the picker: Envoy answers the client with the status and the body of each.
//!
//! Statuses follow the Gateway API Inference Extension: 429 for a shed request, 503 without an
//! endpoint.

use bytes::Bytes;
use wardrop_service::Refusal as ServiceRefusal;
use wardrop_service::admission::{BodiesFull, TooManyRequests};

/// An answer that Envoy gives in place of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The body is larger than the limit.
    BodyTooLarge {
        /// Limit in bytes.
        limit_bytes: usize,
    },
    /// The bodies of all requests together are at their limit.
    BodiesFull {
        /// Limit in bytes.
        limit_bytes: usize,
    },
    /// The body did not arrive in time.
    ReadTimeout {
        /// Limit in milliseconds.
        limit_ms: u64,
    },
    /// Too many requests in flight.
    Busy {
        /// Limit in requests.
        limit: usize,
    },
    /// The client chose a worker in the body.
    ClientPin,
    /// No worker holds a block of the prompt, and the client asked for a cached prefix only.
    NoCachedPrefix,
    /// No worker may take the request: none is ready, or none is in the subset.
    NoWorker,
    /// The queue refused the request.
    Queue(ServiceRefusal),
}

impl From<TooManyRequests> for Refusal {
    fn from(refused: TooManyRequests) -> Self {
        Self::Busy { limit: refused.limit }
    }
}

impl From<BodiesFull> for Refusal {
    fn from(refused: BodiesFull) -> Self {
        Self::BodiesFull {
            limit_bytes: refused.limit_bytes,
        }
    }
}

impl Refusal {
    /// HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BodyTooLarge { .. } => 413,
            Self::ReadTimeout { .. } => 408,
            Self::ClientPin => 400,
            Self::NoCachedPrefix => 412,
            Self::BodiesFull { .. } | Self::NoWorker => 503,
            Self::Busy { .. } | Self::Queue(_) => 429,
        }
    }

    /// Short name for metrics (`code` label), the error body and the reason header.
    pub fn code(self) -> &'static str {
        match self {
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodiesFull { .. } => "bodies_full",
            Self::ReadTimeout { .. } => "read_timeout",
            Self::Busy { .. } => "too_many_requests",
            Self::ClientPin => "client_pin_refused",
            Self::NoCachedPrefix => "no_cached_prefix",
            Self::NoWorker => "no_worker",
            Self::Queue(ServiceRefusal::QueueFull { .. }) => "queue_full",
            Self::Queue(ServiceRefusal::TenantQueueFull { .. }) => "tenant_queue_full",
            Self::Queue(ServiceRefusal::DeadlineHopeless { .. }) => "deadline_hopeless",
        }
    }

    /// Seconds for `Retry-After`, where trying again can help.
    pub fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::Queue(
                ServiceRefusal::QueueFull { retry_after_s }
                | ServiceRefusal::TenantQueueFull { retry_after_s }
                | ServiceRefusal::DeadlineHopeless { retry_after_s },
            ) => Some(retry_after_s),
            Self::Busy { .. } | Self::BodiesFull { .. } | Self::NoWorker => Some(1),
            _ => None,
        }
    }

    /// Whether the request was shed because of load.
    pub fn is_shed(self) -> bool {
        self.status() == 429
    }

    /// Text for the person behind the client: what was received, what was expected, and what to do.
    fn message(self) -> String {
        let wait = self.retry_after_s().unwrap_or(1);
        match self {
            Self::BodyTooLarge { limit_bytes } => {
                format!("The request body is larger than {limit_bytes} bytes. Send a shorter prompt.")
            }
            Self::BodiesFull { limit_bytes } => {
                format!("The bodies of all requests together reach {limit_bytes} bytes, the limit. Try again shortly.")
            }
            Self::ReadTimeout { limit_ms } => format!("The request did not arrive within {limit_ms} ms."),
            Self::Busy { limit } => {
                format!("The picker already serves {limit} requests, its limit. Try again shortly.")
            }
            Self::ClientPin => "The request chooses a worker in `nvext`. Leave the choice out.".into(),
            Self::NoCachedPrefix => {
                "No worker holds the beginning of this prompt. Send the request without `Prefer: if-available`.".into()
            }
            Self::NoWorker => "No worker may take this request now. Try again when a worker is ready.".into(),
            Self::Queue(ServiceRefusal::QueueFull { .. }) => {
                format!("Too many requests wait already. Try again in {wait} s.")
            }
            Self::Queue(ServiceRefusal::TenantQueueFull { .. }) => {
                format!("Too many requests of this tenant wait already. Try again in {wait} s.")
            }
            Self::Queue(ServiceRefusal::DeadlineHopeless { .. }) => {
                format!("The first token cannot be there by the deadline. Try again in {wait} s, or with a later deadline.")
            }
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`, the shape of `OpenAI`'s API.
    pub fn body(self) -> Bytes {
        let kind = match self.status() {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let value = serde_json::json!({"error": {
            "message": self.message(), "type": kind, "param": null, "code": self.code(),
        }});
        Bytes::from(value.to_string())
    }
}
