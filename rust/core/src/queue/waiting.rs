//! One request in the queue, and what comes of it.

use crate::hash::LocalHash;
use crate::matched::Matched;
use crate::request::{Candidate, RequestId, RouteRequest};
use crate::worker::WorkerId;

/// Who pays: a number that the caller gives to each tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u32);

impl Tenant {
    /// All those together that came while as many tenants were known as may be.
    pub const OTHERS: Self = Self(u32::MAX);
}

/// A request that may wait.
#[derive(Clone, Debug, PartialEq)]
pub struct QueuedRequest {
    /// Its id; it is booked under it.
    pub id: RequestId,
    /// Local hashes of the prompt's full blocks.
    pub local_hashes: Box<[LocalHash]>,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Expected tokens of the answer.
    pub expected_output_tokens: Option<u32>,
    /// Only these workers.
    pub allowed: Option<Box<[WorkerId]>>,
    /// Bytes that the caller keeps for it meanwhile.
    pub bytes: u64,
    /// Whose it is.
    pub tenant: Tenant,
    /// The tenant's share against others, above 0. Only when the queue is fair.
    pub weight: f64,
    /// Levels above (or below) the usual. Only when the queue has a head start per level.
    pub priority: i32,
    /// When the first token must be out to be of use.
    pub deadline_s: Option<f64>,
    /// See [`RouteRequest::in_one_piece`].
    pub in_one_piece: bool,
    /// Fill [`Dispatch::candidates`].
    pub explain: bool,
}

impl QueuedRequest {
    /// A request without options.
    pub fn new(id: RequestId, local_hashes: Box<[LocalHash]>, input_tokens: u32) -> Self {
        Self {
            id,
            local_hashes,
            input_tokens,
            expected_output_tokens: None,
            allowed: None,
            bytes: 0,
            tenant: Tenant(0),
            weight: 1.0,
            priority: 0,
            deadline_s: None,
            in_one_piece: false,
            explain: false,
        }
    }

    /// As the router takes it.
    pub fn question(&self) -> RouteRequest<'_> {
        RouteRequest {
            request_id: Some(self.id),
            local_hashes: &self.local_hashes,
            input_tokens: self.input_tokens,
            expected_output_tokens: self.expected_output_tokens,
            allowed: self.allowed.as_deref(),
            in_one_piece: self.in_one_piece,
            ..RouteRequest::default()
        }
    }
}

/// Why a request left the queue for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its worker had room.
    Room,
    /// The window was full and nobody had room: it went by price at once.
    Overflow,
    /// It had waited as long as anyone may.
    Age,
}

/// A request that was placed and booked.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Whose.
    pub id: RequestId,
    /// Where.
    pub worker: WorkerId,
    /// Its cost there, in the unit of the policy.
    pub cost: f64,
    /// Leading prompt blocks in the worker's device memory.
    pub overlap_blocks: u32,
    /// Seconds in the queue.
    pub waited_s: f64,
    /// Why now.
    pub cause: Cause,
    /// Every candidate with its parts, when asked for.
    pub candidates: Vec<Candidate>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As many wait as may.
    Requests,
    /// Waiting requests hold as many bytes as they may.
    Bytes,
    /// The tenant has as many waiting as it may.
    Tenant,
    /// The deadline cannot be met any more.
    Deadline,
    /// The tenant's waiting requests hold as many bytes as they may.
    TenantBytes,
}

/// What became of a request that was offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Offer {
    /// It waits, or has been placed: the next pump tells.
    Taken,
    /// It was refused; a new try makes sense after `retry_after_s`.
    Refused {
        /// Which bound it met.
        limit: Limit,
        /// Seconds until the queue is expected to have drained by a window.
        retry_after_s: f64,
    },
}

/// A waiting request with its order and its match.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub request: QueuedRequest,
    pub matched: Matched,
    /// Tokens to compute on the worker that holds most.
    pub least_tokens: u64,
    pub matched_at_s: f64,
    pub arrived_s: f64,
    /// Where it stands in line: its arrival, moved by priority and fairness.
    pub start_s: f64,
    /// start + κ·s.
    pub key_s: f64,
    /// Prefill seconds on its best worker.
    pub prefill_s: f64,
    /// Until when it must be placed to meet its deadline.
    pub last_chance_s: Option<f64>,
}
