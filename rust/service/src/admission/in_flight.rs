//! Requests in flight, with their limit.
//!
//! A door takes a permit for each request before it reads the body. At a stop, the door waits here
//! until no permit is taken. Cost: one atomic addition per request, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Interval between two looks at the requests in flight while they drain.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Number of requests in flight, at most a limit.
pub struct InFlight {
    /// Permits taken. A refused request raises it for an instant, so it may read one above the
    /// limit per refusal in progress.
    requests: AtomicUsize,
    /// Largest number of permits at one time.
    limit: usize,
}

/// A permit to be one of the requests in flight. Dropping it frees the permit.
pub struct RequestPermit {
    /// Count that the permit lowers when it is dropped.
    all: Arc<InFlight>,
}

/// All permits are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRequests {
    /// Limit in requests.
    pub limit: usize,
}

impl InFlight {
    /// No requests, of at most `limit`.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            limit,
        })
    }

    /// Number of requests in flight.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// [`TooManyRequests`] when all permits are taken.
    pub fn enter(self: &Arc<Self>) -> Result<RequestPermit, TooManyRequests> {
        if self.requests.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(TooManyRequests { limit: self.limit });
        }
        Ok(RequestPermit { all: self.clone() })
    }

    /// Blocks until no request is in flight, at most for `timeout`. Returns whether all requests ended.
    ///
    /// It polls: a notification would cost every request of normal operation, and a stop happens
    /// once.
    pub fn wait_for_none(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while self.requests() > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.all.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_above_the_limit_is_refused_until_another_ends() {
        let all = InFlight::new(1);
        let first = all.enter().ok();
        assert_eq!(all.enter().err(), Some(TooManyRequests { limit: 1 }));
        assert_eq!(all.requests(), 1);
        assert!(!all.wait_for_none(Duration::ZERO));
        drop(first);
        assert!(all.wait_for_none(Duration::ZERO));
        assert!(all.enter().is_ok());
    }
}
