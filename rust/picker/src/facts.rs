//! Facts for `wardrop doctor` over HTTP, with the paths and forms of the gateway's admin API.

use std::time::SystemTime;

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use wardrop_service::Service;

/// Name and version of the form of [`wiring`].
const WIRING_SCHEMA: &str = "wardrop.wiring.v1";

/// The door, its version and its clock. `receipts` is the number of receipts that the router keeps.
pub(crate) fn wiring(door: &str, receipts: usize) -> Response {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let wiring = json!({
        "schema": WIRING_SCHEMA,
        "at_s": since_1970.unwrap_or_default().as_secs_f64(),
        "wardrop_version": env!("CARGO_PKG_VERSION"),
        "receipts": receipts,
        "door": door,
    });
    as_json(StatusCode::OK, wiring.to_string())
}

/// The receipt of a request; 404 without one.
pub(crate) fn receipt(service: &Service, request_id: &str) -> Response {
    match service.receipt(request_id) {
        Some(receipt) => as_json(StatusCode::OK, receipt),
        None => as_json(
            StatusCode::NOT_FOUND,
            json!({"error": "no receipt of this request is kept"}).to_string(),
        ),
    }
}

/// A body of JSON.
pub(crate) fn as_json(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}
