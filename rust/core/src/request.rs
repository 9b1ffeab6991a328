//! A request to route, and the decision about it: the vocabulary between a door and the router.
//!
//! A request borrows its hashes, so that a decision copies nothing. A decision owns its answer.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::hash::{LocalHash, SequenceHash};
use crate::index::Prompt;
use crate::price_guard::Misfit;
use crate::trust::TrustMode;
use crate::worker::WorkerId;

/// Id of a request among the open bookings. The caller maps its own ids to these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// Longest prompt that a router takes, tokens: a hundred times the longest context that an engine offers.
///
/// With the limit of bookings it keeps every sum of tokens in flight below 2⁵², where counts convert to floats exactly.
pub(crate) const MAX_INPUT_TOKENS: u32 = 1 << 27;

/// Longest answer that is believed, tokens. A longer one, reported or expected, counts as unknown.
///
/// One report of 4·10⁹ tokens would otherwise move the mean answer, and with it every price, for hundreds of requests.
pub(crate) const MAX_OUTPUT_TOKENS: u32 = 1 << 20;

/// One request to route.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteRequest<'a> {
    /// Id of the booking; `None`: the decision books nothing.
    pub request_id: Option<RequestId>,
    /// Local hashes of the prompt's full blocks. Empty when the prompt is unknown; then only the load counts.
    pub local_hashes: &'a [LocalHash],
    /// Sequence hashes of the same blocks, or empty. With them a long match takes a few comparisons.
    pub sequence_hashes: &'a [SequenceHash],
    /// Tokens of the prompt (ISL), at most 2²⁷.
    pub input_tokens: u32,
    /// Expected tokens of the answer (OSL). More than 2²⁰ count as unknown.
    pub expected_output_tokens: Option<u32>,
    /// Candidates; unregistered ids are ignored. `None`: all workers.
    pub allowed: Option<&'a [WorkerId]>,
    /// Whether the answer arrives in one piece, so that no first token is reported. The prefill then counts as done at the
    /// expected time.
    pub is_unstreamed: bool,
    /// Whether to fill [`Decision::candidates`].
    pub explain: bool,
}

impl<'a> RouteRequest<'a> {
    /// The prompt of the request.
    pub(crate) const fn prompt(&self) -> Prompt<'a> {
        Prompt {
            locals: self.local_hashes,
            sequence: self.sequence_hashes,
        }
    }
}

/// Stages of a decision, in order; [`Stage::Pick`] ends with the booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Overlap of the prompt on every candidate.
    Match,
    /// Cost of every candidate.
    Price,
    /// Choice of a candidate, and the booking.
    Pick,
}

/// The chosen worker, and the reasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decision {
    /// Chosen worker.
    pub worker: WorkerId,
    /// Leading blocks of the prompt in the device memory of the chosen worker, as the price believed them.
    pub overlap_blocks: u32,
    /// Cost of the chosen worker, in the unit of the policy, or of the static rule that stands in for it.
    pub cost: f64,
    /// Why a static rule decided in place of the policy; `None` where the policy decided.
    pub misfit: Option<Misfit>,
    /// Every candidate with the parts of its cost. Empty unless the request asked for it.
    pub candidates: Vec<Candidate>,
}

/// Highest number of parts of a cost.
const PARTS_MAX: usize = 6;

/// Named parts of a cost, in the unit of the policy. Their sum is the cost. Empty for a policy whose cost is
/// no sum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts([Option<(&'static str, f64)>; PARTS_MAX]);

impl Parts {
    /// The given parts, at most six.
    pub fn new<const N: usize>(parts: [(&'static str, f64); N]) -> Self {
        const { assert!(N <= PARTS_MAX, "a cost must have at most six parts") };
        Self(std::array::from_fn(|i| parts.get(i).copied()))
    }

    /// Every part with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().flatten().copied()
    }
}

impl Serialize for Parts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, cost) in self.iter() {
            map.serialize_entry(name, &cost)?;
        }
        map.end()
    }
}

/// The candidate that a request would take at the present load.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    /// Number of the candidate in the match.
    pub chosen: usize,
    /// Cost of the candidate, in the unit of the policy. Infinite when no candidate had a finite cost.
    pub cost: f64,
    /// Every candidate with the parts of its cost. Empty unless the request asked for it.
    pub candidates: Vec<Candidate>,
}

/// A candidate of a decision, as the policy priced it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Candidate {
    /// Id of the candidate.
    pub worker: WorkerId,
    /// Cost, in the unit of the policy.
    pub cost: f64,
    /// What the price believed about the cache of the candidate.
    pub trust: TrustMode,
    /// Leading blocks of the prompt in device memory, as the index lists them.
    pub listed_blocks: u32,
    /// Leading blocks of the prompt in device memory, as the price believed them.
    pub device_blocks: u32,
    /// Blocks after the device blocks, in host memory.
    pub host_blocks: u32,
    /// Blocks after the host blocks, on disk.
    pub disk_blocks: u32,
    /// Uncached prompt tokens of requests that waited for their first token on the candidate.
    pub prefill_tokens: u64,
    /// Distinct blocks in flight on the candidate.
    pub decode_blocks: u64,
    /// Leading blocks of the prompt in flight on the candidate.
    pub shared_blocks: u32,
    /// Requests in flight on the candidate.
    pub active_requests: u32,
    /// Parts of the cost.
    pub parts: Parts,
}
