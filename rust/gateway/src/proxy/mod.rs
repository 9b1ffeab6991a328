//! A request's way through the gateway: limits → prompt → decision → upstream → relay.

mod admin;
mod body;
mod exchange;
mod handler;
mod intake;
mod pins;
mod server;
mod shared;
mod usage;

pub use server::Server;
pub use shared::Shared;
