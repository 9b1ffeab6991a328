//! Bytes of request bodies in memory, over all requests.
//!
//! Each body has a limit of its own; this is the limit of their sum. A body is charged as its bytes arrive, so a client that announces
//! much and sends nothing takes nothing. A body that does not fit any more is refused. Small bodies keep a quarter of the budget to
//! themselves: a few huge prompts cannot shut out the others.
//!
//! A permit lives as long as the bytes of its body: from the first byte until the body has been
//! forwarded or dropped. Cost: one atomic addition per piece of a body, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest body, bytes, that may use the whole budget.
const SMALL_BYTES: usize = 1 << 20;

/// Sum of the bytes of all request bodies in memory, with its limit.
///
/// Every body of a door shares one budget. Only an addition that [`BodyPermit::grow`] takes back at
/// once can raise the sum above the limit.
pub struct BodyBudget {
    /// Bytes that living permits have taken. Equal to the sum of their `taken_bytes`, and 0 when no
    /// permit lives.
    used_bytes: AtomicUsize,
    /// Upper bound of `used_bytes`, in bytes. Bodies above [`SMALL_BYTES`] may use three quarters
    /// of it.
    limit_bytes: usize,
}

/// Bytes that one body has taken from the budget. Dropping it gives them back.
pub struct BodyPermit {
    /// Budget that gets the bytes back.
    budget: Arc<BodyBudget>,
    /// Bytes charged so far. They grow with the bytes that arrive, never with an announced length.
    taken_bytes: usize,
}

/// The budget has no room for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodiesFull {
    /// Limit in bytes.
    pub limit_bytes: usize,
}

impl BodyBudget {
    /// An empty budget of `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            used_bytes: AtomicUsize::new(0),
            limit_bytes,
        })
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Limit of the bytes in use.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Admits a body of which the client announced `announced_bytes`, 0 when unknown.
    ///
    /// This early check takes no bytes. It spares a client with a declared length from sending a
    /// body that would be refused in the middle.
    ///
    /// # Errors
    /// [`BodiesFull`] when the body does not fit beside the bytes in use now.
    pub fn admit(self: &Arc<Self>, announced_bytes: usize) -> Result<BodyPermit, BodiesFull> {
        let used = self.used_bytes();
        if used.saturating_add(announced_bytes) > self.limit_for(announced_bytes) {
            return Err(self.full());
        }
        Ok(BodyPermit {
            budget: self.clone(),
            taken_bytes: 0,
        })
    }

    /// Bytes of the budget that a body of `body_bytes` bytes may fill together with all other
    /// bodies.
    fn limit_for(&self, body_bytes: usize) -> usize {
        if body_bytes <= SMALL_BYTES {
            self.limit_bytes
        } else {
            self.limit_bytes - self.limit_bytes / 4
        }
    }

    /// The refusal of a body, with the limit that a door quotes to its client.
    fn full(&self) -> BodiesFull {
        BodiesFull {
            limit_bytes: self.limit_bytes,
        }
    }
}

impl BodyPermit {
    /// Charges `bytes` more of the body.
    ///
    /// The size that counts is the size with the new bytes: a body that grows past `SMALL_BYTES`
    /// meets the lower limit of large bodies from then on. A refused piece charges nothing, and the
    /// permit keeps the bytes it had.
    ///
    /// # Errors
    /// [`BodiesFull`] when the budget has no room for them.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BodiesFull> {
        let budget = &self.budget;
        let limit = budget.limit_for(self.taken_bytes.saturating_add(bytes));
        let before = budget.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > limit {
            budget.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(budget.full());
        }
        self.taken_bytes += bytes;
        Ok(())
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.budget
            .used_bytes
            .fetch_sub(self.taken_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_a_quarter_for_small_ones() {
        let budget = BodyBudget::new(16 << 20);
        let mut large = budget.admit(12 << 20).unwrap();
        large.grow(12 << 20).unwrap();
        assert!(budget.admit(2 << 20).is_err());
        let mut small = budget.admit(SMALL_BYTES).unwrap();
        small.grow(SMALL_BYTES).unwrap();
        drop(large);
        assert_eq!(budget.used_bytes(), SMALL_BYTES);
        drop(small);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_body_of_unknown_length_is_refused_when_it_no_longer_fits() {
        let budget = BodyBudget::new(8 << 20);
        let mut unknown = budget.admit(0).unwrap();
        unknown.grow(6 << 20).unwrap();
        assert_eq!(unknown.grow(1), Err(BodiesFull { limit_bytes: 8 << 20 }));
        assert_eq!(budget.used_bytes(), 6 << 20, "a refused byte is not charged");
    }

    #[test]
    fn an_announced_body_takes_nothing_before_it_arrives() {
        let budget = BodyBudget::new(8 << 20);
        let announced: Vec<_> = (0..100).map(|_| budget.admit(6 << 20)).collect();
        assert!(announced.iter().all(Result::is_ok));
        assert_eq!(budget.used_bytes(), 0);
    }
}
