//! Time as callers give it, kept usable.
//!
//! Every time of the router is an argument, so a caller's fault could make every later comparison undefined: with NaN
//! all bookings would expire at once. An unusable time therefore counts as the last usable one.

/// Bound of the size of a time, seconds. Differences and products of such times stay finite.
const BOUND_S: f64 = 1e12;

/// The last usable time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Seconds. Invariant: finite, at most [`BOUND_S`] from 0.
    latest_s: f64,
}

impl Clock {
    /// The caller's time when it is finite, within the bound. Otherwise the last usable time, or 0 before
    /// any.
    ///
    /// A time before the last one is passed on: lists of times cope with a clock that goes back, at worst by
    /// expiring a little later.
    pub(crate) fn read(&mut self, now_s: f64) -> f64 {
        if now_s.is_finite() {
            self.latest_s = now_s.clamp(-BOUND_S, BOUND_S);
        }
        self.latest_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_time_counts_as_the_last_usable_one() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(f64::NAN), 0.0);
        assert_eq!(clock.read(7.5), 7.5);
        for unusable in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(clock.read(unusable), 7.5);
        }
        assert_eq!(clock.read(3.0), 3.0, "a clock that goes back is the caller's");
        assert_eq!(clock.read(f64::MAX), BOUND_S);
    }
}
