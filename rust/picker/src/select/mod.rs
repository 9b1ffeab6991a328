//! The decision as a service: a caller selects a worker, books it, and reports the first token and the end of its request.
//!
//! ```text
//! caller ─▶ http | grpc ─▶ selector (workers, reservations by id) ─▶ wardrop_service (decision, booking)
//! ```
//!
//! The caller sends the request to the worker itself, so nothing of the request passes here except its tokens or hashes.
//!
//! Bounds: open reservations, pending selections with their bytes, the life of both, and the bytes of all bodies; see
//! [`SelectConfig`].

mod bodies;
mod dump;
mod error;
mod fleet;
mod grpc;
mod http;
mod reservations;
mod selection;
mod selector;
mod server;
mod workers;

pub use server::{SelectConfig, SelectServer};
