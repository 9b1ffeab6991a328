//! The state that all serving threads of the gateway share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use wardrop_service::Service;

use crate::config::GatewayConfig;
use crate::metrics::HttpMetrics;
use crate::upstream::{ConnectionPool, UpstreamSet};

/// State of the HTTP door, on top of the routing service.
pub struct Shared {
    /// The routing service.
    pub service: Arc<Service>,
    /// Configuration, fixed for the life of the gateway.
    pub config: GatewayConfig,
    /// Metrics of the door.
    pub metrics: HttpMetrics,
    /// Frontends that requests go to.
    pub upstreams: Arc<UpstreamSet>,
    /// Makes request ids of this process unlike those of another.
    pub nonce: u64,
    /// Requests in flight.
    pub in_flight: AtomicUsize,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// The gateway takes no new requests.
    pub draining: AtomicBool,
}

impl Shared {
    /// The metrics page: the service's part with the door's.
    pub fn render_metrics(&self) -> String {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        self.metrics
            .in_flight
            .set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        self.service.render_metrics()
    }
}

/// State of one serving thread.
pub struct Thread {
    /// State of all threads.
    pub shared: Arc<Shared>,
    /// This thread's upstream connections.
    pub connections: Arc<ConnectionPool>,
}
