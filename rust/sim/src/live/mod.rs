//! A fleet without an end: requests are pushed when they arrive, and forgotten when they end.
//!
//! ```text
//! push(request) ─▶ advance(now) ─▶ EndedRequest      a batch run over the same requests gives the same results
//! ```
//!
//! Memory is bounded by the requests in flight (`max_open`), by the engines' caches, and for a shared cache by
//! [`SHARED_MEMORIES`]. Rows are used again, oldest first. The blocks of ended prompts are dropped when they outnumber
//! the blocks of open prompts.
//!
//! Prompts come as sequence hashes, and each block is named by 32 bits of its hash. Among 100,000 cached blocks about
//! one pair shares a name. One wrong hit in 100,000 blocks does not change a result visibly.

use std::borrow::Cow;
use std::collections::VecDeque;

use wardrop_core::queue::QueueConfig;
use wardrop_core::{PolicyConfig, RouterConfig};

use crate::engine::block_pool::GENERATED;
use crate::error::{SimError, out_of_range};
use crate::fleet::Fleet;
use crate::record::End;
use crate::spec::{EngineSpec, FleetSpec};
use crate::timing::Timing;
use crate::workload::Workload;

#[cfg(test)]
mod tests;

/// A request at its arrival.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveRequest<'a> {
    /// Id that [`EndedRequest`] repeats.
    pub id: u64,
    /// Arrival in milliseconds; not before an earlier request, nor before the last [`LiveFleet::advance`].
    pub at_ms: f64,
    /// Prompt tokens, at least 1.
    pub input_tokens: u32,
    /// Answer tokens, at least 1.
    pub output_tokens: u32,
    /// Sequence hashes of the prompt's whole blocks.
    pub sequence_hashes: &'a [u64],
}

/// A request that ended. Times are milliseconds, and NaN if the request never reached the point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EndedRequest {
    /// Id of the pushed request.
    pub id: u64,
    /// Arrival at the router.
    pub arrival_ms: f64,
    /// First token.
    pub first_token_ms: f64,
    /// Last token.
    pub end_ms: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Answer tokens.
    pub output_tokens: u32,
    /// Prompt tokens found in caches.
    pub cached_tokens: u32,
    /// Whether all tokens were delivered. Otherwise the request was rejected, or no worker was left.
    pub complete: bool,
}

/// A simulated fleet that takes requests as they arrive and has no end. The module's page says what bounds
/// its memory.
pub(crate) struct LiveFleet {
    /// The fleet, which owns its workload and its specification.
    fleet: Fleet<'static>,
    /// Id of the request in each row.
    ids: Vec<u64>,
    /// Rows without a request, oldest first.
    free: VecDeque<u32>,
    /// Number of blocks of open prompts.
    live_blocks: usize,
    /// Largest number of requests in flight. A push beyond it is refused.
    max_open: usize,
}

/// Size of a cache that all workers share, in memories of all workers together.
pub(crate) const SHARED_MEMORIES: usize = 16;

/// Number of stored blocks beyond twice the open ones at which the blocks of ended prompts are dropped.
const SLACK_BLOCKS: usize = 1 << 16;

impl LiveFleet {
    /// An idle fleet at time 0. `routers` has one configuration per pool.
    ///
    /// # Errors
    /// [`SimError::Config`] for a field out of range, for samples, and for a closed loop.
    pub fn new(spec: FleetSpec, routers: &[RouterConfig], max_open: usize) -> Result<Self, SimError> {
        spec.validate()?;
        if spec.concurrency.is_some() || spec.sample_ms > 0.0 {
            return Err(out_of_range(
                "fleet",
                "a fleet with concurrency or samples",
                "a fleet with neither, because requests are pushed when they arrive",
            ));
        }
        if max_open == 0 || max_open >= u32::MAX as usize {
            return Err(out_of_range("max_open", max_open, "1 to 2^32 − 2"));
        }
        let workload = Workload {
            block_start: vec![0],
            block_size: spec.pools[0].engine.block_size,
            ..Workload::default()
        };
        let mut fleet = Fleet::new(Cow::Owned(spec), Cow::Owned(workload), routers)?;
        fleet.ended_rows = Some(Vec::new());
        fleet.bound_shared_blocks(SHARED_MEMORIES);
        Ok(Self {
            fleet,
            ids: Vec::new(),
            free: VecDeque::new(),
            live_blocks: 0,
            max_open,
        })
    }

    /// Number of requests in flight.
    pub fn open(&self) -> usize {
        self.fleet.open_requests
    }

    /// Number of block names stored for prompts.
    #[cfg(test)]
    pub fn stored_blocks(&self) -> usize {
        self.fleet.state.workload.blocks.len()
    }

    /// Adds an idle worker with an empty cache to pool `pool`, and returns its index over all pools.
    ///
    /// # Errors
    /// [`SimError::Config`] for an engine out of range or with another block size.
    pub fn join(&mut self, pool: usize, engine: &EngineSpec) -> Result<usize, SimError> {
        let block_size = self.fleet.state.workload.block_size;
        if engine.block_size != block_size {
            return Err(out_of_range(
                "engine.block_size",
                engine.block_size,
                "the block size of the fleet",
            ));
        }
        let worker = self.fleet.add_worker(pool, engine)?;
        self.fleet.bound_shared_blocks(SHARED_MEMORIES);
        Ok(worker)
    }

    /// Removes a worker by its index. Its requests are tried again elsewhere.
    pub fn leave(&mut self, worker: usize) -> Result<(), SimError> {
        self.fleet.remove_worker(worker)?;
        self.fleet.bound_shared_blocks(SHARED_MEMORIES);
        Ok(())
    }

    /// Changes the timing of one worker, from its next iteration on.
    pub fn set_worker_timing(&mut self, worker: usize, timing: &Timing) {
        self.fleet.set_worker_timing(worker, timing);
    }

    /// Changes the policy and the queue of a pool; caches, bookings and learned curves stay.
    ///
    /// # Errors
    /// [`SimError::Router`] for parameters out of range.
    pub fn set_router(
        &mut self,
        pool: usize,
        policy: PolicyConfig,
        queue: Option<QueueConfig>,
    ) -> Result<(), SimError> {
        self.fleet.set_router(pool, policy, queue)
    }

    /// Takes a request. Returns false if `max_open` requests are in flight.
    ///
    /// # Errors
    /// [`SimError::Config`] for a length of 0, missing hashes, or an arrival before an earlier one.
    pub fn push(&mut self, request: &LiveRequest<'_>) -> Result<bool, SimError> {
        if self.fleet.open_requests >= self.max_open {
            return Ok(false);
        }
        if request.input_tokens == 0 || request.output_tokens == 0 {
            return Err(out_of_range("tokens", 0, "at least 1 in and 1 out"));
        }
        if request.input_tokens.checked_add(request.output_tokens).is_none() {
            return Err(out_of_range("tokens", request.input_tokens, "below 2^32 in all"));
        }
        let whole = (request.input_tokens / self.fleet.state.workload.block_size) as usize;
        if request.sequence_hashes.len() < whole {
            return Err(out_of_range(
                "sequence_hashes",
                request.sequence_hashes.len(),
                "one for every whole block of the prompt",
            ));
        }
        let last_ms = self.fleet.last_root_ms().unwrap_or(0.0).max(self.fleet.now_ms);
        if !(request.at_ms.is_finite() && request.at_ms >= last_ms) {
            return Err(out_of_range(
                "at_ms",
                request.at_ms,
                "finite and not before the last pushed request",
            ));
        }
        self.compact();
        let row = self.take_row();
        let i = row as usize;
        self.ids[i] = request.id;
        let workload = self.fleet.state.workload.to_mut();
        workload.block_start[i] = workload.blocks.len() as u64;
        workload.blocks.extend(
            request.sequence_hashes[..whole]
                .iter()
                .map(|hash| block_name(*hash)),
        );
        workload.input_tokens[i] = request.input_tokens;
        workload.output_tokens[i] = request.output_tokens;
        workload.arrival_ms[i] = request.at_ms;
        self.live_blocks += whole;
        self.fleet.add_root(row);
        Ok(true)
    }

    /// Runs the fleet up to `now_ms`, and appends the requests that end to `ended`.
    ///
    /// # Errors
    /// [`SimError::Router`] when the router refuses a call that every fleet needs. The fleet is then of no further use.
    pub fn advance(&mut self, now_ms: f64, ended: &mut Vec<EndedRequest>) -> Result<(), SimError> {
        while let Some(at_ms) = self.fleet.next_ms().filter(|at_ms| *at_ms <= now_ms) {
            self.fleet.step(at_ms)?;
            self.take_ended(ended);
        }
        self.fleet.now_ms = self.fleet.now_ms.max(now_ms);
        self.fleet.forget_roots();
        Ok(())
    }

    fn take_ended(&mut self, ended: &mut Vec<EndedRequest>) {
        let Some(mut rows) = self.fleet.ended_rows.take() else {
            return;
        };
        for row in rows.drain(..) {
            let i = row as usize;
            let (requests, workload) = (&self.fleet.state.requests, &self.fleet.state.workload);
            ended.push(EndedRequest {
                id: self.ids[i],
                arrival_ms: requests.arrival_ms[i],
                first_token_ms: requests.first_token_ms[i],
                end_ms: requests.end_ms[i],
                input_tokens: workload.input_tokens[i],
                output_tokens: workload.output_tokens[i],
                cached_tokens: requests.cached_tokens[i],
                complete: requests.end[i] == End::Complete as u8,
            });
            self.live_blocks -= (workload.input_tokens[i] / workload.block_size) as usize;
            self.fleet.clear_row(row);
            self.free.push_back(row);
        }
        self.fleet.ended_rows = Some(rows);
    }

    /// The row that has been free for longest, or a new row.
    fn take_row(&mut self) -> u32 {
        if let Some(row) = self.free.pop_front() {
            return row;
        }
        self.ids.push(0);
        self.fleet.add_row()
    }

    /// Drops the blocks of ended prompts once they are most of the stored blocks.
    fn compact(&mut self) {
        let stored = self.fleet.state.workload.blocks.len();
        if stored <= 2 * self.live_blocks + SLACK_BLOCKS {
            return;
        }
        let mut is_free = vec![false; self.ids.len()];
        self.free.iter().for_each(|slot| is_free[*slot as usize] = true);
        let workload = self.fleet.state.workload.to_mut();
        let mut kept = Vec::with_capacity(self.live_blocks + SLACK_BLOCKS);
        for (i, free) in is_free.iter().enumerate() {
            let start = workload.block_start[i] as usize;
            workload.block_start[i] = kept.len() as u64;
            if !free {
                let whole = (workload.input_tokens[i] / workload.block_size) as usize;
                kept.extend_from_slice(&workload.blocks[start..start + whole]);
            }
        }
        workload.blocks = kept;
    }
}

/// Name of a block: 32 bits of its hash, without the two reserved names.
pub(crate) fn block_name(hash: u64) -> u32 {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) as u32).min(GENERATED - 1)
}
