//! One connection to an upstream: write a request, read the head of its answer, relay the body.
//!
//! Parsing is `httparse`; framing is [`super::framing`]. A head has at most 128 KiB and 128 fields. A
//! body takes one buffer of 16 KiB, since a read happens only when the client takes bytes.

use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, StatusCode, Uri};
use tokio::io::AsyncReadExt;

use super::fields::{has_token, is_per_connection, remove_per_connection, tokens};
use super::framing::{Chunk, Decoded, Framing, WireError};
use super::outgoing::{Outgoing, SendError};
use super::pool::ConnectionPool;
use super::set::IdlePlace;
use super::stream::Stream;
use crate::proxy::PrefillTask;

/// Read buffer of a connection, bytes. A burst of tokens fits into one read; a long body is relayed in pieces of this size.
const READ_BYTES: usize = 16 << 10;
/// Smallest free space, bytes, for which a read is issued; with less the buffer is replaced.
const READ_ROOM_BYTES: usize = 4 << 10;
/// Largest head of an answer.
const HEAD_LIMIT_BYTES: usize = 128 << 10;
/// Most header fields of an answer.
const MAX_FIELDS: usize = 128;

/// A connection to one upstream, with the bytes that were read ahead.
#[derive(Debug)]
pub struct Connection {
    /// The socket, with TLS where the upstream has it.
    stream: Stream,
    /// Bytes that were read and not yet taken.
    buffer: BytesMut,
    /// The upstream it belongs to.
    pub(super) upstream: u64,
    /// Requests that this connection carried before.
    pub(super) served: u32,
    /// A request was not written completely, so the connection cannot carry another one.
    is_spent: bool,
    /// Time of the last end of an answer.
    pub(super) idle_since: Instant,
    /// Its place among the idle connections of all pools, while it is idle.
    pub(super) idle_place: Option<IdlePlace>,
}

/// Status, fields and body framing of an answer.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status code.
    pub status: StatusCode,
    /// Header fields, without the fields that concern a single connection.
    pub headers: HeaderMap,
    /// How the end of the body is found.
    framing: Framing,
    /// The upstream keeps the connection open after the body.
    keep_alive: bool,
}

/// Why an exchange ended without the head of an answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The client's body broke off, is late or is too large.
    #[error(transparent)]
    Client(SendError),
    /// The upstream closed the connection or sent no HTTP.
    #[error(transparent)]
    Upstream(#[from] WireError),
}

/// Writes request line and fields. `length` replaces the client's framing: `Some(n)` a length, `None` keeps it.
///
/// Fields of a single connection are left out (RFC 9110 §7.6.1). The empty line at the end is left
/// to [`Outgoing`], which may add a framing.
pub fn write_head(
    out: &mut BytesMut,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    length: Option<usize>,
) {
    // A client that gives both framings means the chunked one (RFC 9112 §6.3).
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        let is_length = *name == CONTENT_LENGTH && (length.is_some() || is_chunked);
        if is_length || is_per_connection(headers, name) {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(length) = length {
        write!(out, "content-length: {length}\r\n").expect("writing to memory must succeed");
    }
}

impl Connection {
    /// Id of the upstream at the other end.
    pub const fn upstream(&self) -> u64 {
        self.upstream
    }

    /// A connection without a request.
    pub(super) fn new(stream: Stream, upstream: u64) -> Self {
        Self {
            stream,
            buffer: BytesMut::with_capacity(READ_BYTES),
            upstream,
            served: 0,
            is_spent: false,
            idle_since: Instant::now(),
            idle_place: None,
        }
    }

    /// Whether the connection carried a request before. The upstream may have closed a reused connection while it was idle.
    pub fn was_reused(&self) -> bool {
        self.served > 0
    }

    /// Whether bytes of an answer came that no one has taken. An upstream that had closed the connection while it was idle sends none.
    pub fn has_answered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether an idle connection is usable: no byte and no end of stream is waiting in it.
    pub(super) fn is_alive(&self) -> bool {
        self.stream.is_quiet()
    }

    /// Writes the request and reads the head of its answer at the same time, passing over 1xx answers.
    ///
    /// `outgoing` is empty after the last byte of the request. An answer may come before: the rest is written while the answer is
    /// relayed.
    ///
    /// One deadline of the caller covers both directions. An upstream that stops reading may still
    /// answer, so writing alone never fails the exchange.
    ///
    /// # Errors
    /// [`ExchangeError::Client`] when the client's body fails, [`ExchangeError::Upstream`] when no answer comes.
    pub async fn exchange(
        &mut self,
        outgoing: &mut Option<Outgoing>,
        method: &Method,
    ) -> Result<ResponseHead, ExchangeError> {
        std::future::poll_fn(|cx| self.poll_exchange(outgoing, method, cx)).await
    }

    /// One poll: writes what the upstream takes, then reads up to the end of a head.
    fn poll_exchange(
        &mut self,
        outgoing: &mut Option<Outgoing>,
        method: &Method,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, ExchangeError>> {
        self.poll_write(outgoing, cx).map_err(ExchangeError::Client)?;
        loop {
            if !self.buffer.is_empty()
                && let Some(head) = parse_head(&mut self.buffer, method)?
            {
                return Poll::Ready(Ok(head));
            }
            if self.buffer.len() > HEAD_LIMIT_BYTES {
                return Poll::Ready(Err(WireError::Malformed("head: too large").into()));
            }
            let read = ready!(self.poll_fill(cx)).map_err(WireError::from)?;
            if read == 0 {
                return Poll::Ready(Err(WireError::Truncated.into()));
            }
        }
    }

    /// Writes what the upstream takes. An upstream that takes no more may still answer, so only a failure of the client is an error.
    fn poll_write(&mut self, outgoing: &mut Option<Outgoing>, cx: &mut Context<'_>) -> Result<(), SendError> {
        let Some(sending) = outgoing else { return Ok(()) };
        match sending.poll_send(&mut self.stream, cx) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(SendError::Upstream(error))) => {
                tracing::debug!(%error, "the upstream stopped reading a request");
                self.is_spent = true;
            }
            Poll::Ready(Err(error)) => {
                self.is_spent = true;
                *outgoing = None;
                return Err(error);
            }
        }
        *outgoing = None;
        Ok(())
    }

    /// Reads once into the buffer. 0 bytes mean that the upstream closed the connection.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < READ_ROOM_BYTES {
            self.buffer.reserve(READ_BYTES);
        }
        // `poll_read` knows that a short read emptied the socket and spares the next system call; `try_read_buf` does not.
        std::pin::pin!(self.stream.read_buf(&mut self.buffer)).poll(cx)
    }
}

/// The head at the start of the buffer; `None` while it is incomplete. Values share the buffer's
/// memory.
///
/// # Errors
/// [`WireError::Malformed`] names the part that is no HTTP/1.1.
fn parse_head(buffer: &mut BytesMut, method: &Method) -> Result<Option<ResponseHead>, WireError> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut fields);
        let length = match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(WireError::Malformed("head")),
        };
        let code = parsed.code.unwrap_or(0);
        if (100..200).contains(&code) && code != 101 {
            buffer.advance(length);
            continue;
        }
        let status = StatusCode::from_u16(code).map_err(|_| WireError::Malformed("status"))?;
        let http_10 = parsed.version == Some(0);
        let base = buffer.as_ptr() as usize;
        let mut spans = [(0usize, 0usize); MAX_FIELDS];
        let mut names: Vec<HeaderName> = Vec::with_capacity(parsed.headers.len());
        for (field, span) in parsed.headers.iter().zip(&mut spans) {
            let start = field.value.as_ptr() as usize - base;
            *span = (start, start + field.value.len());
            let name = HeaderName::from_bytes(field.name.as_bytes());
            names.push(name.map_err(|_| WireError::Malformed("field name"))?);
        }
        let bytes = buffer.split_to(length).freeze();
        let mut headers = HeaderMap::with_capacity(names.len());
        for (name, (start, end)) in names.into_iter().zip(spans) {
            let value = HeaderValue::from_maybe_shared(bytes.slice(start..end))
                .map_err(|_| WireError::Malformed("field value"))?;
            headers.append(name, value);
        }
        return finish_head(status, headers, http_10, method).map(Some);
    }
}

/// The status of an answer and the framing of its body, for tests.
#[cfg(test)]
pub(super) fn head_and_framing(
    buffer: &mut BytesMut,
    method: &Method,
) -> Result<Option<(u16, Framing)>, WireError> {
    let head = parse_head(buffer, method)?;
    Ok(head.map(|head| (head.status.as_u16(), head.framing)))
}

/// Decides framing and reuse from status, fields and version.
///
/// # Errors
/// [`WireError::Malformed`] for a framing that two readers could understand differently: such an
/// answer could hide a second one.
fn finish_head(
    status: StatusCode,
    mut headers: HeaderMap,
    http_10: bool,
    method: &Method,
) -> Result<ResponseHead, WireError> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        // The gateway forwards no `Upgrade`, so no upstream has a reason to switch.
        return Err(WireError::Malformed("status: switching protocols"));
    }
    let has_close = has_token(&headers, &CONNECTION, "close");
    let mut keep_alive = !has_close && (!http_10 || has_token(&headers, &CONNECTION, "keep-alive"));
    let bodiless =
        *method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let framing = if bodiless {
        Framing::Length(0)
    } else if headers.contains_key(TRANSFER_ENCODING) {
        // The coding wins over a length (RFC 9112 §6.3), and a sender of both is not trusted with a second answer.
        keep_alive &= headers.remove(CONTENT_LENGTH).is_none();
        transfer_framing(&headers)?
    } else {
        match content_length(&headers)? {
            Some(length) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
                Framing::Length(length)
            }
            None => Framing::UntilClose,
        }
    };
    if matches!(framing, Framing::UntilClose) {
        keep_alive = false;
    }
    remove_per_connection(&mut headers);
    Ok(ResponseHead {
        status,
        headers,
        framing,
        keep_alive,
    })
}

/// How a body with a transfer coding ends. The gateway decodes `chunked` alone, since it asks for no other coding.
///
///
/// # Errors
/// [`WireError::Malformed`] for any other list of codings.
fn transfer_framing(headers: &HeaderMap) -> Result<Framing, WireError> {
    let mut codings = tokens(headers, &TRANSFER_ENCODING);
    match (codings.next(), codings.next()) {
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked(Chunk::Size)),
        _ => Err(WireError::Malformed("transfer-encoding")),
    }
}

/// The length of a body. Equal repetitions count as one (RFC 9112 §6.3); different lengths make the message unreadable.
///
///
/// # Errors
/// [`WireError::Malformed`] for a value that is no number, or for two values.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, WireError> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let text = value
            .to_str()
            .map_err(|_| WireError::Malformed("content-length"))?;
        for part in text.split(',').map(str::trim) {
            let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let number = part.parse::<u64>().ok().filter(|_| is_number);
            let number = number.ok_or(WireError::Malformed("content-length"))?;
            if length.is_some_and(|known| known != number) {
                return Err(WireError::Malformed("content-length: two values"));
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// The body of an answer, read from the connection as the client takes it.
///
/// Dropping it before its end closes the connection, which makes Dynamo cancel the request.
///
/// A slow client stops the reads, so the memory of an answer is one buffer regardless of its
/// length.
#[derive(Debug)]
pub struct RelayBody {
    /// The connection; `None` after the end, an error or a cut.
    connection: Option<Connection>,
    /// Position in the body.
    framing: Framing,
    /// The connection may carry another request after the body.
    keep_alive: bool,
    /// Pool that takes the connection back.
    pool: Arc<ConnectionPool>,
    /// A piece that was inspected and given back; it goes out first.
    held: Option<Frame<Bytes>>,
    /// The rest of the request, when the answer began before its end.
    outgoing: Option<Outgoing>,
    /// The prefill leg of a split that may still run. It ends with the body.
    prefill: Option<PrefillTask>,
}

impl RelayBody {
    /// The body that follows `head` on its connection, with the rest of its request.
    ///
    /// An error answer ends the request (RFC 9112 §9.5): nothing more of it is written.
    pub fn new(
        mut connection: Connection,
        head: ResponseHead,
        mut outgoing: Option<Outgoing>,
        pool: Arc<ConnectionPool>,
    ) -> (StatusCode, HeaderMap, Self) {
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        if is_error && outgoing.take().is_some() {
            connection.is_spent = true;
        }
        let body = Self {
            connection: Some(connection),
            framing: head.framing,
            keep_alive: head.keep_alive,
            pool,
            held: None,
            outgoing,
            prefill: None,
        };
        (head.status, head.headers, body)
    }

    /// Next piece, `None` at the end. After an error the body is over.
    ///
    /// All body bytes of one read come as one piece. Nothing is read ahead of the client.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(Ok(held)));
        }
        loop {
            let Some(connection) = &mut self.connection else {
                return Poll::Ready(None);
            };
            if let Err(error) = connection.poll_write(&mut self.outgoing, cx) {
                tracing::debug!(%error, "the request broke off during its answer");
                self.connection = None;
                return Poll::Ready(Some(Err(WireError::Truncated)));
            }
            match self.framing.decode(&mut connection.buffer) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Decoded::Trailers(trailers)) => {
                    self.recycle();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End) => {
                    self.recycle();
                    return Poll::Ready(None);
                }
                Ok(Decoded::NeedMore) => {}
                Err(error) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match ready!(connection.poll_fill(cx)) {
                Ok(0) => {
                    self.connection = None;
                    // Without a length or chunks, the end of the connection is the end of the body
                    // (RFC 9112 §6.3).
                    if matches!(self.framing, Framing::UntilClose) {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Err(WireError::Truncated)));
                }
                Ok(_) => {}
                Err(error) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }

    /// Whether the answer began before the client's body was read to its end.
    pub fn reads_client(&self) -> bool {
        self.outgoing.as_ref().is_some_and(Outgoing::reads_client)
    }

    /// Keeps a prefill leg running until the end of this body.
    pub fn accompany(&mut self, prefill: PrefillTask) {
        self.prefill = Some(prefill);
    }

    /// Gives a piece back, so that it is the next one again.
    pub fn hold(&mut self, piece: Frame<Bytes>) {
        self.held = Some(piece);
    }

    /// Id of the upstream that sends the body, until its end.
    pub fn upstream(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.upstream)
    }

    /// Whether the body has ended.
    ///
    /// True before the end is polled where the length is known, because hyper does not poll a body
    /// of known length to its end.
    pub fn is_finished(&self) -> bool {
        self.held.is_none() && (self.connection.is_none() || matches!(self.framing, Framing::Length(0)))
    }

    /// Known bounds of the remaining length, bytes.
    pub fn size_hint(&self) -> SizeHint {
        match &self.framing {
            Framing::Length(left) if self.held.is_none() => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }

    /// Gives the connection back, unless something of this exchange is still in it.
    fn recycle(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && self.outgoing.is_none()
            && !connection.is_spent
            // Bytes behind the end belong to no request, so such a connection is closed.
            && connection.buffer.is_empty()
        {
            self.pool.put(connection);
        }
    }
}

impl Drop for RelayBody {
    fn drop(&mut self) {
        if matches!(self.framing, Framing::Length(0)) {
            self.recycle();
        }
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = WireError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        self.poll_piece(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_finished()
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(text: &str) -> Result<ResponseHead, WireError> {
        let mut buffer = BytesMut::from(text);
        Ok(parse_head(&mut buffer, &Method::GET)?.expect("the head must be whole"))
    }

    #[test]
    fn chunked_wins_over_a_length_and_the_length_is_dropped() {
        let head =
            head_of("HTTP/1.1 200 OK\r\ncontent-length: 30\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        assert!(matches!(head.framing, Framing::Chunked(_)));
        assert!(!head.headers.contains_key(CONTENT_LENGTH));
        assert!(!head.keep_alive);
    }

    #[test]
    fn equal_lengths_are_one_and_different_lengths_are_refused() {
        let head = head_of("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3, 3\r\n\r\n").unwrap();
        assert!(matches!(head.framing, Framing::Length(3)));
        assert_eq!(head.headers.get_all(CONTENT_LENGTH).iter().count(), 1);
        for lengths in ["3, 4", "-1", "+3", "", "3,", "99999999999999999999"] {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {lengths}\r\n\r\n");
            assert!(head_of(&answer).is_err(), "{lengths:?}");
        }
    }

    #[test]
    fn codings_that_the_gateway_cannot_decode_are_refused() {
        for coding in ["gzip, chunked", "chunked, chunked", "identity", ""] {
            let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n");
            assert!(head_of(&answer).is_err(), "{coding:?}");
        }
        assert!(head_of("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_with_both_framings_goes_on_with_one() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("3"));
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let mut out = BytesMut::new();
        write_head(&mut out, &Method::POST, &Uri::from_static("/x"), &headers, None);
        assert_eq!(&out[..], b"POST /x HTTP/1.1\r\n");
    }
}
