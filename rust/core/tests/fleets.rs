//! Fleets at the limit: 65,536 workers with several ranks each, and workers that leave beside many others' bookings.

use std::time::Instant;

use wardrop_core::{
    EngineHash, Error, KvEvent, LocalHash, RequestId, RouteRequest, Router, RouterConfig, StoredBlock, Tier,
    WorkerId, WorkerSpec,
};

fn chain(of: u64, from: u64, to: u64) -> KvEvent {
    let number = |at: u64| if at < 64 { at } else { of << 20 | at };
    let block = |at: u64| StoredBlock {
        engine_hash: EngineHash(number(at) + 1),
        local_hash: LocalHash(number(at)),
    };
    KvEvent::Stored {
        parent: from.checked_sub(1).map(|parent| EngineHash(number(parent) + 1)),
        blocks: (from..to).map(block).collect(),
        tier: Tier::Device,
    }
}

fn prompt(of: u64, len: u64) -> Vec<LocalHash> {
    (0..len)
        .map(|at| LocalHash(if at < 64 { at } else { of << 20 | at }))
        .collect()
}

#[test]
fn a_fleet_of_65536_workers_with_ranks_is_matched_routed_and_dissolved() {
    const RANKS: u64 = 8;
    const WORKERS: u64 = 65_536;
    let id = |at: u64| WorkerId::new(1000 + at / RANKS, (at % RANKS) as u32);
    let router = Router::new(RouterConfig::new(16)).unwrap();
    for at in 0..WORKERS {
        router.add_worker(id(at), WorkerSpec::default()).unwrap();
    }
    assert_eq!(
        router.add_worker(WorkerId::new(1, 0), WorkerSpec::default()),
        Err(Error::TooManyWorkers { limit: 65_536 })
    );
    for at in 0..WORKERS {
        // Every worker holds the shared prefix, each third worker only half of it. Each sixteenth has a tail of its own.
        let len = if at % 3 == 0 { 32 } else { 64 };
        router.apply(id(at), &chain(at, 0, len)).unwrap();
        if at % 16 == 1 && len == 64 {
            router.apply(id(at), &chain(at, 64, 80)).unwrap();
        }
    }
    let of = WORKERS - 15;
    assert_eq!((of % 16, of % 3), (1, 1));
    let found = router.find_matches(&prompt(of, 100));
    assert_eq!(found.len() as u64, WORKERS);
    assert!(found.is_sorted_by_key(|overlap| overlap.worker));
    for (at, overlap) in (0..).zip(&found) {
        let expected = if at == of {
            80
        } else if at % 3 == 0 {
            32
        } else {
            64
        };
        assert_eq!((overlap.worker, overlap.device), (id(at), expected));
    }
    let locals = prompt(of, 100);
    let request = RouteRequest {
        request_id: Some(RequestId(1)),
        local_hashes: &locals,
        input_tokens: 1600,
        allowed: Some(&[id(3), id(of), id(6)]),
        ..RouteRequest::default()
    };
    router
        .set_policy(wardrop_core::PolicyConfig::Dynamo(
            wardrop_core::DynamoConfig::default(),
        ))
        .unwrap();
    let decision = router.route(&request, 0.0).unwrap();
    assert_eq!((decision.worker, decision.overlap_blocks), (id(of), 80));
    for at in 0..WORKERS {
        router.remove_worker(id(at)).unwrap();
    }
    let state = router.snapshot();
    assert_eq!(
        (state.workers.len(), state.bookings, state.index.blocks),
        (0, 0, 0)
    );
    assert_eq!(state.counters.dropped_with_worker, 1);
}

#[test]
fn a_worker_leaves_in_time_proportional_to_what_it_held() {
    let router = Router::new(RouterConfig::new(16)).unwrap();
    let (busy, idle) = (WorkerId::new(0, 0), |at: u64| WorkerId::new(1 + at, 0));
    router.add_worker(busy, WorkerSpec::default()).unwrap();
    for of in 0..1000 {
        router.apply(busy, &chain(of, 0, 500)).unwrap();
    }
    let only = [busy];
    for request in 0..200_000 {
        let request = RouteRequest {
            request_id: Some(RequestId(request)),
            allowed: Some(&only),
            ..RouteRequest::default()
        };
        router.route(&request, 0.0).unwrap();
    }
    for at in 0..1000 {
        router.add_worker(idle(at), WorkerSpec::default()).unwrap();
        router.apply(idle(at), &chain(at, 0, 10)).unwrap();
    }
    let start = Instant::now();
    for at in 0..1000 {
        router.remove_worker(idle(at)).unwrap();
    }
    // A look at every booking, 200,000 of them, takes above 1 ms each time.
    assert!(start.elapsed().as_secs_f64() < 0.3, "{:?}", start.elapsed());
    assert_eq!(router.snapshot().bookings, 200_000);
}
