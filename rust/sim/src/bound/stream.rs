//! The bound on a stream of requests, one window after another, for a router that runs.
//!
//! ```text
//! ended requests of a window ─▶ History (what earlier prompts could have left) ─▶ lower_bound_after ─▶ paid and lower
//! windows ─▶ Σ paid ÷ Σ lower, with a 95 % interval over windows
//! ```
//!
//! A window holds the requests that arrived in it. Its bound knows no request outside of it, except for the blocks that
//! they could have left: other requests only add work. The same code serves a live router and a reader of its records.
//! Cost of a window: O(blocks of its prompts + requests · log requests).

use rustc_hash::FxHashMap;

use super::history::History;
use super::workers::BoundFleet;
use super::{CostSums, lower_bound_after};
use crate::engine::block_pool::NONE;
use crate::error::SimError;
use crate::estimate::{BatchSums, mean};
use crate::workload::Workload;

/// Most tokens of a prompt and its answer. An engine that reports more is not believed.
const MOST_TOKENS: u64 = 1 << 22;

/// One request of a window, without anything of its text.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRequest {
    /// Arrival, seconds on any clock that does not jump.
    pub arrived_s: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Ids of the full blocks of the prompt; each stands for the block and all before it.
    pub blocks: Vec<u64>,
    /// Leading blocks that the router predicted or the engine reported in the cache of a worker.
    pub found_blocks: u32,
    /// What the request paid; `None` for a request that did not finish, or whose prompt or answer length is unknown.
    pub paid: Option<PaidTimes>,
}

/// What a finished request paid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaidTimes {
    /// Tokens of the answer, at least 1.
    pub output_tokens: u32,
    /// Seconds to the first token; `None` for an answer in one piece.
    pub ttft_s: Option<f64>,
    /// Seconds to the last token.
    pub e2e_s: f64,
}

/// Cost and bound of the same requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PaidAndLower {
    /// Number of requests.
    pub requests: usize,
    /// What they paid, seconds.
    pub paid_s: f64,
    /// What no routing can go below, seconds.
    pub lower_s: f64,
}

/// Costs and bounds of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowPrice {
    /// By the time to the first token, over streamed answers.
    pub ttft: PaidAndLower,
    /// By the time to the last token.
    pub e2e: PaidAndLower,
}

/// A ratio of sums with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PriceEstimate {
    /// Σ paid ÷ Σ lower: the price of anarchy is at most this.
    pub value: f64,
    /// 95 % interval over windows; `None` with fewer than 4 windows.
    pub interval: Option<(f64, f64)>,
    /// Number of requests in the sums.
    pub requests: usize,
}

impl StreamRequest {
    /// Whether the request belongs into cost and bound: it finished, and its prompt is known.
    fn is_counted(&self, block_size: u32) -> bool {
        let Some(paid) = self.paid else { return false };
        let tokens = u64::from(self.input_tokens) + u64::from(paid.output_tokens);
        paid.output_tokens > 0
            && self.input_tokens > 0
            && tokens <= MOST_TOKENS
            && self.blocks.len() == (self.input_tokens / block_size) as usize
    }
}

/// Sorts the requests of a window by arrival and adds their prompts to the history.
///
/// Returns, for each request, the leading blocks that could have been in a cache at its arrival.
pub fn note_window(history: &mut History, requests: &mut [StreamRequest]) -> Vec<u32> {
    requests.sort_by(|a, b| a.arrived_s.total_cmp(&b.arrived_s));
    let left = |request: &StreamRequest| history.note(&request.blocks).max(request.found_blocks);
    requests.iter().map(left).collect()
}

/// Cost and bound of one window. The prompts become part of the history, also where the bound refuses the fleet.
///
/// # Errors
/// [`SimError::Config`] for a fleet that the proofs do not cover.
pub fn price_window(
    fleet: &BoundFleet,
    history: &mut History,
    requests: &mut [StreamRequest],
) -> Result<WindowPrice, SimError> {
    history.cover(fleet.known_blocks());
    let left = note_window(history, requests);
    let spec = fleet.spec();
    spec.validate()?;
    let counted = |i: &usize| requests[*i].is_counted(fleet.block_size);
    let finished: Vec<usize> = (0..requests.len()).filter(counted).collect();
    let streamed: Vec<usize> = finished
        .iter()
        .copied()
        .filter(|i| requests[*i].paid.is_some_and(|paid| paid.ttft_s.is_some()))
        .collect();
    let bound_of = |chosen: &[usize]| {
        let workload = workload(requests, chosen, fleet.block_size);
        let left: Vec<u32> = chosen.iter().map(|i| left[*i]).collect();
        lower_bound_after(&spec, &workload, None, Some(&left)).map(|bound| bound.all)
    };
    let CostSums { mut ttft_ms, e2e_ms } = bound_of(&finished)?;
    if streamed.len() < finished.len() {
        // The bound of fewer requests on the whole fleet. The other requests only add work.
        ttft_ms = bound_of(&streamed)?.ttft_ms;
    }
    let paid = |chosen: &[usize], time: fn(&PaidTimes) -> f64| {
        chosen
            .iter()
            .filter_map(|i| requests[*i].paid.as_ref())
            .map(time)
            .sum()
    };
    Ok(WindowPrice {
        ttft: PaidAndLower {
            requests: streamed.len(),
            paid_s: paid(&streamed, |paid| paid.ttft_s.unwrap_or(0.0)),
            lower_s: ttft_ms * 1e-3,
        },
        e2e: PaidAndLower {
            requests: finished.len(),
            paid_s: paid(&finished, |paid| paid.e2e_s),
            lower_s: e2e_ms * 1e-3,
        },
    })
}

/// The chosen requests as a workload that begins at 0. Blocks get numbers in the order of their first use.
pub(super) fn workload(requests: &[StreamRequest], chosen: &[usize], block_size: u32) -> Workload {
    let mut workload = Workload {
        block_size,
        block_start: vec![0],
        ..Workload::default()
    };
    let start_s = chosen.first().map_or(0.0, |first| requests[*first].arrived_s);
    let mut numbers: FxHashMap<u64, u32> = FxHashMap::default();
    let mut next = 0;
    for request in chosen.iter().map(|i| &requests[*i]) {
        let Some(paid) = request.paid else { continue };
        for block in &request.blocks {
            let number = *numbers.entry(*block).or_insert_with(|| {
                next += 1;
                next - 1
            });
            workload.blocks.push(number);
        }
        if !request.input_tokens.is_multiple_of(block_size) {
            // A block that is not full is shared with nobody.
            workload.blocks.push(next);
            next += 1;
        }
        workload.block_start.push(workload.blocks.len() as u64);
        workload.arrival_ms.push((request.arrived_s - start_s) * 1e3);
        workload.input_tokens.push(request.input_tokens);
        workload.output_tokens.push(paid.output_tokens);
        workload.after.push(NONE);
        workload.think_ms.push(0.0);
    }
    workload
}

/// The price over several windows; `None` without a request or a bound above 0.
pub fn price_estimate<'a>(windows: impl Iterator<Item = &'a PaidAndLower>) -> Option<PriceEstimate> {
    let windows: Vec<&PaidAndLower> = windows.filter(|window| window.requests > 0).collect();
    let sum = |of: fn(&PaidAndLower) -> f64| windows.iter().map(|window| of(window)).sum::<f64>();
    let lower_s = sum(|window| window.lower_s);
    if lower_s.is_nan() || lower_s <= 0.0 {
        return None;
    }
    let batches: Vec<BatchSums> = windows
        .iter()
        .map(|window| BatchSums {
            numerator: window.paid_s,
            denominator: window.lower_s,
        })
        .collect();
    Some(PriceEstimate {
        value: sum(|window| window.paid_s) / lower_s,
        interval: mean(&batches).map(|estimate| (estimate.low.max(0.0), estimate.high)),
        requests: windows.iter().map(|window| window.requests).sum(),
    })
}
