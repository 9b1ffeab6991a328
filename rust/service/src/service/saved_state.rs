//! The indices of all pools over a restart of the process. The control plane keeps the bytes in a file.
//!
//! Cost: O(blocks) for a save and for a restore. The bytes hold hashes, positions and names of
//! models, and no text, token or key.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::control::json;
use super::{Service, parse_role};
use crate::ServiceError;
use crate::pool::{Role, SavedFleet, WorkerPool};

/// Contents of a saved index, for a report.
#[derive(Serialize)]
struct Summary {
    /// Time of the save, in seconds since 1970.
    saved_at_s: u64,
    pools: Vec<PoolSummary>,
}

/// Contents of one saved pool.
#[derive(Serialize)]
struct PoolSummary {
    model: String,
    role: Role,
    /// Workers that the pool had.
    workers: u64,
    /// Workers with complete blocks, which can be taken over.
    whole: usize,
}

/// The workers of one model in one role.
#[derive(Clone, Copy, Debug)]
pub struct PoolName<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// `aggregated`, `prefill` or `decode`.
    pub role: &'a str,
}

impl Service {
    /// The blocks of all workers in every pool, with the positions of their feeds. Events of a pool wait while its index is written.
    pub fn save_index(&self) -> Vec<u8> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let fleet = SavedFleet {
            saved_at_s: since_1970.as_secs(),
            pools: self.pools(WorkerPool::save),
        };
        fleet.to_bytes()
    }

    /// The contents of bytes from [`Service::save_index`], as JSON. Nothing is taken over.
    ///
    /// # Errors
    /// The fault of the bytes.
    pub fn saved_index(bytes: &[u8]) -> Result<String, ServiceError> {
        let fleet = read(bytes)?;
        let pools = fleet.pools.into_iter().map(|pool| PoolSummary {
            model: pool.model,
            role: pool.role,
            workers: pool.workers,
            whole: pool.publishers.len(),
        });
        Ok(json(&Summary {
            saved_at_s: fleet.saved_at_s,
            pools: pools.collect(),
        }))
    }

    /// Takes over the saved blocks of one pool, for registered workers whose feed is still one of `publishers`. Returns the numbers of
    /// workers by result, as JSON. Call this before the pool's first feed of KV events is followed.
    ///
    /// # Errors
    /// The fault of the bytes, an unknown model, or a pool whose index is not empty. The index then stays as it was.
    pub fn restore_index(
        &self,
        pool: PoolName<'_>,
        bytes: &[u8],
        publishers: &[u64],
        dump_follows: bool,
    ) -> Result<String, ServiceError> {
        let model = pool.model;
        let (registered, role) = (self.model(model)?, parse_role(pool.role)?);
        let fleet = read(bytes)?;
        let saved = fleet
            .pools
            .into_iter()
            .find(|pool| pool.model == model && pool.role == role);
        let Some(saved) = saved else {
            let text = format!("the saved index has no {} workers of {model:?}", role.name());
            return Err(ServiceError::Config(text));
        };
        let publishers: BTreeSet<u64> = publishers.iter().copied().collect();
        let report = registered.pool(role).restore(&saved, &publishers, dump_follows)?;
        for (result, count) in [("taken_over", report.taken_over), ("restarted", report.restarted)] {
            self.metrics.feeds.count_restored(result, count as u64);
        }
        Ok(json(&report))
    }
}

/// Reads the bytes of a save.
///
/// # Errors
/// [`ServiceError::Config`] with the fault of the bytes.
fn read(bytes: &[u8]) -> Result<SavedFleet, ServiceError> {
    SavedFleet::from_bytes(bytes).map_err(|error| ServiceError::Config(error.to_string()))
}
