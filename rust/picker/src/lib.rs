//! The gRPC doors: the endpoint picker of a Gateway API gateway (Envoy's external processing), and the decision as a service.
//!
//! ```text
//! Envoy ─▶ exchange (one stream for each request) ─▶ wardrop_service (prompt, decision) ─▶ headers that name the endpoint ─▶ Envoy
//! Envoy ─▶ exchange (the answer passes by)        ─▶ wardrop_service (first token, end, usage)
//! ```
//!
//! Envoy sends the request to the worker. This crate sees only copies of the request's bytes.
//!
//! Sources: Envoy's external processing protocol; proposal 004 of the Gateway API Inference
//! Extension; headers of llm-d; Dynamo 1.6's selection service.

mod config;
mod destination;
mod endpoints;
mod exchange;
mod facts;
mod headers;
mod http;
mod messages;
mod metrics;
mod model_name;
mod picker;
mod refusal;
mod select;
mod server;
mod shared;

#[allow(missing_docs, clippy::pedantic, clippy::all, reason = "generated code")]
mod proto {
    pub mod ext_proc {
        tonic::include_proto!("envoy.service.ext_proc.v3");
    }
    pub mod select {
        tonic::include_proto!("wardrop.v1");
    }
    /// All descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!("proto.binpb");
}

pub use config::{Dialect, Limits, PickerConfig, TlsFiles};
pub use picker::Picker;
pub use select::{SelectConfig, SelectServer};
