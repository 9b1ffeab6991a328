//! A request on its way to an upstream: head and body, written while the answer is already read.
//!
//! An upstream may answer before it has read the whole request, and may stop reading. Writing is therefore one half of a poll: it never
//! keeps the gateway from reading the answer, and one deadline covers both.
//!
//! Memory: the head, and one piece of a relayed body at a time. A body in memory is shared, not
//! copied.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use super::stream::Stream;

/// Most pieces in one system call.
const MAX_SLICES: usize = 8;

/// A request that is not written completely yet.
#[derive(Debug)]
pub struct Outgoing {
    /// Bytes to write next.
    queue: VecDeque<Bytes>,
    /// Source of further bytes; `None` for a body in memory.
    source: Option<ClientBody>,
}

/// Limits of a relayed body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Largest body, bytes.
    pub bytes: usize,
    /// Longest time in which the gateway waits for the client, over the whole body.
    pub wait: Duration,
}

/// A client's body that is relayed as it arrives.
#[derive(Debug)]
struct ClientBody {
    /// The client's body.
    body: Incoming,
    /// The client gave no length, so the pieces are framed as chunks.
    is_chunked: bool,
    /// Bytes that the body may still have.
    left_bytes: usize,
    /// Time that the client may still take. It runs only while the gateway waits for the client.
    left_wait: Duration,
    /// The present wait for the client; `None` while bytes are there.
    waiting: Option<Waiting>,
}

/// One wait for bytes of the client.
#[derive(Debug)]
struct Waiting {
    /// Begin of the wait.
    since: Instant,
    /// Timer of the rest of the client's time.
    alarm: Pin<Box<Sleep>>,
}

/// Why a request could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The client's body broke off.
    #[error("the client's body ended early")]
    Client,
    /// The client did not send its body in time.
    #[error("the client's body did not come in time")]
    ClientTimeout,
    /// The client's body is larger than the limit.
    #[error("the client's body is too large")]
    TooLarge,
    /// The upstream's socket failed.
    #[error(transparent)]
    Upstream(#[from] std::io::Error),
}

impl Outgoing {
    /// A request whose body is in memory. `head` lacks the empty line at its end.
    pub fn held(mut head: BytesMut, body: &[Bytes]) -> Self {
        head.extend_from_slice(b"\r\n");
        let pieces = body.iter().filter(|piece| !piece.is_empty()).cloned();
        Self {
            queue: std::iter::once(head.freeze()).chain(pieces).collect(),
            source: None,
        }
    }

    /// A request whose body is relayed with the client's length, or chunked. `head` lacks the empty line at its end.
    pub fn streamed(mut head: BytesMut, body: Incoming, limits: BodyLimits) -> Self {
        let is_chunked = body.size_hint().exact().is_none();
        if is_chunked {
            head.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        head.extend_from_slice(b"\r\n");
        Self {
            queue: VecDeque::from([head.freeze()]),
            source: Some(ClientBody {
                body,
                is_chunked,
                left_bytes: limits.bytes,
                left_wait: limits.wait,
                waiting: None,
            }),
        }
    }

    /// Whether the client's own body is still being read.
    pub fn reads_client(&self) -> bool {
        self.source.is_some()
    }

    /// Writes as much as the socket takes. `Ready(Ok)` when the request is written completely.
    ///
    /// `Pending` means that the socket takes no more or that the client has sent no more.
    ///
    /// # Errors
    /// [`SendError`] says which side failed; a failure of the upstream still allows its answer to
    /// be read.
    pub fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        loop {
            while !self.queue.is_empty() {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(&self.queue) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
                let wrote = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..used]))?;
                if wrote == 0 {
                    return Poll::Ready(Err(SendError::Upstream(std::io::ErrorKind::WriteZero.into())));
                }
                self.advance(wrote);
            }
            // A TLS session may keep bytes that the socket did not take.
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            let Some(source) = &mut self.source else {
                return Poll::Ready(Ok(()));
            };
            match ready!(source.poll_next(cx))? {
                Some(data) if source.is_chunked => {
                    let mut size = BytesMut::with_capacity(20);
                    write!(size, "{:x}\r\n", data.len()).expect("writing to memory must succeed");
                    self.queue
                        .extend([size.freeze(), data, Bytes::from_static(b"\r\n")]);
                }
                Some(data) => self.queue.push_back(data),
                None => {
                    if source.is_chunked {
                        self.queue.push_back(Bytes::from_static(b"0\r\n\r\n"));
                    }
                    self.source = None;
                }
            }
        }
    }

    /// Takes written bytes off the queue.
    fn advance(&mut self, mut wrote: usize) {
        while let Some(first) = self.queue.front_mut() {
            if wrote < first.len() {
                first.advance(wrote);
                return;
            }
            wrote -= first.len();
            self.queue.pop_front();
        }
    }
}

impl ClientBody {
    /// The next bytes, never empty; `None` at the end.
    ///
    ///
    /// # Errors
    /// The body broke, is too large, or the client's time is used up.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, SendError>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                let left = self.left_wait;
                let waiting = self.waiting.get_or_insert_with(|| Waiting {
                    since: Instant::now(),
                    alarm: Box::pin(tokio::time::sleep(left)),
                });
                ready!(waiting.alarm.as_mut().poll(cx));
                return Poll::Ready(Err(SendError::ClientTimeout));
            };
            if let Some(waiting) = self.waiting.take() {
                self.left_wait = self.left_wait.saturating_sub(waiting.since.elapsed());
            }
            let Some(frame) = frame else {
                return Poll::Ready(Ok(None));
            };
            let Ok(data) = frame.map_err(|_| SendError::Client)?.into_data() else {
                continue;
            };
            if data.len() > self.left_bytes {
                return Poll::Ready(Err(SendError::TooLarge));
            }
            self.left_bytes -= data.len();
            if !data.is_empty() {
                return Poll::Ready(Ok(Some(data)));
            }
        }
    }
}
