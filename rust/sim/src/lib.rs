//! A discrete-event fleet that drives the real [`wardrop_core::Router`].
//!
//! ```text
//! workload ─▶ arrival ─▶ Router::route ─▶ engine queue ─▶ iterations ─▶ tokens ─▶ Router::prefill_done, release
//!                             ▲                               │
//!                             └── delay, loss ── KV events ◀──┘
//! ```
//!
//! The simulator has no router of its own: the object under test is the one that production runs. Time is virtual, all
//! randomness is seeded, and one seed gives one result, byte for byte. [`simulate`] is the whole interface.

mod agenda;
mod config;
mod engine;
mod fault;
mod fleet;
mod link;
mod live;
mod pool;
mod record;
pub mod shadow;
mod tier;
mod timing;
mod watched;
mod workload;

#[cfg(test)]
mod tests;

pub use config::{
    EngineSpec, Eviction, FeedSpec, FleetSpec, PoolSpec, Preemption, Role, RouterSpec, SimError, TransferSpec,
};
pub use fault::{Fault, FaultKind};
pub use fleet::simulate;
pub use live::{Ended, LiveFleet, LiveRequest};
pub use record::{End, GapHistogram, Outcome, Requests, Samples, Totals};
pub use tier::TierSpec;
pub use timing::{DecodeStep, Table, Timing};
pub use watched::{ChangeError, WatchedFleet};
pub use workload::Workload;
