//! Answers of the picker as messages of external processing.
//!
//! Pure functions: facts in, protobuf messages out. Bodies are shared, not copied.

use std::fmt::Display;

use bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::headers::{DESTINATION, DROPPED_REASON};
use crate::proto::ext_proc::header_value_option::HeaderAppendAction;
use crate::proto::ext_proc::processing_response::Response;
use crate::proto::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption,
    HeadersResponse, HttpStatus, ImmediateResponse, ProcessingResponse, StreamedBodyResponse,
    TrailersResponse, body_mutation,
};
use crate::refusal::Refusal;

/// Largest piece of a body, in bytes: Envoy takes at most 64 KiB, and some bytes are left for the message around the piece.
pub(crate) const MAX_PIECE_BYTES: usize = 62_000;
/// Namespace of the dynamic metadata in which Envoy's load balancers look for the destination.
pub(crate) const LB_NAMESPACE: &str = "envoy.lb";

/// One header to set.
pub(crate) struct Header {
    /// Name in lower case.
    pub name: &'static str,
    /// Value.
    pub value: String,
}

/// A change of headers.
#[derive(Default)]
pub(crate) struct Headers {
    /// Headers to set; each replaces all headers of its name.
    pub set: Vec<Header>,
    /// Names to remove.
    pub remove: Vec<&'static str>,
}

impl Headers {
    /// Adds a header to set.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "callers pass numbers and texts alike"
    )]
    pub fn set(&mut self, name: &'static str, value: impl Display) {
        let value = format!("{value}");
        self.set.push(Header { name, value });
    }

    /// The change as Envoy takes it; `None` for no change, which spares Envoy the work.
    fn mutation(self) -> Option<HeaderMutation> {
        if self.set.is_empty() && self.remove.is_empty() {
            return None;
        }
        let set_headers = self.set.into_iter().map(|header| HeaderValueOption {
            header: Some(HeaderValue {
                key: header.name.to_owned(),
                value: String::new(),
                raw_value: header.value.into(),
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        });
        Some(HeaderMutation {
            set_headers: set_headers.collect(),
            remove_headers: self.remove.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// A message without metadata.
fn message(response: Response) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        dynamic_metadata: None,
    }
}

/// Lets Envoy continue with the headers of a request, unchanged.
pub(crate) fn request_headers() -> ProcessingResponse {
    message(Response::RequestHeaders(HeadersResponse { response: None }))
}

/// A decision: the change of headers, with the destination in the metadata as well.
///
/// With `body` the decision answers a buffered body, which then replaces the body of the client.
pub(crate) fn decision(headers: Headers, destination: &str, body: Option<Bytes>) -> ProcessingResponse {
    let is_body = body.is_some();
    let common = CommonResponse {
        header_mutation: headers.mutation(),
        body_mutation: body.map(|body| BodyMutation {
            mutation: Some(body_mutation::Mutation::Body(body)),
        }),
        // The route may depend on the headers that the decision changes.
        clear_route_cache: true,
    };
    let response = if is_body {
        Response::RequestBody(BodyResponse {
            response: Some(common),
        })
    } else {
        Response::RequestHeaders(HeadersResponse {
            response: Some(common),
        })
    };
    let text = Kind::StringValue(destination.to_owned());
    let fields = [(DESTINATION.to_owned(), Value { kind: Some(text) })];
    let inner = Struct {
        fields: fields.into(),
    };
    let outer = Value {
        kind: Some(Kind::StructValue(inner)),
    };
    ProcessingResponse {
        response: Some(response),
        dynamic_metadata: Some(Struct {
            fields: [(LB_NAMESPACE.to_owned(), outer)].into(),
        }),
    }
}

/// The pieces of a request body in full-duplex mode, the last of them with the end unless trailers follow.
pub(crate) fn request_pieces(
    body: &Bytes,
    has_trailers: bool,
) -> impl Iterator<Item = ProcessingResponse> + use<> {
    let body = body.clone();
    let count = body.len().div_ceil(MAX_PIECE_BYTES).max(1);
    (0..count).map(move |index| {
        let start = index * MAX_PIECE_BYTES;
        let end = body.len().min(start + MAX_PIECE_BYTES);
        let is_last = index + 1 == count;
        message(Response::RequestBody(streamed(
            body.slice(start..end),
            is_last && !has_trailers,
        )))
    })
}

/// Lets Envoy continue with a piece of a request body that the picker does not hold.
pub(crate) fn request_body() -> ProcessingResponse {
    message(Response::RequestBody(BodyResponse { response: None }))
}

/// Lets Envoy continue with the trailers of a request.
pub(crate) fn request_trailers() -> ProcessingResponse {
    message(Response::RequestTrailers(TrailersResponse {
        header_mutation: None,
    }))
}

/// Lets Envoy continue with the headers of an answer.
pub(crate) fn response_headers(headers: Headers) -> ProcessingResponse {
    let mutation = headers.mutation();
    message(Response::ResponseHeaders(HeadersResponse {
        response: mutation.map(|mutation| CommonResponse {
            header_mutation: Some(mutation),
            ..CommonResponse::default()
        }),
    }))
}

/// Hands on a piece of an answer: in full-duplex mode Envoy sends the client only what it gets back.
pub(crate) fn response_piece(piece: Bytes, is_end: bool, is_duplex: bool) -> ProcessingResponse {
    message(Response::ResponseBody(if is_duplex {
        streamed(piece, is_end)
    } else {
        BodyResponse { response: None }
    }))
}

/// Lets Envoy continue with the trailers of an answer.
pub(crate) fn response_trailers() -> ProcessingResponse {
    message(Response::ResponseTrailers(TrailersResponse {
        header_mutation: None,
    }))
}

/// An answer of Envoy itself in place of a worker's.
pub(crate) fn refuse(refusal: Refusal) -> ProcessingResponse {
    let mut headers = Headers::default();
    headers.set("content-type", "application/json");
    if let Some(seconds) = refusal.retry_after_s() {
        headers.set("retry-after", seconds);
    }
    if refusal.is_shed() {
        headers.set(DROPPED_REASON, refusal.code());
    }
    message(Response::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus {
            code: refusal.status().into(),
        }),
        headers: headers.mutation(),
        body: refusal.body(),
        details: format!("wardrop_{}", refusal.code()),
    }))
}

/// A piece of a body in full-duplex mode.
fn streamed(body: Bytes, end_of_stream: bool) -> BodyResponse {
    BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(body_mutation::Mutation::StreamedResponse(StreamedBodyResponse {
                    body,
                    end_of_stream,
                })),
            }),
            ..CommonResponse::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: usize, has_trailers: bool) -> Vec<(usize, bool)> {
        let body = Bytes::from(vec![7; bytes]);
        request_pieces(&body, has_trailers)
            .map(|message| match message.response {
                Some(Response::RequestBody(BodyResponse {
                    response:
                        Some(CommonResponse {
                            body_mutation:
                                Some(BodyMutation {
                                    mutation: Some(body_mutation::Mutation::StreamedResponse(piece)),
                                }),
                            ..
                        }),
                })) => (piece.body.len(), piece.end_of_stream),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn pieces_fit_into_messages_and_only_the_last_one_ends_the_body() {
        assert_eq!(pieces(0, false), [(0, true)]);
        assert_eq!(pieces(MAX_PIECE_BYTES, false), [(MAX_PIECE_BYTES, true)]);
        assert_eq!(
            pieces(MAX_PIECE_BYTES + 1, false),
            [(MAX_PIECE_BYTES, false), (1, true)]
        );
        assert_eq!(
            pieces(MAX_PIECE_BYTES + 1, true),
            [(MAX_PIECE_BYTES, false), (1, false)]
        );
    }
}
