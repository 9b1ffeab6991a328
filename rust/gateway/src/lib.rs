//! The HTTP door: takes an `OpenAI` request, asks the routing service for workers, and forwards the request to a frontend.
//!
//! ```text
//! client ─▶ proxy (limits, intake) ─▶ wardrop_service (prompt, decision) ─▶ upstream (dynamo.frontend, worker pinned) ─▶ client
//! ```
//!
//! All knowledge of HTTP is here: headers, status codes, bodies, the pin headers of Dynamo. The service knows none of it.

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
