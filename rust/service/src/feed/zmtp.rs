//! A `ZeroMQ` subscriber (ZMTP 3.0, NULL mechanism, RFC 23) with a bound on every frame.
//!
//! Written here because the bound has to hold before memory is taken: the `zeromq` crate reserves what a frame announces.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BUFFER_BYTES: usize = 64 << 10;
/// A frame is read in steps of this size, so that memory follows what arrives, not what is announced.
const STEP_BYTES: usize = 64 << 10;
const MAX_FRAMES: usize = 16;

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// What ended or disturbed a subscription.
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
}

/// A connected SUB socket.
pub(crate) struct Subscriber {
    stream: BufReader<TcpStream>,
    frame_limit_bytes: usize,
}

impl Subscriber {
    /// Connects to `tcp://host:port` and subscribes to everything.
    pub async fn connect(endpoint: &str, frame_limit_bytes: usize) -> Result<Self, ZmtpError> {
        let address = endpoint.strip_prefix("tcp://").ok_or(ZmtpError::Handshake)?;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_| ZmtpError::Timeout)??;
        let stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
        let mut subscriber = Self {
            stream,
            frame_limit_bytes,
        };
        let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, subscriber.handshake()).await;
        greeted.map_err(|_| ZmtpError::Timeout)??;
        Ok(subscriber)
    }

    async fn handshake(&mut self) -> Result<(), ZmtpError> {
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
        ready.extend_from_slice(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB\x08Identity\x00\x00\x00\x00");
        ready[1] = (ready.len() - 2) as u8;
        self.stream.write_all(&ready).await?;
        let (flags, body) = self.read_frame().await?;
        if flags & FLAG_COMMAND == 0 || !body.starts_with(b"\x05READY") {
            return Err(ZmtpError::Handshake);
        }
        // Subscription to the empty prefix, in the form of 3.0: a message `0x01` + prefix.
        self.stream.write_all(&[0, 1, 1]).await?;
        Ok(())
    }

    /// Nothing that was read ahead is left.
    pub fn is_drained(&self) -> bool {
        self.stream.buffer().is_empty()
    }

    /// The frames of the next message.
    pub async fn receive(&mut self) -> Result<Vec<Vec<u8>>, ZmtpError> {
        let mut frames = Vec::with_capacity(4);
        let mut total = 0;
        loop {
            let (flags, body) = self.read_frame().await?;
            if flags & FLAG_COMMAND != 0 {
                self.answer_command(&body).await?;
                continue;
            }
            total += body.len();
            if frames.len() >= MAX_FRAMES || total > self.frame_limit_bytes {
                return Err(ZmtpError::TooLarge);
            }
            frames.push(body);
            if flags & FLAG_MORE == 0 {
                return Ok(frames);
            }
        }
    }

    async fn answer_command(&mut self, body: &[u8]) -> Result<(), ZmtpError> {
        // PING carries a time to live (2 bytes) and up to 16 bytes of context that go back in the PONG.
        if let Some(rest) = body.strip_prefix(b"\x04PING") {
            let context = rest.get(2..).unwrap_or_default();
            let context = &context[..context.len().min(16)];
            let mut pong = vec![FLAG_COMMAND, (5 + context.len()) as u8];
            pong.extend_from_slice(b"\x04PONG");
            pong.extend_from_slice(context);
            self.stream.write_all(&pong).await?;
        }
        Ok(())
    }

    async fn read_frame(&mut self) -> Result<(u8, Vec<u8>), ZmtpError> {
        let flags = self.stream.read_u8().await?;
        let length = if flags & FLAG_LONG == 0 {
            u64::from(self.stream.read_u8().await?)
        } else {
            self.stream.read_u64().await?
        };
        let length = usize::try_from(length).map_err(|_| ZmtpError::TooLarge)?;
        if length > self.frame_limit_bytes {
            return Err(ZmtpError::TooLarge);
        }
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
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A publisher that greets, then sends `wire` as it is.
    async fn publisher(wire: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut greeting = [0u8; 64];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting[10..17], b"\x03\0NULL\0");
            stream.write_all(&greeting).await.unwrap();
            stream
                .write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB")
                .await
                .unwrap();
            let mut ready = [0u8; 2];
            stream.read_exact(&mut ready).await.unwrap();
            let mut rest = vec![0; ready[1] as usize + 3];
            stream.read_exact(&mut rest).await.unwrap();
            assert!(rest.ends_with(&[0, 1, 1]), "must subscribe to everything");
            stream.write_all(&wire).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        endpoint
    }

    fn run<F: Future>(work: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn message_of_several_frames_is_received() {
        run(async {
            let endpoint = publisher(b"\x01\x02ab\x04\x07\x04PING\0\0\x00\x01c".to_vec()).await;
            let mut subscriber = Subscriber::connect(&endpoint, 100).await.unwrap();
            assert_eq!(
                subscriber.receive().await.unwrap(),
                vec![b"ab".to_vec(), b"c".to_vec()]
            );
        });
    }

    #[test]
    fn announced_giant_is_refused_before_memory_is_taken() {
        run(async {
            let endpoint = publisher(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec()).await;
            let mut subscriber = Subscriber::connect(&endpoint, 8 << 20).await.unwrap();
            assert!(matches!(subscriber.receive().await, Err(ZmtpError::TooLarge)));
        });
    }

    #[test]
    fn peer_that_speaks_something_else_is_refused() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&[b'x'; 64]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
            assert!(matches!(
                Subscriber::connect(&endpoint, 100).await,
                Err(ZmtpError::Handshake)
            ));
        });
    }
}
