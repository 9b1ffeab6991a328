//! The request of a client within its limits: header size, body size and time.
//!
//! Cost: one copy of a body that came in several pieces. The deadline runs over the whole body, so
//! a client cannot hold a request open byte by byte.

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
        let mut first: Option<Bytes> = None;
        let mut all = BytesMut::new();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else {
                continue;
            };
            total += data.len();
            if total > limit_bytes {
                return Err(Refusal::BodyTooLarge { limit_bytes });
            }
            permit.grow(data.len())?;
            match first.take() {
                None if all.is_empty() => first = Some(data),
                None => all.extend_from_slice(&data),
                Some(one) => {
                    let exact = announced.exact().and_then(|n| usize::try_from(n).ok());
                    all.reserve(exact.unwrap_or((one.len() + data.len()) * 2).min(limit_bytes));
                    all.extend_from_slice(&one);
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.freeze()))
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
