//! The state that all streams of the picker share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use wardrop_service::Service;
use wardrop_service::admission::{BodyBudget, InFlight};

use crate::config::PickerConfig;
use crate::endpoints::Endpoints;
use crate::metrics::PickerMetrics;

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

impl Shared {
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
