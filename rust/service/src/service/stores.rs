//! The blocks of a pool as KV events, for a program that indexes them itself.
//!
//! A save ([`Service::save_index`]) is for this router's own restart, and no other program reads it.

use wardrop_core::{KvEvent, WorkerId};

use super::saved_state::PoolName;
use super::{Service, parse_role};
use crate::ServiceError;

impl Service {
    /// (worker, tier, block) triples that the workers of a pool hold. O(workers).
    ///
    /// # Errors
    /// An unknown model or role.
    pub fn held_blocks(&self, pool: &PoolName<'_>) -> Result<u64, ServiceError> {
        let registered = self.model(pool.model)?;
        Ok(registered.pool(parse_role(pool.role)?).held_blocks())
    }

    /// The stores that give another index the blocks of a pool, each parent before its children.
    ///
    /// Events of the pool wait meanwhile, decisions do not. O(blocks · holders).
    ///
    /// # Errors
    /// An unknown model or role.
    pub fn stores(&self, pool: &PoolName<'_>) -> Result<Vec<(WorkerId, KvEvent)>, ServiceError> {
        let registered = self.model(pool.model)?;
        Ok(registered.pool(parse_role(pool.role)?).stores())
    }
}
