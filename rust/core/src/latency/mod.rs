//! What the engines' seconds depend on, learned online per worker from what the router sees.
//!
//! Stands in the flow `outcome in ─▶ learn curves`: first tokens ([`ServiceClock`]), token gaps and forward-pass metrics go
//! in, [`WorkerCurves`] give prefill and step seconds to the price and to the queue. Memory is a few hundred bytes per
//! worker, whatever the traffic; one outcome costs tens of nanoseconds.

mod clock;
mod curve;
mod fleet;
mod pass;
mod rls;

pub use clock::ServiceClock;
pub use curve::{PrefillPoint, PrefillWork, Prior, StepPoint, TransferCurve, WorkerCurves};
pub use fleet::{CurveView, FleetCurves, FleetRecord};
pub use pass::Pass;
pub use rls::{Learning, Rls, RlsRecord};
