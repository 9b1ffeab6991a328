//! Lower bounds on the cost of any routing: what no router, not even a clairvoyant one, can go below.
//!
//! ```text
//! workload ─▶ sharing ─▶ work of every request ─▶ completions that each limit allows ─▶ sums of TTFT and E2E
//! engines  ─▶ floors  ─▶┘
//! ```
//!
//! Five limits are relaxed worlds, each kinder to requests than the fleet:
//!
//! * *alone*: each request on an idle fastest worker, behind every block that an earlier request could have left;
//! * *prefill*: one server with the prefill speed of all workers, and one cache that loses no block;
//! * *work*: the same server also computes every decode step, at the best price per sequence and per KV token;
//! * *memory*: one KV memory as large as all workers' together, held for as long as an idle worker needs;
//! * *priced*: the time of each worker costs a price, and a request chooses its company.
//!
//! The last limit bounds the sum of E2E. Every other limit bounds how many requests can be complete at each moment. The m-th completion is therefore no
//! earlier than the latest m-th completion over all limits. The sum of these times, less the arrivals, is the
//! bound. The page `docs/explanation/price-of-anarchy.md` has the proofs, and `tests/exhaustive.rs` compares
//! the bounds with the true optimum. Cost: O(blocks of all prompts + requests · log requests).

mod floors;
mod history;
mod pooled;
mod priced;
mod share;
mod sharing;
mod stream;
mod work;
mod workers;

use crate::engine::block_pool::NONE;
use crate::error::{SimError, out_of_range};
use crate::spec::{FaultKind, FleetSpec, Preemption, Role};
use crate::workload::{BlockNames, Workload};

pub use history::History;
pub use stream::{
    PaidAndLower, PaidTimes, PriceEstimate, StreamRequest, WindowPrice, note_window, price_estimate,
    price_window,
};
pub use workers::{BoundFleet, BoundPool, BoundWorker};

use pooled::{Job, completions, later_of, offset};
use priced::{Buyer, best_bound_ms};
use sharing::Sharing;
use work::{Engines, RequestWork, request_works};

/// Sum of TTFT and sum of E2E over the requests of a bound, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CostSums {
    /// Sum of the times to the first token.
    pub ttft_ms: f64,
    /// Sum of the times to the last token.
    pub e2e_ms: f64,
}

/// A lower bound on the cost of every routing, and what each limit contributes alone.
///
/// Invariant: `all` is at least each of the other sums. A limit that says nothing has the sum of *alone*.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LowerBound {
    /// Number of requests in the sums.
    pub requests: usize,
    /// Number of requests whose E2E the pooled limits also bound. The other requests are bounded alone.
    pub pooled_requests: usize,
    /// All limits together.
    pub all: CostSums,
    /// Each request alone on an idle worker.
    pub alone: CostSums,
    /// *Alone*, and the prefill speed of the whole fleet.
    pub prefill: CostSums,
    /// *Alone*, and the speed of the whole fleet for prefill and decode.
    pub work: CostSums,
    /// *Alone*, and the KV memory of the whole fleet.
    pub memory: CostSums,
    /// *Alone*, and a price on the time of workers.
    pub priced: CostSums,
    /// All limits but the price on the time of workers.
    pub pooled: CostSums,
}

/// The bound for the requests that `is_counted` marks; `None` counts every request.
///
/// A request that is not counted adds no cost and no work, but may have left blocks in the caches.
///
/// # Errors
/// [`SimError::Config`] for a fleet or workload out of range, and for engines whose costs the proofs do not cover:
/// first-in preemption, and timings that fall below 0.
pub fn lower_bound(
    spec: &FleetSpec,
    workload: &Workload,
    is_counted: Option<&[bool]>,
) -> Result<LowerBound, SimError> {
    lower_bound_after(spec, workload, is_counted, None)
}

/// The bound for requests that come after others: `left_blocks` has, for each request, the leading whole blocks of its
/// prompt that a request before the workload could have left in a cache.
///
/// # Errors
/// Those of [`lower_bound`].
pub fn lower_bound_after(
    spec: &FleetSpec,
    workload: &Workload,
    is_counted: Option<&[bool]>,
    left_blocks: Option<&[u32]>,
) -> Result<LowerBound, SimError> {
    spec.validate()?;
    workload.validate()?;
    if let Some(counted) = is_counted
        && counted.len() != workload.len()
    {
        return Err(out_of_range("is_counted", counted.len(), "one entry per request"));
    }
    if let Some(left) = left_blocks
        && left.len() != workload.len()
    {
        return Err(out_of_range("left_blocks", left.len(), "one entry per request"));
    }
    if spec
        .pools
        .iter()
        .any(|pool| pool.engine.preemption == Preemption::Fifo)
    {
        // A first-in victim may have published blocks that its iteration then does not compute.
        return Err(out_of_range(
            "preemption",
            "fifo",
            "lifo: the bounds are not proven for first-in preemption",
        ));
    }
    if spec.shared_cache {
        return Err(out_of_range(
            "shared_cache",
            true,
            "false: the bounds hold only for a fleet whose workers have caches of their own",
        ));
    }
    if workload.is_empty() {
        return Ok(LowerBound::default());
    }
    let names = BlockNames::new(workload, spec.pools[0].engine.block_size)?;
    let sharing = Sharing::new(spec, workload, names, left_blocks);
    let engines = Engines::new(spec, workload)?;
    let works = request_works(spec, workload, &sharing, &engines);
    let counted = |i: usize| is_counted.is_none_or(|counted| counted[i]);
    Ok(Bound {
        spec,
        workload,
        engines: &engines,
        works: &works,
    }
    .solve(counted))
}

/// The parts of one bound, computed once and read by every limit.
struct Bound<'a> {
    spec: &'a FleetSpec,
    workload: &'a Workload,
    engines: &'a Engines,
    works: &'a [RequestWork],
}

/// Completion times that one server of a rate allows for an amount of work per request.
type Server<'a> = dyn Fn(f64, &dyn Fn(&RequestWork) -> f64) -> Vec<f64> + 'a;

/// Completion times under every pooled limit, rising.
struct Limits {
    prefill: Vec<f64>,
    /// One list per price of decode work.
    work: Vec<Vec<f64>>,
    memory: Vec<f64>,
}

/// Whether the workers of a stage have a price.
#[derive(Clone, Copy)]
enum Priced {
    Yes,
    No,
}

impl Priced {
    /// Index of the price that a stage takes.
    fn at(self, price: usize) -> usize {
        match self {
            Self::Yes => price,
            Self::No => 0,
        }
    }
}

/// A conversation without branches: its turns follow each other, so its end fixes the sum of its turns' E2E.
struct Chain {
    /// Requests of the conversation, in order.
    turns: Vec<usize>,
}

impl Bound<'_> {
    /// The bound. Each pooled limit can only raise the sums of *alone*.
    fn solve(&self, counted: impl Fn(usize) -> bool) -> LowerBound {
        let len = self.workload.len();
        let alone = CostSums {
            ttft_ms: (0..len)
                .filter(|i| counted(*i))
                .map(|i| self.works[i].alone_ttft_ms)
                .sum(),
            e2e_ms: (0..len)
                .filter(|i| counted(*i))
                .map(|i| self.works[i].alone_e2e_ms)
                .sum(),
        };
        let mut bound = LowerBound {
            requests: (0..len).filter(|i| counted(*i)).count(),
            pooled_requests: 0,
            all: alone,
            alone,
            prefill: alone,
            work: alone,
            memory: alone,
            priced: alone,
            pooled: alone,
        };
        if self.spec.concurrency.is_some() {
            self.close(&mut bound, &counted);
            bound.pooled = bound.all;
            return bound;
        }
        self.pool_e2e(&mut bound, &counted);
        self.pool_ttft(&mut bound, &counted);
        bound.pooled.ttft_ms = bound.all.ttft_ms;
        bound
    }

    /// Arrival of a request that waits for no other request, in milliseconds of the run.
    fn root_ms(&self, i: usize) -> f64 {
        self.workload.arrival_ms[i] / self.spec.rate
    }

    /// Pause before a request, milliseconds of the run. 0 for a request that waits for no other request.
    fn think_ms(&self, i: usize) -> f64 {
        if self.workload.after[i] == NONE {
            0.0
        } else {
            self.workload.think_ms[i] / self.spec.rate
        }
    }

    /// Conversations without branches whose every turn is counted.
    fn chains(&self, counted: impl Fn(usize) -> bool) -> Vec<Chain> {
        let len = self.workload.len();
        let mut next = vec![NONE; len];
        let mut whole = vec![true; len];
        for i in 0..len {
            let after = self.workload.after[i];
            if after != NONE {
                if next[after as usize] != NONE {
                    whole[after as usize] = false;
                }
                next[after as usize] = i as u32;
            }
            whole[i] &= counted(i);
        }
        let roots = (0..len).filter(|i| self.workload.after[*i] == NONE);
        let chain = |root: usize| {
            let mut turns = vec![root];
            let mut at = next[root];
            while at != NONE {
                turns.push(at as usize);
                at = next[at as usize];
            }
            turns.iter().all(|turn| whole[*turn]).then_some(Chain { turns })
        };
        roots.filter_map(chain).collect()
    }

    /// Raises the sums of E2E to what the pooled limits say about whole conversations.
    fn pool_e2e(&self, bound: &mut LowerBound, counted: impl Fn(usize) -> bool) {
        let chains = self.chains(counted);
        if chains.is_empty() {
            return;
        }
        bound.pooled_requests = chains.iter().map(|chain| chain.turns.len()).sum();
        let release = |chain: &Chain| self.root_ms(chain.turns[0]);
        let alone: Vec<f64> = sorted(chains.iter().map(|chain| {
            let turns = chain.turns.iter();
            release(chain)
                + turns
                    .map(|turn| self.works[*turn].alone_e2e_ms + self.think_ms(*turn))
                    .sum::<f64>()
        }));
        let free_ms: f64 = chains
            .iter()
            .map(|chain| release(chain) + chain.turns.iter().map(|turn| self.think_ms(*turn)).sum::<f64>())
            .sum();
        let alone_ms = alone.iter().sum::<f64>();
        let curve = |rate: f64, work: &dyn Fn(&RequestWork) -> f64| {
            let jobs = chains.iter().map(|chain| Job {
                release_ms: release(chain),
                work: chain.turns.iter().map(|turn| work(&self.works[*turn])).sum(),
            });
            completions(jobs.collect(), rate)
        };
        let Limits {
            prefill,
            work,
            memory,
        } = self.limits(&curve);
        let raise = |to: &mut CostSums, times: &[f64]| {
            // Requests outside of chains keep their cost alone.
            let sum: f64 = times.iter().sum();
            to.e2e_ms += (sum - alone_ms).max(0.0);
        };
        debug_assert!(alone_ms >= free_ms, "a conversation alone must take time");
        raise(&mut bound.prefill, &later_of(&alone, &[&prefill]));
        raise(&mut bound.work, &later_of(&alone, &refs(&work)));
        raise(&mut bound.memory, &later_of(&alone, &[&memory]));
        let mut every = refs(&work);
        every.extend([prefill.as_slice(), memory.as_slice()]);
        raise(&mut bound.all, &later_of(&alone, &every));
        bound.pooled.e2e_ms = bound.all.e2e_ms;
        let best_ms = self.priced_ms(&chains);
        let alone_e2e_ms = alone_ms - free_ms;
        bound.priced.e2e_ms += (best_ms - alone_e2e_ms).max(0.0);
        bound.all.e2e_ms = bound.all.e2e_ms.max(bound.priced.e2e_ms);
    }

    /// The sum of the E2E of all turns of `chains` that a price on the time of workers allows.
    fn priced_ms(&self, chains: &[Chain]) -> f64 {
        let buyers = |prefill: Priced, decode: Priced| -> Vec<Buyer> {
            let buyer = |chain: &Chain| Buyer {
                release_ms: self.root_ms(chain.turns[0]),
                pause_ms: chain.turns.iter().map(|turn| self.think_ms(*turn)).sum(),
                least_ms: std::array::from_fn(|price| {
                    let turns = chain.turns.iter().map(|turn| &self.works[*turn]);
                    let least_ms = |work: &RequestWork| {
                        work.priced_prefill_ms[prefill.at(price)] + work.priced_decode_ms[decode.at(price)]
                    };
                    turns.map(least_ms).sum()
                }),
            };
            chains.iter().map(buyer).collect()
        };
        let engines = self.engines;
        let every = buyers(Priced::Yes, Priced::Yes);
        if !engines.is_split {
            return best_bound_ms(&every, engines.decode_speed);
        }
        // Both pools may have a price, or one of them alone.
        best_bound_ms(&every, engines.prefill_speed + engines.decode_speed)
            .max(best_bound_ms(
                &buyers(Priced::Yes, Priced::No),
                engines.prefill_speed,
            ))
            .max(best_bound_ms(
                &buyers(Priced::No, Priced::Yes),
                engines.decode_speed,
            ))
    }

    /// Completion times under the pooled limits. `server` knows the jobs.
    fn limits(&self, server: &Server<'_>) -> Limits {
        let engines = self.engines;
        let work = (0..engines.prices.len()).map(|at| {
            server(engines.decode_speed, &|work| {
                // In a split fleet the decode workers compute no prompts.
                let shared_ms = if engines.is_split { 0.0 } else { work.prefill_ms };
                shared_ms + work.decode_ms[at]
            })
        });
        Limits {
            work: work.collect(),
            prefill: server(engines.prefill_speed, &|work| work.prefill_ms),
            memory: server(engines.memory_tokens, &|work| work.held_token_ms),
        }
    }

    /// Raises the sums of TTFT to what the pooled limits say about requests that wait for no other request.
    fn pool_ttft(&self, bound: &mut LowerBound, counted: impl Fn(usize) -> bool) {
        let roots: Vec<usize> = (0..self.workload.len())
            .filter(|i| self.workload.after[*i] == NONE && counted(*i))
            .collect();
        let alone = sorted(
            roots
                .iter()
                .map(|i| self.root_ms(*i) + self.works[*i].alone_ttft_ms),
        );
        let alone_ms: f64 = alone.iter().sum();
        let curve = |rate: f64, work: &dyn Fn(&RequestWork) -> f64| {
            let jobs = roots.iter().map(|i| Job {
                release_ms: self.root_ms(*i),
                work: work(&self.works[*i]),
            });
            completions(jobs.collect(), rate)
        };
        let Limits { work, memory, .. } = self.limits(&curve);
        let first: Vec<Vec<f64>> = (0..self.engines.prices.len())
            .map(|at| curve(self.engines.prefill_speed, &|work| work.first_token_ms[at]))
            .collect();
        let raise = |to: &mut CostSums, times: &[f64]| {
            to.ttft_ms += (times.iter().sum::<f64>() - alone_ms).max(0.0);
        };
        raise(&mut bound.prefill, &later_of(&alone, &refs(&first)));
        let mut every = first;
        // A first token needs memory, which only completed requests give back, so the m-th first token comes after
        // all but `residents` of the m completions.
        if let Some(residents) = self.residents(&roots) {
            let work: Vec<Vec<f64>> = work.iter().map(|times| offset(times, residents)).collect();
            let memory = offset(&memory, residents);
            raise(&mut bound.work, &later_of(&alone, &refs(&work)));
            raise(&mut bound.memory, &later_of(&alone, &[&memory]));
            every.extend(work);
            every.push(memory);
        }
        raise(&mut bound.all, &later_of(&alone, &refs(&every)));
    }

    /// Largest number of requests that can have a first token and not be complete, or `None` if nothing limits it.
    ///
    /// A preempted request returns to the head of its worker's queue, so its worker admits no new request before it.
    /// Decode workers of a split fleet, reads from lower tiers, and crashes pass that head.
    fn residents(&self, roots: &[usize]) -> Option<usize> {
        let crashes = |kind: &FaultKind| matches!(kind, FaultKind::Crash { .. });
        let [pool] = self.spec.pools.as_slice() else {
            return None;
        };
        let covered = pool.role == Role::Aggregated
            && pool.engine.tiers.is_empty()
            && !self.spec.faults.iter().any(|fault| crashes(&fault.kind));
        if !covered {
            return None;
        }
        let workers = pool.speeds.len();
        let mut room = self.engines.memory_tokens;
        let mut fitting = 0;
        for held in sorted(roots.iter().map(|i| self.works[*i].prompt_held_tokens)) {
            room -= held;
            if room < 0.0 {
                break;
            }
            fitting += 1;
        }
        // One prompt per worker may be admitted with its blocks still to be taken.
        let seats = workers.saturating_mul(pool.engine.max_num_seqs as usize);
        Some((fitting + workers).min(seats))
    }

    /// Raises the sum of E2E in a closed loop, where the number of open conversations stays constant.
    fn close(&self, bound: &mut LowerBound, counted: impl Fn(usize) -> bool) {
        let Some(clients) = self.spec.concurrency.map(|clients| clients as usize) else {
            return;
        };
        let len = self.workload.len();
        if !(0..len).all(&counted) {
            return;
        }
        let chains = self.chains(counted);
        let turns: usize = chains.iter().map(|chain| chain.turns.len()).sum();
        if turns != len || chains.len() <= clients {
            return;
        }
        let think_ms: f64 = (0..len).map(|i| self.think_ms(i)).sum();
        // All but the last `clients` conversations are complete when the last one starts.
        let until = |rate: f64, work: &dyn Fn(&RequestWork) -> f64| {
            let mut works = sorted(
                chains
                    .iter()
                    .map(|chain| chain.turns.iter().map(|turn| work(&self.works[*turn])).sum()),
            );
            works.truncate(chains.len() - clients);
            vec![works.iter().sum::<f64>() / rate]
        };
        let Limits {
            prefill,
            work,
            memory,
        } = self.limits(&until);
        let open_ms = |times: &[f64]| clients as f64 * times[0] - think_ms;
        bound.prefill.e2e_ms = bound.prefill.e2e_ms.max(open_ms(&prefill));
        for times in &work {
            bound.work.e2e_ms = bound.work.e2e_ms.max(open_ms(times));
        }
        bound.memory.e2e_ms = bound.memory.e2e_ms.max(open_ms(&memory));
        bound.pooled_requests = len;
        bound.all.e2e_ms = [bound.prefill, bound.work, bound.memory]
            .iter()
            .fold(bound.all.e2e_ms, |most, sums| most.max(sums.e2e_ms));
    }
}

/// Slices of the curves.
fn refs(curves: &[Vec<f64>]) -> Vec<&[f64]> {
    curves.iter().map(Vec::as_slice).collect()
}

/// The times, rising.
fn sorted(times: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut times: Vec<f64> = times.collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
