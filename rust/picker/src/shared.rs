//! The state that all streams of the picker share.
//!
//! Everything here is atomic or swapped whole; a stream holds no lock over a message.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use serde::Serialize;
use wardrop_service::admission::{BodyBudget, InFlight};
use wardrop_service::{FeedReport, ModelReport, PartState, Service};

use crate::config::PickerConfig;
use crate::endpoints::Endpoints;
use crate::metrics::PickerMetrics;
use crate::server::Addresses;

/// State of the picker, on top of the routing service.
pub(crate) struct Shared {
    /// The routing service.
    pub service: Arc<Service>,
    /// Configuration, fixed for the life of the picker.
    pub config: PickerConfig,
    /// Metrics of the picker.
    pub metrics: PickerMetrics,
    /// Bytes of all request bodies in memory.
    pub bodies: Arc<BodyBudget>,
    /// Addresses of the workers.
    pub endpoints: ArcSwap<Endpoints>,
    /// Model of requests that name no registered model.
    pub default_model: ArcSwap<Option<String>>,
    /// Requests in flight.
    pub in_flight: Arc<InFlight>,
    /// Whether the picker is about to stop, so that health checks fail.
    pub draining: AtomicBool,
}

/// The state of the picker, as `status` and `GET /v1/status` show it.
#[derive(Serialize)]
struct Status {
    address: Option<String>,
    health_address: Option<String>,
    http_address: Option<String>,
    draining: bool,
    ready: bool,
    in_flight: usize,
    body_bytes: usize,
    endpoints: BTreeMap<u64, String>,
    control: BTreeMap<String, PartState>,
    models: Vec<ModelReport>,
    feeds: Vec<FeedReport>,
    peer_address: Option<String>,
}

impl Shared {
    /// The state of the picker and of everything behind it, as JSON. `addresses` is `None` before the picker serves, and
    /// for a reader that has reached one of them.
    pub fn status(&self, addresses: Option<Addresses>) -> String {
        let endpoints = self.endpoints.load();
        let shown = |bound: Option<SocketAddr>| bound.map(|bound| bound.to_string());
        let status = Status {
            address: shown(addresses.map(|all| all.grpc)),
            health_address: shown(addresses.and_then(|all| all.health)),
            http_address: shown(addresses.and_then(|all| all.http)),
            draining: self.draining.load(Ordering::Relaxed),
            ready: self.is_ready(),
            in_flight: self.in_flight.requests(),
            body_bytes: self.bodies.used_bytes(),
            endpoints: endpoints
                .all()
                .map(|endpoint| (endpoint.instance(), endpoint.address.to_string()))
                .collect(),
            control: self.service.parts(),
            models: self.service.model_reports(),
            feeds: self.service.feed_reports(),
            peer_address: shown(self.service.peer_address()),
        };
        serde_json::to_string(&status).expect("a status of plain values must serialise")
    }

    /// The metrics page: the service's part with the picker's.
    pub fn render_metrics(&self) -> String {
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &self.metrics;
        metrics.in_flight.set(whole(self.in_flight.requests()));
        metrics.body_bytes.set(whole(self.bodies.used_bytes()));
        metrics.endpoints.set(whole(self.endpoints.load().all().count()));
        self.service.render_metrics()
    }

    /// Whether a request could be placed now.
    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && self.service.routable_workers() > 0
    }
}
