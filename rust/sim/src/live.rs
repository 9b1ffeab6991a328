//! The same fleet, fed as it goes: requests are pushed when they come, ended ones are handed out and forgotten.
//!
//! ```text
//! push(request) ─▶ advance(now) ─▶ ended rows      a batch run over the same requests gives the same rows
//! ```
//!
//! Memory is bounded by the requests in flight (`max_open`) and the engines' caches; rows are used again, oldest first, and
//! the blocks of closed prompts go when they outnumber the open ones. Prompts come as sequence hashes and are named by 32
//! bits of each: two of 100,000 cached blocks share a name with a chance of about 1, and a wrong hit of one block in 100,000
//! does not move a figure.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::config::{EngineSpec, FleetSpec, SimError, bad};
use crate::engine::Desk;
use crate::fleet::Fleet;
use crate::pool::GENERATED;
use crate::record::{End, Totals};
use crate::timing::Timing;
use crate::workload::{Naming, Workload};
use wardrop_core::queue::QueueConfig;
use wardrop_core::{PolicyConfig, RouterConfig};

/// A request as it comes.
#[derive(Clone, Copy, Debug)]
pub struct LiveRequest<'a> {
    /// Who asks; comes back in [`Ended`].
    pub id: u64,
    /// When, ms; not before an earlier one, nor before the last [`LiveFleet::advance`].
    pub at_ms: f64,
    /// Prompt tokens, at least 1.
    pub input_tokens: u32,
    /// Answer tokens, at least 1.
    pub output_tokens: u32,
    /// Sequence hashes of the prompt's whole blocks.
    pub sequence_hashes: &'a [u64],
}

/// A request that ended. Times in ms, NaN when never reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// As pushed.
    pub id: u64,
    /// Reached the router.
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
    /// All tokens delivered (else refused, or no worker).
    pub complete: bool,
}

/// See the module.
pub struct LiveFleet {
    fleet: Fleet<'static>,
    ids: Vec<u64>,
    free: VecDeque<u32>,
    /// Blocks of open prompts.
    live_blocks: usize,
    max_open: usize,
}

/// Closed prompts' blocks are dropped once there are this many beyond as many as open ones.
const SLACK_BLOCKS: usize = 1 << 16;

impl LiveFleet {
    /// An idle fleet at time 0. `routers` has one configuration per pool.
    pub fn new(spec: FleetSpec, routers: &[RouterConfig], max_open: usize) -> Result<Self, SimError> {
        spec.validate()?;
        if routers.len() != spec.pools.len() {
            return Err(bad("routers", routers.len(), "one configuration per pool"));
        }
        if spec.concurrency.is_some() || spec.sample_ms > 0.0 {
            return Err(bad(
                "fleet",
                "concurrency or samples",
                "neither: arrivals are pushed as they come",
            ));
        }
        if max_open == 0 || max_open >= u32::MAX as usize {
            return Err(bad("max_open", max_open, "1 to 2^32 − 2"));
        }
        let block_size = spec.pools[0].engine.block_size;
        let workload = Workload {
            block_start: vec![0],
            block_size,
            ..Workload::default()
        };
        let naming = Naming::new(&workload, block_size)?;
        let mut fleet = Fleet::new(Cow::Owned(spec), Desk::new(Cow::Owned(workload), naming), routers)?;
        fleet.closed = Some(Vec::new());
        Ok(Self {
            fleet,
            ids: Vec::new(),
            free: VecDeque::new(),
            live_blocks: 0,
            max_open,
        })
    }

    /// Requests in flight.
    pub fn open(&self) -> usize {
        self.fleet.open
    }

    /// Block names held for prompts, for the memory check.
    pub fn stored_blocks(&self) -> usize {
        self.fleet.desk.workload.blocks.len()
    }

    /// Counters since the start.
    pub const fn totals(&self) -> &Totals {
        &self.fleet.desk.totals
    }

    /// All engines of pool `pool` run at this timing from their next iteration on.
    pub fn set_timing(&mut self, pool: usize, timing: &Timing) {
        self.fleet.set_timing(pool, timing);
    }

    /// One more worker of pool `pool`, idle and empty; its index over all pools, which [`LiveFleet::leave`] takes back.
    pub fn join(&mut self, pool: usize, engine: &EngineSpec) -> Result<usize, SimError> {
        let block_size = self.fleet.desk.workload.block_size;
        if engine.block_size != block_size {
            return Err(bad("engine.block_size", engine.block_size, "that of the fleet"));
        }
        self.fleet.add_worker(pool, engine)
    }

    /// A worker leaves: its requests are tried again elsewhere.
    pub fn leave(&mut self, worker: usize) -> Result<(), SimError> {
        self.fleet.remove_worker(worker)
    }

    /// One worker runs at this timing from its next iteration on.
    pub fn set_worker_timing(&mut self, worker: usize, timing: &Timing) {
        self.fleet.set_worker_timing(worker, timing);
    }

    /// Another policy and queue for a pool; caches, bookings and what its router has learned stay.
    pub fn set_router(
        &mut self,
        pool: usize,
        policy: PolicyConfig,
        queue: Option<QueueConfig>,
    ) -> Result<(), SimError> {
        self.fleet.set_router(pool, policy, queue)
    }

    /// Take a request; false when `max_open` are in flight.
    pub fn push(&mut self, request: &LiveRequest<'_>) -> Result<bool, SimError> {
        if self.fleet.open >= self.max_open {
            return Ok(false);
        }
        if request.input_tokens == 0 || request.output_tokens == 0 {
            return Err(bad("tokens", 0, "at least 1 in and 1 out"));
        }
        if request.input_tokens.checked_add(request.output_tokens).is_none() {
            return Err(bad("tokens", request.input_tokens, "below 2^32 in all"));
        }
        let whole = (request.input_tokens / self.fleet.desk.workload.block_size) as usize;
        if request.sequence_hashes.len() < whole {
            return Err(bad(
                "sequence_hashes",
                request.sequence_hashes.len(),
                "one for every whole block of the prompt",
            ));
        }
        let last_ms = self.fleet.last_root_ms().unwrap_or(0.0).max(self.fleet.now_ms);
        if !(request.at_ms.is_finite() && request.at_ms >= last_ms) {
            return Err(bad(
                "at_ms",
                request.at_ms,
                "finite and not before what was pushed",
            ));
        }
        self.compact();
        let slot = self.slot();
        let i = slot as usize;
        self.ids[i] = request.id;
        let workload = self.fleet.desk.workload.to_mut();
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
        self.fleet.add_root(slot);
        Ok(true)
    }

    /// Let time pass up to `now_ms`; rows that end are appended to `ended`.
    pub fn advance(&mut self, now_ms: f64, ended: &mut Vec<Ended>) -> Result<(), SimError> {
        while let Some(at_ms) = self.fleet.next_ms().filter(|at_ms| *at_ms <= now_ms) {
            self.fleet.step(at_ms)?;
            self.hand_out(ended);
        }
        self.fleet.now_ms = self.fleet.now_ms.max(now_ms);
        self.fleet.forget_roots();
        Ok(())
    }

    fn hand_out(&mut self, ended: &mut Vec<Ended>) {
        let Some(mut closed) = self.fleet.closed.take() else {
            return;
        };
        for slot in closed.drain(..) {
            let i = slot as usize;
            let (requests, workload) = (&self.fleet.desk.requests, &self.fleet.desk.workload);
            ended.push(Ended {
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
            self.fleet.clear_row(slot);
            self.free.push_back(slot);
        }
        self.fleet.closed = Some(closed);
    }

    /// The row that has been free for longest, or a new one.
    fn slot(&mut self) -> u32 {
        if let Some(slot) = self.free.pop_front() {
            return slot;
        }
        self.ids.push(0);
        self.fleet.add_row()
    }

    /// Drop the blocks of closed prompts once they are most of what is stored.
    fn compact(&mut self) {
        let stored = self.fleet.desk.workload.blocks.len();
        if stored <= 2 * self.live_blocks + SLACK_BLOCKS {
            return;
        }
        let mut is_free = vec![false; self.ids.len()];
        self.free.iter().for_each(|slot| is_free[*slot as usize] = true);
        let workload = self.fleet.desk.workload.to_mut();
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

/// 32 bits of a hash, but for the two names that mean something else.
fn block_name(hash: u64) -> u32 {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) as u32).min(GENERATED - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{Case, case, engine, play, router};
    use wardrop_core::PolicyConfig;
    use wardrop_core::rng::Rng;

    fn hash(block: u32) -> u64 {
        Rng::new(u64::from(block)).next_u64()
    }

    /// The case's requests pushed one by one, time moving on by `stride_ms` between looks.
    fn stream(case: &Case, stride_ms: f64) -> Vec<Ended> {
        let mut spec = case.spec.clone();
        spec.sample_ms = 0.0;
        let routers: Vec<_> = spec
            .pools
            .iter()
            .map(|_| router(PolicyConfig::LeastLoaded, case.seed))
            .collect();
        let mut fleet = LiveFleet::new(spec, &routers, 1_000).expect("a fair fleet");
        let (mut ended, mut next, mut now_ms) = (Vec::new(), 0, 0.0);
        let workload = &case.workload;
        while ended.len() < workload.len() {
            now_ms += stride_ms;
            while next < workload.len() && workload.arrival_ms[next] <= now_ms {
                let ids = workload.block_start[next] as usize..workload.block_start[next + 1] as usize;
                let hashes: Vec<u64> = workload.blocks[ids].iter().map(|id| hash(*id)).collect();
                let request = LiveRequest {
                    id: next as u64,
                    at_ms: workload.arrival_ms[next],
                    input_tokens: workload.input_tokens[next],
                    output_tokens: workload.output_tokens[next],
                    sequence_hashes: &hashes,
                };
                assert!(fleet.push(&request).expect("a fair request"));
                next += 1;
            }
            fleet.advance(now_ms, &mut ended).expect("a fair fleet");
        }
        assert_eq!(fleet.open(), 0);
        ended
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn requests_pushed_as_they_come_end_as_in_a_batch(case in case(), stride_ms in 0.5f64..400.0) {
            let requests = play(&case).requests;
            for row in stream(&case, stride_ms) {
                let i = row.id as usize;
                prop_assert_eq!(row.arrival_ms.to_bits(), requests.arrival_ms[i].to_bits());
                prop_assert_eq!(row.first_token_ms.to_bits(), requests.first_token_ms[i].to_bits());
                prop_assert_eq!(row.end_ms.to_bits(), requests.end_ms[i].to_bits());
                prop_assert_eq!(row.cached_tokens, requests.cached_tokens[i]);
                prop_assert_eq!(row.complete, requests.end[i] == End::Complete as u8);
            }
        }
    }

    #[test]
    fn a_long_stream_takes_no_more_memory_than_a_short_one() {
        let spec = FleetSpec::aggregated(2, engine());
        let mut fleet =
            LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 8).expect("a fair fleet");
        let (mut ended, mut taken) = (Vec::new(), 0u64);
        let mut peak = 0;
        for i in 0..20_000u64 {
            let hashes: Vec<u64> = (0..30).map(|k| i * 30 + k).collect();
            let request = LiveRequest {
                id: i,
                at_ms: i as f64 * 150.0,
                input_tokens: 480,
                output_tokens: 4,
                sequence_hashes: &hashes,
            };
            taken += u64::from(fleet.push(&request).expect("a fair request"));
            fleet.advance(request.at_ms, &mut ended).expect("a fair fleet");
            peak = peak.max(fleet.stored_blocks());
        }
        fleet.advance(1e9, &mut ended).expect("a fair fleet");
        assert_eq!(ended.len() as u64, taken);
        assert!(
            taken < 20_000,
            "more comes than two workers can do, so some must be refused"
        );
        assert!(
            fleet.ids.len() <= 8,
            "{} rows for 8 open requests",
            fleet.ids.len()
        );
        assert!(peak <= SLACK_BLOCKS + 3 * 8 * 30, "{peak} blocks");
    }

    /// `count` requests of 2,000 tokens, one each `gap_ms`, from `from_ms` on.
    fn feed(
        fleet: &mut LiveFleet,
        first: u64,
        count: u64,
        from_ms: f64,
        gap_ms: f64,
        ended: &mut Vec<Ended>,
    ) {
        for i in 0..count {
            let hashes: Vec<u64> = (0..125).map(|k| (first + i) * 1_000 + k).collect();
            let request = LiveRequest {
                id: first + i,
                at_ms: from_ms + i as f64 * gap_ms,
                input_tokens: 2_000,
                output_tokens: 20,
                sequence_hashes: &hashes,
            };
            assert!(fleet.push(&request).expect("a fair request"));
            fleet.advance(request.at_ms, ended).expect("a fair fleet");
        }
    }

    fn mean_ttft_ms(ended: &[Ended]) -> f64 {
        ended
            .iter()
            .map(|row| row.first_token_ms - row.arrival_ms)
            .sum::<f64>()
            / ended.len() as f64
    }

    #[test]
    fn workers_that_join_take_load_and_those_that_leave_lose_no_request() {
        let engine = EngineSpec {
            num_blocks: 4_000,
            timing: Timing::Polynomial,
            ..engine()
        };
        let spec = FleetSpec::aggregated(1, engine.clone());
        let mut fleet =
            LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 4_000).expect("a fair fleet");
        let mut alone = Vec::new();
        feed(&mut fleet, 0, 200, 0.0, 40.0, &mut alone);
        fleet.advance(60_000.0, &mut alone).expect("a fair fleet");
        let second = fleet.join(0, &engine).expect("a worker");
        let mut both = Vec::new();
        feed(&mut fleet, 200, 200, 60_000.0, 40.0, &mut both);
        // In the middle of it the first one goes: what was there is done by the other.
        fleet.leave(0).expect("a departure");
        assert!(fleet.open() > 0, "somebody must have been under way");
        fleet.advance(200_000.0, &mut both).expect("a fair fleet");
        assert_eq!((alone.len(), both.len(), fleet.open()), (200, 200, 0));
        assert!(both.iter().all(|row| row.complete));
        assert!(
            mean_ttft_ms(&both) < 0.7 * mean_ttft_ms(&alone),
            "two must be faster than one"
        );
        let again = fleet.join(0, &engine).expect("a worker");
        assert_eq!((second, again), (1, 0), "a place that was left is taken again");
        let slow = Timing::Affine {
            prefill_base_ms: 1_000.0,
            prefill_per_token_ms: 0.0,
            decode_base_ms: 1.0,
            decode_per_kv_token_ms: 0.0,
            decode_per_sequence_ms: 0.0,
        };
        fleet.set_worker_timing(second, &slow);
        let mut uneven = Vec::new();
        feed(&mut fleet, 400, 20, 200_000.0, 2_000.0, &mut uneven);
        fleet.advance(400_000.0, &mut uneven).expect("a fair fleet");
        let slowed = uneven
            .iter()
            .filter(|row| row.first_token_ms - row.arrival_ms > 900.0)
            .count();
        assert!((1..20).contains(&slowed), "{slowed} of 20 on the slow one");
    }

    #[test]
    fn learned_curves_time_a_prompt_with_its_first_token_and_a_step_by_its_contexts() {
        let curves = wardrop_core::latency::Prior {
            prefill: [0.05, 1e-4, 0.0, 0.0],
            step: [0.01, 0.0, 1e-6],
        };
        let engine = EngineSpec {
            num_blocks: 4_000,
            timing: Timing::Learned(curves),
            ..engine()
        };
        let spec = FleetSpec::aggregated(1, engine);
        let mut fleet =
            LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 10).expect("a fair fleet");
        let mut ended = Vec::new();
        feed(&mut fleet, 0, 1, 0.0, 1.0, &mut ended);
        fleet.advance(10_000.0, &mut ended).expect("a fair fleet");
        let row = ended[0];
        assert!(
            (row.first_token_ms - row.arrival_ms - 250.0).abs() < 1e-9,
            "{row:?}"
        );
        // 19 steps of 10 ms, and 1 µs for each of the 2,001 to 2,019 tokens of context.
        let decode_ms = row.end_ms - row.first_token_ms;
        assert!((decode_ms - (190.0 + 19.0 * 2.010)).abs() < 1e-6, "{row:?}");
    }

    #[test]
    fn a_queue_comes_and_goes_and_nobody_is_lost() {
        let spec = FleetSpec::aggregated(
            2,
            EngineSpec {
                num_blocks: 4_000,
                ..engine()
            },
        );
        let mut fleet =
            LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 4_000).expect("a fair fleet");
        let mut ended = Vec::new();
        let toll = || PolicyConfig::Toll(wardrop_core::price::Objective::default());
        for (stretch, queue) in [Some(10.0), Some(30.0), None, Some(0.0), None]
            .into_iter()
            .enumerate()
        {
            let queue = queue.map(|kappa| QueueConfig {
                kappa,
                backlog_s: 0.1,
                ..QueueConfig::default()
            });
            fleet.set_router(0, toll(), queue).expect("a policy");
            feed(
                &mut fleet,
                100 * stretch as u64,
                100,
                2_000.0 * stretch as f64,
                20.0,
                &mut ended,
            );
        }
        fleet.advance(1e6, &mut ended).expect("a fair fleet");
        assert_eq!((ended.len(), fleet.open()), (500, 0));
        assert!(ended.iter().all(|row| row.complete));
    }

    #[test]
    fn what_comes_before_its_predecessor_or_without_hashes_is_refused() {
        let spec = FleetSpec::aggregated(1, engine());
        let mut fleet =
            LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 8).expect("a fair fleet");
        let request = LiveRequest {
            id: 1,
            at_ms: 10.0,
            input_tokens: 32,
            output_tokens: 1,
            sequence_hashes: &[1, 2],
        };
        assert!(fleet.push(&request).expect("a fair request"));
        assert!(
            fleet
                .push(&LiveRequest {
                    at_ms: 9.0,
                    ..request
                })
                .is_err()
        );
        let bare = LiveRequest {
            sequence_hashes: &[1],
            ..request
        };
        assert!(fleet.push(&bare).is_err());
    }
}
