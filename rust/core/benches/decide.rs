//! Time of a decision as the fleet grows: `cargo bench -p wardrop-core --bench decide [-- POLICY …]`.
//!
//! Match, price and pick of a prompt of 128 blocks, per policy. Workers are idle or have two requests in flight each.
//! Prints the median of batches, and the slope per worker between the two largest fleets.

mod fixture;

use std::hint::black_box;
use std::time::Instant;

use fixture::{chain, fleet, stored};
use wardrop_core::{PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, WorkerId};

const DEPTH: usize = 128;
const FLEETS: [u64; 4] = [8, 64, 512, 4096];
const BATCHES: usize = 41;

/// Workers that hold the prompt.
#[derive(Clone, Copy, PartialEq)]
enum Holders {
    None,
    One,
    All,
}

fn router(policy: &str, workers: u64, holders: Holders, loaded: bool) -> Router {
    let policy = PolicyConfig::from_name(policy, &serde_json::Map::new()).expect("the policy exists");
    let router = fleet(RouterConfig::new(16).with_policy(policy), workers);
    let holders = match holders {
        Holders::None => 0,
        Holders::One => 1,
        Holders::All => workers,
    };
    for worker in 0..holders {
        router
            .apply(WorkerId::new(worker, 0), &stored(&chain(1, DEPTH)))
            .expect("a chain can be stored");
    }
    for of in 0..if loaded { 2 * workers } else { 0 } {
        let locals = chain(1000 + of, 16 + (of * 7 % 48) as usize);
        let request = RouteRequest {
            request_id: Some(RequestId(of)),
            local_hashes: &locals,
            input_tokens: 16 * locals.len() as u32,
            ..RouteRequest::default()
        };
        router
            .book(&request, WorkerId::new(of % workers, 0), 1.0)
            .expect("the worker is there");
        if of % 3 == 0 {
            router.prefill_done(RequestId(of), 1.0).expect("it is booked");
        }
    }
    router
}

/// Median nanoseconds of a decision without booking.
fn decision_ns(router: &Router) -> f64 {
    let locals = chain(1, DEPTH);
    let request = RouteRequest {
        local_hashes: &locals,
        input_tokens: 16 * DEPTH as u32,
        ..RouteRequest::default()
    };
    let rounds = 40_000 / (router.positions() + 40) + 5;
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..rounds {
                black_box(router.route(black_box(&request), 2.0)).expect("workers are there");
            }
            start.elapsed().as_nanos() as f64 / rounds as f64
        })
        .collect();
    batches.sort_by(f64::total_cmp);
    batches[BATCHES / 2]
}

fn main() {
    println!("policy, fleet, holders: ns at W = {FLEETS:?}, ns per worker between the last two");
    // `cargo bench` adds `--bench` to the arguments.
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| name != "--bench")
        .collect();
    let policies = ["dynamo", "toll", "lmetric", "round_robin"];
    let is_asked = |policy: &&str| asked.is_empty() || asked.iter().any(|name| name == policy);
    for policy in policies.into_iter().filter(is_asked) {
        for loaded in [false, true] {
            for (name, holders) in [
                ("none", Holders::None),
                ("one", Holders::One),
                ("all", Holders::All),
            ] {
                let ns = FLEETS.map(|workers| decision_ns(&router(policy, workers, holders, loaded)));
                let slope = (ns[3] - ns[2]) / (FLEETS[3] - FLEETS[2]) as f64;
                let load = if loaded { "loaded" } else { "idle" };
                println!("{policy:12} {load:7} {name:7} {ns:>9.0?} {slope:>7.2}");
            }
        }
    }
}
