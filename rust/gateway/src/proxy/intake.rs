//! The request of a client within its limits: header size, body size and time.
//!
//! Cost: two copies of a body that came in several pieces, amortised. The deadline runs over the whole body, so
//! a client cannot hold a request open byte by byte. The memory of a body follows the bytes that arrived, never the announced length.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};

use wardrop_service::admission::{BodyBudget, BodyPermit};

use crate::config::Limits;
use crate::error::Refusal;

/// A request body in memory, charged to the sum of all bodies until it is dropped.
pub struct HeldBody {
    /// The whole body.
    pub bytes: Bytes,
    /// Charge of the bytes, given back with the body.
    _permit: BodyPermit,
}

/// The pieces of a body that have arrived.
///
/// Invariant: the reserved memory is at most twice the bytes that arrived. An announced length reserves nothing.
#[derive(Default)]
struct Pieces {
    /// The only piece so far, which is not copied.
    first: Option<Bytes>,
    /// All pieces, from the second on.
    all: BytesMut,
}

impl Pieces {
    /// Bytes that arrived.
    fn len(&self) -> usize {
        self.first.as_ref().map_or(self.all.len(), Bytes::len)
    }

    /// Adds a piece. O(bytes of the piece), amortised.
    fn push(&mut self, data: Bytes) {
        if self.first.is_none() && self.all.is_empty() {
            self.first = Some(data);
            return;
        }
        if let Some(first) = self.first.take() {
            self.all.extend_from_slice(&first);
        }
        self.all.extend_from_slice(&data);
    }

    /// The whole body.
    fn into_bytes(self) -> Bytes {
        self.first.unwrap_or_else(|| self.all.freeze())
    }
}

/// Whether the headers are within the limit.
///
/// Four bytes per field stand for the colon, the space and the line end.
///
/// # Errors
/// [`Refusal::HeadersTooLarge`].
pub fn check_headers(headers: &HeaderMap, limits: &Limits) -> Result<(), Refusal> {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if bytes > limits.header_bytes {
        return Err(Refusal::HeadersTooLarge {
            limit_bytes: limits.header_bytes,
        });
    }
    Ok(())
}

/// Reads a whole body within its limits, without a copy when it came in one piece.
///
/// After a refusal the client may still send. Its connection closes once the client has read the answer, see `client_io`.
///
/// # Errors
/// [`Refusal::BodyTooLarge`], [`Refusal::BodiesFull`], [`Refusal::BodyBroken`] or
/// [`Refusal::ReadTimeout`].
pub async fn read_body(
    mut body: Incoming,
    limits: &Limits,
    budget: &Arc<BodyBudget>,
) -> Result<HeldBody, Refusal> {
    let limit_bytes = limits.body_bytes;
    let announced = body.size_hint();
    if announced.lower() > limit_bytes as u64 {
        return Err(Refusal::BodyTooLarge { limit_bytes });
    }
    // The announced length decides only whether to begin. Charging it would let clients that send
    // nothing fill the budget.
    let mut permit = budget.admit(usize::try_from(announced.lower()).unwrap_or(usize::MAX))?;
    let read = async {
        let mut pieces = Pieces::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else {
                continue;
            };
            if pieces.len() + data.len() > limit_bytes {
                return Err(Refusal::BodyTooLarge { limit_bytes });
            }
            permit.grow(data.len())?;
            pieces.push(data);
        }
        Ok(pieces.into_bytes())
    };
    let limit_ms = limits.read_timeout_ms;
    match tokio::time::timeout(Duration::from_millis(limit_ms), read).await {
        Ok(bytes) => Ok(HeldBody {
            bytes: bytes?,
            _permit: permit,
        }),
        Err(_) => Err(Refusal::ReadTimeout { limit_ms }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn memory_of_a_body_follows_the_bytes_that_arrived() {
        let mut pieces = Pieces::default();
        for arrived in 1..=8 {
            pieces.push(Bytes::from(vec![b'x'; 1 << 10]));
            assert_eq!(pieces.len(), arrived << 10);
            let reserved = pieces.all.capacity();
            assert!(
                reserved <= 2 * pieces.len(),
                "{reserved} bytes reserved for {}",
                pieces.len()
            );
        }
        assert_eq!(pieces.into_bytes(), vec![b'x'; 8 << 10]);
    }

    #[test]
    fn pieces_join_in_their_order() {
        for count in 0..4_u8 {
            let mut pieces = Pieces::default();
            (0..count).for_each(|piece| pieces.push(Bytes::from(vec![piece; 1_000])));
            let whole: Vec<u8> = (0..count).flat_map(|piece| vec![piece; 1_000]).collect();
            assert_eq!(pieces.into_bytes(), whole);
        }
    }

    #[test]
    fn header_sum_above_the_limit_is_refused() {
        let limits = Limits {
            header_bytes: 100,
            ..Limits::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_str(&"v".repeat(90)).unwrap());
        assert!(check_headers(&headers, &limits).is_ok());
        headers.insert("x-b", HeaderValue::from_static("vvvvvvvv"));
        assert_eq!(
            check_headers(&headers, &limits),
            Err(Refusal::HeadersTooLarge { limit_bytes: 100 })
        );
    }
}
