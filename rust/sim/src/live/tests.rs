//! A live fleet against a batch run, and its behaviour while workers, timings and queues change.

use proptest::prelude::*;

use super::*;
use crate::tests::{Case, case, engine, play, router};
use wardrop_core::PolicyConfig;
use wardrop_core::rng::Rng;

fn hash(block: u32) -> u64 {
    Rng::new(u64::from(block)).next_u64()
}

/// Pushes the requests of the case one by one, and advances the fleet in steps of `stride_ms`.
fn stream(case: &Case, stride_ms: f64) -> Vec<EndedRequest> {
    let mut spec = case.spec.clone();
    spec.sample_ms = 0.0;
    let routers: Vec<_> = spec
        .pools
        .iter()
        .map(|_| router(PolicyConfig::LeastLoaded, case.seed))
        .collect();
    let mut fleet = LiveFleet::new(spec, &routers, 1_000).expect("a valid fleet");
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
            assert!(fleet.push(&request).expect("a valid request"));
            next += 1;
        }
        fleet.advance(now_ms, &mut ended).expect("a valid fleet");
    }
    assert_eq!(fleet.open(), 0);
    ended
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pushed_requests_end_as_in_a_batch_run(case in case(), stride_ms in 0.5f64..400.0) {
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
    let mut fleet = LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 8).expect("a valid fleet");
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
        taken += u64::from(fleet.push(&request).expect("a valid request"));
        fleet.advance(request.at_ms, &mut ended).expect("a valid fleet");
        peak = peak.max(fleet.stored_blocks());
    }
    fleet.advance(1e9, &mut ended).expect("a valid fleet");
    assert_eq!(ended.len() as u64, taken);
    assert!(
        taken < 20_000,
        "two workers cannot serve this load, so some requests must be refused"
    );
    assert!(
        fleet.ids.len() <= 8,
        "{} rows for 8 open requests",
        fleet.ids.len()
    );
    assert!(peak <= SLACK_BLOCKS + 3 * 8 * 30, "{peak} blocks");
}

/// Requests of 2,000 tokens at a fixed gap.
struct Stretch {
    first_id: u64,
    count: u64,
    from_ms: f64,
    gap_ms: f64,
}

/// Pushes a stretch of requests, and advances the fleet to each arrival.
fn feed(fleet: &mut LiveFleet, stretch: &Stretch, ended: &mut Vec<EndedRequest>) {
    for i in 0..stretch.count {
        let id = stretch.first_id + i;
        let hashes: Vec<u64> = (0..125).map(|k| id * 1_000 + k).collect();
        let request = LiveRequest {
            id,
            at_ms: stretch.from_ms + i as f64 * stretch.gap_ms,
            input_tokens: 2_000,
            output_tokens: 20,
            sequence_hashes: &hashes,
        };
        assert!(fleet.push(&request).expect("a valid request"));
        fleet.advance(request.at_ms, ended).expect("a valid fleet");
    }
}

fn mean_ttft_ms(ended: &[EndedRequest]) -> f64 {
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
        LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 4_000).expect("a valid fleet");
    let mut alone = Vec::new();
    feed(
        &mut fleet,
        &Stretch {
            first_id: 0,
            count: 200,
            from_ms: 0.0,
            gap_ms: 40.0,
        },
        &mut alone,
    );
    fleet.advance(60_000.0, &mut alone).expect("a valid fleet");
    let second = fleet.join(0, &engine).expect("a worker");
    let mut both = Vec::new();
    feed(
        &mut fleet,
        &Stretch {
            first_id: 200,
            count: 200,
            from_ms: 60_000.0,
            gap_ms: 40.0,
        },
        &mut both,
    );
    // The first worker leaves in the middle of its work, and the second one takes over its requests.
    fleet.leave(0).expect("a departure");
    assert!(fleet.open() > 0, "some requests must be in flight");
    fleet.advance(200_000.0, &mut both).expect("a valid fleet");
    assert_eq!((alone.len(), both.len(), fleet.open()), (200, 200, 0));
    assert!(both.iter().all(|row| row.complete));
    assert!(
        mean_ttft_ms(&both) < 0.7 * mean_ttft_ms(&alone),
        "two workers must be faster than one"
    );
    let again = fleet.join(0, &engine).expect("a worker");
    assert_eq!(
        (second, again),
        (1, 0),
        "the index of a worker that left is used again"
    );
    let slow = Timing::Affine {
        prefill_base_ms: 1_000.0,
        prefill_per_token_ms: 0.0,
        decode_base_ms: 1.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    };
    fleet.set_worker_timing(second, &slow);
    let mut uneven = Vec::new();
    feed(
        &mut fleet,
        &Stretch {
            first_id: 400,
            count: 20,
            from_ms: 200_000.0,
            gap_ms: 2_000.0,
        },
        &mut uneven,
    );
    fleet.advance(400_000.0, &mut uneven).expect("a valid fleet");
    let slowed = uneven
        .iter()
        .filter(|row| row.first_token_ms - row.arrival_ms > 900.0)
        .count();
    assert!((1..20).contains(&slowed), "{slowed} of 20 on the slow worker");
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
    let mut fleet = LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 10).expect("a valid fleet");
    let mut ended = Vec::new();
    feed(
        &mut fleet,
        &Stretch {
            first_id: 0,
            count: 1,
            from_ms: 0.0,
            gap_ms: 1.0,
        },
        &mut ended,
    );
    fleet.advance(10_000.0, &mut ended).expect("a valid fleet");
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
fn no_request_is_lost_while_the_queue_is_added_and_removed() {
    let spec = FleetSpec::aggregated(
        2,
        EngineSpec {
            num_blocks: 4_000,
            ..engine()
        },
    );
    let mut fleet =
        LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 4_000).expect("a valid fleet");
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
            &Stretch {
                first_id: 100 * stretch as u64,
                count: 100,
                from_ms: 2_000.0 * stretch as f64,
                gap_ms: 20.0,
            },
            &mut ended,
        );
    }
    fleet.advance(1e6, &mut ended).expect("a valid fleet");
    assert_eq!((ended.len(), fleet.open()), (500, 0));
    assert!(ended.iter().all(|row| row.complete));
}

#[test]
fn a_request_before_its_predecessor_or_without_hashes_is_refused() {
    let spec = FleetSpec::aggregated(1, engine());
    let mut fleet = LiveFleet::new(spec, &[router(PolicyConfig::LeastLoaded, 1)], 8).expect("a valid fleet");
    let request = LiveRequest {
        id: 1,
        at_ms: 10.0,
        input_tokens: 32,
        output_tokens: 1,
        sequence_hashes: &[1, 2],
    };
    assert!(fleet.push(&request).expect("a valid request"));
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
