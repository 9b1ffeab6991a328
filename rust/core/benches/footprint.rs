//! Cost of a large index: bytes per (block, worker), events per second, nanoseconds per decision. Prints JSON.
//!
//! `cargo bench -p wardrop-core --bench footprint -- PART [BLOCKS]`, 5,000,000 blocks by default. PART is one of:
//!
//! * `unique`: each block on one of 64 workers; memory, event rate and decision times.
//! * `shared`: each block on all 64 workers; memory and event rate.
//! * `churn`: 20 cycles of filling and clearing; growth of resident memory.
//! * `restart`: bytes and processor seconds to save an index and to restore it.
//!
//! One process measures one part, because freed memory still counts as resident.

mod fixture;
#[path = "fixture/resident.rs"]
mod resident;

use std::time::Instant;

use resident::resident_bytes;
use wardrop_core::rng::Rng;
use wardrop_core::{
    DynamoConfig, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig,
    SequenceHash, WorkerId, sequence_hashes,
};

const DEPTH: usize = 1024;

fn router(workers: u64) -> Router {
    let config = RouterConfig::new(16).with_policy(PolicyConfig::Dynamo(DynamoConfig::default()));
    fixture::fleet(config, workers)
}

/// Processor seconds of this process, in steps of 10 ms. Unlike wall time, other processes do not add to it.
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

/// Median, 99th and 99.9th percentile.
fn percentiles_ns(mut spent: Vec<u64>) -> (u64, u64, u64) {
    spent.sort_unstable();
    let at = |share: f64| spent[((spent.len() - 1) as f64 * share) as usize];
    (at(0.5), at(0.99), at(0.999))
}

/// Cost of filling an index.
struct Fill {
    bytes_per_block_worker: f64,
    blocks_per_cpu_s: f64,
}

/// Stores every chain on `holders` workers. Builds the events before the clock starts, in portions of 512.
fn fill(router: &Router, chains: u64, holders: u64, workers: u64) -> Fill {
    // Events exist before the first measurement, so that their memory cancels out.
    let mut events: Vec<KvEvent> = (0..512).map(|of| stored(chains + of, DEPTH)).collect();
    let before = resident_bytes();
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
    Fill {
        bytes_per_block_worker: resident_bytes().saturating_sub(before) as f64 / held,
        blocks_per_cpu_s: held / seconds,
    }
}

/// Percentiles of the nanoseconds of a decision on chains that the index holds whole.
fn decisions(router: &Router, chains: u64, with_sequence: bool, booked: bool) -> (u64, u64, u64) {
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

/// Resident memory after all cycles over that of the third cycle, and blocks per cycle.
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
            first = resident_bytes();
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
    (resident_bytes() as f64 / first as f64, 977 * DEPTH as u64)
}

/// Bytes of a saved index, and processor seconds to save and to restore it. Checks that the restored index answers.
fn restart(chains: u64) -> (usize, f64, f64) {
    let saved = router(64);
    fill(&saved, chains, 1, 64);
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
    // `cargo bench` adds `--bench` to the arguments.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let part = arguments.next().unwrap_or_default();
    let blocks: u64 = arguments
        .next()
        .map_or(5_000_000, |text| text.parse().expect("a number of blocks"));
    let chains = blocks / DEPTH as u64;
    match part.as_str() {
        "unique" => {
            let router = router(64);
            let filled = fill(&router, chains, 1, 64);
            println!(
                "{{\"blocks\": {blocks}, \"bytes_per_block_worker\": {:.2}, \"blocks_per_cpu_s\": {:.0}, \
                 \"index_bytes_per_block\": {:.2}",
                filled.bytes_per_block_worker,
                filled.blocks_per_cpu_s,
                router.snapshot().index.bytes as f64 / (chains * DEPTH as u64) as f64
            );
            for (name, with_sequence, booked) in [
                ("route", false, false),
                ("route_with_sequence", true, false),
                ("route_and_book", false, true),
            ] {
                let (p50, p99, p999) = decisions(&router, chains, with_sequence, booked);
                println!(" , \"{name}_ns\": {{\"p50\": {p50}, \"p99\": {p99}, \"p99.9\": {p999}}}");
            }
            println!("}}");
        }
        "shared" => {
            let filled = fill(&router(64), chains, 64, 64);
            println!(
                "{{\"blocks\": {blocks}, \"bytes_per_block_worker\": {:.3}, \"blocks_per_cpu_s\": {:.0}}}",
                filled.bytes_per_block_worker, filled.blocks_per_cpu_s
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
        _ => println!("usage: footprint unique|shared|churn|restart [BLOCKS], by default 5000000 blocks"),
    }
}
