//! Shadow fleets: what other policies would have made of the traffic that production receives now.
//!
//! ```text
//! arrival (hashes, lengths, time) ─▶ push ─┐  lag_s later, when its answer length is known
//! outcome (measured TTFT, length) ─────────┴▶ advance ─▶ one LiveFleet per arm ─▶ ticks ─▶ report
//!                                                                        charge(busy) ─▶ rest above the CPU share
//! ```
//!
//! An arm is a persistent simulated fleet under one policy. All arms receive the same requests at the same times; tokens
//! and text are not needed. The first arm runs what production runs, and all figures are relative to it.
//!
//! * **Pairing.** Requests are grouped into ticks by arrival. A mean covers the last `window_ticks` complete ticks. Its
//!   ratio to the first arm has a Student interval over batches of neighbouring ticks ([`Estimate`]). A ratio is
//!   significant if its interval excludes 1.
//! * **Trust.** The first arm's TTFT is compared with the TTFT measured for the same requests. Outside `clock_bound`, or
//!   with too few measurements, the report is not trusted ([`Trust`]) and [`ShadowFleets::suggest_among`] suggests
//!   nothing. Curves that were 1.5 times too slow were found to do harm.
//! * **Cost.** The caller reports the CPU time that it spent ([`ShadowFleets::charge`]). Above `cpu_share` of
//!   one core, all arms rest until the account is level, and then continue with the requests that arrived
//!   meanwhile. A simulation that is behind by more than a window with its warm ticks, or that has no room,
//!   takes no more arrivals. Once the waiting arrivals are done, it resumes with current arrivals, after
//!   `warm_ticks` that do not count. A busy production fleet is thus sampled in whole stretches, because
//!   thinned-out traffic would behave like another fleet.
//! * **Changes.** Workers that join or leave ([`Change`]), new timings and a new policy in force apply from the moment at
//!   which production changed.
//! * **Bounds.** Waiting requests, their blocks, requests in flight per arm, changes, ticks and arms are bounded. A
//!   request that does not fit is counted, and its tick counts for no arm.
//!
//! * **Limits.** An arm can relax one limit of the fleet instead ([`Limit`]): its caller gives it the routers in force,
//!   and the report says what share of the mean times that saves ([`LimitReport`]). Such an arm is never suggested.
//!
//! An arm is only suggested in place of the first one, for a significant gain above `min_gain`.
//! `docs/reports/pricing.md` has the reason. The module reads no clock and does no I/O.

mod arm;
mod changes;
mod clock_check;
mod config;
mod cpu_budget;
mod fleets;
mod histogram;
mod intake;
mod limit;
mod report;
mod ticks;

#[cfg(test)]
mod tests;

pub use crate::estimate::Estimate;
pub use changes::Change;
pub use config::{ArmSpec, ShadowConfig};
pub use fleets::{ShadowCounts, ShadowFleets};
pub use intake::{Arrival, Observed};
pub use limit::Limit;
pub use report::{ArmReport, Figure, LimitReport, ShadowReport, Trust};
pub use ticks::LostTicks;
