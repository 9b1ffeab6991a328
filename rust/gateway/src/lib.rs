//! The HTTP door: takes an `OpenAI` request, asks the routing service for workers, and forwards the request to a frontend.
//!
//! ```text
//! client ─▶ proxy (limits, intake) ─▶ wardrop_service (prompt, decision) ─▶ upstream (dynamo.frontend, worker pinned) ─▶ client
//! ```
//!
//! All knowledge of HTTP is here: headers, status codes, bodies, the pin headers of Dynamo. The service knows none of it.
//!
//! Who calls: the bindings make a [`Gateway`], fill its service with models, workers and feeds, and
//! start it. Limits: [`Limits`] bounds clients, [`UpstreamOptions`] bounds upstreams, and every
//! violation is a [`Refusal`]. Cost beside the service: no copy of a relayed byte, and no change of
//! threads within a request.
//! Sources: RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1), and the pin headers of
//! `dynamo.frontend`.

mod config;
mod error;
mod gateway;
mod metrics;
mod proxy;
mod resources;
mod upstream;

pub use config::{GatewayConfig, Limits, RouteOptions, UpstreamOptions};
pub use error::Refusal;
pub use gateway::Gateway;
use wardrop_service::ServiceError;
