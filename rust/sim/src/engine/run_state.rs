//! State of a run that every engine reads and writes: the workload, the results, and messages to the fleet.

use std::borrow::Cow;

use super::block_pool::NONE;
use super::shared_blocks::SharedBlocks;
use super::tiers::TierChange;
use crate::record::{GapHistogram, Requests, Totals};
use crate::workload::{BlockNames, Workload};

/// A change of a worker's cache that its router has to learn of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheChange {
    /// Prompt blocks `from..to` of `request` can be reused from now on.
    Stored { request: u32, from: u32, to: u32 },
    /// A block left device memory.
    Removed { block: u32 },
    /// A block entered or left a lower tier.
    Tier(TierChange),
}

/// What an iteration did for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The request's first token was generated.
    FirstToken(u32),
    /// The request's last token was generated.
    Finished(u32),
    /// The request is larger than the whole cache and can never run.
    Rejected(u32),
}

/// A read from lower tiers that has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Onboarding {
    pub request: u32,
    /// Time at which the last block is back in device memory.
    pub ready_ms: f64,
}

/// Blocks reserved at a decode worker for KV that can be sent now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reservation {
    pub request: u32,
    /// Tokens to send, a multiple of the block size.
    pub tokens: u32,
}

/// What all engines of a run share: the workload to read, the results to write, and messages to the fleet.
pub(crate) struct RunState<'a> {
    /// The requests of the run.
    pub workload: Cow<'a, Workload>,
    /// Names of the blocks that any worker has computed; `None` unless workers share their caches.
    pub shared_blocks: Option<SharedBlocks>,
    /// Names of engine blocks.
    pub names: BlockNames,
    /// Results by request.
    pub requests: Requests,
    /// Gaps between tokens, over all requests.
    pub gaps: GapHistogram,
    /// Sums over the run.
    pub totals: Totals,
    /// Cache changes of the last engine call. The fleet empties the list after each call.
    pub changes: Vec<CacheChange>,
    /// Signals of the last engine call. The fleet empties the list after each call.
    pub signals: Vec<Signal>,
    /// Tier reads started by the last engine call. The fleet empties the list after each call.
    pub onboardings: Vec<Onboarding>,
    /// Reservations made by the last engine call. The fleet empties the list after each call.
    pub reservations: Vec<Reservation>,
}

impl<'a> RunState<'a> {
    pub fn new(workload: Cow<'a, Workload>, names: BlockNames) -> Self {
        Self {
            requests: Requests::new(workload.len()),
            workload,
            shared_blocks: None,
            names,
            gaps: GapHistogram::new(),
            totals: Totals::default(),
            changes: Vec::new(),
            signals: Vec::new(),
            onboardings: Vec::new(),
            reservations: Vec::new(),
        }
    }

    /// Name of block `index` of the prompt of `request`.
    pub fn block(&self, request: u32, index: u32) -> u32 {
        self.names.block(&self.workload, request, index)
    }

    /// Name of the block before block `index` of the prompt of `request`, or [`NONE`].
    pub fn parent(&self, request: u32, index: u32) -> u32 {
        index
            .checked_sub(1)
            .map_or(NONE, |before| self.block(request, before))
    }
}
