//! What routing loses: exact assignments and the price-of-anarchy estimators built on them.
//!
//! Stands beside the flow `outcome in ─▶ learn curves ─▶ regime, PoA ─▶ policy`: decisions go in as
//! [`Placement`]s, [`Meter`] cuts them into windows, solves each window exactly and reports four figures that are
//! never mixed up ([`Estimate`]). Nothing here knows a router, a clock or an engine; all costs are seconds.
//!
//! Complexity: [`assign`] is O(n²·m) at worst and far below it in practice (512 × 512 in a few milliseconds);
//! [`assign_congested`] is the same with workers in the place of slots, so its cost grows with the number of
//! workers, not with workers × slots.

mod assignment;
mod calibration;
mod congestion;
mod matrix;
mod meter;
mod placed;
mod window;

pub use assignment::{Assignment, assign};
pub use calibration::{Calibration, ModelError};
pub use congestion::{CongestedAssignment, assign_congested};
pub use matrix::CostMatrix;
pub use meter::{Interval, Meter, MeterConfig, MeterReport, Solved, Task};
pub use placed::Placed;
pub use window::{Estimate, Loss, Placement, Window, WorkerState};
