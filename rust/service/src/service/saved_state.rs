//! The indices of all pools over a restart. The bytes go to and come from a file that the control plane keeps.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::control::json;
use super::{Service, parse_role};
use crate::ServiceError;
use crate::pool::{Role, SavedFleet, WorkerPool};

/// What a file says of itself.
#[derive(Serialize)]
struct Summary {
    saved_at_s: u64,
    pools: Vec<PoolSummary>,
}

#[derive(Serialize)]
struct PoolSummary {
    model: String,
    role: Role,
    workers: u64,
    /// Of these, known as a whole: they can be taken over.
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
    /// Who holds which blocks in every pool, with where the workers' feeds stand. Events of a pool wait while it is written.
    pub fn save_index(&self) -> Vec<u8> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let fleet = SavedFleet {
            saved_at_s: since_1970.as_secs(),
            pools: self.pools(WorkerPool::save),
        };
        fleet.to_bytes()
    }

    /// What [`Service::save_index`] put into these bytes, as JSON; nothing is taken over.
    ///
    /// # Errors
    /// What is wrong with the bytes.
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

    /// Takes over what was saved of one pool, of those workers that are registered and whose feed is still one of `publishers`;
    /// what of how many, as JSON. To be called before the pool's first feed of KV events is followed.
    ///
    /// # Errors
    /// What is wrong with the bytes; an unknown model; a pool whose index is not empty any more. The index is as it was then.
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

fn read(bytes: &[u8]) -> Result<SavedFleet, ServiceError> {
    SavedFleet::from_bytes(bytes).map_err(|error| ServiceError::Config(error.to_string()))
}
