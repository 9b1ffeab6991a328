//! Planted causes that break the price's model of a fleet: the price guard falls, and the fleet is about as fast as under the
//! static rule. Where the model holds, the guard never falls.
//!
//! `cargo test --release -p wardrop-sim --test price_guard -- --ignored --nocapture` prints the tables of
//! `docs/explanation/price-guard.md`.

use std::ops::Range;

use wardrop_core::queue::QueueConfig;
use wardrop_core::rng::Rng;
use wardrop_core::{Misfit, PolicyConfig, RouterConfig};
use wardrop_sim::{EngineSpec, Fault, FaultKind, FleetSpec, Outcome, Timing, Unseen, Workload, simulate};

const WORKERS: usize = 8;
const BLOCK_TOKENS: u32 = 16;
const FAMILIES: u32 = 40;
/// Block ids of one family's prefix.
const FAMILY_BLOCKS: u32 = 128;
const REQUESTS: u32 = 3_000;
/// Mean gaps between arrivals at the knee, and beyond it.
const KNEE_GAP_MS: f64 = 17.0;
const OVER_GAP_MS: f64 = 11.0;
/// Most that a time with the guard may exceed the time of the static rule.
const WORST_RATIO: f64 = 1.05;

/// Time in which a router without samples finds a misfit, milliseconds. Requests of this time are left out of the ratio.
const FOUND_MS: f64 = 5_000.0;

/// How requests arrive.
#[derive(Clone, Copy)]
enum Arrivals {
    /// At one rate.
    Steady,
    /// Four times the rate in every fourth run of 200 requests, and two thirds of the rate otherwise.
    Bursts,
}

/// Requests that draw one of the families' prefixes each, with exponential gaps.
fn workload(seed: u64, gap_ms: f64, arrivals: Arrivals) -> Workload {
    workload_of(REQUESTS, seed, gap_ms, arrivals)
}

/// As [`workload`], with a number of requests.
fn workload_of(requests: u32, seed: u64, gap_ms: f64, arrivals: Arrivals) -> Workload {
    let mut rng = Rng::new(seed);
    let mut workload = Workload {
        block_size: BLOCK_TOKENS,
        block_start: vec![0],
        ..Workload::default()
    };
    let (mut at_ms, mut next_block) = (0.0, FAMILIES * FAMILY_BLOCKS);
    for request in 0..requests {
        let pace = match arrivals {
            Arrivals::Steady => 1.0,
            Arrivals::Bursts if request / 200 % 4 == 3 => 0.25,
            Arrivals::Bursts => 1.5,
        };
        at_ms += -gap_ms * pace * (1.0 - rng.unit()).ln();
        // Low families are the popular ones.
        let family = (rng.unit() * rng.unit() * f64::from(FAMILIES)) as u32;
        let first = family * FAMILY_BLOCKS;
        let rest_blocks = 4 + rng.below(60) as u32;
        let prompt = [
            first..first + FAMILY_BLOCKS / (1 + family % 2),
            next_block..next_block + rest_blocks,
        ];
        next_block += rest_blocks;
        push(&mut workload, at_ms, prompt, 40 + rng.below(120) as u32);
    }
    workload
}

fn push(workload: &mut Workload, at_ms: f64, prompt: [Range<u32>; 2], output_tokens: u32) {
    let blocks: u32 = prompt.iter().map(|run| run.len() as u32).sum();
    workload.arrival_ms.push(at_ms);
    workload.input_tokens.push(blocks * BLOCK_TOKENS);
    workload.output_tokens.push(output_tokens);
    workload.blocks.extend(prompt.into_iter().flatten());
    workload.block_start.push(workload.blocks.len() as u64);
    workload.after.push(u32::MAX);
    workload.think_ms.push(0.0);
}

fn fleet() -> FleetSpec {
    let engine = EngineSpec {
        block_size: BLOCK_TOKENS,
        num_blocks: 4_000,
        timing: Timing::Affine {
            prefill_base_ms: 4.0,
            prefill_per_token_ms: 0.08,
            decode_base_ms: 8.0,
            decode_per_kv_token_ms: 2e-4,
            decode_per_sequence_ms: 0.05,
        },
        ..EngineSpec::default()
    };
    FleetSpec {
        seed: 7,
        ..FleetSpec::aggregated(WORKERS, engine)
    }
}

/// A fleet whose engines run at `factor` from `from_ms` on.
fn with_speed(mut fleet: FleetSpec, workers: Range<usize>, factor: f64, from_ms: f64) -> FleetSpec {
    let kind = FaultKind::Speed { factor };
    fleet.faults.extend(workers.map(|worker| Fault {
        at_ms: from_ms,
        worker,
        kind,
    }));
    fleet
}

/// A fleet that loses a share of the reports of first tokens.
fn silent(share: f64) -> FleetSpec {
    let mut fleet = fleet();
    fleet.feed.first_token_loss = share;
    fleet
}

/// A fleet whose engines let every request wait, unseen, for a random time.
fn waiting(mean_ms: f64) -> FleetSpec {
    let unseen = Unseen {
        wait_ms: mean_ms,
        ..Unseen::default()
    };
    FleetSpec { unseen, ..fleet() }
}

/// A fleet where another client sends every third request, straight to the first workers.
fn shared(workers: u32) -> FleetSpec {
    let unseen = Unseen {
        other_client_every: 3,
        other_client_workers: workers,
        ..Unseen::default()
    };
    FleetSpec { unseen, ..fleet() }
}

/// What decides in a run.
#[derive(Clone, Copy, PartialEq)]
enum Arm {
    /// Dynamo's cost, at once.
    Static,
    /// The price with the queue.
    Price { guarded: bool },
}

fn run(fleet: &FleetSpec, workload: &Workload, arm: Arm, seed: u64) -> Outcome {
    let (policy, queues) = match arm {
        Arm::Static => ("dynamo", Vec::new()),
        Arm::Price { .. } => ("toll", vec![Some(QueueConfig::default())]),
    };
    let config = RouterConfig::new(BLOCK_TOKENS)
        .with_policy(PolicyConfig::from_name(policy, &serde_json::Map::new()).expect("a policy of the crate"))
        .with_seed(seed)
        .with_price_guard(arm == Arm::Price { guarded: true })
        .with_booking_ttl_s(1e9);
    let fleet = FleetSpec {
        queues,
        ..fleet.clone()
    };
    simulate(&fleet, workload, &[config]).expect("a valid fleet")
}

/// Mean times of the requests that the router placed and that arrived from some time on.
#[derive(Clone, Copy)]
struct MeanTimes {
    ttft_ms: f64,
    e2e_ms: f64,
}

fn mean_times(outcome: &Outcome, fleet: &FleetSpec, from_ms: f64) -> MeanTimes {
    let requests = &outcome.requests;
    let every = fleet.unseen.other_client_every as usize;
    let placed = (0..requests.end_ms.len())
        .filter(|row| every == 0 || row % every != every - 1)
        .filter(|&row| requests.arrival_ms[row] >= from_ms);
    let (mut sum, mut count) = ([0.0; 2], 0.0);
    for row in placed {
        sum[0] += requests.first_token_ms[row] - requests.arrival_ms[row];
        sum[1] += requests.end_ms[row] - requests.arrival_ms[row];
        count += 1.0;
    }
    MeanTimes {
        ttft_ms: sum[0] / count,
        e2e_ms: sum[1] / count,
    }
}

/// Planted causes that break the price. Each must show one of the misfits beside it.
///
/// Where half of the reports are lost, the share of reports is at its limit, and the predictions err too.
fn broken() -> Vec<(&'static str, FleetSpec, &'static [Misfit])> {
    use Misfit::{FirstTokensUnpredicted, FirstTokensUnreported};
    vec![
        ("no first token reported", silent(1.0), &[FirstTokensUnreported]),
        (
            "half of the first tokens reported",
            silent(0.5),
            &[FirstTokensUnreported, FirstTokensUnpredicted],
        ),
        ("unseen waits of 0.3 s", waiting(300.0), &[FirstTokensUnpredicted]),
        ("unseen waits of 3 s", waiting(3_000.0), &[FirstTokensUnpredicted]),
    ]
}

/// Fleets that the price describes well enough to be better than the static rule.
fn sound() -> Vec<(&'static str, FleetSpec, Arrivals)> {
    let slow = |workers, factor| with_speed(fleet(), workers, factor, 0.0);
    vec![
        ("healthy", fleet(), Arrivals::Steady),
        ("bursts", fleet(), Arrivals::Bursts),
        (
            "cold, twice as fast as the prior",
            slow(0..WORKERS, 4.0),
            Arrivals::Steady,
        ),
        (
            "2 of 8 workers at a third of the speed",
            slow(0..2, 0.33),
            Arrivals::Steady,
        ),
        ("another client on 2 of 8 workers", shared(2), Arrivals::Steady),
        ("another client on 8 of 8 workers", shared(8), Arrivals::Steady),
    ]
}

/// Engines at a fifth of their speed from 15 s to 25 s.
fn slow_for_a_while() -> FleetSpec {
    let slow = with_speed(fleet(), 0..WORKERS, 0.2, 15_000.0);
    with_speed(slow, 0..WORKERS, 1.0, 25_000.0)
}

#[test]
fn guard_falls_for_each_planted_cause_and_is_about_as_fast_as_the_static_rule() {
    let workload = workload(0, KNEE_GAP_MS, Arrivals::Steady);
    for (name, fleet, misfits) in broken() {
        let fixed = mean_times(&run(&fleet, &workload, Arm::Static, 0), &fleet, FOUND_MS);
        let outcome = run(&fleet, &workload, Arm::Price { guarded: true }, 0);
        let guarded = mean_times(&outcome, &fleet, FOUND_MS);
        let misfit = outcome.price_guards[0].misfit;
        assert!(
            misfit.is_some_and(|misfit| misfits.contains(&misfit)),
            "{name}: {misfit:?}"
        );
        for (what, guarded, fixed) in [
            ("TTFT", guarded.ttft_ms, fixed.ttft_ms),
            ("E2E", guarded.e2e_ms, fixed.e2e_ms),
        ] {
            assert!(
                guarded <= WORST_RATIO * fixed,
                "{name}: mean {what} {guarded:.0} ms with the guard, {fixed:.0} ms under the static rule"
            );
        }
    }
}

#[test]
fn guard_stays_where_the_price_is_right() {
    for (name, fleet, arrivals) in sound() {
        for gap_ms in [KNEE_GAP_MS, OVER_GAP_MS] {
            let outcome = run(
                &fleet,
                &workload(1, gap_ms, arrivals),
                Arm::Price { guarded: true },
                1,
            );
            let report = outcome.price_guards[0];
            assert_eq!(report.falls, 0, "{name}, gaps of {gap_ms} ms: {report:?}");
        }
    }
}

#[test]
fn guard_returns_after_the_curves_learned_another_speed() {
    let fleet = slow_for_a_while();
    // Over the knee, the backlog of the slow time ends 40 s after it.
    for (requests, gap_ms) in [(REQUESTS, KNEE_GAP_MS), (2 * REQUESTS, OVER_GAP_MS)] {
        for seed in 0..3 {
            let workload = workload_of(requests, seed, gap_ms, Arrivals::Steady);
            let outcome = run(&fleet, &workload, Arm::Price { guarded: true }, seed);
            let report = outcome.price_guards[0];
            assert!(
                report.falls > 0,
                "gaps of {gap_ms} ms, seed {seed}: the guard never fell"
            );
            assert_eq!(
                report.misfit, None,
                "gaps of {gap_ms} ms, seed {seed}: {report:?}"
            );
        }
    }
}

#[test]
#[ignore = "prints the tables of docs/explanation/price-guard.md in minutes"]
fn tables() {
    println!("| cause | load | static | price | price, guarded | falls | decided statically |");
    let causes = broken()
        .into_iter()
        .map(|(name, fleet, _)| (name, fleet, Arrivals::Steady));
    let slow = (
        "a fifth of the speed for 10 s",
        slow_for_a_while(),
        Arrivals::Steady,
    );
    for (name, fleet, arrivals) in causes.chain([slow]).chain(sound()) {
        for (load, gap_ms) in [("low", 40.0), ("knee", KNEE_GAP_MS), ("over", OVER_GAP_MS)] {
            let seeds = 0..2;
            let mut sums = [[0.0; 2]; 3];
            let (mut falls, mut decided) = (0, 0);
            for seed in seeds {
                let workload = workload(seed, gap_ms, arrivals);
                for (sum, arm) in sums.iter_mut().zip([
                    Arm::Static,
                    Arm::Price { guarded: false },
                    Arm::Price { guarded: true },
                ]) {
                    let outcome = run(&fleet, &workload, arm, seed);
                    let times = mean_times(&outcome, &fleet, 0.0);
                    sum[0] += times.ttft_ms / 2.0;
                    sum[1] += times.e2e_ms / 2.0;
                    if arm == (Arm::Price { guarded: true }) {
                        falls += outcome.price_guards[0].falls;
                        decided += outcome.decided_statically[0];
                    }
                }
            }
            let cells: Vec<String> = sums
                .iter()
                .map(|[ttft, e2e]| format!("{ttft:.0} / {e2e:.0}"))
                .collect();
            let share = 100.0 * decided as f64 / f64::from(2 * REQUESTS);
            println!(
                "| {name} | {load} | {} | {falls} | {share:.0} % |",
                cells.join(" | ")
            );
        }
    }
}
