//! One connection to an upstream: write a request, read the head of its answer, relay the body.

use std::fmt::Write as _;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, StatusCode, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::framing::{Chunk, Decoded, Framing, WireError};
use super::pool::ConnectionPool;

/// Read buffer of a connection, bytes. A burst of tokens fits into one read; a long body is relayed in pieces of this size.
const READ_BYTES: usize = 16 << 10;
/// Smallest free space, bytes, for which a read is issued; with less the buffer is replaced.
const READ_ROOM_BYTES: usize = 4 << 10;
/// Largest head of an answer.
const HEAD_LIMIT_BYTES: usize = 128 << 10;
const MAX_FIELDS: usize = 128;

/// A TCP connection to one upstream, with the bytes that were read ahead.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    /// The upstream it belongs to.
    pub(super) upstream: u64,
    /// Requests that this connection carried before.
    pub(super) served: u32,
    pub(super) idle_since: Instant,
}

/// Status, fields and body framing of an answer.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status code.
    pub status: StatusCode,
    /// Header fields, without the fields that concern a single connection.
    pub headers: HeaderMap,
    framing: Framing,
    keep_alive: bool,
}

/// Why a request could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The client's body broke off.
    #[error("the client's body ended early")]
    Client,
    /// The client's body is larger than the limit.
    #[error("the client's body is too large")]
    TooLarge,
    /// The upstream's socket failed.
    #[error(transparent)]
    Upstream(#[from] std::io::Error),
}

/// Writes request line and fields. `length` replaces the client's framing: `Some(n)` a length, `None` keeps it.
pub fn write_head(
    out: &mut BytesMut,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    length: Option<usize>,
) {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        if is_per_connection(name) || (*name == CONTENT_LENGTH && length.is_some()) {
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

fn is_per_connection(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || *name == EXPECT
        || *name == TE
        || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
}

impl Connection {
    pub(super) fn new(stream: TcpStream, upstream: u64) -> Self {
        Self {
            stream,
            buffer: BytesMut::with_capacity(READ_BYTES),
            upstream,
            served: 0,
            idle_since: Instant::now(),
        }
    }

    /// Whether the connection carried a request before. The upstream may have closed a reused connection while it was idle.
    pub fn was_reused(&self) -> bool {
        self.served > 0
    }

    /// Whether an idle connection is usable: no byte and no end of stream is waiting in it.
    pub(super) fn is_alive(&self) -> bool {
        let mut probe = [0u8; 1];
        matches!(self.stream.try_read(&mut probe), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Writes head and body pieces with as few system calls as the kernel allows.
    pub async fn send(&mut self, head: &mut BytesMut, body: &[Bytes]) -> Result<(), SendError> {
        head.extend_from_slice(b"\r\n");
        let mut head_left: &[u8] = head;
        let mut first = 0;
        let mut offset = 0;
        loop {
            let mut slices = [IoSlice::new(&[]); 8];
            let mut used = 0;
            if !head_left.is_empty() {
                slices[0] = IoSlice::new(head_left);
                used = 1;
            }
            for (index, piece) in body.iter().enumerate().skip(first).take(8 - used) {
                slices[used] = IoSlice::new(if index == first { &piece[offset..] } else { piece });
                used += 1;
            }
            if used == 0 {
                return Ok(());
            }
            let mut wrote = self.stream.write_vectored(&slices[..used]).await?;
            if wrote == 0 && (!head_left.is_empty() || body[first..].iter().any(|p| !p.is_empty())) {
                return Err(SendError::Upstream(std::io::ErrorKind::WriteZero.into()));
            }
            let from_head = wrote.min(head_left.len());
            head_left = &head_left[from_head..];
            wrote -= from_head;
            while first < body.len() && wrote >= body[first].len() - offset {
                wrote -= body[first].len() - offset;
                first += 1;
                offset = 0;
            }
            offset += wrote;
        }
    }

    /// Relays the client's body as it comes, with the client's length or chunked; at most `limit_bytes`.
    pub async fn send_streamed(
        &mut self,
        head: &mut BytesMut,
        mut body: Incoming,
        limit_bytes: usize,
    ) -> Result<(), SendError> {
        let exact = body.size_hint().exact();
        if exact.is_none() {
            head.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        head.extend_from_slice(b"\r\n");
        self.stream.write_all(head).await?;
        let mut total = 0usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| SendError::Client)?;
            let Ok(data) = frame.into_data() else { continue };
            total = total.saturating_add(data.len());
            if total > limit_bytes {
                return Err(SendError::TooLarge);
            }
            if exact.is_some() {
                self.stream.write_all(&data).await?;
            } else if !data.is_empty() {
                let mut chunk = BytesMut::with_capacity(data.len() + 20);
                write!(chunk, "{:x}\r\n", data.len()).expect("writing to memory must succeed");
                chunk.extend_from_slice(&data);
                chunk.extend_from_slice(b"\r\n");
                self.stream.write_all(&chunk).await?;
            }
        }
        if exact.is_none() {
            self.stream.write_all(b"0\r\n\r\n").await?;
        }
        Ok(())
    }

    /// Reads the head of the answer, passing over 1xx answers.
    pub async fn read_head(&mut self, method: &Method) -> Result<ResponseHead, WireError> {
        loop {
            if !self.buffer.is_empty()
                && let Some(head) = parse_head(&mut self.buffer, method)?
            {
                return Ok(head);
            }
            if self.buffer.len() > HEAD_LIMIT_BYTES {
                return Err(WireError::Malformed("head: too large"));
            }
            let read = std::future::poll_fn(|cx| self.poll_fill(cx)).await?;
            if read == 0 {
                return Err(WireError::Truncated);
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < READ_ROOM_BYTES {
            self.buffer.reserve(READ_BYTES);
        }
        // `poll_read` knows that a short read emptied the socket and spares the next system call; `try_read_buf` does not.
        std::pin::pin!(self.stream.read_buf(&mut self.buffer)).poll(cx)
    }
}

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

fn finish_head(
    status: StatusCode,
    mut headers: HeaderMap,
    http_10: bool,
    method: &Method,
) -> Result<ResponseHead, WireError> {
    let has = |name: &HeaderName, token: &str| {
        headers.get_all(name).iter().any(|value| {
            value
                .to_str()
                .is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
        })
    };
    let chunked = has(&TRANSFER_ENCODING, "chunked");
    let keep_alive = if http_10 {
        has(&CONNECTION, "keep-alive")
    } else {
        !has(&CONNECTION, "close")
    };
    let bodiless = *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational();
    let framing = if bodiless {
        Framing::Length(0)
    } else if chunked {
        Framing::Chunked(Chunk::Size)
    } else if let Some(length) = headers.get(CONTENT_LENGTH) {
        let length = length.to_str().ok().and_then(|v| v.trim().parse().ok());
        Framing::Length(length.ok_or(WireError::Malformed("content-length"))?)
    } else {
        Framing::UntilClose
    };
    let keep_alive = keep_alive && !matches!(framing, Framing::UntilClose);
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_per_connection(name))
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
    Ok(ResponseHead {
        status,
        headers,
        framing,
        keep_alive,
    })
}

/// The body of an answer, read from the connection as the client takes it.
///
/// Dropping it before its end closes the connection, which makes Dynamo cancel the request.
#[derive(Debug)]
pub struct RelayBody {
    connection: Option<Connection>,
    framing: Framing,
    keep_alive: bool,
    pool: Arc<ConnectionPool>,
    /// A piece that was inspected and given back; it goes out first.
    held: Option<Bytes>,
}

impl RelayBody {
    /// The body that follows `head` on its connection.
    pub fn new(
        connection: Connection,
        head: ResponseHead,
        pool: Arc<ConnectionPool>,
    ) -> (StatusCode, HeaderMap, Self) {
        let body = Self {
            connection: Some(connection),
            framing: head.framing,
            keep_alive: head.keep_alive,
            pool,
            held: None,
        };
        (head.status, head.headers, body)
    }

    /// Next piece, `None` at the end. After an error the body is over.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(Ok(Frame::data(held))));
        }
        loop {
            let Some(connection) = &mut self.connection else {
                return Poll::Ready(None);
            };
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

    /// Gives a piece back, so that it is the next one again.
    pub fn hold(&mut self, piece: Bytes) {
        self.held = Some(piece);
    }

    /// Whether the body has ended.
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

    fn recycle(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
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
