//! What a control plane sees of a pool and changes in it.
//!
//! The gateway and the simulator share these figures and rules, so that a controller that was judged in simulation
//! can act on live traffic.
//!
//! ```text
//! router, queue ─▶ PoolSnapshot  ┐                                       ┌─▶ Routing, checked as a whole ─▶ router, queue
//! answers ──────▶ OutcomeWindow  ┴─▶ ControlSnapshot ─▶ (Python) decide ─┘
//! ```

mod outcomes;
mod pool;
mod routing;

use serde::Serialize;

pub use outcomes::OutcomeWindow;
pub use pool::PoolSnapshot;
pub use routing::{Routing, RoutingChange};

/// What a controller reads at one time.
#[derive(Clone, Debug, Serialize)]
pub struct ControlSnapshot {
    /// Time of the snapshot, seconds of the caller's clock.
    pub now_s: f64,
    /// Outcomes since the previous snapshot.
    pub outcomes: OutcomeWindow,
    /// Every pool.
    pub pools: Vec<PoolSnapshot>,
}
