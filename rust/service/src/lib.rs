//! The routing service that every door shares: from a request body or token ids to booked workers, and from an answer to what it teaches.
//!
//! ```text
//! door ─▶ Service::prepare (tokens, hashes) ─▶ ActiveRequest::place (match, price, pick or wait, book) ─▶ door forwards
//! door ◀─ answer passes by ─▶ Answer (first token, later pieces, end) ─▶ curves, outcomes, receipts, shadows
//! event plane ─▶ feed ─▶ pool ─▶ index
//! ```
//!
//! A door (HTTP gateway, gRPC endpoint picker, a frontend in the same process) knows the service. The service knows no door: it serves no
//! socket to clients, and its refusals carry no status of a protocol. The decision itself is [`wardrop_core::Router`].

pub mod admission;
mod clock;
pub mod config;
mod error;
mod feed;
mod latency_bins;
pub mod metrics;
mod models;
mod outcomes;
mod panics;
mod pool;
mod prompt;
mod prompt_pool;
mod reading;
mod receipts;
mod records;
mod request;
mod service;
mod shadows;
#[cfg(feature = "otlp")]
mod spans;
#[cfg(not(feature = "otlp"))]
#[path = "spans/off.rs"]
mod spans;
mod tenants;

pub(crate) use clock::Clock;
pub use error::ServiceError;
pub use models::Model;
pub use panics::hide_panic_texts;
pub use pool::{Booking, Leg, Role, WorkerPool};
pub use prompt::{Abstention, DryRunError, Endpoint, TokenIdSource};
pub use reading::{AnswerReading, Progress, first_event_fails};
pub use request::{
    ActiveRequest, Answer, Chosen, PlaceHints, Prepared, ReadyPrompt, Refusal, ReservedTrail, Unplaced,
    UnreadPrompt, Usage,
};
pub use service::{DoorFeed, FeedReport, ModelReport, PartState, PoolName, Service};
pub use spans::{RequestTrace, TraceStart};
