//! The clock of one service: the time base of all routers in it.
//!
//! The core reads no clock, so every call into it carries a time of this clock. Times of two
//! services cannot be compared.

use std::time::Instant;

/// A monotonic clock that reads 0 when the service begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The instant that reads 0.
    origin: Instant,
}

impl Clock {
    /// A clock that reads 0 now.
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Seconds since the origin.
    pub fn now_s(self) -> f64 {
        self.origin.elapsed().as_secs_f64()
    }

    /// Seconds from the origin to `instant`; 0 for an instant before the origin.
    pub(crate) fn seconds_at(self, instant: Instant) -> f64 {
        instant.saturating_duration_since(self.origin).as_secs_f64()
    }
}
