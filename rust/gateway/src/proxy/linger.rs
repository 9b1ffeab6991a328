//! The end of a client connection: the sending side closes, and what the client still sends is discarded for a while.
//!
//! Closing a socket with unread bytes resets the connection. A reset discards an answer that the client has not read yet, and shows
//! the client an error in place of the answer's end (RFC 9112 §9.6).

use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Longest wait for a client that still sends after its last answer.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that one read discards.
const DISCARD_BYTES: usize = 16 << 10;

/// State of a connection whose sending side is closed.
pub(super) struct Linger {
    /// Timer of [`LINGER`].
    sleep: Pin<Box<Sleep>>,
    /// Bytes that may still be discarded.
    left_bytes: usize,
}

impl Linger {
    /// Closes the sending side; `None` when the connection is broken. At most `most_bytes` are discarded afterwards.
    pub fn begin(stream: &TcpStream, most_bytes: usize) -> Option<Self> {
        socket2::SockRef::from(stream).shutdown(Shutdown::Write).ok()?;
        Some(Self {
            sleep: Box::pin(tokio::time::sleep(LINGER)),
            left_bytes: most_bytes,
        })
    }

    /// Reads and discards until the client closes, within the limits of time and bytes.
    pub fn poll(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let mut discarded = [0u8; DISCARD_BYTES];
        loop {
            if self.sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match stream.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            match stream.try_read(&mut discarded) {
                Ok(0) => return Poll::Ready(()),
                Ok(read) if read < self.left_bytes => self.left_bytes -= read,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Ends a connection after its last answer, within the limits of [`Linger`].
pub(super) async fn linger(stream: &TcpStream, most_bytes: usize) {
    if let Some(mut linger) = Linger::begin(stream, most_bytes) {
        std::future::poll_fn(|cx| linger.poll(stream, cx)).await;
    }
}
