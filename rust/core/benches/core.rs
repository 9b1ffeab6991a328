//! Times of the core's operations, with confidence intervals: `cargo bench -p wardrop-core --bench core`.
//!
//! These times serve work on one machine. `bench/core` compares with Dynamo, and `make gate` guards against regressions.

mod fixture;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fixture::{chain, fleet, stored};
use wardrop_core::{
    BlockHasher, DynamoConfig, HashKey, HashMode, HashScope, KvEvent, PolicyConfig, PromptHashes, RequestId,
    RouteRequest, RouterConfig, WorkerId, sequence_hashes,
};

fn dynamo() -> RouterConfig {
    RouterConfig::new(16).with_policy(PolicyConfig::Dynamo(DynamoConfig::default()))
}

fn hashing(c: &mut Criterion) {
    let tokens: Vec<u32> = (0..16_384).collect();
    let scope = HashScope::default();
    let mut group = c.benchmark_group("hash 16384 tokens");
    group.throughput(Throughput::Elements(16_384));
    for (name, mode) in [
        ("xxh3", HashMode::Xxh3),
        ("keyed", HashMode::Keyed(HashKey::new([7; 16]))),
    ] {
        let hasher = BlockHasher::new(mode, 16);
        group.bench_function(name, |b| {
            b.iter(|| hasher.local_hashes(black_box(&tokens), &scope));
        });
        let chained = format!("{name} and chain");
        group.bench_function(chained, |b| {
            b.iter(|| PromptHashes::new(&hasher, &scope).extend(black_box(&tokens)));
        });
    }
    group.finish();
}

fn routing(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for (workers, depth) in [(8, 128), (64, 128), (64, 1024), (512, 1024), (4096, 128)] {
        for holders in [1, workers] {
            let (router, locals) = (fleet(dynamo(), workers), chain(1, depth));
            for worker in 0..holders {
                router
                    .apply(WorkerId::new(worker, 0), &stored(&locals))
                    .expect("a chain can be stored");
            }
            let sequence = sequence_hashes(&locals);
            let name = format!("{workers} workers, {depth} blocks, {holders} holders");
            for (form, sequence_hashes) in [("hashes", &[][..]), ("with sequence", &sequence[..])] {
                let request = RouteRequest {
                    local_hashes: &locals,
                    sequence_hashes,
                    input_tokens: 16 * depth as u32,
                    ..RouteRequest::default()
                };
                group.bench_function(BenchmarkId::new(form, &name), |b| {
                    b.iter(|| router.route(black_box(&request), 0.0));
                });
            }
        }
    }
    group.finish();
}

fn booking(c: &mut Criterion) {
    let (router, locals) = (fleet(dynamo(), 64), chain(1, 1024));
    let mut id = 0;
    c.bench_function("book, first token, release: 1024 blocks, 64 workers", |b| {
        b.iter(|| {
            id += 1;
            let request = RouteRequest {
                request_id: Some(RequestId(id)),
                local_hashes: &locals,
                input_tokens: 16_384,
                ..RouteRequest::default()
            };
            router.route(&request, 0.0).expect("workers are there");
            router.prefill_done(RequestId(id), 0.0).expect("it is booked");
            router.release(RequestId(id), 0.0)
        });
    });
}

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("store and clear");
    for depth in [1, 64, 512] {
        let events: Vec<KvEvent> = (0..64).map(|of| stored(&chain(of, depth))).collect();
        let router = fleet(dynamo(), 8);
        group.throughput(Throughput::Elements(64 * depth as u64));
        group.bench_function(BenchmarkId::from_parameter(depth), |b| {
            b.iter(|| {
                for (of, event) in (0..).zip(&events) {
                    router
                        .apply(WorkerId::new(of % 8, 0), event)
                        .expect("a chain can be stored");
                }
                for worker in 0..8 {
                    router
                        .apply(WorkerId::new(worker, 0), &KvEvent::Cleared)
                        .expect("it is registered");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hashing, routing, booking, events);
criterion_main!(benches);
