//! HTTP/1.1 body framing (RFC 9112 §6–7): length, chunked, until close. Pure: bytes in, pieces out.
//!
//! [`super::connection`] feeds it the bytes of each read. Strict where leniency would let two
//! readers disagree about the end of a message; lenient about chunk extensions, which are ignored
//! (RFC 9112 §7.1.1).

use bytes::{Buf, Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// Longest accepted chunk-size line and longest accepted trailer section, in bytes.
const LINE_LIMIT_BYTES: usize = 8 << 10;

/// A violation of HTTP/1.1 by an upstream.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection ended inside a message.
    #[error("connection closed inside a message")]
    Truncated,
    /// Bytes that are not HTTP/1.1.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// One step of decoding.
#[derive(Debug)]
pub enum Decoded {
    /// Body bytes.
    Data(Bytes),
    /// Trailer fields; the body is over.
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// More bytes must be read first.
    NeedMore,
}

/// How the end of a body is found, with the current position in it.
#[derive(Debug)]
pub enum Framing {
    /// Bytes of the body that are still to come.
    Length(u64),
    /// Chunked transfer coding.
    Chunked(Chunk),
    /// Everything up to the end of the connection.
    UntilClose,
}

/// Position inside a chunked body.
#[derive(Debug)]
pub enum Chunk {
    /// Before a chunk-size line.
    Size,
    /// Bytes of the current chunk that are still to come.
    Data(u64),
    /// Before the line break that ends a chunk.
    DataEnd,
    /// After the last chunk.
    Trailers,
}

impl Framing {
    /// Takes from `buffer` all body bytes that are there, as one piece.
    ///
    /// Called again after [`Decoded::NeedMore`] with more bytes in the buffer.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for bytes that break the framing.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, WireError> {
        match self {
            Self::Length(0) => Ok(Decoded::End),
            Self::Length(left) => {
                if buffer.is_empty() {
                    return Ok(Decoded::NeedMore);
                }
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= take as u64;
                Ok(Decoded::Data(buffer.split_to(take).freeze()))
            }
            Self::UntilClose => {
                if buffer.is_empty() {
                    return Ok(Decoded::NeedMore);
                }
                Ok(Decoded::Data(buffer.split().freeze()))
            }
            Self::Chunked(chunk) => chunk.decode(buffer),
        }
    }
}

impl Chunk {
    /// All chunks of the buffer become one piece: one copy per burst costs less than one write per
    /// token.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, WireError> {
        let mut piece: Option<Bytes> = None;
        // The first chunk is passed on without a copy; only a second chunk in the same read makes
        // one.
        let mut joined: Option<BytesMut> = None;
        loop {
            match self {
                Self::Size => match read_line(buffer)? {
                    None => break,
                    Some(line) => {
                        let size = parse_chunk_size(&line)?;
                        *self = if size == 0 {
                            Self::Trailers
                        } else {
                            Self::Data(size)
                        };
                    }
                },
                Self::Data(left) => {
                    if buffer.is_empty() {
                        break;
                    }
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    *left -= take as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    let data = buffer.split_to(take);
                    match (&mut joined, piece.take()) {
                        (Some(all), _) => all.extend_from_slice(&data),
                        (None, None) => piece = Some(data.freeze()),
                        (None, Some(first)) => {
                            let mut all = BytesMut::with_capacity(first.len() + take + buffer.len());
                            all.extend_from_slice(&first);
                            all.extend_from_slice(&data);
                            joined = Some(all);
                        }
                    }
                }
                Self::DataEnd => {
                    if buffer.len() < 2 {
                        break;
                    }
                    if &buffer[..2] != b"\r\n" {
                        return Err(WireError::Malformed("chunk end"));
                    }
                    buffer.advance(2);
                    *self = Self::Size;
                }
                // Data goes out before the end is reported, so a caller never loses the last piece.
                Self::Trailers => {
                    if joined.is_some() || piece.is_some() {
                        break;
                    }
                    return decode_trailers(buffer);
                }
            }
        }
        Ok(match (joined, piece) {
            (Some(all), _) => Decoded::Data(all.freeze()),
            (None, Some(one)) => Decoded::Data(one),
            (None, None) => Decoded::NeedMore,
        })
    }
}

/// One line without its end; `None` while it is incomplete. A bare line feed ends a line too (RFC
/// 9112 §2.2).
fn read_line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, WireError> {
    match memchr::memchr(b'\n', buffer) {
        Some(end) if end <= LINE_LIMIT_BYTES => {
            let mut line = buffer.split_to(end + 1);
            let keep = if end > 0 && line[end - 1] == b'\r' {
                end - 1
            } else {
                end
            };
            line.truncate(keep);
            Ok(Some(line))
        }
        None if buffer.len() <= LINE_LIMIT_BYTES => Ok(None),
        _ => Err(WireError::Malformed("line: too long")),
    }
}

/// Hexadecimal size, ignoring chunk extensions.
fn parse_chunk_size(line: &[u8]) -> Result<u64, WireError> {
    let digits = line.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
    // 15 digits fit 60 bits, so the shift below cannot overflow.
    if digits.is_empty() || digits.len() > 15 {
        return Err(WireError::Malformed("chunk size"));
    }
    digits.iter().try_fold(0u64, |size, &b| {
        let digit = char::from(b)
            .to_digit(16)
            .ok_or(WireError::Malformed("chunk size"))?;
        Ok(size << 4 | u64::from(digit))
    })
}

/// The trailer section, up to 32 fields.
fn decode_trailers(buffer: &mut BytesMut) -> Result<Decoded, WireError> {
    if buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        return Ok(Decoded::End);
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    match httparse::parse_headers(buffer, &mut fields) {
        Ok(httparse::Status::Partial) if buffer.len() <= LINE_LIMIT_BYTES => Ok(Decoded::NeedMore),
        Ok(httparse::Status::Complete((used, fields))) => {
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(WireError::Malformed("trailer"));
                };
                trailers.append(name, value);
            }
            buffer.advance(used);
            Ok(Decoded::Trailers(trailers))
        }
        _ => Err(WireError::Malformed("trailers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(framing: &mut Framing, input: &[u8], step: usize) -> Result<(Vec<u8>, bool), WireError> {
        let mut buffer = BytesMut::new();
        let mut out = Vec::new();
        for part in input.chunks(step.max(1)) {
            buffer.extend_from_slice(part);
            loop {
                match framing.decode(&mut buffer)? {
                    Decoded::Data(data) => out.extend_from_slice(&data),
                    Decoded::NeedMore => break,
                    Decoded::End | Decoded::Trailers(_) => return Ok((out, true)),
                }
            }
        }
        Ok((out, false))
    }

    #[test]
    fn chunks_that_arrived_together_leave_as_one_piece() {
        let mut buffer = BytesMut::from(&b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"[..]);
        let mut framing = Framing::Chunked(Chunk::Size);
        assert!(matches!(framing.decode(&mut buffer).unwrap(), Decoded::Data(d) if &d[..] == b"abcde"));
        assert!(matches!(framing.decode(&mut buffer).unwrap(), Decoded::End));
    }

    #[test]
    fn trailers_are_kept() {
        let mut buffer = BytesMut::from(&b"0\r\nx-sum: 7\r\n\r\n"[..]);
        let mut framing = Framing::Chunked(Chunk::Size);
        let Decoded::Trailers(trailers) = framing.decode(&mut buffer).unwrap() else {
            panic!("must be trailers");
        };
        assert_eq!(trailers["x-sum"], "7");
    }

    #[test]
    fn endless_size_line_is_refused() {
        let mut buffer = BytesMut::from(&vec![b'1'; LINE_LIMIT_BYTES + 1][..]);
        assert!(Framing::Chunked(Chunk::Size).decode(&mut buffer).is_err());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_body(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8), step in 1usize..50) {
            let mut wire = Vec::new();
            for part in &parts {
                wire.extend_from_slice(format!("{:x};ext=1\r\n", part.len()).as_bytes());
                wire.extend_from_slice(part);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (body, ended) = all(&mut Framing::Chunked(Chunk::Size), &wire, step).unwrap();
            prop_assert!(ended);
            prop_assert_eq!(body, parts.concat());
        }

        #[test]
        fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..400), step in 1usize..50) {
            let _ = all(&mut Framing::Chunked(Chunk::Size), &input, step);
        }
    }
}
