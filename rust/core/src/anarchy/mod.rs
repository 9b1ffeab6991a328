//! The price of anarchy: how much the chosen placements cost beyond the exact optimum.
//!
//! ```text
//! Router ─▶ RecordedDecision ─▶ Meter ─▶ Window ─▶ exact optimum ─▶ WindowEstimate ─▶ MeterReport
//! ```
//!
//! The router hands out one [`RecordedDecision`] per booking. [`Meter`] cuts the decisions into windows,
//! solves each window exactly, and reports four estimators side by side (see [`WindowEstimate`]). Nothing in
//! this module reads a router, a clock or an engine. All costs are seconds.
//!
//! What the result means: each decision is judged in the state that it met, with frozen caches. That is the
//! *loss of a decision*. It does not rank routers, because a router that spoils its caches is judged in its
//! own spoiled state. The simulator compares whole histories with a proven bound for that
//! (`docs/adr/0025-price-of-anarchy-against-a-bound.md`).
//!
//! Complexity: [`assign`] is O(n²·m) in the worst case; 512 × 512 takes a few milliseconds in practice.
//! [`assign_congested`] searches over workers instead of slots, so its cost grows with the number of workers
//! and not with workers × slots.
//!
//! Example: two requests, two workers, one assignment.
//!
//! ```
//! use wardrop_core::anarchy::{CostMatrix, assign};
//!
//! // Both requests prefer worker 0. The best assignment sends the second one to worker 1.
//! let costs = CostMatrix::new(2, 2, vec![1.0, 4.0, 1.5, 2.0])?;
//! let best = assign(&costs);
//! assert_eq!(best.column_of, [Some(0), Some(1)]);
//! assert_eq!(best.total, 3.0);
//! # Ok::<(), wardrop_core::Error>(())
//! ```

mod assignment;
mod calibration;
mod congestion;
mod decision;
mod matrix;
mod meter;
mod window;

pub use assignment::{Assignment, assign};
pub use calibration::{Calibration, ModelError};
pub use congestion::{CongestedAssignment, assign_congested};
pub use decision::{DecisionCosts, RecordedDecision};
pub use matrix::CostMatrix;
pub use meter::{ConfidenceInterval, Meter, MeterConfig, MeterReport, SolvedWindow, WindowTask};
pub use window::{FrozenCosts, Loss, Window, WindowEstimate, WindowWorker};
