//! How fast the queue places requests, and how long they take.
//!
//! Two running means over placed requests. The gap between placements says when refused clients may retry.
//! The time from arrival to first token bounds what length costs in the order.

/// Window of the running mean of waits, in placed requests.
const MEAN_WINDOW: f64 = 64.0;
/// Weight of the newest gap between two placements in their running mean.
const GAP_WEIGHT: f64 = 0.05;
/// The gap before a second placement was seen, seconds.
const FIRST_GAP_S: f64 = 1.0;
/// Bounds of the time after which a refused client may retry, seconds.
const RETRY_S: std::ops::RangeInclusive<f64> = 1.0..=60.0;

/// Running means over placed requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Requests placed since the start.
    placed: u64,
    /// When the last request was placed, seconds.
    last_s: f64,
    /// Running mean of the gaps between placements, seconds. 0 before the first placement.
    gap_s: f64,
    /// Running mean of wait and own prefill, seconds.
    mean_s: f64,
}

impl Pace {
    /// Counts a request that was placed at `now_s`. `taken_s` is its wait and its own prefill.
    pub fn count(&mut self, taken_s: f64, now_s: f64) {
        self.gap_s = if self.placed == 0 {
            FIRST_GAP_S
        } else {
            self.gap_s + GAP_WEIGHT * ((now_s - self.last_s) - self.gap_s)
        };
        self.last_s = now_s;
        self.placed += 1;
        self.mean_s += (taken_s - self.mean_s) / (self.placed as f64).min(MEAN_WINDOW);
    }

    /// Mean seconds from arrival to first token, as the queue accounts for it: wait and own prefill.
    pub const fn mean_s(&self) -> f64 {
        self.mean_s
    }

    /// Seconds in which `window` requests are placed at the recent rate, 1 to 60.
    ///
    /// Example. Requests are placed every 50 ms and the window is 64: a client may retry after 3.2 s.
    pub fn retry_after_s(&self, window: usize) -> f64 {
        (self.gap_s * window as f64).clamp(*RETRY_S.start(), *RETRY_S.end())
    }
}
