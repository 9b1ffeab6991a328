//! The price of anarchy: how much the chosen placements cost beyond the exact optimum.
//!
//! ```text
//! Router ─▶ RecordedDecision ─▶ Meter ─▶ Window ─▶ exact optimum ─▶ WindowEstimate ─▶ MeterReport
//! ```
//!
//! The router hands out one [`RecordedDecision`] per booking. [`Meter`] cuts the decisions into windows, solves each
//! window exactly, and reports four estimators side by side (see [`WindowEstimate`]). Nothing in this module reads a
//! router, a clock or an engine. All costs are seconds.
//!
//! Complexity: [`assign`] is O(n²·m) in the worst case; 512 × 512 takes a few milliseconds in practice.
//! [`assign_congested`] searches over workers instead of slots, so its cost grows with the number of workers and not
//! with workers × slots.

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
