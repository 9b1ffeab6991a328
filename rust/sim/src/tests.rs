//! Small fleets whose every time can be worked out by hand, and properties that hold in every fleet.

use proptest::prelude::*;

use super::*;
use wardrop_core::rng::Rng;
use wardrop_core::{PolicyConfig, RouterConfig};

/// 1 ms per prompt token, 10 ms per step.
fn plain() -> Timing {
    Timing::Affine {
        prefill_base_ms: 0.0,
        prefill_per_token_ms: 1.0,
        decode_base_ms: 10.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    }
}

pub(super) fn engine() -> EngineSpec {
    EngineSpec {
        block_size: 16,
        num_blocks: 1024,
        timing: plain(),
        ..EngineSpec::default()
    }
}

/// (arrival ms, prompt, output, first block id); ids run on from the first.
fn workload(rows: &[(f64, u32, u32, u32)]) -> Workload {
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

pub(super) fn router(policy: PolicyConfig, seed: u64) -> RouterConfig {
    RouterConfig::new(16)
        .with_policy(policy)
        .with_seed(seed)
        .with_booking_ttl_s(1e12)
}

fn run(spec: &FleetSpec, workload: &Workload) -> Outcome {
    let routers = vec![router(PolicyConfig::RoundRobin, 1); spec.pools.len()];
    simulate(spec, workload, &routers).expect("a fair fleet")
}

fn times(outcome: &Outcome, i: usize) -> (f64, f64) {
    (outcome.requests.first_token_ms[i], outcome.requests.end_ms[i])
}

#[test]
fn one_request_takes_its_prefill_and_one_step_per_token() {
    let outcome = run(
        &FleetSpec::aggregated(1, engine()),
        &workload(&[(5.0, 100, 3, 0)]),
    );
    assert_eq!(times(&outcome, 0), (115.0, 135.0));
    assert_eq!(outcome.totals.iterations, 3);
    assert_eq!(outcome.gaps.count, 2);
}

#[test]
fn a_long_prompt_is_computed_in_chunks() {
    let chunked = EngineSpec {
        max_num_batched_tokens: 64,
        ..engine()
    };
    let outcome = run(&FleetSpec::aggregated(1, chunked), &workload(&[(0.0, 100, 2, 0)]));
    assert_eq!(times(&outcome, 0), (110.0, 120.0));
    assert_eq!(outcome.totals.iterations, 3);
}

#[test]
fn a_newcomer_joins_at_the_next_boundary_and_stalls_the_others() {
    // A runs 0–110 (prefill and first token); B, there since 50, joins for 110–140.
    let outcome = run(
        &FleetSpec::aggregated(1, engine()),
        &workload(&[(0.0, 100, 3, 0), (50.0, 20, 2, 50)]),
    );
    assert_eq!(times(&outcome, 0), (110.0, 150.0));
    assert_eq!(times(&outcome, 1), (140.0, 150.0));
}

#[test]
fn a_run_of_decode_steps_is_cut_where_a_request_arrives() {
    // A decodes at 110, 120, 130, 140; B comes at 135 and is served 140–170.
    let outcome = run(
        &FleetSpec::aggregated(1, engine()),
        &workload(&[(0.0, 100, 100, 0), (135.0, 20, 1, 50)]),
    );
    assert_eq!(times(&outcome, 1), (170.0, 170.0));
    assert_eq!(times(&outcome, 0).1, 1120.0);
}

#[test]
fn an_arrival_at_the_very_end_of_a_step_joins_the_next_one() {
    let outcome = run(
        &FleetSpec::aggregated(1, engine()),
        &workload(&[(0.0, 100, 100, 0), (140.0, 20, 1, 50)]),
    );
    assert_eq!(times(&outcome, 1).0, 170.0);
}

#[test]
fn a_shared_prefix_is_not_computed_again_but_its_last_token_is() {
    let rows = [(0.0, 100, 1, 0), (1000.0, 100, 1, 0), (2000.0, 96, 1, 0)];
    let outcome = run(&FleetSpec::aggregated(1, engine()), &workload(&rows));
    assert_eq!(outcome.requests.cached_tokens, vec![0, 96, 80]);
    assert_eq!(outcome.requests.first_token_ms, vec![110.0, 1014.0, 2026.0]);
    assert_eq!(outcome.totals.prefill_tokens, 120);
    // The router learnt of the six blocks before the second request came.
    assert_eq!(outcome.requests.expected_tokens, vec![0, 96, 96]);
}

#[test]
fn one_sequence_at_a_time_means_first_come_first_served() {
    let single = EngineSpec {
        max_num_seqs: 1,
        ..engine()
    };
    let rows = [(0.0, 10, 5, 0), (1.0, 10, 1, 10), (2.0, 10, 1, 20)];
    let outcome = run(&FleetSpec::aggregated(1, single), &workload(&rows));
    assert_eq!(outcome.requests.first_token_ms, vec![20.0, 80.0, 100.0]);
}

#[test]
fn a_request_larger_than_the_cache_is_rejected_and_the_next_one_runs() {
    let small = EngineSpec {
        num_blocks: 4,
        ..engine()
    };
    let outcome = run(
        &FleetSpec::aggregated(1, small),
        &workload(&[(0.0, 100, 1, 0), (0.0, 20, 1, 9)]),
    );
    assert_eq!(
        outcome.requests.end,
        vec![End::Rejected as u8, End::Complete as u8]
    );
}

#[test]
fn the_youngest_gives_way_when_blocks_run_out_and_still_ends() {
    // Two prompts of one block in four blocks of cache: both want three, so one must start over.
    let small = EngineSpec {
        num_blocks: 4,
        ..engine()
    };
    let outcome = run(
        &FleetSpec::aggregated(1, small),
        &workload(&[(0.0, 16, 30, 0), (0.0, 16, 30, 9)]),
    );
    assert_eq!(outcome.requests.preemptions, vec![0, 1]);
    assert_eq!(outcome.requests.end, vec![1, 1]);
    assert_eq!(outcome.totals.output_tokens, 60);
    assert_eq!(outcome.totals.peak_active_blocks, 4);
}

#[test]
fn a_split_fleet_prefills_here_and_decodes_there_after_the_transfer() {
    let engine = EngineSpec {
        kv_bytes_per_token: 1000.0,
        ..engine()
    };
    let mut spec = FleetSpec::split(1, 1, &engine);
    spec.transfer = TransferSpec {
        bandwidth_bytes_per_s: 1e6,
        latency_ms: 5.0,
        contention: true,
    };
    let outcome = run(&spec, &workload(&[(0.0, 100, 3, 0)]));
    // 100 ms of prefill, seven blocks of 16 kB at 1 MB/s and 5 ms of latency, then three steps of 10 ms.
    assert_eq!(times(&outcome, 0), (227.0, 247.0));
    assert_eq!(outcome.totals.transfer_bytes, 112_000.0);
    assert_eq!(
        (outcome.requests.worker[0], outcome.requests.decode_worker[0]),
        (0, 1)
    );
}

#[test]
fn a_slower_worker_takes_longer_and_a_hang_delays() {
    let mut spec = FleetSpec::aggregated(1, engine());
    spec.pools[0].speeds = vec![0.5];
    assert_eq!(times(&run(&spec, &workload(&[(0.0, 100, 1, 0)])), 0).0, 220.0);
    spec.faults = vec![Fault {
        at_ms: 50.0,
        worker: 0,
        kind: FaultKind::Hang { for_ms: 1000.0 },
    }];
    assert_eq!(times(&run(&spec, &workload(&[(0.0, 100, 1, 0)])), 0).0, 1220.0);
    assert_eq!(times(&run(&spec, &workload(&[(60.0, 100, 1, 0)])), 0).0, 1270.0);
}

#[test]
fn a_crash_moves_requests_to_the_survivor_and_a_join_takes_new_ones() {
    let mut spec = FleetSpec::aggregated(2, engine());
    spec.retry_ms = 10.0;
    spec.faults = vec![
        Fault {
            at_ms: 50.0,
            worker: 0,
            kind: FaultKind::Crash { detect_ms: 100.0 },
        },
        Fault {
            at_ms: 5000.0,
            worker: 0,
            kind: FaultKind::Join,
        },
    ];
    let rows = [(0.0, 100, 3, 0), (6000.0, 10, 1, 50), (6001.0, 10, 1, 60)];
    let outcome = run(&spec, &workload(&rows));
    assert_eq!(outcome.requests.retries, vec![1, 0, 0]);
    assert_eq!(times(&outcome, 0).0, 170.0);
    let mut later = outcome.requests.worker[1..].to_vec();
    later.sort_unstable();
    assert_eq!(later, vec![0, 1]);
}

#[test]
fn with_every_worker_dead_requests_fail_and_the_run_ends() {
    let mut spec = FleetSpec::aggregated(1, engine());
    spec.faults = vec![Fault {
        at_ms: 50.0,
        worker: 0,
        kind: FaultKind::Crash { detect_ms: 10.0 },
    }];
    let outcome = run(&spec, &workload(&[(0.0, 100, 3, 0)]));
    assert_eq!(outcome.requests.end, vec![End::Failed as u8]);
}

#[test]
fn host_memory_gives_back_what_the_device_lost() {
    let tier = TierSpec {
        num_blocks: 100,
        read_bytes_per_s: 1e6,
        latency_ms: 1.0,
        promote_at: 1,
    };
    let engine = EngineSpec {
        num_blocks: 8,
        kv_bytes_per_token: 100.0,
        tiers: vec![tier],
        ..engine()
    };
    let rows = [(0.0, 100, 1, 0), (1000.0, 100, 1, 50), (2000.0, 100, 1, 0)];
    let outcome = run(&FleetSpec::aggregated(1, engine), &workload(&rows));
    // Eight blocks hold one prompt (7). The second pushes out five of the first six (one slot was free, one unnamed), so
    // they are read back: 5 blocks · 1,600 B at 1 MB/s = 8 ms, and 1 ms of latency.
    assert_eq!(outcome.requests.cached_tokens[2], 96);
    let read = outcome.totals.onboarded_tokens as f64 / 16.0;
    assert_eq!(
        outcome.requests.first_token_ms[2],
        2000.0 + read * 1.6 + 1.0 + 4.0 + 10.0
    );
    assert!(read >= 5.0);
}

#[test]
fn a_session_waits_for_its_previous_turn_and_its_pause() {
    let mut rows = workload(&[(0.0, 100, 1, 0), (0.0, 120, 1, 0)]);
    rows.after[1] = 0;
    rows.think_ms[1] = 500.0;
    let outcome = run(&FleetSpec::aggregated(1, engine()), &rows);
    assert_eq!(outcome.requests.arrival_ms[1], 610.0);
    assert_eq!(outcome.requests.cached_tokens[1], 96);
}

#[test]
fn a_closed_loop_keeps_its_number_in_flight() {
    let rows: Vec<_> = (0..6).map(|i| (0.0, 10, 1, i * 10)).collect();
    let mut spec = FleetSpec::aggregated(
        1,
        EngineSpec {
            max_num_seqs: 1,
            ..engine()
        },
    );
    spec.concurrency = Some(2);
    let outcome = run(&spec, &workload(&rows));
    assert_eq!(
        outcome.requests.arrival_ms,
        vec![0.0, 0.0, 20.0, 40.0, 60.0, 80.0]
    );
}

#[test]
fn late_events_leave_the_router_ignorant_for_that_long() {
    let mut spec = FleetSpec::aggregated(1, engine());
    spec.feed.delay_ms = 500.0;
    let rows = [(0.0, 100, 1, 0), (400.0, 100, 1, 0), (600.0, 100, 1, 0)];
    assert_eq!(
        run(&spec, &workload(&rows)).requests.expected_tokens,
        vec![0, 0, 96]
    );
    spec.feed = FeedSpec {
        delay_ms: 0.0,
        loss: 1.0,
        ..FeedSpec::default()
    };
    assert_eq!(
        run(&spec, &workload(&rows)).requests.expected_tokens,
        vec![0, 0, 0]
    );
}

/// First tokens of five requests, read off the rows of `dynamo.replay` 1.4.2 (`kv_transfer_timing_mode`: `destination_missing`).
#[test]
fn a_prefill_worker_that_answers_keeps_a_prompt_for_one_iteration_per_further_token() {
    let ids = |i: u32| i * 16;
    let rows: Vec<_> = [0.0, 1.0, 40.0, 60.0, 95.0]
        .iter()
        .zip(0..)
        .map(|(at_ms, i)| (*at_ms, 1000, 3, ids(i)))
        .collect();
    let engine = EngineSpec {
        block_size: 64,
        num_blocks: 16_384,
        timing: Timing::Polynomial,
        prefill_answers: true,
        ..EngineSpec::default()
    };
    let mut workload = workload(&rows);
    workload.block_size = 64;
    let mut spec = FleetSpec::split(1, 1, &engine);
    spec.transfer.contention = false;
    let routers = [(); 2].map(|()| RouterConfig::new(64).with_policy(PolicyConfig::RoundRobin));
    let first_ms = |spec: &FleetSpec| {
        let outcome = simulate(spec, &workload, &routers).expect("a fair fleet");
        outcome.requests.first_token_ms
    };
    for (got, want) in first_ms(&spec)
        .iter()
        .zip([120.65, 152.92, 152.92, 152.92, 152.92])
    {
        assert!((got - want).abs() < 0.01, "{got} ms, Dynamo's {want} ms");
    }
    // Without it each goes as soon as it is computed: 32.106 ms of prefill, 16 blocks in 2.097 ms, one step.
    spec.pools[0].engine.prefill_answers = false;
    let soon = first_ms(&spec);
    assert!((soon[0] - (32.106 + 2.097 + 5.80)).abs() < 0.05, "{}", soon[0]);
}

fn with_metrics(metrics: bool, loss: f64, delay_ms: f64) -> Outcome {
    let mut rng = Rng::new(3);
    let mut at_ms = 0.0;
    let rows: Vec<_> = (0..400u32)
        .map(|i| {
            at_ms += exponential(&mut rng, 25.0);
            (at_ms, 40 + 400 * u32::from(i % 5 == 0), 20, i % 7 * 100)
        })
        .collect();
    let mut spec = FleetSpec::aggregated(3, engine());
    spec.feed.metrics = metrics;
    spec.feed.metrics_loss = loss;
    spec.feed.metrics_delay_ms = delay_ms;
    let toll = PolicyConfig::from_name("toll", &serde_json::Map::new()).expect("a policy");
    simulate(&spec, &workload(&rows), &[router(toll, 1)]).expect("a fair fleet")
}

#[test]
fn reports_of_iterations_teach_the_router_unless_they_are_lost() {
    let rows = |outcome: &Outcome| format!("{:?}", outcome.requests);
    let (none, all) = (with_metrics(false, 0.0, 0.0), with_metrics(true, 0.0, 0.0));
    assert_eq!((none.totals.reports_sent, all.totals.reports_lost), (0, 0));
    assert_eq!(all.totals.reports_sent, all.totals.iterations);
    assert_ne!(
        rows(&none),
        rows(&all),
        "a price that knows its curves decides otherwise"
    );
    let lost = with_metrics(true, 1.0, 0.0);
    assert_eq!(lost.totals.reports_lost, lost.totals.reports_sent);
    assert_eq!(rows(&lost), rows(&none));
    let late = with_metrics(true, 0.0, 1e9);
    assert_eq!(rows(&late), rows(&none));
    assert_ne!(rows(&with_metrics(true, 0.0, 500.0)), rows(&all));
}

fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.unit()).ln()
}

#[test]
fn waiting_times_are_those_of_the_m_d_1_queue() {
    // Service 10 ms, load 0.7: mean wait ρ S / (2 (1 − ρ)) = 11.667 ms (Pollaczek and Khinchine).
    let timing = Timing::Affine {
        prefill_base_ms: 10.0,
        prefill_per_token_ms: 0.0,
        decode_base_ms: 0.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    };
    let spec = FleetSpec::aggregated(
        1,
        EngineSpec {
            max_num_seqs: 1,
            timing,
            ..engine()
        },
    );
    let mut rng = Rng::new(3);
    let mut at_ms = 0.0;
    let rows: Vec<_> = (0..200_000)
        .map(|i| {
            at_ms += exponential(&mut rng, 10.0 / 0.7);
            (at_ms, 16, 1, i)
        })
        .collect();
    let outcome = run(&spec, &workload(&rows));
    let waits: f64 = (0..rows.len())
        .map(|i| outcome.requests.first_token_ms[i] - outcome.requests.arrival_ms[i] - 10.0)
        .sum::<f64>()
        / rows.len() as f64;
    assert!((waits / 11.667 - 1.0).abs() < 0.03, "mean wait {waits} ms");
}

#[test]
fn waiting_times_are_those_of_the_m_m_c_queue() {
    // Four places, service of a geometric number of 1 ms steps (mean 200), load 0.85. Erlang C gives the wait; steps add at
    // most one to it.
    let timing = Timing::Affine {
        prefill_base_ms: 0.0,
        prefill_per_token_ms: 0.0,
        decode_base_ms: 1.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    };
    let places = 4.0;
    let (service_ms, load) = (200.0, 0.85);
    let spec = FleetSpec::aggregated(
        1,
        EngineSpec {
            max_num_seqs: 4,
            timing,
            ..engine()
        },
    );
    let mut rng = Rng::new(5);
    let mut at_ms = 0.0;
    let rows: Vec<_> = (0..200_000)
        .map(|i| {
            at_ms += exponential(&mut rng, service_ms / (places * load));
            (at_ms, 16, exponential(&mut rng, service_ms).ceil() as u32, i)
        })
        .collect();
    let outcome = run(&spec, &workload(&rows));
    let admitted = &outcome.requests.admit_ms;
    let wait = (0..rows.len())
        .map(|i| admitted[i] - outcome.requests.arrival_ms[i])
        .sum::<f64>()
        / rows.len() as f64;
    let offered: f64 = places * load;
    let mut sum = 0.0;
    let mut term = 1.0;
    for k in 0..4 {
        sum += term;
        term *= offered / f64::from(k + 1);
    }
    let queue = term / (1.0 - load);
    let want = queue / (sum + queue) * service_ms / (places * (1.0 - load));
    assert!(
        (wait / want - 1.0).abs() < 0.05,
        "mean wait {wait} ms, Erlang C {want} ms"
    );
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub spec: FleetSpec,
    pub workload: Workload,
    pub seed: u64,
}

pub(super) fn case() -> impl Strategy<Value = Case> {
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

pub(super) fn play(case: &Case) -> Outcome {
    let routers: Vec<_> = case
        .spec
        .pools
        .iter()
        .map(|_| router(PolicyConfig::LeastLoaded, case.seed))
        .collect();
    simulate(&case.spec, &case.workload, &routers).expect("a fair fleet")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_request_ends_once_and_every_token_is_accounted_for(case in case()) {
        let outcome = play(&case);
        let requests = &outcome.requests;
        let len = case.workload.len();
        let mut delivered = 0u64;
        for i in 0..len {
            prop_assert_ne!(requests.end[i], End::Open as u8);
            prop_assert!(requests.end_ms[i] >= requests.arrival_ms[i]);
            if requests.end[i] == End::Complete as u8 {
                delivered += u64::from(case.workload.output_tokens[i]);
                prop_assert!(requests.first_token_ms[i] > requests.arrival_ms[i]);
                prop_assert!(requests.first_token_ms[i] <= requests.end_ms[i]);
                prop_assert!(requests.cached_tokens[i] < case.workload.input_tokens[i]);
            }
        }
        prop_assert!(outcome.totals.peak_active_blocks <= case.spec.pools[0].engine.num_blocks);
        let split = case.spec.pools.len() == 2;
        let calm = requests.retries.iter().chain(&requests.preemptions).all(|count| *count == 0);
        if calm && !split {
            let prefilled: u64 = (0..len)
                .filter(|i| requests.end[*i] == End::Complete as u8)
                .map(|i| u64::from(case.workload.input_tokens[i] - requests.cached_tokens[i]))
                .sum();
            prop_assert_eq!(outcome.totals.prefill_tokens, prefilled);
        }
        if calm {
            prop_assert!(outcome.totals.output_tokens >= delivered);
            if !split {
                prop_assert_eq!(outcome.totals.output_tokens, delivered);
            }
        }
    }

    #[test]
    fn one_seed_gives_one_result(case in case()) {
        prop_assert_eq!(format!("{:?}", play(&case)), format!("{:?}", play(&case)));
    }

    #[test]
    fn planning_many_iterations_at_once_changes_nothing(case in case()) {
        let mut single = case.clone();
        for pool in &mut single.spec.pools {
            pool.engine.longest_run = 1;
        }
        let (many, one) = (play(&case), play(&single));
        prop_assert_eq!(format!("{:?}", many.requests), format!("{:?}", one.requests));
        prop_assert_eq!(&many.gaps.counts, &one.gaps.counts);
        prop_assert_eq!(many.totals.iterations, one.totals.iterations);
    }
}
