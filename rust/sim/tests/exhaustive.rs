//! The lower bounds against the true optimum: every placement and every order of small random instances, simulated.
//!
//! `WARDROP_INSTANCES` sets the number of instances of the heavy test. Each violation prints its instance.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use wardrop_core::latency::Prior;
use wardrop_core::rng::Rng;
use wardrop_sim::bound::{LowerBound, lower_bound};
use wardrop_sim::{
    End, EngineSpec, FleetSpec, Outcome, Plan, TierSpec, Timing, TransferSpec, Workload, simulate_plan,
};

const ANY: u32 = u32::MAX;
/// Limits of requests before their first token, and before their end, that a worker of a plan may hold.
const GATES: [(u32, u32); 3] = [(ANY, ANY), (1, ANY), (ANY, 1)];
/// A bound may exceed the optimum by this share, which is the error of sums of floats.
const ROUNDING: f64 = 1e-9;

/// A small fleet with a few requests.
#[derive(Debug)]
struct Instance {
    spec: FleetSpec,
    workload: Workload,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())]
}

fn table() -> Timing {
    let text = r#"{"kind": "table", "prefill_isl": [1, 16, 64, 256], "prefill_ttft_ms": [6, 7, 14, 70],
        "decode_active_kv_tokens": [0, 32, 128, 1024], "decode_context_length": [1, 16, 80],
        "decode_itl": [5, 4, 6, 7, 5, 6, 20, 14, 9, 150, 90, 40]}"#;
    serde_json::from_str(text).expect("a valid table")
}

fn timing(rng: &mut Rng) -> Timing {
    match rng.below(5) {
        0 => Timing::Polynomial,
        1 => table(),
        2 => Timing::Learned(Prior {
            prefill: [5e-3, 4e-4, 2e-6, 1e-6],
            step: [4e-3, 1e-3, 2e-5],
        }),
        3 => Timing::Affine {
            prefill_base_ms: 2.0,
            prefill_per_token_ms: 0.5,
            decode_base_ms: 3.0,
            decode_per_kv_token_ms: 0.05,
            decode_per_sequence_ms: 1.0,
        },
        // Memory binds: steps cost the same however many sequences share them.
        _ => Timing::Affine {
            prefill_base_ms: 0.0,
            prefill_per_token_ms: 0.02,
            decode_base_ms: 10.0,
            decode_per_kv_token_ms: 0.0,
            decode_per_sequence_ms: 0.0,
        },
    }
}

fn engine(rng: &mut Rng) -> EngineSpec {
    let block_size = pick(rng, &[4, 16]);
    let tier = TierSpec {
        num_blocks: 6,
        read_bytes_per_s: 1e6,
        latency_ms: 1.0,
        promote_at: 1,
    };
    EngineSpec {
        block_size,
        num_blocks: pick(rng, &[6, 8, 12, 40]) * (16 / block_size),
        max_num_seqs: pick(rng, &[1, 2, 3, 64]),
        max_num_batched_tokens: pick(rng, &[8, 32, 256]),
        chunked_prefill: rng.below(8) > 0,
        prefix_caching: rng.below(8) > 0,
        watermark: pick(rng, &[0.0, 0.0, 0.1]),
        kv_bytes_per_token: 1000.0,
        tiers: if rng.below(8) == 0 { vec![tier] } else { Vec::new() },
        timing: timing(rng),
        ..EngineSpec::default()
    }
}

/// A random instance, small enough to try everything.
fn instance(seed: u64) -> Instance {
    let rng = &mut Rng::new(seed);
    let engine = engine(rng);
    let block_size = engine.block_size;
    let longest = engine.num_blocks * block_size;
    let mut spec = match rng.below(6) {
        0 => FleetSpec::split(1, 1 + rng.below(2), &engine),
        1 => FleetSpec::split(2, 1, &engine),
        2 => FleetSpec::aggregated(1, engine),
        3 => FleetSpec::aggregated(3, engine),
        _ => FleetSpec::aggregated(2, engine),
    };
    for pool in &mut spec.pools {
        for speed in &mut pool.speeds {
            *speed = pick(rng, &[1.0, 1.0, 1.0, 0.5, 2.0]);
        }
    }
    spec.transfer = TransferSpec {
        bandwidth_bytes_per_s: 1e6,
        latency_ms: 2.0,
        contention: rng.below(2) == 0,
    };
    let workers = spec.pools.iter().map(|pool| pool.speeds.len()).product::<usize>();
    let requests = match workers {
        1 => 2 + rng.below(4),
        2 => 2 + rng.below(3),
        _ => 2 + rng.below(2),
    };
    if rng.below(10) == 0 {
        spec.concurrency = Some(1 + rng.below(2) as u32);
    }
    spec.rate = pick(rng, &[1.0, 1.0, 2.0]);
    let gap_ms = pick(rng, &[0.0, 5.0, 40.0, 300.0]);
    let has_turns = rng.below(3) == 0;
    let workload = workload(rng, (requests, block_size, longest), gap_ms, has_turns);
    Instance { spec, workload }
}

/// Prompts are paths in a small tree of blocks: a family, then a branch after its second block.
fn workload(rng: &mut Rng, shape: (usize, u32, u32), gap_ms: f64, has_turns: bool) -> Workload {
    let (requests, block_size, longest) = shape;
    let mut workload = Workload {
        block_size,
        block_start: vec![0],
        ..Workload::default()
    };
    let mut now_ms = 0.0;
    for i in 0..requests {
        now_ms += gap_ms * rng.unit();
        let after = if has_turns && i > 0 && rng.below(2) == 0 {
            rng.below(i) as u32
        } else {
            ANY
        };
        let input = 1 + rng.below(longest as usize * 2 / 3) as u32;
        let output = 1 + rng.below((longest - input).clamp(1, 24) as usize) as u32;
        let (family, branch) = (rng.below(3) as u32, rng.below(4) as u32);
        let blocks = input.div_ceil(block_size);
        let name = |index: u32| {
            let private = if branch == 3 { i as u32 + 3 } else { branch };
            if index < 2 {
                family * 200 + index
            } else {
                family * 200 + 600 * (private + 1) + index
            }
        };
        workload.arrival_ms.push(now_ms);
        workload.input_tokens.push(input);
        workload.output_tokens.push(output);
        workload.blocks.extend((0..blocks).map(name));
        workload.block_start.push(workload.blocks.len() as u64);
        workload.after.push(after);
        workload
            .think_ms
            .push(if after == ANY { 0.0 } else { 10.0 * rng.unit() });
    }
    workload
}

/// Sums of TTFT and E2E of a run in milliseconds, or `None` unless every request is complete.
fn costs(outcome: &Outcome) -> Option<[f64; 2]> {
    let requests = &outcome.requests;
    if requests.end.iter().any(|end| *end != End::Complete as u8) {
        return None;
    }
    let sum = |times: &[f64]| {
        times
            .iter()
            .zip(&requests.arrival_ms)
            .map(|(at, from)| at - from)
            .sum()
    };
    Some([sum(&requests.first_token_ms), sum(&requests.end_ms)])
}

fn permutations(len: usize) -> Vec<Vec<f64>> {
    if len == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(len - 1);
    let insert = |order: &Vec<f64>, at: usize| {
        let mut ranks: Vec<f64> = order
            .iter()
            .map(|rank| rank + f64::from(*rank >= at as f64))
            .collect();
        ranks.push(at as f64);
        ranks
    };
    shorter
        .iter()
        .flat_map(|order| (0..len).map(move |at| insert(order, at)))
        .collect()
}

/// Weights of TTFT and E2E of the objectives.
const OBJECTIVES: [[f64; 2]; 3] = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]];

/// The least cost of every objective over all placements, orders and gates.
fn optimum(instance: &Instance) -> Option<[f64; 3]> {
    let Instance { spec, workload } = instance;
    let len = workload.len();
    let first = spec.pools[0].speeds.len();
    let second = spec.pools.get(1).map_or(1, |pool| pool.speeds.len());
    let mut best: Option<[f64; 3]> = None;
    let orders = permutations(len);
    for code in 0..(first * second).pow(len as u32) {
        let mut rest = code;
        let (mut worker, mut decode_worker) = (Vec::new(), Vec::new());
        for _ in 0..len {
            worker.push((rest % first) as u32);
            rest /= first;
            if spec.pools.len() > 1 {
                decode_worker.push((first + rest % second) as u32);
            }
            rest /= second;
        }
        for (most_prefilling, most_open) in GATES {
            for (number, rank) in orders.iter().enumerate() {
                // Without any waiting at the router, one order stands for all; it is that of arrival.
                let is_strict = number > 0 || most_prefilling.min(most_open) < ANY;
                let plan = Plan {
                    worker: worker.clone(),
                    decode_worker: decode_worker.clone(),
                    rank: if is_strict { rank.clone() } else { vec![0.0; len] },
                    most_prefilling,
                    most_open,
                    is_strict,
                };
                let outcome = simulate_plan(spec, workload, plan).expect("a valid plan");
                // A strict order that waits for a turn that waits for it never ends.
                let Some([ttft, e2e]) = costs(&outcome) else {
                    continue;
                };
                let best = best.get_or_insert([f64::INFINITY; 3]);
                for (least, [of_ttft, of_e2e]) in best.iter_mut().zip(OBJECTIVES) {
                    *least = least.min(of_ttft * ttft + of_e2e * e2e);
                }
            }
        }
    }
    best
}

fn bounds(bound: &LowerBound) -> [f64; 3] {
    OBJECTIVES.map(|[ttft, e2e]| ttft * bound.all.ttft_ms + e2e * bound.all.e2e_ms)
}

/// Bound ÷ optimum of one instance, per objective.
struct Tightness {
    seed: u64,
    ratios: [f64; 3],
}

fn check(seeds: std::ops::Range<u64>) -> Vec<Tightness> {
    let next = AtomicU64::new(seeds.start);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let instance = instance(seed);
                    let Some(best) = optimum(&instance) else {
                        continue;
                    };
                    let bound = lower_bound(&instance.spec, &instance.workload, None).expect("a valid instance");
                    let lower = bounds(&bound);
                    for (lower, best) in lower.iter().zip(&best) {
                        assert!(
                            *lower <= best * (1.0 + ROUNDING) + ROUNDING,
                            "instance {seed}: a bound of {lower} ms is above {best} ms, which a plan reaches\n\
                             {bound:#?}\n{instance:#?}"
                        );
                    }
                    let ratios = [0, 1, 2].map(|at| lower[at] / best[at].max(1e-9));
                    found.lock().expect("no thread panics with the lock").push(Tightness { seed, ratios });
                }
            });
        }
    });
    found.into_inner().expect("no thread panics with the lock")
}

fn report(mut found: Vec<Tightness>) {
    println!("{} instances, bound ÷ optimum:", found.len());
    for (at, name) in ["TTFT", "E2E", "half TTFT and half E2E"].into_iter().enumerate() {
        found.sort_by(|a, b| a.ratios[at].total_cmp(&b.ratios[at]));
        let quantile = |share: f64| found[((found.len() - 1) as f64 * share) as usize].ratios[at];
        println!(
            "{name}: median {:.3}, lowest tenth {:.3}, worst {:.3} (instance {})",
            quantile(0.5),
            quantile(0.1),
            found[0].ratios[at],
            found[0].seed
        );
    }
}

#[test]
fn no_bound_is_above_the_optimum_of_small_instances() {
    let found = check(0..120);
    assert!(
        found.len() > 60,
        "most instances must have a complete plan: {}",
        found.len()
    );
    report(found);
}

#[test]
#[ignore = "heavy: minutes of all cores"]
fn no_bound_is_above_the_optimum_of_many_instances() {
    let instances =
        std::env::var("WARDROP_INSTANCES").map_or(2_600, |text| text.parse().expect("a whole number"));
    report(check(0..instances));
}
