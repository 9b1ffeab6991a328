//! Ids and hashes under which the router knows workers, requests and blocks of the simulation.

use wardrop_core::rng::Rng;
use wardrop_core::{EngineHash, LocalHash, RequestId, WorkerId};

/// Bit that keeps the engine hashes of blocks apart from their local hashes.
const ENGINE_HASH_BIT: u64 = 1 << 40;

fn mix(x: u64) -> u64 {
    Rng::new(x).next_u64()
}

/// Bit that keeps wrong local hashes apart from right ones.
const WRONG_HASH_BIT: u64 = 1 << 41;

/// A local hash that no block of a prompt has.
pub(super) fn wrong_hash(block: u32) -> LocalHash {
    LocalHash(mix(u64::from(block) | WRONG_HASH_BIT))
}

pub(super) fn local_hash(block: u32) -> LocalHash {
    LocalHash(mix(u64::from(block)))
}

pub(super) fn engine_hash(block: u32) -> EngineHash {
    EngineHash(mix(u64::from(block) | ENGINE_HASH_BIT))
}

pub(super) fn worker_id(worker: usize) -> WorkerId {
    WorkerId {
        instance: worker as u64,
        dp_rank: 0,
    }
}

pub(super) fn request_id(request: u32) -> RequestId {
    RequestId(u64::from(request))
}
