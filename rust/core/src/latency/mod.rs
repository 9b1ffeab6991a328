//! How long engines take, as curves per worker, learned online from what the router sees.
//!
//! Stands in the flow `outcome ─▶ curves ─▶ price and queue`. First tokens (`clock.rs`), token gaps and
//! forward-pass metrics go in. [`WorkerCurves`] give the seconds of a prefill and of a decode step. Memory is a few
//! hundred bytes per worker, regardless of the traffic. One outcome costs tens of nanoseconds.

mod clock;
mod curve;
mod fleet;
mod pass;
mod rls;

pub use clock::FirstToken;
pub use curve::{PrefillPoint, PrefillWork, Prior, StepLoad, StepPoint, WorkerCurves};
pub use fleet::{CurveView, FleetCurves, FleetRecord};
pub use pass::Pass;
pub use rls::Learning;
