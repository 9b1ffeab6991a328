//! From a booking to the headers that send a request to its workers.
//!
//! Envoy's load balancer reads the destination header; the other headers are for the worker and its
//! sidecar. O(legs).

use wardrop_service::{Booking, Role};

use crate::config::Dialect;
use crate::endpoints::Endpoints;
use crate::headers::{DESTINATION, PREFILLER, RANK};
use crate::messages::Headers;

/// The worker that a request goes to, and the headers that bring it there.
pub(crate) struct Destination {
    /// `ip:port` of the worker that answers.
    pub address: String,
    /// Headers for Envoy and for the workers.
    pub headers: Headers,
}

impl Destination {
    /// The destination of a booking. `None` when an endpoint left since the decision.
    pub fn new(booking: &Booking, endpoints: &Endpoints, dialect: Dialect) -> Option<Self> {
        let mut headers = Headers::default();
        let mut address = None;
        let mut is_split = false;
        for leg in booking.legs() {
            // An endpoint that left between decision and answer has no address any more.
            let found = endpoints.get(leg.worker.instance)?.address.to_string();
            let is_prefill = leg.pool.role == Role::Prefill;
            is_split |= is_prefill;
            match dialect {
                Dialect::LlmD if is_prefill => headers.set(PREFILLER, &found),
                Dialect::LlmD if leg.pin_rank => headers.set(RANK, leg.worker.dp_rank),
                Dialect::LlmD => {}
                Dialect::Dynamo => {
                    let (instance, rank) = if is_prefill {
                        ("x-dynamo-prefill-instance-id", "x-dynamo-prefill-dp-rank")
                    } else {
                        ("x-dynamo-worker-instance-id", "x-dynamo-dp-rank")
                    };
                    headers.set(instance, leg.worker.instance);
                    if leg.pin_rank {
                        headers.set(rank, leg.worker.dp_rank);
                    }
                }
            }
            if !is_prefill {
                address = Some(found);
            }
        }
        let address = address?;
        if dialect == Dialect::Dynamo {
            let mode = if is_split { "disaggregated" } else { "aggregated" };
            headers.set("x-dynamo-routing-mode", mode);
        }
        headers.set(DESTINATION, &address);
        Some(Self { address, headers })
    }
}
