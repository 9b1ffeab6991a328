//! What a client may send: header size, body size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};

use crate::config::Limits;
use crate::error::Refusal;

/// Longest time and most bytes spent on the rest of a refused body, so that the client can read the answer.
const DRAIN_TIME: Duration = Duration::from_secs(2);
const DRAIN_FACTOR: usize = 4;

/// Whether the headers are within the limit.
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
pub async fn read_body(mut body: Incoming, limits: &Limits) -> Result<Bytes, Refusal> {
    let limit_bytes = limits.body_bytes;
    let announced = body.size_hint();
    if announced.lower() > limit_bytes as u64 {
        drain(body, limit_bytes).await;
        return Err(Refusal::BodyTooLarge { limit_bytes });
    }
    let time = Duration::from_millis(limits.read_timeout_ms);
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
    match tokio::time::timeout(time, read).await {
        Ok(Err(refusal @ Refusal::BodyTooLarge { .. })) => {
            drain(body, limit_bytes).await;
            Err(refusal)
        }
        Ok(done) => done,
        Err(_) => Err(Refusal::ReadTimeout {
            limit_ms: limits.read_timeout_ms,
        }),
    }
}

/// Reads and drops the rest of a body. A client that still writes does not read, and a reset would discard the answer.
async fn drain(mut body: Incoming, limit_bytes: usize) {
    let most = limit_bytes.saturating_mul(DRAIN_FACTOR);
    let read = async {
        let mut total = 0usize;
        while let Some(Ok(frame)) = body.frame().await {
            total = total.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if total > most {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, read).await;
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
