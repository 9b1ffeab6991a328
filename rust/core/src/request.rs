//! A request to place, and where it goes.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::hash::{LocalHash, SequenceHash};
use crate::index::Prompt;
use crate::worker::WorkerId;

/// A request's identity among the open bookings. Who calls maps its own ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// One request to place.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteRequest<'a> {
    /// Books under this id when given; without it the decision leaves no trace.
    pub request_id: Option<RequestId>,
    /// Local hashes of the prompt's full blocks; empty when the prompt is not known (then only load counts).
    pub local_hashes: &'a [LocalHash],
    /// Sequence hashes of the same blocks, where the caller has them: a long match is then a few comparisons. May be empty.
    pub sequence_hashes: &'a [SequenceHash],
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Expected tokens of the answer.
    pub expected_output_tokens: Option<u32>,
    /// Only these workers; ids that are not registered are ignored.
    pub allowed: Option<&'a [WorkerId]>,
    /// Whether the answer comes in one piece, so that no first token is reported. The prefill then counts as over when it is
    /// expected to be.
    pub is_unstreamed: bool,
    /// Fill [`Decision::candidates`].
    pub explain: bool,
}

impl<'a> RouteRequest<'a> {
    /// Its prompt.
    pub(crate) const fn prompt(&self) -> Prompt<'a> {
        Prompt {
            locals: self.local_hashes,
            sequence: self.sequence_hashes,
        }
    }
}

/// The stages of a decision, in their order; [`Stage::Pick`] ends with the booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Which candidate holds how much of the prompt.
    Match,
    /// What each candidate costs.
    Price,
    /// The choice and its booking.
    Pick,
}

/// Where a request goes, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decision {
    /// The chosen worker.
    pub worker: WorkerId,
    /// Leading blocks of the prompt in its device memory.
    pub overlap_blocks: u32,
    /// Its cost, in the unit of the policy.
    pub cost: f64,
    /// Every candidate with its parts, when asked for.
    pub candidates: Vec<Candidate>,
}

/// Parts of one cost at most.
const PARTS_MAX: usize = 6;

/// The parts of a cost by name, in the unit of the policy: their sum is the cost. Empty where a rule adds nothing up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts([Option<(&'static str, f64)>; PARTS_MAX]);

impl Parts {
    /// At most six.
    pub fn new<const N: usize>(parts: [(&'static str, f64); N]) -> Self {
        const { assert!(N <= PARTS_MAX, "a cost must have at most six parts") };
        Self(std::array::from_fn(|i| parts.get(i).copied()))
    }

    /// Each with its name.
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

/// One candidate of a decision, as it was priced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Candidate {
    /// Who.
    pub worker: WorkerId,
    /// Its cost.
    pub cost: f64,
    /// Leading prompt blocks in device memory.
    pub device_blocks: u32,
    /// Further blocks in host memory.
    pub host_blocks: u32,
    /// Further blocks on disk.
    pub disk_blocks: u32,
    /// Uncached prompt tokens that waited there for a first token.
    pub prefill_tokens: u64,
    /// Distinct blocks in flight there.
    pub decode_blocks: u64,
    /// Leading prompt blocks in flight there.
    pub shared_blocks: u32,
    /// Requests in flight there.
    pub active_requests: u32,
    /// What the cost is made of.
    pub parts: Parts,
}
