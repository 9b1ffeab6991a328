//! Planted lies between the engines and the index: found within few requests, and never worse than routing by load alone.
//!
//! `cargo test --release -p wardrop-sim --test trust -- --ignored --nocapture` prints the table of `docs/reports/trust.md`.

use wardrop_core::rng::Rng;
use wardrop_core::{PolicyConfig, RouterConfig};
use wardrop_sim::{EngineSpec, FleetSpec, Lie, LieKind, Outcome, Timing, Workload, simulate};

const WORKERS: usize = 8;
const BLOCK_TOKENS: u32 = 16;
/// Blocks of a shared prefix, and of the rest of a prompt.
const PREFIX_BLOCKS: u32 = 64;
const REST_BLOCKS: u32 = 16;
/// Shared prefixes of a tenant.
const FAMILIES: u32 = 10;
const TENANTS: u32 = 6;
const REQUESTS: u32 = 4_000;
/// Block ids of one tenant: its prefixes, then the rests of its prompts.
const TENANT_BLOCKS: u32 = FAMILIES * PREFIX_BLOCKS + REQUESTS * REST_BLOCKS;
/// Most that mean E2E under a lie may exceed mean E2E of routing by load alone.
const WORST_RATIO: f64 = 1.02;

/// Requests of tenants that draw one of their prefixes each, with exponential gaps.
fn workload(seed: u64) -> Workload {
    let mut rng = Rng::new(seed);
    let mut workload = Workload {
        block_size: BLOCK_TOKENS,
        block_start: vec![0],
        ..Workload::default()
    };
    let mut at_ms = 0.0;
    for request in 0..REQUESTS {
        at_ms += -32.0 * (1.0 - rng.unit()).ln();
        let first = rng.below(TENANTS as usize) as u32 * TENANT_BLOCKS;
        // Low families are the popular ones.
        let family = (rng.unit() * rng.unit() * f64::from(FAMILIES)) as u32;
        let prefix = first + family * PREFIX_BLOCKS;
        let rest = first + FAMILIES * PREFIX_BLOCKS + request * REST_BLOCKS;
        workload.arrival_ms.push(at_ms);
        workload
            .input_tokens
            .push((PREFIX_BLOCKS + REST_BLOCKS) * BLOCK_TOKENS);
        workload.output_tokens.push(40 + rng.below(40) as u32);
        workload.blocks.extend(prefix..prefix + PREFIX_BLOCKS);
        workload.blocks.extend(rest..rest + REST_BLOCKS);
        workload.block_start.push(workload.blocks.len() as u64);
        workload.after.push(u32::MAX);
        workload.think_ms.push(0.0);
    }
    workload
}

fn fleet(lies: Vec<Lie>) -> FleetSpec {
    let engine = EngineSpec {
        block_size: BLOCK_TOKENS,
        num_blocks: 2_600,
        timing: Timing::Affine {
            prefill_base_ms: 2.0,
            prefill_per_token_ms: 0.08,
            decode_base_ms: 8.0,
            decode_per_kv_token_ms: 2e-4,
            decode_per_sequence_ms: 0.05,
        },
        ..EngineSpec::default()
    };
    FleetSpec {
        lies,
        seed: 7,
        ..FleetSpec::aggregated(WORKERS, engine)
    }
}

fn lie(workers: usize, kind: LieKind) -> Lie {
    Lie {
        from_ms: 0.0,
        until_ms: f64::INFINITY,
        workers,
        kind,
    }
}

fn run(lies: Vec<Lie>, policy: &PolicyConfig, measures_trust: bool, seed: u64) -> Outcome {
    let config = RouterConfig::new(BLOCK_TOKENS)
        .with_policy(policy.clone())
        .with_seed(seed)
        .with_booking_ttl_s(1e9)
        .with_measured_trust(measures_trust);
    simulate(&fleet(lies), &workload(seed), &[config]).expect("a valid fleet")
}

fn mean_e2e_ms(outcome: &Outcome) -> f64 {
    let requests = &outcome.requests;
    let times = requests.end_ms.iter().zip(&requests.arrival_ms);
    times.map(|(end, arrival)| end - arrival).sum::<f64>() / requests.end_ms.len() as f64
}

fn policies() -> [(&'static str, PolicyConfig); 3] {
    let named = |name| PolicyConfig::from_name(name, &serde_json::Map::new()).expect("a policy of the crate");
    [
        ("toll", named("toll")),
        ("dynamo", named("dynamo")),
        ("lmetric", named("lmetric")),
    ]
}

fn lies() -> Vec<(&'static str, Vec<Lie>)> {
    let events_lost = LieKind::LostEvents { share: 0.3 };
    let salt = LieKind::IgnoredSalt {
        tenant_blocks: TENANT_BLOCKS,
    };
    vec![
        (
            "30 % of the events lost, 8 workers",
            vec![lie(WORKERS, events_lost)],
        ),
        ("30 % of the events lost, 1 worker", vec![lie(1, events_lost)]),
        ("ghosts, 8 workers", vec![lie(WORKERS, LieKind::Ghosts)]),
        ("ghosts, 1 worker", vec![lie(1, LieKind::Ghosts)]),
        (
            "other block size or tokeniser, 8 workers",
            vec![lie(WORKERS, LieKind::OtherHashes)],
        ),
        (
            "other block size or tokeniser, 1 worker",
            vec![lie(1, LieKind::OtherHashes)],
        ),
        (
            "crossed feeds, 8 workers",
            vec![lie(WORKERS, LieKind::CrossedFeeds)],
        ),
        ("crossed feeds, 2 workers", vec![lie(2, LieKind::CrossedFeeds)]),
        ("salt that the router ignores", vec![lie(WORKERS, salt)]),
    ]
}

/// Mean E2E of one lie over that of routing by load alone, one entry per seed.
#[derive(Default)]
struct Ratios {
    measured: Vec<f64>,
    believed: Vec<f64>,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Runs every lie under every policy and prints the table. Returns the cases above their limit. `seeds` gives the traces. `WARDROP_POLICY` keeps one policy.
fn compare(seeds: &[u64]) -> Vec<String> {
    println!("| policy | lie | honest | trust measured | worst seed | believed |");
    println!("|---|---|---|---|---|---|");
    let mut failures = Vec::new();
    let mut worst_believed = 0.0_f64;
    let only = std::env::var("WARDROP_POLICY").ok();
    let chosen = policies().into_iter();
    for (name, policy) in chosen.filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let e2e_ms = |lies: Vec<Lie>, measures, seed| mean_e2e_ms(&run(lies, &policy, measures, seed));
        let no_events = || vec![lie(WORKERS, LieKind::LostEvents { share: 1.0 })];
        let load_ms: Vec<f64> = seeds
            .iter()
            .map(|&seed| e2e_ms(no_events(), false, seed))
            .collect();
        let by_load = |lies: &[Lie], measures: bool| -> Vec<f64> {
            let runs = seeds.iter().zip(&load_ms);
            runs.map(|(&seed, load_ms)| e2e_ms(lies.to_vec(), measures, seed) / load_ms)
                .collect()
        };
        let honest = mean(&by_load(&[], true));
        for (lie_name, lies) in lies() {
            let ratios = Ratios {
                measured: by_load(&lies, true),
                believed: by_load(&lies, false),
            };
            let worst = ratios.measured.iter().copied().fold(0.0, f64::max);
            println!(
                "| {name} | {lie_name} | {honest:.3} | {:.3} | {worst:.3} | {:.3} |",
                mean(&ratios.measured),
                mean(&ratios.believed)
            );
            worst_believed = worst_believed.max(mean(&ratios.believed));
            if worst > WORST_RATIO {
                failures.push(format!("{name}, {lie_name}: {worst:.3}"));
            }
        }
    }
    assert!(
        only.is_some() || worst_believed > WORST_RATIO,
        "the negative control: a believed lie must cost, got {worst_believed:.3}"
    );
    failures
}

#[test]
fn no_lie_costs_more_than_routing_by_load_alone() {
    let failures = compare(&[1]);
    assert!(failures.is_empty(), "worse than load alone: {failures:?}");
}

#[test]
#[ignore = "the table of the report, a minute"]
fn table_of_the_report() {
    let failures = compare(&[1, 2, 3, 4]);
    assert!(failures.is_empty(), "worse than load alone: {failures:?}");
}
