//! The life of a request and of a worker, seen from outside.

use wardrop_core::{
    EngineHash, Error, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig,
    StoredBlock, Tier, WorkerId, WorkerSpec,
};

const A: WorkerId = WorkerId::new(1, 0);
const B: WorkerId = WorkerId::new(2, 0);

fn router(policy: PolicyConfig) -> Router {
    let router = Router::new(RouterConfig::new(16).with_policy(policy)).unwrap();
    router.add_worker(A, WorkerSpec::default()).unwrap();
    router.add_worker(B, WorkerSpec::default()).unwrap();
    router
}

fn locals(n: u64) -> Vec<LocalHash> {
    (1..=n).map(LocalHash).collect()
}

fn stored(n: u64) -> KvEvent {
    let block = |i| StoredBlock {
        engine_hash: EngineHash(100 + i),
        local_hash: LocalHash(i),
    };
    KvEvent::Stored {
        parent: None,
        blocks: (1..=n).map(block).collect(),
        tier: Tier::Device,
    }
}

fn request(id: u64, hashes: &[LocalHash]) -> RouteRequest<'_> {
    RouteRequest {
        request_id: Some(RequestId(id)),
        local_hashes: hashes,
        input_tokens: hashes.len() as u32 * 16 + 5,
        ..RouteRequest::default()
    }
}

#[test]
fn round_robin_visits_every_worker_in_turn() {
    let router = router(PolicyConfig::RoundRobin);
    let picks: Vec<WorkerId> = (0..4)
        .map(|_| router.route(&RouteRequest::default(), 0.0).unwrap().worker)
        .collect();
    assert_eq!(picks, [A, B, A, B]);
}

#[test]
fn least_loaded_takes_the_worker_with_fewer_requests() {
    let router = router(PolicyConfig::LeastLoaded);
    let hashes = locals(4);
    let first = router.route(&request(1, &hashes), 0.0).unwrap().worker;
    let second = router.route(&request(2, &hashes), 0.0).unwrap().worker;
    assert_ne!(first, second);
    router.release(RequestId(1), 1.0).unwrap();
    assert_eq!(router.route(&request(3, &hashes), 1.0).unwrap().worker, first);
}

#[test]
fn load_is_zero_when_idle() {
    let router = router(PolicyConfig::LeastLoaded);
    let hashes = locals(4);
    for id in 0..10 {
        router.route(&request(id, &hashes), 0.0).unwrap();
    }
    for id in 0..10 {
        if id % 2 == 0 {
            router.prefill_done(RequestId(id), 1.0).unwrap();
        }
        router.release(RequestId(id), 1.0).unwrap();
    }
    for worker in router.snapshot().workers {
        assert_eq!(
            (
                worker.prefill_tokens,
                worker.decode_blocks,
                worker.active_requests
            ),
            (0, 0, 0)
        );
    }
    assert_eq!(
        router.release(RequestId(1), 1.0),
        Err(Error::UnknownRequest(RequestId(1)))
    );
}

#[test]
fn cached_blocks_are_not_waited_for() {
    let router = router(PolicyConfig::LeastLoaded);
    router.apply(A, &stored(4)).unwrap();
    let hashes = locals(6);
    router.book(&request(7, &hashes), A, 0.0).unwrap();
    let workers = router.snapshot().workers;
    assert_eq!(workers[0].prefill_tokens, 6 * 16 + 5 - 4 * 16);
    assert_eq!((workers[0].decode_blocks, workers[1].decode_blocks), (6, 0));
}

#[test]
fn booking_that_is_not_released_expires() {
    let router = router(PolicyConfig::LeastLoaded);
    router.route(&request(1, &locals(2)), 5.0).unwrap();
    assert_eq!(router.expire(604.9), 0);
    assert_eq!(router.expire(605.0), 1);
    assert_eq!(router.snapshot().bookings, 0);
}

#[test]
fn a_renewed_booking_outlives_its_first_expiry_and_no_other() {
    let router = router(PolicyConfig::LeastLoaded);
    let hashes = locals(4);
    for id in 1..=2 {
        router.route(&request(id, &hashes), 5.0).unwrap();
    }
    router.renew(RequestId(1), 500.0);
    router.renew(RequestId(9), 500.0);
    assert_eq!(router.expire(605.0), 1);
    router.prefill_done(RequestId(1), 606.0).unwrap();
    assert!(router.release(RequestId(2), 606.0).is_err());
    assert_eq!(router.expire(1099.0), 0);
    assert_eq!(router.expire(1100.0), 1);
    for worker in router.snapshot().workers {
        assert_eq!(worker.active_requests, 0);
    }
}

#[test]
fn renewals_take_bounded_memory() {
    let router = router(PolicyConfig::LeastLoaded);
    router.route(&request(1, &locals(4)), 0.0).unwrap();
    for second in 1..100_000 {
        router.renew(RequestId(1), f64::from(second));
    }
    assert_eq!(router.expire(100_000.0 + 500.0), 0);
    assert_eq!(router.expire(100_000.0 + 600.0), 1);
}

#[test]
fn a_request_is_booked_once() {
    let router = router(PolicyConfig::LeastLoaded);
    router.route(&request(1, &[]), 0.0).unwrap();
    assert_eq!(
        router.route(&request(1, &[]), 0.0),
        Err(Error::RequestExists(RequestId(1)))
    );
}

#[test]
fn an_unavailable_worker_keeps_its_blocks_and_gets_nothing() {
    let router = router(PolicyConfig::RoundRobin);
    router.apply(A, &stored(3)).unwrap();
    router.set_available(A, false).unwrap();
    for _ in 0..4 {
        assert_eq!(router.route(&RouteRequest::default(), 0.0).unwrap().worker, B);
    }
    assert_eq!(router.find_matches(&locals(3))[0].device, 3);
}

#[test]
fn no_allowed_worker_is_an_error() {
    let router = router(PolicyConfig::RoundRobin);
    let nobody = [WorkerId::new(9, 0)];
    let request = RouteRequest {
        allowed: Some(&nobody),
        ..RouteRequest::default()
    };
    let expected = Error::NoWorker {
        registered: 2,
        available: 2,
        allowed: 0,
    };
    assert_eq!(router.route(&request, 0.0), Err(expected));
}

#[test]
fn a_removed_worker_takes_its_blocks_and_bookings_along() {
    let router = router(PolicyConfig::RoundRobin);
    router.apply(A, &stored(3)).unwrap();
    router.book(&request(1, &locals(3)), A, 0.0).unwrap();
    router.remove_worker(A).unwrap();
    assert!(router.find_matches(&locals(3)).is_empty());
    let snapshot = router.snapshot();
    assert_eq!((snapshot.bookings, snapshot.index.blocks), (0, 0));
    assert_eq!(snapshot.counters.dropped_with_worker, 1);
}
