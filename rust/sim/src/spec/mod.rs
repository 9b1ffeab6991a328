//! Specification of a simulated fleet, as read from configuration files.
//!
//! A fleet consists of pools, a pool of equal engines at different speeds, an engine of device memory, memory tiers
//! and a timing. Every specification is validated once, when its fleet is built.

mod engine;
mod fault;
mod fleet;
mod lie;
mod plan;
mod router;
mod tier;
mod unseen;

pub use engine::{EngineSpec, Eviction, Preemption};
pub use fault::{Fault, FaultKind};
pub use fleet::{FeedSpec, FleetSpec, PoolSpec, Role, TransferSpec};
pub use lie::{Lie, LieKind};
pub use plan::Plan;
pub use router::RouterSpec;
pub use tier::TierSpec;
pub use unseen::Unseen;
