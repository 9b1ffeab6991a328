//! Refusals of the gateway: status, code and body of each, in the shape of `OpenAI`'s API.
//!
//! A refusal is decided where the cause is found, and becomes an answer in `proxy::admin`, or an
//! event in a stream that has begun. No text quotes the request, apart from sizes.

use bytes::Bytes;
use hyper::StatusCode;
use wardrop_service::Refusal as ServiceRefusal;
use wardrop_service::admission::{BodiesFull, TooManyRequests};

/// An error answer that the gateway writes itself, because no upstream gives one.
///
/// Every variant has one status and one code, so a client can act on the code and a metric can
/// count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The body is larger than the limit.
    BodyTooLarge {
        /// Limit in bytes.
        limit_bytes: usize,
    },
    /// The text of the prompt cannot fit the model's context.
    PromptTooLarge {
        /// Size of the whole body in bytes.
        body_bytes: usize,
    },
    /// The headers are larger than the limit.
    HeadersTooLarge {
        /// Limit in bytes.
        limit_bytes: usize,
    },
    /// Too many requests in flight.
    Busy {
        /// Limit in requests.
        limit: usize,
    },
    /// The bodies of all requests together are at their limit.
    BodiesFull {
        /// Limit in bytes.
        limit_bytes: usize,
    },
    /// All places for client connections are taken.
    ConnectionsFull {
        /// Limit in connections.
        limit: usize,
    },
    /// The public port does not serve this route.
    RouteNotPublic,
    /// The gateway failed at this request.
    Internal,
    /// The queue is full.
    QueueFull {
        /// Seconds after which another attempt can succeed.
        retry_after_s: u32,
    },
    /// The tenant has used up its share of the queue.
    TenantFull {
        /// Seconds after which another attempt can succeed.
        retry_after_s: u32,
    },
    /// No worker can meet the deadline of the request.
    DeadlineHopeless {
        /// Seconds after which another attempt can succeed.
        retry_after_s: u32,
    },
    /// The client did not send its head or its body in time.
    ReadTimeout {
        /// Limit in milliseconds.
        limit_ms: u64,
    },
    /// The client's connection broke while its body was read.
    BodyBroken,
    /// The client pinned a worker, and client pins are switched off.
    ClientPin,
    /// The body may carry a pin in a form that cannot be read, and client pins are switched off.
    UnreadableBody,
    /// No upstream accepts connections.
    UpstreamDown,
    /// The model has no worker, and Dynamo has closed its routes.
    ///
    /// Dynamo answers such a request with a bare 404, which clients take for a wrong URL. While a dead
    /// worker is still listed, it answers with a 503 of another form.
    NoWorker,
    /// An upstream broke off before the first byte.
    ///
    /// Further attempts failed too, or none was allowed.
    UpstreamBroken,
    /// An upstream broke off after the first byte.
    AnswerBroken,
    /// The upstream sent no byte in time.
    ///
    /// Without streaming, the wait covers the whole generation.
    FirstByteTimeout {
        /// Limit in milliseconds.
        limit_ms: u64,
    },
    /// The stream sent nothing for too long.
    StreamStalled {
        /// Limit in milliseconds.
        limit_ms: u64,
    },
    /// The gateway is stopping.
    Draining,
}

impl From<ServiceRefusal> for Refusal {
    fn from(refusal: ServiceRefusal) -> Self {
        match refusal {
            ServiceRefusal::QueueFull { retry_after_s } => Self::QueueFull { retry_after_s },
            ServiceRefusal::TenantQueueFull { retry_after_s } => Self::TenantFull { retry_after_s },
            ServiceRefusal::DeadlineHopeless { retry_after_s } => Self::DeadlineHopeless { retry_after_s },
        }
    }
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
    /// HTTP status of this refusal.
    ///
    /// [`Refusal::AnswerBroken`] and [`Refusal::StreamStalled`] end an answer whose status is sent
    /// already, so a client sees their code and not their status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Busy { .. }
            | Self::QueueFull { .. }
            | Self::TenantFull { .. }
            | Self::DeadlineHopeless { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::ReadTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyBroken | Self::ClientPin | Self::UnreadableBody | Self::PromptTooLarge { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::RouteNotPublic => StatusCode::NOT_FOUND,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BodiesFull { .. }
            | Self::ConnectionsFull { .. }
            | Self::UpstreamDown
            | Self::NoWorker
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamBroken | Self::AnswerBroken => StatusCode::BAD_GATEWAY,
            Self::FirstByteTimeout { .. } | Self::StreamStalled { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Short name for metrics (`code` label) and the error body.
    ///
    /// The set of codes is small and fixed; clients and dashboards may rely on it.
    pub fn code(self) -> &'static str {
        match self {
            Self::BodyTooLarge { .. } => "body_too_large",
            // The code of OpenAI's API, which clients know.
            Self::PromptTooLarge { .. } => "context_length_exceeded",
            Self::HeadersTooLarge { .. } => "headers_too_large",
            Self::Busy { .. } => "too_many_requests",
            Self::BodiesFull { .. } => "bodies_full",
            Self::ConnectionsFull { .. } => "too_many_connections",
            Self::RouteNotPublic => "route_not_public",
            Self::Internal => "internal_error",
            Self::QueueFull { .. } => "queue_full",
            Self::TenantFull { .. } => "tenant_queue_full",
            Self::DeadlineHopeless { .. } => "deadline_hopeless",
            Self::ReadTimeout { .. } => "read_timeout",
            Self::BodyBroken => "body_broken",
            Self::ClientPin => "client_pin_refused",
            Self::UnreadableBody => "unreadable_body",
            Self::UpstreamDown => "upstream_down",
            Self::NoWorker => "no_worker",
            Self::UpstreamBroken | Self::AnswerBroken => "upstream_broken",
            Self::FirstByteTimeout { .. } => "first_byte_timeout",
            Self::StreamStalled { .. } => "stream_stalled",
            Self::Draining => "draining",
        }
    }

    /// Seconds for `Retry-After`, where trying again can help.
    ///
    /// `None` where the same request would fail again.
    pub fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::QueueFull { retry_after_s }
            | Self::TenantFull { retry_after_s }
            | Self::DeadlineHopeless { retry_after_s } => Some(retry_after_s),
            Self::Busy { .. }
            | Self::BodiesFull { .. }
            | Self::ConnectionsFull { .. }
            | Self::UpstreamDown
            | Self::NoWorker
            | Self::Draining => Some(1),
            _ => None,
        }
    }

    /// Text for the person behind the client: what was received, what was expected, and what to do.
    fn message(self) -> String {
        match self {
            Self::BodyTooLarge { limit_bytes } => {
                format!("The request body is larger than {limit_bytes} bytes. Send a shorter prompt.")
            }
            Self::PromptTooLarge { body_bytes } => {
                format!("The request has {body_bytes} bytes, and its text cannot fit the model's context at prompt.refuse_bytes_per_token bytes a token. Send a shorter prompt.")
            }
            Self::HeadersTooLarge { limit_bytes } => {
                format!("The request headers are larger than {limit_bytes} bytes. Send fewer or shorter headers.")
            }
            Self::Busy { limit } => {
                format!("The gateway already serves {limit} requests, its limit. Try again shortly.")
            }
            Self::BodiesFull { limit_bytes } => {
                format!("The bodies of all requests together reach {limit_bytes} bytes, the gateway's limit. Try again shortly, or send a shorter prompt.")
            }
            Self::ConnectionsFull { limit } => {
                format!("The gateway already has {limit} client connections, its limit. Try again shortly.")
            }
            Self::RouteNotPublic => {
                "The gateway does not serve this route. It serves the OpenAI and Anthropic routes, and routes listed in routes.extra.".into()
            }
            Self::Internal => "The gateway failed at this request. Other requests are not affected.".into(),
            Self::QueueFull { retry_after_s } => {
                format!("Too many requests wait already. Try again in {retry_after_s} s.")
            }
            Self::TenantFull { retry_after_s } => {
                format!("Too many requests of this tenant wait already. Try again in {retry_after_s} s.")
            }
            Self::DeadlineHopeless { retry_after_s } => {
                format!("The first token cannot be there by the deadline. Try again in {retry_after_s} s, or with a later deadline.")
            }
            Self::ReadTimeout { limit_ms } => {
                format!("The request did not arrive within {limit_ms} ms.")
            }
            Self::BodyBroken => "The request body ended early.".into(),
            Self::ClientPin => {
                "The request chooses a worker (by header or nvext). The gateway does that; leave it out, or allow client pins in its configuration.".into()
            }
            Self::UnreadableBody => {
                "The request body cannot be read, so it may hide the choice of a worker. Send one JSON object, name each key once, and make `nvext` an object or leave it out.".into()
            }
            Self::UpstreamDown => "No upstream frontend accepts connections.".into(),
            Self::NoWorker => "No worker serves this model now. Try again when one has joined.".into(),
            Self::UpstreamBroken => "The upstream frontend broke off before it answered.".into(),
            Self::AnswerBroken => "The upstream broke off inside its answer, so the answer is incomplete.".into(),
            Self::FirstByteTimeout { limit_ms } => {
                format!("The upstream frontend sent nothing for {limit_ms} ms.")
            }
            Self::StreamStalled { limit_ms } => {
                format!("The stream fell silent for {limit_ms} ms and was ended.")
            }
            Self::Draining => "The gateway is stopping and takes no new requests.".into(),
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`, the shape of `OpenAI`'s API.
    ///
    /// `type` follows the status: 429 is a `rate_limit_error`, other 4xx an
    /// `invalid_request_error`, 5xx a `server_error`.
    pub fn body(self) -> Bytes {
        let kind = match self.status().as_u16() {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let value = serde_json::json!({"error": {
            "message": self.message(), "type": kind, "param": null, "code": self.code(),
        }});
        Bytes::from(value.to_string())
    }

    /// The whole answer as bytes, for a connection on which no request was read. The connection closes after it.
    ///
    /// hyper writes every other answer. A head that never ends, or a client beyond the limit of
    /// connections, has no request to answer.
    pub fn raw_answer(self) -> Vec<u8> {
        let (status, body) = (self.status(), self.body());
        let retry = self
            .retry_after_s()
            .map(|seconds| format!("retry-after: {seconds}\r\n"))
            .unwrap_or_default();
        let mut out = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        out.extend_from_slice(&body);
        out
    }

    /// The error body as the last event of a server-sent stream.
    ///
    /// A stream cannot change its status any more, so the error travels as data. Clients of the
    /// `OpenAI` API read it as an error object.
    pub fn sse_event(self) -> Bytes {
        let mut out = b"data: ".to_vec();
        out.extend_from_slice(&self.body());
        out.extend_from_slice(b"\n\n");
        Bytes::from(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_has_openai_shape() {
        let refusal = Refusal::BodyTooLarge { limit_bytes: 10 };
        let value: serde_json::Value = serde_json::from_slice(&refusal.body()).unwrap();
        assert_eq!(value["error"]["code"], "body_too_large");
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(refusal.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn raw_answer_is_a_whole_message() {
        let raw = String::from_utf8(Refusal::ConnectionsFull { limit: 7 }.raw_answer()).unwrap();
        let (head, body) = raw.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("retry-after: 1") && head.contains(&format!("content-length: {}", body.len())));
    }

    #[test]
    fn busy_says_when_to_try_again() {
        assert_eq!(Refusal::Busy { limit: 1 }.retry_after_s(), Some(1));
        assert_eq!(Refusal::ClientPin.retry_after_s(), None);
    }
}
