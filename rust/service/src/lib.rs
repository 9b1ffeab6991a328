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
//!
//! Cost of a request: one read of the body, one tokenisation, one decision of the router, and
//! constant work per piece of the answer. Every stage has a limit of its own in [`config`], and a
//! request beyond a limit is refused or placed without its prompt.
//! Who calls: data-plane threads call [`Service::prepare`] and [`ActiveRequest`]; the control plane
//! calls the other methods of [`Service`]; feeds run on the service's own event loop.

pub mod admission;
mod bound;
mod cancel;
mod clock;
pub mod config;
mod error;
mod feed;
mod latency_bins;
mod logging;
pub mod metrics;
mod models;
mod outcomes;
mod panics;
#[cfg(feature = "peers")]
mod peers;
#[cfg(not(feature = "peers"))]
#[path = "peers/off.rs"]
mod peers;
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
pub use logging::start_logging;
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
pub use spans::{Attribute, AttributeValue, DecisionFacts, DoorTrace, RequestTrace, TraceFacts, TraceStart};
