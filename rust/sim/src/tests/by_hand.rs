//! Small fleets whose every time can be worked out by hand.

use wardrop_core::rng::Rng;
use wardrop_core::{PolicyConfig, RouterConfig};

use super::{engine, exponential, router, run, times, workload};
use crate::{
    End, EngineSpec, Fault, FaultKind, FeedSpec, FleetSpec, Outcome, TierSpec, Timing, TransferSpec, simulate,
};

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
fn a_new_request_joins_at_the_next_boundary_and_delays_the_others() {
    // A runs from 0 to 110 (prefill and first token). B arrives at 50 and joins from 110 to 140.
    let outcome = run(
        &FleetSpec::aggregated(1, engine()),
        &workload(&[(0.0, 100, 3, 0), (50.0, 20, 2, 50)]),
    );
    assert_eq!(times(&outcome, 0), (110.0, 150.0));
    assert_eq!(times(&outcome, 1), (140.0, 150.0));
}

#[test]
fn a_run_of_decode_steps_is_cut_where_a_request_arrives() {
    // A decodes at 110, 120, 130 and 140. B arrives at 135 and is served from 140 to 170.
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
    // The router knew of the six blocks before the second request arrived.
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
    // Two prompts of one block in a cache of four blocks: each needs three, so one must start again.
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
fn host_memory_returns_the_blocks_that_the_device_evicted() {
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
    // Eight blocks hold one prompt of seven blocks. The second prompt evicts five of the first six, because one slot was
    // free and one unnamed. Five blocks of 1,600 B at 1 MB/s take 8 ms, and the latency is 1 ms.
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
fn the_router_knows_of_a_block_only_after_the_delay_of_its_event() {
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

/// First tokens of five requests, taken from the rows of `dynamo.replay` 1.4.2 (`kv_transfer_timing_mode`: `destination_missing`).
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
        let outcome = simulate(spec, &workload, &routers).expect("a valid fleet");
        outcome.requests.first_token_ms
    };
    for (got, want) in first_ms(&spec)
        .iter()
        .zip([120.65, 152.92, 152.92, 152.92, 152.92])
    {
        assert!((got - want).abs() < 0.01, "{got} ms, Dynamo's {want} ms");
    }
    // Otherwise each prompt leaves as soon as it is computed: 32.106 ms of prefill, 2.097 ms for 16 blocks, one step.
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
    simulate(&spec, &workload(&rows), &[router(toll, 1)]).expect("a valid fleet")
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
        "a policy with learned curves must decide differently"
    );
    let lost = with_metrics(true, 1.0, 0.0);
    assert_eq!(lost.totals.reports_lost, lost.totals.reports_sent);
    assert_eq!(rows(&lost), rows(&none));
    let late = with_metrics(true, 0.0, 1e9);
    assert_eq!(rows(&late), rows(&none));
    assert_ne!(rows(&with_metrics(true, 0.0, 500.0)), rows(&all));
}

#[test]
fn a_shared_cache_serves_a_prompt_that_another_worker_computed() {
    let rows = [(0.0, 100, 1, 0), (1000.0, 100, 1, 0)];
    let mut spec = FleetSpec::aggregated(2, engine());
    let own = run(&spec, &workload(&rows));
    assert_eq!(own.requests.cached_tokens, vec![0, 0]);
    spec.shared_cache = true;
    let shared = run(&spec, &workload(&rows));
    assert_eq!(shared.requests.worker, own.requests.worker);
    assert_eq!(shared.requests.cached_tokens, vec![0, 96]);
    // Four tokens of prefill and one step.
    assert_eq!(times(&shared, 1), (1014.0, 1014.0));
}

#[test]
fn more_memory_with_the_same_curve_changes_no_step_time() {
    let small = EngineSpec {
        num_blocks: 64,
        timing: Timing::Polynomial,
        ..engine()
    };
    let large = EngineSpec {
        num_blocks: 6400,
        curve_blocks: Some(64),
        ..small.clone()
    };
    let rows = workload(&[(0.0, 300, 20, 0), (5.0, 200, 20, 50)]);
    let [small, large] = [small, large].map(|engine| run(&FleetSpec::aggregated(1, engine), &rows));
    assert_eq!(small.requests.end_ms, large.requests.end_ms);
}
