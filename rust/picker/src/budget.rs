//! Bytes of request bodies in memory, over all requests.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::Refusal;

/// Sum of the bytes of all request bodies, with its limit.
pub(crate) struct BodyBudget {
    free_bytes: Arc<Semaphore>,
    limit_bytes: usize,
}

impl BodyBudget {
    /// An empty budget.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            free_bytes: Arc::new(Semaphore::new(limit_bytes.min(Semaphore::MAX_PERMITS))),
            limit_bytes,
        }
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> usize {
        self.limit_bytes - self.free_bytes.available_permits()
    }

    /// Charges `bytes` more of one body to `held`, whose drop gives all of them back.
    ///
    /// # Errors
    /// [`Refusal::BodiesFull`] when the budget has no room for them.
    pub fn grow(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Refusal> {
        let full = Refusal::BodiesFull {
            limit_bytes: self.limit_bytes,
        };
        let count = u32::try_from(bytes).map_err(|_| full)?;
        let more = self.free_bytes.clone().try_acquire_many_owned(count);
        let more = more.map_err(|_| full)?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_does_not_fit_is_refused_and_gives_its_bytes_back() {
        let budget = BodyBudget::new(100);
        let (mut first, mut second) = (None, None);
        budget.grow(&mut first, 60).unwrap();
        budget.grow(&mut first, 20).unwrap();
        assert!(budget.grow(&mut second, 21).is_err());
        assert_eq!(budget.used_bytes(), 80);
        drop(first);
        assert_eq!(budget.used_bytes(), 0);
    }
}
