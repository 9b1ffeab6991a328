//! Past batches of an engine's KV events, from the engine's replay socket.
//!
//! vLLM, `SGLang` and TensorRT-LLM keep their last batches (10,000 by default). A request `["", start]` is answered by one message
//! per batch from `start` on, and by a message with the sequence 2⁶⁴ − 1. The socket drops messages of a long answer without an
//! error. The answer is therefore complete only when its numbers are contiguous. Otherwise the request is sent again, from the
//! first number that is missing.
//!
//! [`super::engine`] asks for a replay after a gap, a new connection, or a long silence. Bounds:
//! 128 MiB and 2¹⁷ batches per replay, and one deadline for all requests of it. Cost: O(b log b)
//! for b batches.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::zmtp::{Dealer, SubscriberLimits, ZmtpError};

/// Sequence of the message that ends an answer.
const END: u64 = u64::MAX;
/// Highest number of bytes that one replay may hold.
const REPLAY_BYTES_MAX: usize = 128 << 20;
/// Highest number of batches that one replay may hold.
const REPLAY_BATCHES_MAX: usize = 1 << 17;

/// Range of batches to ask for, and the time for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplayRequest {
    /// First number.
    pub from: u64,
    /// Number before which the answer must not end; 0 when the last number is unknown.
    pub until: u64,
    /// Time for the whole replay.
    pub deadline: Duration,
}

/// Contiguous batches.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replay {
    /// Batches by ascending number, without a hole. The first number is above `from` where the engine keeps no older batch.
    pub batches: Vec<(u64, Vec<u8>)>,
    /// Whether the batches reach every number that is known to exist.
    pub is_complete: bool,
}

/// Reads batches from the replay socket at `endpoint`.
///
/// A deadline or an error after the first batches is no error: the contiguous batches so far are
/// returned as incomplete. An answer that brings nothing new ends the loop, so a socket that keeps
/// dropping messages cannot hold it.
///
/// # Errors
/// The socket cannot be reached or gives no answer within the deadline, or an answer exceeds a limit.
pub(super) async fn replay(
    endpoint: &str,
    request: ReplayRequest,
    frame_bytes: usize,
) -> Result<Replay, ZmtpError> {
    let limits = SubscriberLimits {
        frame_bytes,
        deadline: Some(request.deadline),
    };
    let end = Instant::now() + request.deadline;
    let mut found = Found::default();
    let ask = async {
        let mut socket = Dealer::connect(endpoint, limits).await?;
        let mut start = request.from;
        let mut asked_from_start = 0;
        loop {
            let before = found.batches.len();
            asked_from_start += u32::from(start == request.from);
            socket.send(&[b"", &start.to_be_bytes()]).await?;
            while found.take(socket.receive().await?)? {}
            // An answer that starts late may have lost its start. A second answer with the same start shows that the engine keeps no more.
            if found.lacks_start(request) && asked_from_start < 2 {
                start = request.from;
                continue;
            }
            match found.first_hole(request) {
                Some(hole) if found.batches.len() > before || start != hole => start = hole,
                _ => break,
            }
        }
        Ok::<(), ZmtpError>(())
    };
    let asked = tokio::time::timeout_at(end, ask).await;
    match asked {
        Ok(Err(error)) if found.batches.is_empty() => return Err(error),
        Err(_) if found.batches.is_empty() => return Err(ZmtpError::Timeout),
        _ => {}
    }
    Ok(found.contiguous(request))
}

/// Batches of all answers so far, each number once.
#[derive(Default)]
struct Found {
    /// Payloads by number; at most [`REPLAY_BATCHES_MAX`].
    batches: BTreeMap<u64, Vec<u8>>,
    /// Sum of the payloads' lengths, in bytes; at most [`REPLAY_BYTES_MAX`].
    bytes: usize,
}

impl Found {
    /// Takes a message. Returns false for the message that ends an answer.
    ///
    ///
    /// # Errors
    /// [`ZmtpError::Handshake`] for a message of another form, [`ZmtpError::TooLarge`] beyond a
    /// limit of one replay.
    fn take(&mut self, mut frames: Vec<Vec<u8>>) -> Result<bool, ZmtpError> {
        // The empty delimiter of REQ and REP sockets, which the ROUTER socket of an engine sends
        // back.
        if frames.first().is_some_and(Vec::is_empty) {
            frames.remove(0);
        }
        // Engines send the sequence first, or behind the topic.
        let payload = frames.pop().ok_or(ZmtpError::Handshake)?;
        let sequence = frames.pop().ok_or(ZmtpError::Handshake)?;
        let sequence = <[u8; 8]>::try_from(sequence.as_slice()).map_err(|_| ZmtpError::Handshake)?;
        let sequence = u64::from_be_bytes(sequence);
        if sequence == END {
            return Ok(false);
        }
        if self.bytes + payload.len() > REPLAY_BYTES_MAX || self.batches.len() >= REPLAY_BATCHES_MAX {
            return Err(ZmtpError::TooLarge);
        }
        let length = payload.len();
        if self.batches.insert(sequence, payload).is_none() {
            self.bytes += length;
        }
        Ok(true)
    }

    /// Whether batches at the start of the request are missing, as far as any are known to exist.
    fn lacks_start(&self, request: ReplayRequest) -> bool {
        match self.batches.range(request.from..).next() {
            Some((&first, _)) => first > request.from,
            None => request.until > request.from,
        }
    }

    /// First missing number behind the first batch.
    fn first_hole(&self, request: ReplayRequest) -> Option<u64> {
        let (&first, _) = self.batches.range(request.from..).next()?;
        let end = self.contiguous_end(first);
        (end < self.known_end(request)).then_some(end)
    }

    /// Number after the last batch of the run that starts at `first`.
    fn contiguous_end(&self, first: u64) -> u64 {
        let mut next = first;
        for &number in self.batches.range(first..).map(|(number, _)| number) {
            if number != next {
                break;
            }
            next += 1;
        }
        next
    }

    /// Number after the last batch that is known to exist.
    fn known_end(&self, request: ReplayRequest) -> u64 {
        let last = self.batches.last_key_value();
        last.map_or(0, |(&last, _)| last + 1).max(request.until)
    }

    /// The first unbroken run of batches at or after the start of the request.
    fn contiguous(mut self, request: ReplayRequest) -> Replay {
        let known_end = self.known_end(request);
        let mut batches = self.batches.split_off(&request.from);
        let Some((&first, _)) = batches.first_key_value() else {
            return Replay {
                batches: Vec::new(),
                is_complete: request.until <= request.from,
            };
        };
        let mut next = first;
        let mut run = Vec::new();
        while let Some(payload) = batches.remove(&next) {
            run.push((next, payload));
            next += 1;
        }
        Replay {
            batches: run,
            is_complete: next >= known_end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::run_to_end as run;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const fn ask(from: u64, until: u64) -> ReplayRequest {
        ReplayRequest {
            from,
            until,
            deadline: Duration::from_secs(5),
        }
    }

    fn message(sequence: u64, payload: &[u8], topic: bool) -> Vec<u8> {
        let mut bytes = vec![1, 0];
        if topic {
            bytes.extend_from_slice(b"\x01\x01t");
        }
        bytes.extend_from_slice(&[1, 8]);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&[0, payload.len() as u8]);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A replay socket that answers the n-th request with the n-th list of numbers. Returns the endpoint and the requests' starts.
    async fn socket(answers: Vec<Vec<u64>>) -> (String, tokio::sync::mpsc::UnboundedReceiver<u64>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let (starts, seen) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut greeting = [0u8; 64];
            stream.read_exact(&mut greeting).await.unwrap();
            stream.write_all(&greeting).await.unwrap();
            stream
                .write_all(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER")
                .await
                .unwrap();
            let mut ready = [0u8; 2];
            stream.read_exact(&mut ready).await.unwrap();
            let mut rest = vec![0; ready[1] as usize];
            stream.read_exact(&mut rest).await.unwrap();
            assert!(rest.windows(6).any(|window| window == b"DEALER"));
            for (at, numbers) in answers.into_iter().enumerate() {
                let mut request = [0u8; 12];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(request[..4], [1, 0, 0, 8]);
                let start = u64::from_be_bytes(request[4..].try_into().unwrap());
                starts.send(start).unwrap();
                for number in numbers {
                    let bytes = message(number, &[number as u8], at % 2 == 1);
                    stream.write_all(&bytes).await.unwrap();
                }
                stream.write_all(&message(END, b"", false)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        });
        (endpoint, seen)
    }

    fn numbers(replay: &Replay) -> Vec<u64> {
        assert!(
            replay
                .batches
                .iter()
                .all(|(number, payload)| payload == &[*number as u8])
        );
        replay.batches.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn missing_batches_are_asked_for_again_from_the_first_hole() {
        run(async {
            let answers = vec![vec![2, 3, 6, 9], vec![4, 5, 6, 8, 9], vec![7, 8, 9]];
            let (endpoint, mut starts) = socket(answers).await;
            let got = replay(&endpoint, ask(2, 0), 1 << 20).await.unwrap();
            assert_eq!(numbers(&got), (2..10).collect::<Vec<_>>());
            assert!(got.is_complete);
            let asked = [starts.recv().await, starts.recv().await, starts.recv().await];
            assert_eq!(asked, [Some(2), Some(4), Some(7)]);
        });
    }

    #[test]
    fn answer_that_ends_before_a_known_number_is_not_complete() {
        run(async {
            let (endpoint, mut starts) = socket(vec![vec![0, 1], vec![]]).await;
            let got = replay(&endpoint, ask(0, 4), 1 << 20).await.unwrap();
            assert_eq!((numbers(&got), got.is_complete), (vec![0, 1], false));
            assert_eq!([starts.recv().await, starts.recv().await], [Some(0), Some(2)]);
        });
    }

    #[test]
    fn engine_that_keeps_no_older_batch_gives_what_it_keeps() {
        run(async {
            let (endpoint, _starts) = socket(vec![vec![5, 6], vec![5, 6]]).await;
            let got = replay(&endpoint, ask(0, 0), 1 << 20).await.unwrap();
            assert_eq!((numbers(&got), got.is_complete), (vec![5, 6], true));
        });
    }

    #[test]
    fn engine_without_a_batch_gives_an_empty_complete_answer() {
        run(async {
            let (endpoint, _starts) = socket(vec![vec![]]).await;
            let got = replay(&endpoint, ask(0, 0), 1 << 20).await.unwrap();
            assert_eq!((numbers(&got), got.is_complete), (vec![], true));
        });
    }

    #[test]
    fn socket_that_answers_nothing_is_given_up_at_the_deadline() {
        run(async {
            let (endpoint, _starts) = socket(vec![]).await;
            let short = ReplayRequest {
                deadline: Duration::from_millis(200),
                ..ask(0, 0)
            };
            assert!(replay(&endpoint, short, 1 << 20).await.is_err());
        });
    }
}
