//! The decision as a service: select a worker, book it, report how its request goes on.
//!
//! ```text
//! caller ─▶ http | grpc ─▶ selector (reservations by name) ─▶ wardrop_service (decision, booking)
//! ```
//!
//! The caller sends the request to the worker itself, so nothing of the request passes here except its tokens or hashes.

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
