//! A request on its way through the queue: offered, waiting, dispatched or refused.
//!
//! ```text
//! QueuedRequest ─▶ offer ─┬─ Offer::Refused (a Limit)
//!                         └─ Offer::Taken ─▶ Entry waits ─▶ pump ─┬─ Dispatch (a Cause)
//!                                                                 ├─ take_too_late
//!                                                                 └─ cancel
//! ```
//!
//! A waiting request owns its hashes, since its caller does other work meanwhile. Each request ends in exactly one of
//! the ways on the right.

use crate::hash::LocalHash;
use crate::matched::Matched;
use crate::price_guard::Misfit;
use crate::request::{Candidate, RequestId, RouteRequest};
use crate::worker::WorkerId;

/// A tenant, as a number that the caller gives to it. The queue knows no names and keeps no prompt of a
/// tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u32);

impl Tenant {
    /// Overflow account of all tenants beyond `max_tenants`.
    pub const OTHERS: Self = Self(u32::MAX);
}

/// A request that may wait.
#[derive(Clone, Debug, PartialEq)]
pub struct QueuedRequest {
    /// Id under which the request is booked. It must not wait or be booked yet.
    pub id: RequestId,
    /// Local hashes of the prompt's full blocks.
    pub local_hashes: Box<[LocalHash]>,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Expected tokens of the answer, where the request says so.
    pub expected_output_tokens: Option<u32>,
    /// Workers that may take the request. `None` allows every worker.
    pub allowed: Option<Box<[WorkerId]>>,
    /// Bytes that the caller keeps while the request waits.
    pub bytes: u64,
    /// Tenant that the request counts for.
    pub tenant: Tenant,
    /// Share of the tenant against other tenants. Only a fair queue reads it. A weight that is not above 0
    /// counts as 1.
    pub weight: f64,
    /// Priority levels above (or below) 0. Each is worth [`super::QueueConfig::priority_s`] of waiting.
    pub priority: i32,
    /// Latest useful time of the first token, in the router's seconds. A request that no worker can serve by
    /// then is refused or dropped.
    pub deadline_s: Option<f64>,
    /// As [`RouteRequest::is_unstreamed`].
    pub is_unstreamed: bool,
    /// Whether to fill [`Dispatch::candidates`].
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
            is_unstreamed: false,
            explain: false,
        }
    }

    /// The request as the router takes it, without `explain`.
    pub fn route_request(&self) -> RouteRequest<'_> {
        RouteRequest {
            request_id: Some(self.id),
            local_hashes: &self.local_hashes,
            input_tokens: self.input_tokens,
            expected_output_tokens: self.expected_output_tokens,
            allowed: self.allowed.as_deref(),
            is_unstreamed: self.is_unstreamed,
            ..RouteRequest::default()
        }
    }
}

/// Why a request left the queue for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The chosen worker had room.
    Room,
    /// The window was full and no worker had room: the request with the lowest key was placed by price alone.
    Overflow,
    /// The request waited longer than [`super::QueueConfig::max_wait_s`].
    Age,
}

/// A request that was placed and booked.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Id of the request.
    pub id: RequestId,
    /// Worker that it is booked on.
    pub worker: WorkerId,
    /// Cost of the worker, in the unit of the policy. Infinite when no candidate had a finite cost.
    pub cost: f64,
    /// Leading prompt blocks in the worker's device memory.
    pub overlap_blocks: u32,
    /// Why a static rule decided in place of the policy; `None` where the policy decided.
    pub misfit: Option<Misfit>,
    /// Seconds in the queue.
    pub waited_s: f64,
    /// Why the request was placed now.
    pub cause: Cause,
    /// Every candidate with the parts of its cost. Empty unless the request asked for it.
    pub candidates: Vec<Candidate>,
}

/// The bound that a refused request met. The order of the variants is the order of
/// [`super::QueueStats::refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`super::QueueConfig::max_requests`].
    Requests,
    /// [`super::QueueConfig::max_bytes`].
    Bytes,
    /// [`super::QueueConfig::max_requests_per_tenant`].
    Tenant,
    /// The deadline of the request, which no worker can meet any more.
    Deadline,
    /// [`super::QueueConfig::max_bytes_per_tenant`].
    TenantBytes,
}

/// Answer to an offered request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Offer {
    /// The request waits. The next pump may place it.
    Taken,
    /// The request was refused.
    Refused {
        /// The bound that it met.
        limit: Limit,
        /// Seconds until the queue is expected to have placed a window of requests, 1 to 60.
        retry_after_s: f64,
    },
}

/// A waiting request with its place and its match.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The request as it was offered. Its tenant may be the overflow account.
    pub request: QueuedRequest,
    /// The match, made again when the fleet changed or before an old match is acted on.
    pub matched: Matched,
    /// Tokens to compute on the worker that holds most of the prompt.
    pub least_tokens: u64,
    /// When the match was made, seconds.
    pub matched_at_s: f64,
    /// When the request was offered, seconds.
    pub arrived_s: f64,
    /// Place in the queue, seconds: the arrival, moved by priority and fairness.
    pub start_s: f64,
    /// Start plus what the prompt's length costs, seconds: the order within the window.
    pub key_s: f64,
    /// Prefill seconds on the best worker.
    pub prefill_s: f64,
    /// Latest time of a placement that meets the deadline, seconds.
    pub last_chance_s: Option<f64>,
}
