//! What a door lets in at one time: requests, and bytes of their bodies. It stands before everything else that a request meets.
//!
//! Each door has limits of its own and an answer of its own to a request that does not fit.

mod bodies;
mod in_flight;

pub use self::bodies::{BodiesFull, BodyBudget, BodyPermit};
pub use self::in_flight::{InFlight, RequestPermit, TooManyRequests};
