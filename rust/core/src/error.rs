//! Errors of the core, with the received values, the expected values and a remedy.

use crate::hash::EngineHash;
use crate::request::RequestId;
use crate::worker::WorkerId;

/// Every error of the core. After an error the state is consistent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No registered worker is both available and allowed.
    #[error(
        "no worker can take the request: {registered} registered, {available} available, {allowed} of them allowed; \
         add a worker, make one available or widen `allowed`"
    )]
    NoWorker {
        /// Registered workers.
        registered: usize,
        /// Registered workers that take requests.
        available: usize,
        /// Available workers that the request allows.
        allowed: usize,
    },
    /// The worker was never added, or was removed.
    #[error("worker {0} is not registered; add it first")]
    UnknownWorker(WorkerId),
    /// A worker with this id is registered.
    #[error("worker {0} is registered already; remove it first")]
    WorkerExists(WorkerId),
    /// The limit of workers is reached.
    #[error("the limit of {limit} workers is reached; raise max_workers or remove some")]
    TooManyWorkers {
        /// Highest number of workers.
        limit: usize,
    },
    /// No booking has this id: never booked, released, expired, or its worker left.
    #[error(
        "request {0:?} is not booked: it was never booked, was released, expired, or its worker was removed; book it first"
    )]
    UnknownRequest(RequestId),
    /// A booking with this id is open.
    #[error("request {0:?} is booked already; release it first or use another id")]
    RequestExists(RequestId),
    /// The limit of open bookings is reached.
    #[error("the limit of {limit} open bookings is reached; release some or raise max_bookings")]
    TooManyBookings {
        /// Highest number of open bookings.
        limit: usize,
    },
    /// A stored event refers to a parent that the worker does not hold.
    #[error("worker {worker} stored blocks below {parent:?}, which it does not hold; resynchronise its feed")]
    UnknownParent {
        /// Worker of the event.
        worker: WorkerId,
        /// Engine hash of the missing parent.
        parent: EngineHash,
    },
    /// A removed event refers to blocks that the worker does not hold. The held blocks were removed.
    #[error(
        "worker {worker} removed {unknown} blocks that it does not hold (the others were removed); resynchronise its feed if this grows"
    )]
    UnknownBlocks {
        /// Worker of the event.
        worker: WorkerId,
        /// Number of blocks that the worker does not hold.
        unknown: usize,
    },
    /// A worker used one engine hash for two different blocks.
    #[error(
        "worker {worker} stored {engine:?} again as a different block; check hash seeds and resynchronise"
    )]
    ConflictingBlock {
        /// Worker of the event.
        worker: WorkerId,
        /// The engine hash with two meanings.
        engine: EngineHash,
    },
    /// The index is at its budget, and every block is in recent use or has children.
    #[error(
        "the index is at its limit ({limit_blocks} blocks, or its bytes) and can evict nothing; raise index_max_blocks or \
         index_max_bytes"
    )]
    IndexFull {
        /// Highest number of distinct blocks.
        limit_blocks: u64,
    },
    /// The bytes are no index that this router can restore.
    #[error(transparent)]
    Image(#[from] crate::index::ImageError),
    /// A parameter is out of range.
    #[error("{field} = {got}: expected {expected}")]
    Parameter {
        /// Name of the parameter.
        field: &'static str,
        /// Received value.
        got: String,
        /// Accepted values.
        expected: &'static str,
    },
    /// No policy has this name.
    #[error("unknown policy {got:?}; one of {}", known.join(", "))]
    UnknownPolicy {
        /// Names of the known policies.
        known: &'static [&'static str],
        /// Received name.
        got: String,
    },
    /// The parameters of a policy cannot be read.
    #[error("policy {policy}: {reason}")]
    PolicyParameters {
        /// Name of the policy.
        policy: String,
        /// Description of the fault.
        reason: String,
    },
}
