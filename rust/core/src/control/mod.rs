//! What a control plane sees of a pool and changes in it: the same figures and the same rules in the gateway and in the
//! simulator, so that a controller judged in the one can act in the other.
//!
//! ```text
//! router, queue ─▶ Pulse ┐                                   ┌─▶ Routing, checked as a whole ─▶ router, queue
//! answers ──────▶ Interval ┴─▶ one look ─▶ (Python) decide ──┘
//! ```

mod interval;
mod pulse;
mod routing;

use serde::Serialize;

pub use interval::Interval;
pub use pulse::Pulse;
pub use routing::{Routing, RoutingChange};

/// One look of a controller.
#[derive(Clone, Debug, Serialize)]
pub struct Look {
    /// When, seconds of the caller's clock.
    pub now_s: f64,
    /// Outcomes since the last look.
    pub outcomes: Interval,
    /// Every pool.
    pub pools: Vec<Pulse>,
}
