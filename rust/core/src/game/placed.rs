//! A decision as a router tells it to whoever measures what routing loses.

use super::Placement;
use crate::request::RequestId;

/// One booked decision with what it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// Whose.
    pub request: RequestId,
    /// What each candidate would have cost, just before the booking.
    pub placement: Placement,
    /// What one more request in its batch adds to another's decode, per candidate, seconds.
    pub peer_decode_s: Vec<f64>,
    /// A decode step of the chosen worker with this request in its batch, seconds.
    pub step_s: f64,
    /// [`crate::Router::generation`]: decisions of different ones are over different candidates.
    pub generation: u64,
}
