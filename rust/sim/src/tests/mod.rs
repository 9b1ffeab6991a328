//! Tests of whole fleets: cases worked out by hand, queueing theory, and properties that hold in every fleet.

mod by_hand;
mod properties;
mod queueing;

use proptest::prelude::*;
use wardrop_core::rng::Rng;
use wardrop_core::{PolicyConfig, RouterConfig};

use crate::{
    EngineSpec, Eviction, Fault, FaultKind, FeedSpec, FleetSpec, Outcome, TierSpec, Timing, Workload,
    simulate,
};

/// A timing of 1 ms per prompt token and 10 ms per decode step.
fn plain() -> Timing {
    Timing::Affine {
        prefill_base_ms: 0.0,
        prefill_per_token_ms: 1.0,
        decode_base_ms: 10.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    }
}

pub(crate) fn engine() -> EngineSpec {
    EngineSpec {
        block_size: 16,
        num_blocks: 1024,
        timing: plain(),
        ..EngineSpec::default()
    }
}

/// A workload of rows (arrival in ms, prompt tokens, output tokens, first block id). Block ids are consecutive.
pub(crate) fn workload(rows: &[(f64, u32, u32, u32)]) -> Workload {
    let mut workload = Workload {
        block_size: 16,
        block_start: vec![0],
        ..Workload::default()
    };
    for (arrival_ms, input, output, first) in rows {
        workload.arrival_ms.push(*arrival_ms);
        workload.input_tokens.push(*input);
        workload.output_tokens.push(*output);
        workload.blocks.extend((0..input.div_ceil(16)).map(|k| first + k));
        workload.block_start.push(workload.blocks.len() as u64);
        workload.after.push(u32::MAX);
        workload.think_ms.push(0.0);
    }
    workload
}

pub(crate) fn router(policy: PolicyConfig, seed: u64) -> RouterConfig {
    RouterConfig::new(16)
        .with_policy(policy)
        .with_seed(seed)
        .with_booking_ttl_s(1e9)
}

fn run(spec: &FleetSpec, workload: &Workload) -> Outcome {
    let routers = vec![router(PolicyConfig::RoundRobin, 1); spec.pools.len()];
    simulate(spec, workload, &routers).expect("a valid fleet")
}

/// Times of the first token and of the end of request `i`, in milliseconds.
fn times(outcome: &Outcome, i: usize) -> (f64, f64) {
    (outcome.requests.first_token_ms[i], outcome.requests.end_ms[i])
}

fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.unit()).ln()
}

/// A random fleet with a random workload.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub spec: FleetSpec,
    pub workload: Workload,
    pub seed: u64,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let rows = prop::collection::vec((0u32..400, 1u32..120, 1u32..40, 0u32..6), 1..40);
    let shape = (
        1usize..4,
        any::<bool>(),
        9u32..40,
        1u32..6,
        8u32..80,
        any::<bool>(),
        any::<bool>(),
    );
    let rest = (
        prop::collection::vec((0u32..3000, 0usize..4, 0u8..4), 0..4),
        0u8..3,
        any::<u64>(),
    );
    (rows, shape, rest).prop_map(|(mut rows, shape, (faults, feed, seed))| {
        let (workers, split, num_blocks, max_num_seqs, tokens, frequency, tiers) = shape;
        rows.sort_unstable();
        let rows: Vec<_> = rows
            .iter()
            .map(|(at, input, output, family)| (f64::from(*at) * 7.5, *input, *output, family * 100))
            .collect();
        let tier = |num_blocks| TierSpec {
            num_blocks,
            read_bytes_per_s: 1e6,
            latency_ms: 1.0,
            promote_at: 1,
        };
        let engine = EngineSpec {
            num_blocks,
            max_num_seqs,
            max_num_batched_tokens: tokens,
            eviction: if frequency {
                Eviction::Frequency
            } else {
                Eviction::Lru
            },
            tiers: if tiers { vec![tier(6), tier(20)] } else { vec![] },
            kv_bytes_per_token: 100.0,
            timing: Timing::Polynomial,
            prefill_answers: seed % 4 == 0,
            ..engine()
        };
        let mut spec = if split {
            FleetSpec::split(workers, workers, &engine)
        } else {
            FleetSpec::aggregated(workers, engine)
        };
        let count = spec.pools.iter().map(|pool| pool.speeds.len()).sum::<usize>();
        spec.feed = [(0.0, 0.0), (50.0, 0.0), (3.0, 0.3)].map(|(delay_ms, loss)| FeedSpec {
            delay_ms,
            loss,
            metrics: loss > 0.0,
            metrics_delay_ms: 7.0,
            metrics_loss: loss,
            first_token_loss: 0.0,
        })[feed as usize];
        spec.faults = faults
            .iter()
            .map(|(at, worker, kind)| Fault {
                at_ms: f64::from(*at),
                worker: worker % count,
                kind: match kind {
                    0 => FaultKind::Crash { detect_ms: 40.0 },
                    1 => FaultKind::Hang { for_ms: 300.0 },
                    2 => FaultKind::Speed { factor: 0.5 },
                    _ => FaultKind::Join,
                },
            })
            .collect();
        spec.seed = seed;
        spec.sample_ms = 20.0;
        Case {
            spec,
            workload: workload(&rows),
            seed,
        }
    })
}

pub(crate) fn play(case: &Case) -> Outcome {
    let routers: Vec<_> = case
        .spec
        .pools
        .iter()
        .map(|_| router(PolicyConfig::LeastLoaded, case.seed))
        .collect();
    simulate(&case.spec, &case.workload, &routers).expect("a valid fleet")
}
