//! A request's way through the gateway: limits → prompt → decision → upstream → relay.

mod admin;
mod body;
mod decide;
mod exchange;
mod handler;
mod intake;
mod server;
mod usage;

pub use server::{Server, Shared};
