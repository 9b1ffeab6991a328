//! The state that all serving threads of the gateway share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use wardrop_service::Service;
use wardrop_service::admission::{BodyBudget, InFlight};

use super::client_state::IdleConnections;
use super::retries::RetryBudget;
use crate::config::GatewayConfig;
use crate::metrics::HttpMetrics;
use crate::resources::Resources;
use crate::upstream::{ConnectionPool, UpstreamSet};

/// State of the HTTP door, on top of the routing service.
pub struct Shared {
    /// The routing service.
    pub service: Arc<Service>,
    /// Configuration, fixed for the life of the gateway. Its limits fit the resources of the process.
    pub config: GatewayConfig,
    /// Resources that the operating system gives to the process.
    pub resources: Resources,
    /// Metrics of the door.
    pub metrics: Arc<HttpMetrics>,
    /// Upstreams of requests: frontends, or the workers themselves.
    pub upstreams: Arc<UpstreamSet>,
    /// Bytes of all request bodies in memory.
    pub bodies: Arc<BodyBudget>,
    /// Budget of second attempts.
    pub retries: RetryBudget,
    /// Number that makes request ids of this process differ from those of another process.
    pub nonce: u64,
    /// Requests in flight.
    pub in_flight: Arc<InFlight>,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// Whether the gateway takes no new requests.
    pub draining: AtomicBool,
}

impl Shared {
    /// The metrics page: the service's part with the door's.
    pub fn render_metrics(&self) -> String {
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &self.metrics;
        metrics.in_flight.set(whole(self.in_flight.requests()));
        metrics
            .connections
            .set(whole(self.connections.load(Ordering::Relaxed)));
        metrics.body_bytes.set(whole(self.bodies.used_bytes()));
        self.service.render_metrics()
    }
}

/// State of one serving thread.
pub struct Thread {
    /// State of all threads.
    pub shared: Arc<Shared>,
    /// This thread's upstream connections.
    pub connections: Arc<ConnectionPool>,
    /// This thread's client connections that wait for a request.
    pub idle: Arc<IdleConnections>,
}
