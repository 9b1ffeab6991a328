//! Routing core: everything that a router must know and decide, free of Python, I/O and clocks.
//!
//! ```text
//! KV event in ─▶ index                            where every prefix lives
//! request in  ─▶ match ─▶ price ─▶ pick ─▶ book   one atomic step of `Router::route`
//! outcome in  ─▶ prefill_done, release            the load follows the engines
//! ```
//!
//! Start with [`Router`]: [`Router::apply`] takes a KV event, [`Router::route`] decides about a request, and
//! [`Router::prefill_done`] and [`Router::release`] report its outcome. `examples/route.rs` shows all four.
//! [`queue`] holds requests back while every worker is busy; [`price`] has the policies.
//!
//! Time is an argument (`now_s`, seconds of a monotonic clock), and randomness comes from the seed in
//! [`RouterConfig`]: the same calls give the same answers.
//!
//! Where things are, from the event to the price:
//!
//! | module | holds | changed by |
//! |---|---|---|
//! | [`hash`] | tokens to hashes | nothing |
//! | [`index`] | blocks of every worker | KV events, under a lock of its own |
//! | `load` | tokens, blocks and requests in flight | bookings |
//! | [`ledger`], [`latency`] | seconds in flight, learned curves | bookings and outcomes |
//! | [`predicted`] | caches judged by placements | bookings and outcomes |
//! | [`price`], `pick` | pure functions | nothing |
//! | [`queue`] | requests that wait for room | its caller |
//! | [`regime`], [`anarchy`], [`control`] | how the fleet does | outcomes |
//!
//! Only the router changes state, and every decision is one step under one lock
//! (`docs/adr/0011-one-decision-path.md`). The crate has no `unsafe` code.

pub mod anarchy;
mod candidate_load;
mod clock;
pub mod control;
mod error;
mod event;
mod exact;
mod fleet;
pub mod hash;
pub mod index;
pub mod latency;
pub mod ledger;
mod load;
mod matched;
mod overlaps;
mod pick;
pub mod predicted;
pub mod price;
pub mod price_guard;
pub mod queue;
pub mod regime;
mod request;
pub mod rng;
mod roster;
mod router;
mod snapshot;
pub mod trust;
mod worker;

pub use error::Error;
pub use event::{KvEvent, StoredBlock, Tier};
pub use hash::{
    BlockHasher, EngineHash, HashKey, HashMode, HashScope, LocalHash, PromptHashes, SequenceHash,
    local_hashes, sequence_hashes,
};
pub use index::{ImageError, RestoredWorker, WorkerOverlap};
pub use predicted::{PredictedConfig, PredictedUse};
pub use price::{DynamoConfig, Policy, PolicyConfig, View};
pub use price_guard::{FitReport, Misfit, PriceGuardReport};
pub use request::{Candidate, Decision, Parts, RequestId, RouteRequest, Stage};
pub use router::{FleetLoad, PeerBooking, Router, RouterConfig};
pub use snapshot::{Counters, IndexSize, Snapshot, WorkerSnapshot};
pub use trust::{Trust, TrustMode};
pub use worker::{WorkerId, WorkerSpec};
