//! Native data plane: HTTP in, decision, HTTP out.
//!
//! ```text
//! client ─▶ proxy ─▶ prompt (tokens, hashes) ─▶ fleet (route, book) ─▶ upstream (dynamo.frontend, worker pinned) ─▶ client
//! Dynamo's event plane ─▶ feed ─▶ fleet
//! ```
//!
//! All async code and all I/O of the project live in this crate; the decision itself is [`wardrop_core::Router`].

pub mod config;
mod error;
mod feed;
mod fleet;
mod gateway;
mod metrics;
mod outcomes;
mod prompt;
mod proxy;
mod receipts;
mod shadows;
mod upstream;

pub use config::GatewayConfig;
pub use error::{GatewayError, Refusal};
pub use gateway::Gateway;
