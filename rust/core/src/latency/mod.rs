//! How long engines take, as curves per worker, learned online from what the router sees.
//!
//! Stands in the flow `outcome ─▶ curves ─▶ price and queue`. First tokens (`clock.rs`), token gaps and
//! forward-pass metrics go in. [`WorkerCurves`] give the seconds of a prefill and of a decode step. Memory is
//! a few hundred bytes per worker, regardless of the traffic. One outcome costs tens of nanoseconds.
//!
//! ```text
//! first token of a request ─▶ ServiceClock: time of the pass alone ─▶ prefill curve
//! end of a request         ─▶ mean gap between its tokens          ─▶ step curve
//! report of an engine pass ─▶ believable? one kind of work? new?   ─▶ the curve of that kind
//! every sample             ─▶ the curves of the fleet as well, which workers without samples follow
//! ```
//!
//! No profile is needed. The curves start from a generic prior that is right to an order of magnitude. With a
//! prior 3 times off, the error is 8.6 % after 10 requests and 1.2 % after 400 (`docs/explanation/price.md`).
//!
//! Files, in reading order: `curve` has the two functions, and `rls` how one of them learns. `clock` makes
//! samples of first tokens, and `pass` of reports. `fleet` holds all workers of a pool.

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
