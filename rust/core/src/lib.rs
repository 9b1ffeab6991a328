//! Routing core: what a router must know and decide, free of Python, I/O and clocks.
//!
//! ```text
//! KV event in ─▶ index                        learn where every prefix lives
//! request in  ─▶ match ─▶ price ─▶ pick ─▶ book   one atomic step of `Router::route`
//! outcome in  ─▶ prefill_done, release        the load follows what the engines do
//! ```
//!
//! Time is an argument (`now_s`, seconds of a monotonic clock) and randomness comes from the seed in
//! [`RouterConfig`]: the same calls give the same answers.

pub mod anarchy;
pub mod control;
pub mod error;
pub mod event;
mod exact;
mod fleet;
pub use anarchy as game;
pub mod hash;
pub mod index;
pub mod latency;
pub mod ledger;
pub mod load;
mod matched;
mod overlaps;
pub mod pick;
pub mod predicted;
pub mod price;
pub mod queue;
pub mod regime;
pub mod request;
pub mod rng;
mod roster;
pub mod router;
pub mod snapshot;
pub mod worker;

pub use error::Error;
pub use event::{KvEvent, StoredBlock, Tier};
pub use hash::{
    BlockHasher, EngineHash, HashKey, HashMode, HashScope, LocalHash, PromptHashes, SequenceHash,
    local_hashes, sequence_hashes,
};
pub use index::{ImageError, RestoredWorker, WorkerOverlap};
pub use predicted::{PredictedConfig, PredictedUse};
pub use price::{DynamoConfig, Policy, PolicyConfig, View};
pub use request::{Candidate, Decision, Parts, RequestId, RouteRequest, Stage};
pub use router::{Router, RouterConfig};
pub use snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
pub use worker::{WorkerId, WorkerSpec};
