//! A request's way through the gateway: limits → prompt → decision → upstream → relay.

mod admin;
mod body;
mod decide;
mod exchange;
mod handler;
mod intake;
mod server;
mod tenants;
mod usage;

pub use server::{Server, Shared};
pub use tenants::Tenants;
