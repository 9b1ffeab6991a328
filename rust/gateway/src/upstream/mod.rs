//! The way to Dynamo's frontends, or to the workers themselves: a small HTTP/1.1 client made for relaying.
//!
//! One task drives a request from its first to its last byte: no connection tasks, no channels. The bytes of one read are handed
//! on as one piece, so a burst of tokens costs one write. A slow client stops the reads.
//!
//! Sources: RFC 9112 for the wire, RFC 9110 for the fields. Own code in place of a client library,
//! see `docs/adr/0005-own-wire-clients.md`.
//!
//! hyper's client runs each connection in a task of its own and hands every chunk over a channel. This
//! costs more per token than the whole relay. Dropping a body closes its connection, and Dynamo learns
//! from this that it may stop.

mod connection;
mod dry_run;
mod fetch;
mod fields;
mod framing;
#[cfg(test)]
mod fuzz;
mod outgoing;
mod pool;
mod probe;
mod resolver;
mod set;
mod stream;
mod tls;
mod transfer;

pub use connection::{Connection, ExchangeError, RelayBody, ResponseHead, write_head};
pub use dry_run::UpstreamDryRun;
use fetch::post_json;
pub use framing::WireError;
pub use outgoing::{BodyLimits, Outgoing, SendError};
pub use pool::ConnectionPool;
pub use probe::probe_upstreams;
pub use set::{UpstreamSet, WorkerUpstream};
pub use tls::Tls;
pub use transfer::Transfer;
