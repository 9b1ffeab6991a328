//! A `ZeroMQ` client (ZMTP 3.0, NULL mechanism, RFC 23) with a bound on every frame and a deadline on every read.
//!
//! [`Subscriber`] is a SUB socket for feeds. [`Dealer`] is a DEALER socket for the replay sockets of engines.
//!
//! The bound must hold before memory is taken, and the `zeromq` crate reserves the bytes that a frame announces. Hence this client.
//!
//! A publisher without news sends nothing, so silence alone proves nothing. After a third of the deadline without a byte the
//! subscriber sends a PING, which every libzmq since 4.2 answers. A connection without any byte for the whole deadline is
//! lost: a half-open connection and a stopped process look like this. TCP keepalive covers publishers that answer no PING.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::Connection;

/// Longest time for the TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time for greeting and READY together, after the TCP connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the rest of a frame whose first byte has arrived, and for a write.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time before the kernel probes the connection, and time between its probes.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Unanswered probes of the kernel that end a connection.
const KEEPALIVE_PROBES: u32 = 3;
/// Bytes that one read of the socket takes at most. Many short messages then cost one system call.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Bytes of a frame that are read at a time, so that memory grows with the bytes that arrive, not with the announced length.
const STEP_BYTES: usize = 64 << 10;
/// Frames of one message at most. Engines send three: topic, number, payload.
const MAX_FRAMES: usize = 16;

/// Flag of a frame that another frame of the same message follows (RFC 23).
const FLAG_MORE: u8 = 1;
/// Flag of a frame whose length has 8 bytes; other lengths have one byte (RFC 23).
const FLAG_LONG: u8 = 2;
/// Flag of a command such as READY or PING, which is no part of a message (RFC 23).
const FLAG_COMMAND: u8 = 4;

/// Reason why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZmtpError {
    /// The socket failed or was closed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side is not a ZMTP 3 publisher.
    #[error("not a ZMTP 3 peer with the NULL mechanism")]
    Handshake,
    /// A frame or message above the limit.
    #[error("message above the limit")]
    TooLarge,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No byte within the deadline.
    #[error("no byte within the deadline, although a PING asked for an answer")]
    Silent,
}

/// Limits of one subscription.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubscriberLimits {
    /// Largest message, in bytes.
    pub frame_bytes: usize,
    /// Time without a byte after which the connection is lost; `None` for a publisher that answers no PING.
    pub deadline: Option<Duration>,
}

impl SubscriberLimits {
    /// The length of a frame, when memory may be taken for it.
    fn check(&self, length: u64) -> Result<usize, ZmtpError> {
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.frame_bytes)
            .ok_or(ZmtpError::TooLarge)
    }
}

/// A connected SUB socket.
pub(crate) struct Subscriber<S = Connection> {
    /// The connection with its read buffer.
    stream: BufReader<S>,
    /// Bounds of every message of this connection.
    limits: SubscriberLimits,
    /// Whether a PONG arrived on this connection.
    has_pong: bool,
}

impl Subscriber {
    /// Connects to `tcp://host:port` and subscribes to everything.
    ///
    /// # Errors
    /// [`ZmtpError::Handshake`] for an address without `tcp://` or a peer of another protocol,
    /// [`ZmtpError::Timeout`] without an answer in time.
    pub async fn connect(endpoint: &str, limits: SubscriberLimits) -> Result<Self, ZmtpError> {
        Self::greet(open(endpoint).await?, limits).await
    }

    /// Waits for the time `pause`. Messages that arrive meanwhile stay in the socket and do not wake the event loop.
    ///
    /// Call it only when [`Subscriber::is_drained`] holds, so that no message waits in the read buffer.
    ///
    /// # Errors
    /// [`ZmtpError::Io`] when the operating system refuses; the connection is closed then.
    pub async fn pause(&mut self, pause: Duration) -> Result<(), ZmtpError> {
        Ok(self.stream.get_mut().pause(pause).await?)
    }
}

/// A connected DEALER socket, for requests to a ROUTER socket.
pub(crate) struct Dealer(Subscriber);

impl Dealer {
    /// Connects to the ROUTER socket at `tcp://host:port`.
    pub async fn connect(endpoint: &str, limits: SubscriberLimits) -> Result<Self, ZmtpError> {
        let mut socket = Subscriber::new(open(endpoint).await?, limits);
        socket.shake_hands(b"DEALER").await?;
        Ok(Self(socket))
    }

    /// Sends one message. Each frame has at most 255 bytes.
    ///
    ///
    /// # Errors
    /// [`ZmtpError::TooLarge`] for a longer frame, [`ZmtpError::Silent`] when the peer reads
    /// nothing for [`FRAME_TIMEOUT`].
    pub async fn send(&mut self, frames: &[&[u8]]) -> Result<(), ZmtpError> {
        let mut bytes = Vec::new();
        for (at, frame) in frames.iter().enumerate() {
            let length = u8::try_from(frame.len()).map_err(|_| ZmtpError::TooLarge)?;
            bytes.push(if at + 1 < frames.len() { FLAG_MORE } else { 0 });
            bytes.push(length);
            bytes.extend_from_slice(frame);
        }
        self.0.write(&bytes).await
    }

    /// The frames of the next message.
    ///
    /// # Errors
    /// As [`Subscriber::receive`].
    pub async fn receive(&mut self) -> Result<Vec<Vec<u8>>, ZmtpError> {
        self.0.receive().await
    }
}

/// Opens a TCP connection to `tcp://host:port`.
async fn open(endpoint: &str) -> Result<Connection, ZmtpError> {
    let address = endpoint.strip_prefix("tcp://").ok_or(ZmtpError::Handshake)?;
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| ZmtpError::Timeout)??;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(Connection::new(stream))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Subscriber<S> {
    /// Subscribes to everything on a connected stream.
    pub async fn greet(stream: S, limits: SubscriberLimits) -> Result<Self, ZmtpError> {
        let mut subscriber = Self::new(stream, limits);
        subscriber.shake_hands(b"SUB").await?;
        // Subscription to the empty prefix, in the form of 3.0: a message `0x01` + prefix.
        subscriber.write(&[0, 1, 1]).await?;
        Ok(subscriber)
    }

    /// A socket before its handshake.
    fn new(stream: S, limits: SubscriberLimits) -> Self {
        Self {
            stream: BufReader::with_capacity(READ_BUFFER_BYTES, stream),
            limits,
            has_pong: false,
        }
    }

    /// Exchanges greetings as a socket of type `kind`.
    ///
    /// # Errors
    /// [`ZmtpError::Timeout`] after [`HANDSHAKE_TIMEOUT`], [`ZmtpError::Handshake`] for a peer of
    /// another version or mechanism.
    async fn shake_hands(&mut self, kind: &[u8]) -> Result<(), ZmtpError> {
        let greeted = timeout(HANDSHAKE_TIMEOUT, self.handshake(kind)).await;
        greeted.map_err(|_| ZmtpError::Timeout)?
    }

    /// Whether the publisher answered a PING on this connection.
    pub fn has_pong(&self) -> bool {
        self.has_pong
    }

    /// Sends the greeting and READY, and reads both from the peer.
    ///
    /// A greeting has 64 bytes: signature `0xff` … `0x7f` in bytes 0 to 9, version in byte 10, and
    /// the mechanism from byte 12 on (RFC 23). The version sent is 3.0; every later peer falls back
    /// to it.
    async fn handshake(&mut self, kind: &[u8]) -> Result<(), ZmtpError> {
        let mut greeting = [0u8; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.stream.write_all(&greeting).await?;
        let mut theirs = [0u8; 64];
        self.stream.read_exact(&mut theirs).await?;
        if theirs[0] != 0xff || theirs[9] & 1 == 0 || theirs[10] < 3 || &theirs[12..17] != b"NULL\0" {
            return Err(ZmtpError::Handshake);
        }
        let mut ready = vec![FLAG_COMMAND, 0];
        ready.extend_from_slice(b"\x05READY\x0bSocket-Type\x00\x00\x00");
        ready.push(kind.len() as u8);
        ready.extend_from_slice(kind);
        ready.extend_from_slice(b"\x08Identity\x00\x00\x00\x00");
        ready[1] = (ready.len() - 2) as u8;
        self.stream.write_all(&ready).await?;
        let (flags, body) = self.read_frame().await?;
        if flags & FLAG_COMMAND == 0 || !body.starts_with(b"\x05READY") {
            return Err(ZmtpError::Handshake);
        }
        Ok(())
    }

    /// Whether no byte that was read ahead is left. The caller pauses only then.
    pub fn is_drained(&self) -> bool {
        self.stream.buffer().is_empty()
    }

    /// The frames of the next message.
    ///
    /// The future may be dropped while it waits for the first byte of a message. Dropped later, it
    /// loses the bytes read so far.
    ///
    /// # Errors
    /// [`ZmtpError::TooLarge`] for a message beyond the limits. [`ZmtpError::Silent`] for a peer
    /// that stops inside a frame, or answers no PING in time.
    pub async fn receive(&mut self) -> Result<Vec<Vec<u8>>, ZmtpError> {
        let mut frames = Vec::with_capacity(4);
        let mut total = 0;
        loop {
            let (flags, body) = if let Some(frame) = self.buffered_frame()? {
                frame
            } else {
                self.await_byte().await?;
                let frame = timeout(FRAME_TIMEOUT, self.read_frame()).await;
                frame.map_err(|_| ZmtpError::Silent)??
            };
            if flags & FLAG_COMMAND != 0 {
                self.answer_command(&body).await?;
                continue;
            }
            total += body.len();
            if frames.len() >= MAX_FRAMES || total > self.limits.frame_bytes {
                return Err(ZmtpError::TooLarge);
            }
            frames.push(body);
            if flags & FLAG_MORE == 0 {
                return Ok(frames);
            }
        }
    }

    /// Waits for the next byte. Sends a PING after a third of the deadline, and fails at the deadline.
    async fn await_byte(&mut self) -> Result<(), ZmtpError> {
        let Some(deadline) = self.limits.deadline else {
            self.stream.fill_buf().await?;
            return Ok(());
        };
        // Reading into the buffer may be cancelled at any time without losing a byte.
        if let Ok(read) = timeout(deadline / 3, self.stream.fill_buf()).await {
            read?;
            return Ok(());
        }
        // A time to live of 0 asks the publisher for no deadline of its own.
        self.write(&[FLAG_COMMAND, 7, 4, b'P', b'I', b'N', b'G', 0, 0])
            .await?;
        let read = timeout(deadline * 2 / 3, self.stream.fill_buf()).await;
        read.map_err(|_| ZmtpError::Silent)??;
        Ok(())
    }

    /// Writes all bytes within [`FRAME_TIMEOUT`].
    async fn write(&mut self, bytes: &[u8]) -> Result<(), ZmtpError> {
        let written = timeout(FRAME_TIMEOUT, self.stream.write_all(bytes)).await;
        written.map_err(|_| ZmtpError::Silent)??;
        Ok(())
    }

    /// Answers a PING, and remembers a PONG. Every other command is passed over.
    async fn answer_command(&mut self, body: &[u8]) -> Result<(), ZmtpError> {
        if body.starts_with(b"\x04PONG") {
            self.has_pong = true;
        }
        // PING carries a time to live (2 bytes) and up to 16 bytes of context that go back in the PONG.
        if let Some(rest) = body.strip_prefix(b"\x04PING") {
            let context = rest.get(2..).unwrap_or_default();
            let context = &context[..context.len().min(16)];
            let mut pong = vec![FLAG_COMMAND, (5 + context.len()) as u8];
            pong.extend_from_slice(b"\x04PONG");
            pong.extend_from_slice(context);
            self.write(&pong).await?;
        }
        Ok(())
    }

    /// The next frame, where all of it was read ahead; else nothing is taken.
    ///
    /// Most frames are: a read takes the messages of some milliseconds. Deadlines read the clock twice per frame before, which took an
    /// eighth of the CPU time of the feeds' thread.
    ///
    /// # Errors
    /// [`ZmtpError::TooLarge`] for a frame beyond the limits.
    fn buffered_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, ZmtpError> {
        let buffer = self.stream.buffer();
        let (flags, length, body) = match *buffer {
            [flags, ref rest @ ..] if flags & FLAG_LONG != 0 => {
                let Some((length, body)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                (flags, u64::from_be_bytes(*length), body)
            }
            [flags, length, ref body @ ..] => (flags, u64::from(length), body),
            _ => return Ok(None),
        };
        let length = self.limits.check(length)?;
        let Some(body) = body.get(..length) else {
            return Ok(None);
        };
        let body = body.to_vec();
        let used = if flags & FLAG_LONG == 0 { 2 } else { 9 } + length;
        self.stream.consume(used);
        Ok(Some((flags, body)))
    }

    /// Reads flags, length and body of one frame.
    ///
    /// The length is checked before any memory is taken, and the body grows in steps of
    /// [`STEP_BYTES`].
    async fn read_frame(&mut self) -> Result<(u8, Vec<u8>), ZmtpError> {
        let flags = self.stream.read_u8().await?;
        let length = if flags & FLAG_LONG == 0 {
            u64::from(self.stream.read_u8().await?)
        } else {
            self.stream.read_u64().await?
        };
        let length = self.limits.check(length)?;
        let mut body = Vec::with_capacity(length.min(STEP_BYTES));
        while body.len() < length {
            let start = body.len();
            body.resize((start + STEP_BYTES).min(length), 0);
            self.stream.read_exact(&mut body[start..]).await?;
        }
        Ok((flags, body))
    }
}

#[cfg(test)]
mod tests;
