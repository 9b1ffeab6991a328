//! Bounds of cases worked out by hand, and what must not change a bound.

use super::*;
use crate::tests::{engine, workload};
use crate::{EngineSpec, Outcome, Plan, Timing, simulate_plan};

fn planned(spec: &FleetSpec, workload: &Workload, worker: Vec<u32>) -> Outcome {
    simulate_plan(spec, workload, Plan::immediate(worker)).expect("a valid plan")
}

fn bound(spec: &FleetSpec, workload: &Workload) -> LowerBound {
    lower_bound(spec, workload, None).expect("a valid fleet")
}

#[test]
fn a_lone_request_reaches_its_bound() {
    // 100 ms of prefill and a step of 10 ms for each of three tokens.
    let (spec, lone) = (FleetSpec::aggregated(2, engine()), workload(&[(5.0, 100, 3, 0)]));
    let outcome = planned(&spec, &lone, vec![1]);
    assert_eq!(
        (outcome.requests.first_token_ms[0], outcome.requests.end_ms[0]),
        (115.0, 135.0)
    );
    let all = bound(&spec, &lone).all;
    assert_eq!((all.ttft_ms, all.e2e_ms), (110.0, 130.0));
}

#[test]
fn a_prompt_that_came_before_may_be_cached_and_one_that_comes_later_may_not() {
    // The second prompt has 96 of its 100 tokens from the first. The third computes its last block itself.
    let rows = [(0.0, 100, 1, 0), (1000.0, 100, 1, 0), (2000.0, 96, 1, 0)];
    let (spec, shared) = (FleetSpec::aggregated(2, engine()), workload(&rows));
    let outcome = planned(&spec, &shared, vec![0, 0, 0]);
    let reached: f64 = (0..3)
        .map(|i| outcome.requests.first_token_ms[i] - outcome.requests.arrival_ms[i])
        .sum();
    assert_eq!(reached, 110.0 + 14.0 + 26.0);
    // The first prompt could lose a token to each request that shares its pass.
    assert_eq!(bound(&spec, &shared).all.ttft_ms, reached - 3.0);
}

#[test]
fn many_prompts_at_once_are_bounded_by_the_prefill_speed_of_all_workers() {
    // Ten prompts of 100 ms on two workers: the m-th is complete after 49.5 · m ms, and a step of 10 ms is shared.
    let rows: Vec<_> = (0..10).map(|i| (0.0, 100, 1, 20 * i)).collect();
    let spec = FleetSpec::aggregated(2, engine());
    let all = bound(&spec, &workload(&rows));
    let pooled: f64 = (1..=10).map(|m| (49.5 * f64::from(m)).max(110.0)).sum();
    assert!(all.prefill.ttft_ms >= pooled, "{all:?}");
    assert!(all.prefill.ttft_ms < pooled * 1.05, "{all:?}");
    assert_eq!(all.alone.ttft_ms, 1100.0);
}

#[test]
fn kv_memory_binds_where_answers_are_long() {
    // Each request holds 2 of a worker's 4 blocks for 17 steps of 10 ms: two at a time, so the tenth ends after 850 ms.
    let small = EngineSpec {
        num_blocks: 4,
        ..engine()
    };
    let rows: Vec<_> = (0..10).map(|i| (0.0, 16, 17, 20 * i)).collect();
    let spec = FleetSpec::aggregated(1, small);
    let bound = bound(&spec, &workload(&rows));
    assert!(bound.memory.e2e_ms > 2.0 * bound.alone.e2e_ms, "{bound:?}");
    assert!(bound.work.e2e_ms >= bound.memory.e2e_ms, "{bound:?}");
    // Only two fit, so later first tokens wait for ends.
    assert!(bound.memory.ttft_ms > 2.0 * bound.alone.ttft_ms, "{bound:?}");
}

#[test]
fn turns_of_a_conversation_share_their_blocks_and_are_pooled_as_one() {
    let mut chat = workload(&[(0.0, 100, 5, 0), (0.0, 160, 5, 0), (0.0, 100, 5, 50)]);
    chat.after = vec![u32::MAX, 0, u32::MAX];
    chat.think_ms = vec![0.0, 100.0, 0.0];
    let spec = FleetSpec::aggregated(1, engine());
    let bound = bound(&spec, &chat);
    assert_eq!(bound.pooled_requests, 3);
    let outcome = planned(&spec, &chat, vec![0; 3]);
    let reached: f64 = (0..3)
        .map(|i| outcome.requests.end_ms[i] - outcome.requests.arrival_ms[i])
        .sum();
    assert!(
        bound.all.e2e_ms <= reached && bound.all.e2e_ms > 0.6 * reached,
        "{bound:?} {reached}"
    );
}

#[test]
fn the_order_of_requests_at_one_time_the_names_of_blocks_and_the_unit_of_time_do_not_matter() {
    let rows: Vec<_> = (0..20)
        .map(|i| (f64::from(i / 2), 40 + i, 5, 100 * (i % 4)))
        .collect();
    let renamed: Vec<_> = rows
        .iter()
        .map(|row| (row.0, row.1, row.2, 1000 - row.3))
        .collect();
    let spec = FleetSpec::aggregated(3, engine());
    let first = bound(&spec, &workload(&rows));
    assert_eq!(first, bound(&spec, &workload(&renamed)));
    let mut slow = spec.clone();
    slow.pools[0].speeds = vec![0.5; 3];
    slow.rate = 0.5;
    let second = bound(&slow, &workload(&rows));
    assert!((second.all.e2e_ms / first.all.e2e_ms - 2.0).abs() < 1e-9);
    assert!((second.all.ttft_ms / first.all.ttft_ms - 2.0).abs() < 1e-9);
}

#[test]
fn what_is_not_proven_is_refused() {
    let fifo = EngineSpec {
        preemption: Preemption::Fifo,
        ..engine()
    };
    let one = workload(&[(0.0, 10, 1, 0)]);
    let error = lower_bound(&FleetSpec::aggregated(1, fifo), &one, None).expect_err("not proven");
    assert!(error.to_string().contains("lifo"), "{error}");
    assert!(lower_bound(&FleetSpec::aggregated(1, engine()), &one, Some(&[])).is_err());
}

#[test]
fn a_request_that_is_not_counted_adds_no_cost() {
    let rows = [(0.0, 100, 3, 0), (1.0, 100, 3, 50)];
    let spec = FleetSpec::aggregated(1, engine());
    let both = lower_bound(&spec, &workload(&rows), Some(&[true, false])).expect("valid");
    assert_eq!((both.requests, both.all.e2e_ms), (1, 130.0));
}

#[test]
fn a_price_on_workers_knows_the_company_that_the_load_forces() {
    // A step of b sequences takes 5 + b ms. Requests of 50 tokens come each 60 ms, so about 25 share each step of 30 ms,
    // and a request takes 1.5 s. Alone it takes 0.3 s.
    let shared = EngineSpec {
        timing: Timing::Affine {
            prefill_base_ms: 0.0,
            prefill_per_token_ms: 0.02,
            decode_base_ms: 5.0,
            decode_per_kv_token_ms: 0.0,
            decode_per_sequence_ms: 1.0,
        },
        ..engine()
    };
    let rows: Vec<_> = (0..200).map(|i| (60.0 * f64::from(i), 16, 50, 20 * i)).collect();
    let (spec, steady) = (FleetSpec::aggregated(1, shared), workload(&rows));
    let bound = bound(&spec, &steady);
    let outcome = planned(&spec, &steady, vec![0; 200]);
    let reached: f64 = (0..200)
        .map(|i| outcome.requests.end_ms[i] - outcome.requests.arrival_ms[i])
        .sum();
    assert!(bound.priced.e2e_ms <= reached, "{bound:?}");
    assert!(
        bound.priced.e2e_ms > 0.6 * reached,
        "{bound:?}, reached {reached}"
    );
    assert!(bound.work.e2e_ms < 0.5 * reached, "{bound:?}");
    assert_eq!(bound.all.e2e_ms, bound.priced.e2e_ms);
}
