//! Discrete-event simulation of a fleet behind the production [`wardrop_core::Router`].
//!
//! ```text
//! workload ─▶ arrival ─▶ Router::route ─▶ engine queue ─▶ iterations ─▶ tokens ─▶ Router::prefill_done, release
//!                             ▲                               │
//!                             └── delay, loss ── KV events ◀──┘
//! ```
//!
//! The simulator has no router of its own: it drives the object that production runs. Time is virtual, every random
//! number is seeded, and one seed gives one result, byte for byte.
//!
//! The entry points are:
//!
//! * [`simulate`] runs a whole [`Workload`] and returns an [`Outcome`];
//! * [`simulate_plan`] runs it with placements chosen in advance;
//! * [`search::Search`] looks for the best placements of a whole workload;
//! * [`bound::lower_bound`] computes what no router can go below, and [`bound::price_window`] does it for a stream;
//! * [`WatchedFleet`] runs a whole workload in steps, so that a controller can observe and change the fleet;
//! * [`shadow`] runs one live fleet per policy beside production traffic and compares them.
//!
//! Modules depend on each other in this order, and never the other way: `error`, `timing`, `workload`, `spec`,
//! `record`, `engine`, `estimate`, `bound`, `fleet`, then `live` and `watched`, then `shadow`.

pub mod bound;
mod engine;
mod error;
mod estimate;
mod fleet;
mod live;
mod record;
pub mod search;
pub mod shadow;
mod spec;
mod student_t;
mod timing;
mod watched;
mod workload;

#[cfg(test)]
mod tests;

pub use error::SimError;
pub use fleet::{simulate, simulate_plan};

pub use record::{End, GapHistogram, Outcome, Requests, Samples, Totals};
pub use spec::{
    EngineSpec, Eviction, Fault, FaultKind, FeedSpec, FleetSpec, Lie, LieKind, Plan, PoolSpec, Preemption,
    Role, RouterSpec, TierSpec, TransferSpec, Unseen,
};
pub use timing::{Timing, TimingTable};
pub use watched::{ChangeError, WatchedFleet};
pub use workload::Workload;
