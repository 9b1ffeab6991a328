//! The retry budget: second attempts are at most a share of the traffic, so that a full fleet does not get twice the load.
//!
//! The budget is a token bucket, as in Finagle and Envoy: every request pays in, and a retry takes out. A small income
//! per second lets a quiet gateway retry too.
//!
//! Second attempts are bounded to a fifth of the traffic and a burst of 100. Cost: one short lock
//! per request and per retry.

use std::time::Instant;

use parking_lot::Mutex;

/// Retries that one request pays for.
const SHARE: f64 = 0.2;
/// Retries per second that are free.
const FREE_PER_S: f64 = 1.0;
/// Largest balance, in retries: the most retries of one burst of failures.
const LARGEST_BALANCE: f64 = 100.0;
/// Balance at the start, in retries.
const FIRST_BALANCE: f64 = 10.0;

/// The budget of one gateway.
#[derive(Debug)]
pub struct RetryBudget(Mutex<Bucket>);

/// The token bucket.
#[derive(Debug)]
struct Bucket {
    /// Retries that may be made now, 0 to [`LARGEST_BALANCE`].
    balance: f64,
    /// Time up to which the free income is paid in.
    paid_at: Instant,
}

impl RetryBudget {
    /// A budget with its first balance.
    pub fn new() -> Self {
        Self(Mutex::new(Bucket {
            balance: FIRST_BALANCE,
            paid_at: Instant::now(),
        }))
    }

    /// Adds the share of one request to the balance.
    pub fn pay_in(&self) {
        let mut bucket = self.0.lock();
        bucket.balance = (bucket.balance + SHARE).min(LARGEST_BALANCE);
    }

    /// Takes one retry out. False when the budget is used up.
    pub fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    /// The free income since the last call is paid in first.
    fn take_at(&self, now: Instant) -> bool {
        let mut bucket = self.0.lock();
        let elapsed_s = now.saturating_duration_since(bucket.paid_at).as_secs_f64();
        bucket.paid_at = now;
        bucket.balance = (bucket.balance + FREE_PER_S * elapsed_s).min(LARGEST_BALANCE);
        let has_one = bucket.balance >= 1.0;
        if has_one {
            bucket.balance -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let budget = RetryBudget::new();
        let now = budget.0.lock().paid_at;
        let mut retries = 0;
        for _ in 0..1_000 {
            budget.pay_in();
            retries += u32::from(budget.take_at(now));
        }
        assert!((205..=211).contains(&retries), "{retries}");
    }

    #[test]
    fn a_quiet_gateway_may_retry_and_a_long_pause_saves_no_more_than_the_bound() {
        let budget = RetryBudget::new();
        let now = budget.0.lock().paid_at;
        while budget.take_at(now) {}
        assert!(budget.take_at(now + Duration::from_secs(1)));
        assert!(!budget.take_at(now + Duration::from_secs(1)));
        let later = now + Duration::from_secs(1_000_000);
        assert_eq!((0..1_000).filter(|_| budget.take_at(later)).count(), 100);
    }
}
