//! Savings of shadow arms against batch runs of the same requests in the worlds of `wardrop advise`.

use wardrop_core::queue::QueueConfig;

use super::limits::relaxed;
use super::*;
use crate::live::block_name;
use crate::{Outcome, Workload, simulate};

/// `policy` in force, and one arm for each limit of an aggregated fleet.
fn arms(policy: &str) -> Vec<ArmSpec> {
    let limits = Limit::of_fleet(1, false).into_iter().map(|limit| {
        let mut spec = relaxed(limit, policy);
        spec.routers[0].queue = limit.queue(None);
        spec
    });
    std::iter::once(arm("runs", policy, 1)).chain(limits).collect()
}

/// The requests of a stream, as the shadow fleets saw them, as a workload with the same block names.
fn workload(stream: &mut Stream, fleets: &mut ShadowFleets, for_s: f64) -> Workload {
    let mut rows = Workload {
        block_size: 64,
        block_start: vec![0],
        ..Workload::default()
    };
    let (mut rng, until_s) = (Rng::new(9), stream.at_s + for_s);
    let origin_s = stream.at_s;
    while stream.at_s < until_s {
        let id = rows.len() as u64;
        // Long and short prompts, so that their order matters.
        let whole = if rng.below(5) == 0 { 100 } else { 20 };
        let family = rng.below(200) as u64;
        let shared = (0..16).map(|k| family * 1_000 + k);
        let own = (16..whole).map(|k| (1 << 40) + id * 1_000 + k);
        let hashes: Vec<u64> = shared.chain(own).map(|key| Rng::new(key).next_u64()).collect();
        let input_tokens = whole as u32 * 64;
        fleets.push(&Arrival {
            id,
            at_s: stream.at_s,
            input_tokens,
            sequence_hashes: &hashes,
        });
        fleets.outcome(
            id,
            Observed {
                ttft_s: None,
                output_tokens: Some(40),
            },
        );
        rows.arrival_ms.push((stream.at_s - origin_s) * 1e3);
        rows.input_tokens.push(input_tokens);
        rows.output_tokens.push(40);
        rows.blocks.extend(hashes.iter().map(|hash| block_name(*hash)));
        rows.block_start.push(rows.blocks.len() as u64);
        rows.after.push(u32::MAX);
        rows.think_ms.push(0.0);
        stream.at_s += -(1.0 - rng.unit()).ln() / stream.per_s;
    }
    rows
}

/// Mean TTFT and mean E2E of a run, in milliseconds.
fn means_ms(outcome: &Outcome) -> [f64; 2] {
    let requests = &outcome.requests;
    let mean = |times: &[f64]| {
        let spans = times.iter().zip(&requests.arrival_ms).map(|(at, from)| at - from);
        spans.sum::<f64>() / times.len() as f64
    };
    [mean(&requests.first_token_ms), mean(&requests.end_ms)]
}

#[test]
fn every_saving_is_that_of_a_batch_run_of_the_same_requests_on_the_relaxed_fleet() {
    // All blocks fit into 16 memories, which is where `Limit::KvMemory` ends.
    let mut spec = config(arms("least_loaded"));
    (spec.warm_ticks, spec.batch_ticks, spec.window_ticks, spec.lag_s) = (0, 1, 100, 0.0);
    let in_force = spec.arms[0].routers[0].clone();
    let fleet = spec.fleet.clone();
    let mut fleets = ShadowFleets::new(spec).expect("a fair fleets");
    let rows = workload(&mut Stream::new(48.0, 5), &mut fleets, 45.0);
    while fleets.counts.simulated < rows.len() as u64 {
        fleets.advance(2_000.0).expect("shadows must not break");
    }
    fleets.advance(2_000.0).expect("shadows must not break");
    let report = fleets.report();
    assert_eq!(report.arms[0].completed, rows.len() as u64);

    let run = |fleet: &FleetSpec| {
        let pool = &fleet.pools[0];
        let router = in_force
            .config(pool.role, pool.engine.block_size)
            .expect("a policy");
        means_ms(&simulate(fleet, &rows, &[router]).expect("a valid fleet"))
    };
    let base = run(&fleet);
    let mut differing = 0;
    for LimitReport {
        limit,
        ttft_saving,
        e2e_saving,
        ..
    } in report.limits
    {
        // The worlds of `wardrop advise`.
        let mut relaxed = fleet.clone();
        let engine = &mut relaxed.pools[0].engine;
        match limit {
            Limit::SharedCache => relaxed.shared_cache = true,
            Limit::KvMemory => {
                engine.curve_blocks = Some(engine.num_blocks);
                engine.num_blocks = 1 << 30;
            }
            Limit::PooledQueue | Limit::ShortestFirst => {
                relaxed.queues = vec![Some(QueueConfig {
                    kappa: if limit == Limit::PooledQueue { 0.0 } else { 1e6 },
                    patience: 0.0,
                    window: 1024,
                    max_requests: 1 << 20,
                    max_requests_per_tenant: 1 << 20,
                    max_wait_s: 1e6,
                    ..QueueConfig::default()
                })];
            }
            _ => relaxed.pools[0].speeds.push(1.0),
        }
        let less = run(&relaxed);
        for (saving, (less, base)) in [ttft_saving, e2e_saving].into_iter().zip(less.iter().zip(&base)) {
            let offline = 1.0 - less / base;
            let live = saving.expect("enough ticks").value;
            assert!(
                (live - offline).abs() < 1e-9,
                "{limit:?}: {live} live, {offline} offline"
            );
            differing += u32::from(offline.abs() > 0.01);
        }
    }
    assert!(
        differing >= 8,
        "the limits must matter here, {differing} of 10 figures do"
    );
}
