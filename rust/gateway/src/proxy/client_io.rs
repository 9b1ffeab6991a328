//! The client's socket as hyper sees it, with deadlines for a client that stops sending or stops reading.
//!
//! hyper reads and writes; this layer knows how long each has waited. Every wait on a client ends:
//!
//! | wait | limit | end |
//! |---|---|---|
//! | for the next request | `limits.idle_timeout_ms` | the connection closes |
//! | for the rest of a request head | `limits.read_timeout_ms` | 408, then the connection closes |
//! | for the socket to take bytes of an answer | `limits.write_timeout_ms` without progress | the connection closes |
//! | for the client to close after the last answer | 2 s, see `linger` | the connection closes |
//!
//! The wait for a request body has its deadline in `intake`, where a 408 can still be an ordinary answer.
//!
//! Cost: one timer per waiting connection, made when a wait begins. A read or write that makes
//! progress touches no timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::client_state::{ClientState, Phase};
use super::linger::Linger;
use crate::config::Limits;
use crate::error::Refusal;
use crate::metrics::HttpMetrics;

/// Most bytes that are discarded while a connection closes.
pub(super) const LINGER_BYTES: usize = 256 << 20;

/// Socket of one client. hyper owns it; the connection's loop shares the stream to see the client leave.
///
/// hyper's own timers cover the head of a request alone, so this layer keeps one deadline per kind
/// of wait.
pub struct ClientIo {
    /// The socket, shared with the wait for the client's end.
    stream: Arc<TcpStream>,
    /// Phase of the connection.
    state: Arc<ClientState>,
    /// Deadlines of this connection.
    waits: ClientWaits,
    /// Fires when the client was silent for too long; absent while a request is served.
    read_alarm: Option<Alarm>,
    /// Fires when the socket took no byte for too long; absent while it takes bytes.
    write_alarm: Option<Pin<Box<Sleep>>>,
    /// The closing phase; `None` before the shutdown.
    linger: Option<Linger>,
}

/// Deadlines of one client connection, with the counters of missed deadlines.
#[derive(Clone)]
pub struct ClientWaits {
    /// Longest wait for the first byte of a request.
    idle: Duration,
    /// Longest time from the first to the last byte of a head.
    head: Duration,
    /// Longest time in which the socket takes no byte.
    write: Duration,
    /// Counters of missed deadlines.
    metrics: Arc<HttpMetrics>,
}

/// Timer of one phase. A change of phase replaces it.
struct Alarm {
    /// Phase that the timer belongs to.
    phase: Phase,
    /// The timer.
    sleep: Pin<Box<Sleep>>,
}

impl ClientWaits {
    /// Deadlines from the configuration.
    pub fn new(limits: &Limits, metrics: Arc<HttpMetrics>) -> Self {
        Self {
            idle: Duration::from_millis(limits.idle_timeout_ms),
            head: Duration::from_millis(limits.read_timeout_ms),
            write: Duration::from_millis(limits.write_timeout_ms),
            metrics,
        }
    }
}

impl ClientIo {
    /// Wraps a stream that belongs to the event loop of this thread.
    pub fn new(stream: Arc<TcpStream>, state: Arc<ClientState>, waits: ClientWaits) -> Self {
        Self {
            stream,
            state,
            waits,
            read_alarm: None,
            write_alarm: None,
            linger: None,
        }
    }

    /// Ends a silence that is too long. Returns `Pending` while the client may still be silent.
    ///
    /// A request that is served has no alarm here: its own deadlines are those of the body, the
    /// upstream and the write.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.state.phase();
        let limit = match phase {
            Phase::Idle => self.waits.idle,
            Phase::Head => self.waits.head,
            Phase::Request => {
                self.read_alarm = None;
                return Poll::Pending;
            }
        };
        let alarm = match &mut self.read_alarm {
            // The alarm of a head starts with the first byte of the head and is not moved by further bytes.
            Some(alarm) if alarm.phase == phase => alarm,
            other => other.insert(Alarm {
                phase,
                sleep: Box::pin(tokio::time::sleep(limit)),
            }),
        };
        ready!(alarm.sleep.as_mut().poll(cx));
        let deadline = if phase == Phase::Head { "head" } else { "idle" };
        self.waits
            .metrics
            .client_timeouts
            .with_label_values(&[deadline])
            .inc();
        if phase == Phase::Idle {
            return Poll::Ready(Ok(()));
        }
        if self.write_alarm.is_none() {
            let refusal = Refusal::ReadTimeout {
                limit_ms: limit.as_millis() as u64,
            };
            // No answer is under way, so the bytes cannot land inside one. A full socket takes nothing: the client gets no text.
            let _ = self.stream.try_write(&refusal.raw_answer());
            self.state.refuse();
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Marks the socket as blocked, and fails when it stays blocked beyond the limit.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.state.set_write_blocked(true);
        let limit = self.waits.write;
        let alarm = self
            .write_alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(alarm.as_mut().poll(cx));
        self.waits
            .metrics
            .client_timeouts
            .with_label_values(&["write"])
            .inc();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes through `write` once the socket has room. Progress ends the alarm and wakes a body
    /// that waits.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.stream.poll_write_ready(cx)?.is_pending() {
                return self.poll_stalled(cx);
            }
            match write(&self.stream) {
                Ok(written) => {
                    if self.write_alarm.take().is_some() {
                        self.state.set_write_blocked(false);
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // The silence is checked only when no byte is there: a slow poll of this task is not
            // the client's fault.
            if this.stream.poll_read_ready(cx)?.is_pending() {
                return this.poll_silence(cx);
            }
            let room = buffer.remaining();
            match this.stream.try_read_buf(buffer) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(read) => {
                    if read < room {
                        // A short read emptied the socket. Clearing its readiness spares the next read, which would find nothing.
                        let _ = this.stream.try_io(Interest::READABLE, || {
                            Err::<(), _>(io::ErrorKind::WouldBlock.into())
                        });
                    }
                    this.state.received();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream| stream.try_write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Every write goes straight to the socket, so nothing waits here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            this.linger = Linger::begin(&this.stream, LINGER_BYTES);
        }
        match &mut this.linger {
            Some(linger) => linger.poll(&this.stream, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// Waits until the client has closed its sending side, also while bytes of the client wait unread.
///
/// A plain read cannot see this: hyper stops reading while a request is served and bytes of a next request are buffered.
#[cfg(target_os = "linux")]
pub async fn client_end(stream: &TcpStream) {
    // The priority interest of tokio reports urgent data and the closed state, but not ordinary bytes.
    let ready = stream.ready(Interest::PRIORITY).await;
    if ready.is_ok_and(|ready| !ready.is_read_closed()) {
        // Urgent data has no meaning in HTTP. Its readiness stays set, so this wait cannot see the closed state.
        std::future::pending::<()>().await;
    }
}

/// Other systems report the closed state only to a reader.
#[cfg(not(target_os = "linux"))]
pub async fn client_end(_: &TcpStream) {
    std::future::pending().await
}
