//! Endpoints that the gateway answers without an upstream: `/health`, `/live`, `/ready`, `/metrics`.
//!
//! They stay available while the gateway drains or is at its limit of requests: a probe must not
//! fail because of load.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};
use std::sync::atomic::Ordering;

use super::body::GatewayBody;
use super::shared::Shared;
use crate::error::Refusal;

/// Answers one of the endpoints in the module documentation; `None` for every other path.
pub fn answer(shared: &Shared, method: &Method, path: &str) -> Option<Response<GatewayBody>> {
    if *method != Method::GET && *method != Method::HEAD {
        return None;
    }
    match path {
        "/live" => Some(json(StatusCode::OK, &serde_json::json!({"status": "live"}))),
        // `/health` is the path of Dynamo's frontend, `/ready` the usual path of a readiness probe.
        "/ready" | "/health" => Some(state(shared)),
        "/metrics" if shared.config.routes.metrics => {
            let text = shared.render_metrics();
            let mut response = Response::new(GatewayBody::own(Bytes::from(text)));
            response.headers_mut().insert(
                CONTENT_TYPE,
                HeaderValue::from_static("text/plain; version=0.0.4"),
            );
            Some(response)
        }
        _ => None,
    }
}

/// The answer of `/ready`: 200 when the gateway is not draining and at least one worker is available.
fn state(shared: &Shared) -> Response<GatewayBody> {
    let routable = shared.service.routable_workers();
    let draining = shared.draining.load(Ordering::Relaxed);
    let ready = routable > 0 && !draining;
    let status = match (draining, ready) {
        (true, _) => "draining",
        (_, true) => "ready",
        _ => "no_routable_worker",
    };
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let in_flight = shared.in_flight.requests();
    let control = shared.service.parts();
    json(
        code,
        &serde_json::json!({
            "status": status,
            "routable_workers": routable,
            "in_flight": in_flight,
            "control": control,
        }),
    )
}

/// An answer with a JSON body.
fn json(code: StatusCode, value: &serde_json::Value) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::own(Bytes::from(value.to_string())));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to a request that the gateway refuses.
pub fn refuse(refusal: Refusal) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::own(refusal.body()));
    *response.status_mut() = refusal.status();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = refusal.retry_after_s() {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
