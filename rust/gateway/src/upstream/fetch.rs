//! One small request to an upstream on the gateway's own behalf.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{HeaderMap, Method, Uri};
use std::sync::Arc;

use super::{ConnectionPool, Outgoing, RelayBody, write_head};

/// Longest time for the whole request with its answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Posts a JSON body and reads the whole answer, up to `limit_bytes`.
///
/// Each call opens a connection and closes it: such requests are rare, and an idle connection would
/// take a place from clients' requests.
///
/// # Errors
/// A text that names the step that failed.
pub async fn post_json(
    pool: &ConnectionPool,
    path: &str,
    body: String,
    limit_bytes: usize,
) -> Result<(u16, Bytes), String> {
    let exchange = async {
        let mut connection = pool
            .checkout(true)
            .await
            .ok_or("no upstream accepts connections")?;
        let uri: Uri = path.parse().map_err(|_| "not a path")?;
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("wardrop"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut head = BytesMut::with_capacity(256);
        write_head(&mut head, &Method::POST, &uri, &headers, Some(body.len()));
        let mut outgoing = Some(Outgoing::held(head, &[Bytes::from(body)]));
        let answer = connection
            .exchange(&mut outgoing, &Method::POST)
            .await
            .map_err(|e| e.to_string())?;
        let once = Arc::new(ConnectionPool::new(
            Arc::default(),
            crate::config::UpstreamOptions::default(),
            0,
        ));
        let (status, _, body) = RelayBody::new(connection, answer, outgoing, once);
        let body = Limited::new(body, limit_bytes)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        Ok((status.as_u16(), body.to_bytes()))
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| format!("no answer within {TIMEOUT:?}"))?
}
