//! `/metrics`, `/live`, `/ready` and the facts for `wardrop doctor` over HTTP, on a port of their own.
//!
//! Probes and Prometheus read it. It works while the picker drains, so that the reason of a failed
//! readiness stays visible.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::facts::{self, as_json};
use crate::shared::Shared;

/// The routes.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/health", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/wiring", get(wiring))
        .route("/v1/receipts/{request_id}", get(receipt))
        .with_state(shared)
}

/// The metrics page in Prometheus' text format.
async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        shared.render_metrics(),
    )
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    as_json(StatusCode::OK, shared.status(None))
}

async fn wiring(State(shared): State<Arc<Shared>>) -> Response {
    facts::wiring("picker", shared.config.service.routing.receipts)
}

async fn receipt(State(shared): State<Arc<Shared>>, Path(request_id): Path<String>) -> Response {
    facts::receipt(&shared.service, &request_id)
}

/// 200 while a request could be placed, otherwise 503.
async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if shared.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no worker may be chosen\n")
    }
}
