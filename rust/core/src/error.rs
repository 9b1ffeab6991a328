//! The errors of the core: values, no prose beyond what names got, expected and the way out.

use crate::hash::EngineHash;
use crate::request::RequestId;
use crate::worker::WorkerId;

/// Everything that can go wrong in the core. Each is expected trouble: the state stays consistent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No registered worker is available and allowed.
    #[error(
        "no worker can take the request: {registered} registered, {available} available, {allowed} of them allowed; \
         add a worker, make one available or widen `allowed`"
    )]
    NoWorker {
        /// Workers known to the router.
        registered: usize,
        /// Those that take requests.
        available: usize,
        /// Those of them that the request allows.
        allowed: usize,
    },
    /// The worker was never added, or was removed.
    #[error("worker {0} is not registered; add it first")]
    UnknownWorker(WorkerId),
    /// The worker is registered already.
    #[error("worker {0} is registered already; remove it first")]
    WorkerExists(WorkerId),
    /// No more workers fit.
    #[error("the limit of {limit} workers is reached; raise max_workers or remove some")]
    TooManyWorkers {
        /// The limit in force.
        limit: usize,
    },
    /// No booking has this id: never booked, released, expired, or its worker is gone.
    #[error(
        "request {0:?} is not booked: never booked, already released, expired, or its worker was removed"
    )]
    UnknownRequest(RequestId),
    /// A booking with this id is open.
    #[error("request {0:?} is booked already; release it first or use another id")]
    RequestExists(RequestId),
    /// No more bookings fit.
    #[error("the limit of {limit} open bookings is reached; release some or raise max_bookings")]
    TooManyBookings {
        /// The limit in force.
        limit: usize,
    },
    /// A stored event names a parent that this worker does not hold.
    #[error(
        "worker {worker} stored blocks below {parent:?}, which is not known of it; resynchronise its feed"
    )]
    UnknownParent {
        /// Whose event it was.
        worker: WorkerId,
        /// The parent that is not known.
        parent: EngineHash,
    },
    /// A removed event names blocks that this worker does not hold. The known ones were removed.
    #[error(
        "worker {worker} removed {unknown} blocks that it was not known to hold (the others were removed)"
    )]
    UnknownBlocks {
        /// Whose event it was.
        worker: WorkerId,
        /// How many blocks were not known.
        unknown: usize,
    },
    /// A worker used one engine hash for two different blocks.
    #[error(
        "worker {worker} stored {engine:?} again as a different block; check hash seeds and resynchronise"
    )]
    ConflictingBlock {
        /// Whose event it was.
        worker: WorkerId,
        /// The hash with two meanings.
        engine: EngineHash,
    },
    /// The index is at its limit and nothing in it may go: all of it was used of late, or is gone on from.
    #[error(
        "the index is at its limit ({limit_blocks} blocks, or its bytes) and nothing in it may go; raise index_max_blocks or \
         index_max_bytes"
    )]
    IndexFull {
        /// The limit in force.
        limit_blocks: u64,
    },
    /// Bytes that are no index that this router can take over.
    #[error(transparent)]
    Image(#[from] crate::index::ImageError),
    /// A parameter is out of range.
    #[error("{field} = {got}: expected {expected}")]
    Parameter {
        /// Its name.
        field: &'static str,
        /// What was given.
        got: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// No policy has this name.
    #[error("unknown policy {got:?}; one of {}", known.join(", "))]
    UnknownPolicy {
        /// Names of the known policies.
        known: &'static [&'static str],
        /// The name that was given.
        got: String,
    },
    /// The parameters of a policy can not be read.
    #[error("policy {policy}: {reason}")]
    PolicyParameters {
        /// The policy.
        policy: String,
        /// What is wrong with them.
        reason: String,
    },
}
