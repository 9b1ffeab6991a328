//! The stream of a live router against the bound of a whole workload, and what a window must not change.

use wardrop_core::PolicyConfig;
use wardrop_core::latency::Prior;
use wardrop_core::rng::Rng;

use super::*;
use crate::tests::router;
use crate::{End, EngineSpec, Timing, simulate};

const BLOCK: u32 = 16;
/// Documents of 60 blocks: more than one worker can hold, and fewer than all workers can.
const DOCUMENTS: usize = 150;

fn curves() -> Prior {
    Prior {
        prefill: [4e-3, 1e-4, 0.0, 0.0],
        step: [6e-3, 1e-4, 1e-6],
    }
}

/// Prompts of several documents with questions, at `per_s` requests per second.
fn documents(requests: usize, per_s: f64, seed: u64) -> Workload {
    let mut rng = Rng::new(seed);
    let mut workload = Workload {
        block_size: BLOCK,
        block_start: vec![0],
        ..Workload::default()
    };
    let (mut at_ms, mut next) = (0.0, DOCUMENTS as u32 * 60);
    for _ in 0..requests {
        at_ms += -(1.0 - rng.unit()).ln() * 1e3 / per_s;
        let (document, shared, own) = (rng.below(DOCUMENTS) as u32, 60, 5 + rng.below(20) as u32);
        workload.arrival_ms.push(at_ms);
        workload
            .input_tokens
            .push((shared + own) * BLOCK + rng.below(16) as u32);
        workload.output_tokens.push(5 + rng.below(60) as u32);
        workload
            .blocks
            .extend((0..shared).map(|block| document * 60 + block));
        workload.blocks.extend(next..=next + own);
        next += own + 1;
        workload.block_start.push(workload.blocks.len() as u64);
        workload.after.push(u32::MAX);
        workload.think_ms.push(0.0);
    }
    workload
}

fn fleet(workers: usize) -> BoundFleet {
    let worker = BoundWorker {
        curves: curves(),
        kv_blocks: Some(4_096),
        max_num_seqs: Some(64),
        max_num_batched_tokens: Some(2_048),
    };
    BoundFleet {
        block_size: BLOCK,
        pools: vec![BoundPool {
            role: Role::Aggregated,
            workers: vec![worker; workers],
        }],
    }
}

/// The requests of a simulated run, as the router of a running fleet sees them.
fn observed(workload: &Workload, policy: PolicyConfig) -> Vec<StreamRequest> {
    let engine = EngineSpec {
        block_size: BLOCK,
        num_blocks: 4_096,
        max_num_seqs: 64,
        max_num_batched_tokens: 2_048,
        timing: Timing::Learned(curves()),
        ..EngineSpec::default()
    };
    let spec = FleetSpec::aggregated(4, engine);
    let outcome = simulate(&spec, workload, &[router(policy, 1)]).expect("a valid fleet");
    let times = &outcome.requests;
    (0..workload.len())
        .map(|i| {
            assert_eq!(times.end[i], End::Complete as u8);
            let blocks = &workload.blocks[workload.block_start[i] as usize..]
                [..(workload.input_tokens[i] / BLOCK) as usize];
            StreamRequest {
                arrived_s: 1e6 + times.arrival_ms[i] * 1e-3,
                input_tokens: workload.input_tokens[i],
                blocks: blocks.iter().map(|block| spread(*block)).collect(),
                found_blocks: times.cached_tokens[i] / BLOCK,
                paid: Some(PaidTimes {
                    output_tokens: workload.output_tokens[i],
                    ttft_s: Some((times.first_token_ms[i] - times.arrival_ms[i]) * 1e-3),
                    e2e_s: (times.end_ms[i] - times.arrival_ms[i]) * 1e-3,
                }),
            }
        })
        .collect()
}

/// An id that is spread as a hash is.
fn spread(block: u32) -> u64 {
    let mut mixed = u64::from(block).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^= mixed >> 29;
    mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn price_all(requests: &[StreamRequest], window: usize) -> Vec<WindowPrice> {
    let mut history = History::default();
    let windows = requests.chunks(window);
    windows
        .map(|window| price_window(&fleet(4), &mut history, &mut window.to_vec()).expect("a covered fleet"))
        .collect()
}

fn totals(windows: &[WindowPrice]) -> PriceEstimate {
    price_estimate(windows.iter().map(|window| &window.e2e)).expect("a price")
}

#[test]
fn one_window_over_everything_has_the_bound_of_the_whole_workload() {
    let workload = documents(400, 20.0, 3);
    let requests = observed(&workload, PolicyConfig::RoundRobin);
    let [price] = price_all(&requests, 400)[..] else {
        panic!("one window");
    };
    let whole = lower_bound(&fleet(4).spec(), &workload, None).expect("a covered fleet");
    // The history leaves no token to rounding, because a live engine computes every token of a prompt.
    assert!(
        (price.e2e.lower_s / whole.all.e2e_ms * 1e3 - 1.0).abs() < 0.01,
        "{price:?} {whole:?}"
    );
    assert!(
        (price.ttft.lower_s / whole.all.ttft_ms * 1e3 - 1.0).abs() < 0.05,
        "{price:?} {whole:?}"
    );
}

/// The bound gives up a token for each request that may share a pass, and a longer window knows more of them.
const ROUNDING: f64 = 0.995;
/// Prices are constant in 48 slots of a window, so a shorter window follows the load more closely.
const SLOTS_GAIN: f64 = 0.97;

/// Sum over windows of the bound on E2E without a price on workers, milliseconds.
fn pooled_ms(requests: &[StreamRequest], window: usize) -> f64 {
    let (spec, mut history) = (fleet(4).spec(), History::default());
    history.cover(fleet(4).known_blocks());
    let bound_ms = |part: &[StreamRequest]| {
        let mut part = part.to_vec();
        let left = note_window(&mut history, &mut part);
        let every: Vec<usize> = (0..part.len()).collect();
        let workload = stream::workload(&part, &every, BLOCK);
        let bound = lower_bound_after(&spec, &workload, None, Some(&left)).expect("a covered fleet");
        bound.pooled.e2e_ms
    };
    requests.chunks(window).map(bound_ms).sum()
}

#[test]
fn windows_only_lower_the_bound_and_no_router_beats_it() {
    for (per_s, seed) in [(8.0, 1), (20.0, 2), (60.0, 3)] {
        let requests = observed(&documents(600, per_s, seed), PolicyConfig::RoundRobin);
        let whole = totals(&price_all(&requests, 600));
        let whole_ms = pooled_ms(&requests, 600);
        for window in [20, 100, 300] {
            assert!(pooled_ms(&requests, window) * ROUNDING <= whole_ms);
            let windows = price_all(&requests, window);
            let cut = totals(&windows);
            assert!(cut.value >= whole.value * SLOTS_GAIN, "{cut:?} {whole:?}");
            assert!(
                windows
                    .iter()
                    .all(|w| w.ttft.paid_s >= w.ttft.lower_s && w.e2e.paid_s >= w.e2e.lower_s)
            );
            let (low, high) = cut.interval.unwrap_or((cut.value, cut.value));
            assert!(low <= cut.value && cut.value <= high);
        }
    }
}

#[test]
fn the_price_ranks_two_routers_of_the_same_requests() {
    let workload = documents(600, 25.0, 5);
    let price = |policy| totals(&price_all(&observed(&workload, policy), 100)).value;
    let (spread, sticky) = (price(PolicyConfig::RoundRobin), price(PolicyConfig::default()));
    assert!(spread > 1.05 * sticky, "{spread} {sticky}");
}

#[test]
fn requests_that_do_not_count_leave_blocks_and_cost_nothing() {
    let requests = observed(&documents(200, 20.0, 7), PolicyConfig::RoundRobin);
    let mut some = requests.clone();
    for request in some.iter_mut().step_by(2) {
        request.paid = None;
    }
    let mut history = History::default();
    let price = price_window(&fleet(4), &mut history, &mut some).expect("a covered fleet");
    assert_eq!(price.e2e.requests, 100);
    // Without the other requests, the same prompts find less in the history.
    let mut alone: Vec<_> = requests.iter().skip(1).step_by(2).cloned().collect();
    for request in &mut alone {
        request.found_blocks = 0;
    }
    let without = price_window(&fleet(4), &mut History::default(), &mut alone).expect("a covered fleet");
    assert!(without.ttft.lower_s > price.ttft.lower_s);
}

#[test]
fn figures_of_an_engine_that_cannot_be_true_are_left_out() {
    let mut requests = observed(&documents(3, 20.0, 7), PolicyConfig::RoundRobin);
    if let Some(paid) = &mut requests[0].paid {
        paid.output_tokens = u32::MAX - 5;
    }
    requests[1].blocks.pop();
    let price = price_window(&fleet(4), &mut History::default(), &mut requests).expect("a covered fleet");
    assert_eq!((price.e2e.requests, price.ttft.requests), (1, 1));
}

#[test]
fn answers_in_one_piece_count_by_their_end_alone() {
    let mut requests = observed(&documents(100, 20.0, 9), PolicyConfig::RoundRobin);
    for paid in requests
        .iter_mut()
        .step_by(2)
        .filter_map(|request| request.paid.as_mut())
    {
        paid.ttft_s = None;
    }
    let price = price_window(&fleet(4), &mut History::default(), &mut requests).expect("a covered fleet");
    assert_eq!((price.ttft.requests, price.e2e.requests), (50, 100));
    assert!(price.ttft.lower_s > 0.0 && price.ttft.lower_s <= price.ttft.paid_s);
}

#[test]
fn split_fleets_and_unequal_workers_are_covered() {
    let requests = observed(&documents(200, 20.0, 11), PolicyConfig::RoundRobin);
    let of = |fleet: &BoundFleet| {
        price_window(fleet, &mut History::default(), &mut requests.clone()).expect("a covered fleet")
    };
    let equal = of(&fleet(4));
    let mut unequal = fleet(4);
    for worker in &mut unequal.pools[0].workers[2..] {
        worker.curves.prefill = worker.curves.prefill.map(|part| part * 0.5);
        worker.curves.step = worker.curves.step.map(|part| part * 0.5);
    }
    let faster = of(&unequal);
    assert!(faster.e2e.lower_s < equal.e2e.lower_s && faster.e2e.lower_s > 0.4 * equal.e2e.lower_s);
    let mut split = fleet(4);
    let mut decode = split.pools[0].clone();
    decode.role = Role::Decode;
    split.pools[0].role = Role::Prefill;
    split.pools.push(decode);
    let price = of(&split);
    assert!(price.e2e.lower_s > 0.0 && price.e2e.lower_s <= price.e2e.paid_s);
}
