//! What happens at the engines that no report and no event shows to the router.

use serde::Deserialize;

use crate::error::{SimError, out_of_range};

/// Work and waits of the engines beside what the router sends and what the engines report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unseen {
    /// Mean of an exponential wait of each request before the engine's queue, in milliseconds. 0 adds no wait.
    pub wait_ms: f64,
    /// Every so many rows of the workload, another client sends the row straight to a worker. 0 has no other client.
    pub other_client_every: u32,
    /// Number of workers that the other client uses, in turn: the first ones.
    pub other_client_workers: u32,
}

impl Unseen {
    /// Worker of a row that another client sends; `None` for a row that the router places.
    pub(crate) fn worker_of(&self, row: u32) -> Option<usize> {
        let every = self.other_client_every;
        (every > 0 && row % every == every - 1).then(|| (row / every % self.other_client_workers) as usize)
    }

    /// # Errors
    /// A field out of its range for a fleet of so many workers and pools.
    pub(super) fn validate(&self, workers: usize, pools: usize) -> Result<(), SimError> {
        if !(self.wait_ms.is_finite() && self.wait_ms >= 0.0) {
            return Err(out_of_range(
                "unseen.wait_ms",
                self.wait_ms,
                "finite and at least 0",
            ));
        }
        if self.other_client_every > 0 && !(1..=workers).contains(&(self.other_client_workers as usize)) {
            return Err(out_of_range(
                "unseen.other_client_workers",
                self.other_client_workers,
                "1 to the workers of the fleet",
            ));
        }
        if self.other_client_every > 0 && pools > 1 {
            return Err(out_of_range(
                "unseen.other_client_every",
                self.other_client_every,
                "0 for a split fleet: the other client sends a whole request to one worker",
            ));
        }
        Ok(())
    }
}
