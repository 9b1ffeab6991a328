//! What the core costs: bytes per (block, worker) by resident memory, events per second, time of a decision on a large
//! index, and whether memory stays flat under churn. Prints JSON.
//!
//! `cargo run --release -p wardrop-core --example footprint -- unique|shared|churn|restart [blocks]` (default 5,000,000): one part per
//! process, since memory that was freed is counted as resident still.

mod fixture;

use std::time::Instant;

use wardrop_core::rng::Rng;
use wardrop_core::{
    DynamoConfig, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig,
    SequenceHash, WorkerId, sequence_hashes,
};

const DEPTH: usize = 1024;

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * 4096
}

fn router(workers: u64) -> Router {
    let config = RouterConfig::new(16).with_policy(PolicyConfig::Dynamo(DynamoConfig::default()));
    fixture::fleet(config, workers)
}

/// Processor seconds of this process, in steps of 10 ms: what a busy machine can not inflate.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn chain(of: u64, depth: usize) -> (Vec<LocalHash>, Vec<SequenceHash>) {
    let locals = fixture::chain(of, depth);
    let sequence = sequence_hashes(&locals);
    (locals, sequence)
}

fn stored(of: u64, depth: usize) -> KvEvent {
    fixture::stored(&fixture::chain(of, depth))
}

fn percentiles_ns(mut spent: Vec<u64>) -> (u64, u64, u64) {
    spent.sort_unstable();
    let at = |share: f64| spent[((spent.len() - 1) as f64 * share) as usize];
    (at(0.5), at(0.99), at(0.999))
}

/// Fill, and measure memory and events per second. Events are made before the clock starts, in portions.
fn fill(router: &mut Router, chains: u64, holders: u64, workers: u64) -> (f64, f64) {
    // The events' own memory is the same before and after.
    let mut events: Vec<KvEvent> = (0..512).map(|of| stored(chains + of, DEPTH)).collect();
    let before = resident();
    let mut seconds = 0.0;
    for from in (0..chains).step_by(512) {
        for (of, event) in (from..chains).zip(&mut events) {
            *event = stored(of, DEPTH);
        }
        let start = processor_s();
        for (of, event) in (from..chains).zip(&events) {
            for holder in 0..holders {
                router
                    .apply(WorkerId::new((of + holder) % workers, 0), event)
                    .expect("a chain can be stored");
            }
        }
        seconds += processor_s() - start;
    }
    let held = (chains * holders * DEPTH as u64) as f64;
    (resident().saturating_sub(before) as f64 / held, held / seconds)
}

fn decisions(router: &mut Router, chains: u64, with_sequence: bool, booked: bool) -> (u64, u64, u64) {
    let mut rng = Rng::new(7);
    let mut spent = Vec::new();
    for id in 0..20_000u64 {
        let (locals, sequence) = chain(rng.below(chains as usize) as u64, DEPTH);
        let request = RouteRequest {
            request_id: booked.then_some(RequestId(id)),
            local_hashes: &locals,
            sequence_hashes: if with_sequence { &sequence } else { &[] },
            input_tokens: 16 * DEPTH as u32,
            ..RouteRequest::default()
        };
        let start = Instant::now();
        let decision = router.route(&request, id as f64 * 1e-3);
        spent.push(start.elapsed().as_nanos() as u64);
        assert_eq!(decision.expect("workers are there").overlap_blocks, DEPTH as u32);
        if booked {
            router.release(RequestId(id), 0.0).expect("it is booked");
        }
    }
    percentiles_ns(spent)
}

fn churn(cycles: u64) -> (f64, u64) {
    let router = router(8);
    let mut first = 0;
    for cycle in 0..cycles {
        for of in 0..977 {
            let event = stored(cycle * 1000 + of, DEPTH);
            router
                .apply(WorkerId::new(of % 8, 0), &event)
                .expect("a chain can be stored");
        }
        if cycle == 2 {
            first = resident();
        }
        for worker in 0..8 {
            router
                .apply(WorkerId::new(worker, 0), &KvEvent::Cleared)
                .expect("the worker is registered");
        }
        assert_eq!(router.snapshot().index.blocks, 0);
    }
    for of in 0..977 {
        router
            .apply(WorkerId::new(of % 8, 0), &stored(of, DEPTH))
            .expect("a chain can be stored");
    }
    (resident() as f64 / first as f64, 977 * DEPTH as u64)
}

/// Bytes of a saved index, processor seconds to save it and to restore it until it answers.
fn restart(chains: u64) -> (usize, f64, f64) {
    let mut saved = router(64);
    fill(&mut saved, chains, 1, 64);
    let start = processor_s();
    let image = saved.save_index(|_| None);
    let save_s = processor_s() - start;
    let restored = router(64);
    let start = processor_s();
    restored
        .restore_index(&image)
        .expect("what was saved can be restored");
    let restore_s = processor_s() - start;
    for of in (0..chains).step_by(97) {
        let found = restored.find_matches(&chain(of, DEPTH).0);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].device, DEPTH as u32);
    }
    (image.len(), save_s, restore_s)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().unwrap_or_default();
    let blocks: u64 = arguments
        .next()
        .map_or(5_000_000, |text| text.parse().expect("a number of blocks"));
    let chains = blocks / DEPTH as u64;
    match part.as_str() {
        "unique" => {
            let mut router = router(64);
            let (bytes, rate) = fill(&mut router, chains, 1, 64);
            println!(
                "{{\"blocks\": {blocks}, \"bytes_per_block_worker\": {bytes:.2}, \"blocks_per_cpu_s\": {rate:.0}, \
                 \"index_bytes_per_block\": {:.2}",
                router.snapshot().index.bytes as f64 / (chains * DEPTH as u64) as f64
            );
            for (name, with_sequence, booked) in [
                ("route", false, false),
                ("route_with_sequence", true, false),
                ("route_and_book", false, true),
            ] {
                let (p50, p99, p999) = decisions(&mut router, chains, with_sequence, booked);
                println!(" , \"{name}_ns\": {{\"p50\": {p50}, \"p99\": {p99}, \"p99.9\": {p999}}}");
            }
            println!("}}");
        }
        "shared" => {
            let (bytes, rate) = fill(&mut router(64), chains, 64, 64);
            println!(
                "{{\"blocks\": {blocks}, \"bytes_per_block_worker\": {bytes:.3}, \"blocks_per_cpu_s\": {rate:.0}}}"
            );
        }
        "churn" => {
            let (growth, churned) = churn(20);
            println!("{{\"cycles\": 20, \"blocks_per_cycle\": {churned}, \"resident_ratio\": {growth:.3}}}");
        }
        "restart" => {
            let (bytes, save_s, restore_s) = restart(chains);
            println!(
                "{{\"blocks\": {blocks}, \"image_bytes\": {bytes}, \"save_cpu_s\": {save_s:.2}, \"restore_cpu_s\": {restore_s:.2}}}"
            );
        }
        _ => eprintln!("expected unique, shared, churn or restart, and a number of blocks"),
    }
}
