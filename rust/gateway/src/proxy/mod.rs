//! A request's way through the gateway.
//!
//! ```text
//! accept ─▶ connection ─▶ handler ─▶ intake (limits) ─▶ wardrop_service (prompt, decision) ─▶ forward ─▶ exchange ─▶ upstream
//!                                                                                     client ◀─ body (relay, measurements) ◀─┘
//! ```
//!
//! A request stays on the thread that accepted its connection. Serving threads share [`Shared`]:
//! atomics, and locks that are held for a lookup.

mod accept;
mod admin;
mod body;
mod client_io;
mod client_state;
mod connection;
mod exchange;
mod forward;
mod guard;
mod handler;
mod intake;
mod linger;
mod pins;
mod retries;
pub(crate) mod routes;
mod server;
mod shared;
mod split;

pub use retries::RetryBudget;
pub use server::Server;
pub use shared::Shared;
pub use split::PrefillTask;
