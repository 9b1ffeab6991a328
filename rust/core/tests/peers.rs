//! Bookings of other routers, seen from outside: the same load as own bookings, and no lesson.

use proptest::prelude::*;
use wardrop_core::ledger::{Outcome, Work};
use wardrop_core::price::Objective;
use wardrop_core::{
    DynamoConfig, Error, LocalHash, PeerBooking, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig,
    WorkerId, WorkerSpec,
};

const WORKERS: [WorkerId; 3] = [WorkerId::new(1, 0), WorkerId::new(2, 0), WorkerId::new(2, 1)];

fn router() -> Router {
    let config = RouterConfig::new(16)
        .with_policy(PolicyConfig::Toll(Objective::default()))
        .with_booking_ttl_s(100.0);
    let router = Router::new(config).unwrap();
    for worker in WORKERS {
        router.add_worker(worker, WorkerSpec::default()).unwrap();
    }
    router
}

fn locals(family: u64, len: u64) -> Vec<LocalHash> {
    (0..len)
        .map(|at| LocalHash(if at < 70 { family } else { 1000 + family * at }))
        .collect()
}

fn load(router: &Router) -> Vec<(u64, u64, u32)> {
    let workers = router.snapshot().workers;
    let figures = workers.iter().map(|worker| {
        (
            worker.prefill_tokens,
            worker.decode_blocks,
            worker.active_requests,
        )
    });
    figures.collect()
}

fn occupancy(router: &Router, now_s: f64) -> Vec<(u32, u64, u64, u64)> {
    let of = |worker| {
        let found = router.occupancy_of(worker, now_s).unwrap();
        (
            found.prefills,
            found.prefill_tokens,
            found.kv_tokens as u64,
            (found.backlog_s * 1e6).round() as u64,
        )
    };
    WORKERS.into_iter().map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// One router books everything. Two others book a part each and hear of the rest. All three see one load.
    #[test]
    fn routers_that_share_their_bookings_see_the_load_of_one_router(
        steps in proptest::collection::vec((0u64..10, 0..3usize, 0u64..4, 0u64..150, 0..3u8), 1..80),
    ) {
        let (one, two) = (router(), [router(), router()]);
        let mut open = std::collections::BTreeSet::new();
        for (step, (id, worker, family, len, action)) in steps.into_iter().enumerate() {
            let now_s = step as f64 * 0.01;
            let home = (id % 2) as usize;
            let request = RequestId(id);
            match (open.contains(&id), action) {
                (false, _) => {
                    let hashes = locals(family, len);
                    let asked = RouteRequest {
                        request_id: Some(request),
                        local_hashes: &hashes,
                        input_tokens: len as u32 * 16 + 3,
                        ..RouteRequest::default()
                    };
                    one.book(&asked, WORKERS[worker], now_s).unwrap();
                    two[home].book(&asked, WORKERS[worker], now_s).unwrap();
                    let booking = PeerBooking {
                        worker: WORKERS[worker],
                        work: two[home].booked_work(request).unwrap(),
                        local_hashes: &hashes,
                        further_blocks: 0,
                        is_unstreamed: false,
                    };
                    two[1 - home].book_for_peer(request, &booking, now_s).unwrap();
                    open.insert(id);
                }
                (true, 0) => {
                    let _ = one.prefill_done(request, now_s);
                    let _ = two[home].prefill_done(request, now_s);
                    two[1 - home].prefill_done_for_peer(request, now_s);
                }
                (true, _) => {
                    let outcome = Outcome::default();
                    one.finish(request, outcome, now_s).unwrap();
                    two[home].finish(request, outcome, now_s).unwrap();
                    two[1 - home].release_for_peer(request, now_s);
                    open.remove(&id);
                }
            }
            let wanted = load(&one);
            for router in &two {
                prop_assert_eq!(load(router), wanted.clone());
            }
            prop_assert_eq!(two[0].snapshot().bookings + two[1].snapshot().bookings, open.len());
            prop_assert_eq!(two[0].peer_bookings(), two[1].snapshot().bookings);
        }
        for id in open {
            let home = (id % 2) as usize;
            two[home].release(RequestId(id), 10.0).unwrap();
            two[1 - home].release_for_peer(RequestId(id), 10.0);
        }
        for router in &two {
            prop_assert_eq!(load(router), vec![(0, 0, 0); 3]);
            prop_assert_eq!(occupancy(router, 10.0), vec![(0, 0, 0, 0); 3]);
            prop_assert_eq!(router.peer_bookings(), 0);
        }
    }
}

fn booking(worker: WorkerId) -> PeerBooking<'static> {
    PeerBooking {
        worker,
        work: Work {
            new_tokens: 4000,
            cached_tokens: 160,
        },
        local_hashes: &[],
        further_blocks: 260,
        is_unstreamed: false,
    }
}

#[test]
fn peers_booking_moves_the_next_request_to_another_worker() {
    for policy in [
        PolicyConfig::LeastLoaded,
        PolicyConfig::Toll(Objective::default()),
        PolicyConfig::Dynamo(DynamoConfig::default()),
    ] {
        let name = policy.name();
        let router = Router::new(RouterConfig::new(16).with_policy(policy)).unwrap();
        for worker in &WORKERS[..2] {
            router.add_worker(*worker, WorkerSpec::default()).unwrap();
        }
        router
            .book_for_peer(RequestId(1 << 63), &booking(WORKERS[0]), 0.0)
            .unwrap();
        for _ in 0..8 {
            let asked = RouteRequest {
                input_tokens: 4000,
                ..RouteRequest::default()
            };
            assert_eq!(router.route(&asked, 0.1).unwrap().worker, WORKERS[1], "{name}");
        }
        router.release_for_peer(RequestId(1 << 63), 0.2);
        assert_eq!(load(&router)[0], (0, 0, 0));
    }
}

#[test]
fn peers_booking_teaches_nothing_and_counts_as_no_own_booking() {
    let router = router();
    let before = (router.curve_record(), router.mean_output_tokens());
    for id in 0..200 {
        let (request, now_s) = (RequestId(id), id as f64);
        router
            .book_for_peer(request, &booking(WORKERS[0]), now_s)
            .unwrap();
        router.prefill_done_for_peer(request, now_s + 0.9);
        router.release_for_peer(request, now_s + 0.95);
        router.release_for_peer(request, now_s + 0.96);
    }
    assert_eq!((router.curve_record(), router.mean_output_tokens()), before);
    let counters = router.counters();
    assert_eq!((counters.booked, counters.released, counters.expired), (0, 0, 0));
    assert_eq!(router.fleet_load(300.0).booked, 0);
}

#[test]
fn unstreamed_prefill_of_a_peer_counts_as_over_when_it_is_due() {
    let router = router();
    let unstreamed = PeerBooking {
        is_unstreamed: true,
        ..booking(WORKERS[0])
    };
    router.book_for_peer(RequestId(1), &unstreamed, 0.0).unwrap();
    assert_eq!(load(&router)[0], (4000, 260, 1));
    router.expire(90.0);
    assert_eq!(load(&router)[0], (0, 260, 1));
}

#[test]
fn peers_booking_ends_by_its_time_and_with_its_worker() {
    let router = router();
    router
        .book_for_peer(RequestId(1), &booking(WORKERS[0]), 0.0)
        .unwrap();
    router
        .book_for_peer(RequestId(2), &booking(WORKERS[1]), 50.0)
        .unwrap();
    assert_eq!(router.expire(100.0), 0, "no booking of this router expired");
    assert_eq!(router.peer_bookings(), 1);
    router.remove_worker(WORKERS[1]).unwrap();
    assert_eq!(
        (router.peer_bookings(), router.counters().dropped_with_worker),
        (0, 0)
    );
    router.add_worker(WORKERS[1], WorkerSpec::default()).unwrap();
    router.release_for_peer(RequestId(2), 101.0);
    assert_eq!(load(&router), [(0, 0, 0); 3]);
}

#[test]
fn peers_bookings_leave_the_room_for_own_bookings() {
    let config = RouterConfig::new(16).with_max_bookings(1);
    let router = Router::new(config).unwrap();
    router.add_worker(WORKERS[0], WorkerSpec::default()).unwrap();
    for id in 10..20 {
        router
            .book_for_peer(RequestId(id), &booking(WORKERS[0]), 0.0)
            .unwrap();
    }
    let asked = RouteRequest {
        request_id: Some(RequestId(1)),
        ..RouteRequest::default()
    };
    router.route(&asked, 0.0).unwrap();
}

#[test]
fn figures_that_cannot_be_true_are_refused_whole() {
    let router = router();
    let stranger = booking(WorkerId::new(9, 9));
    let refused = router.book_for_peer(RequestId(1), &stranger, 0.0);
    assert_eq!(refused, Err(Error::UnknownWorker(WorkerId::new(9, 9))));
    for wrong in [
        PeerBooking {
            work: Work {
                new_tokens: u64::MAX,
                cached_tokens: 0,
            },
            ..booking(WORKERS[0])
        },
        PeerBooking {
            work: Work {
                new_tokens: 0,
                cached_tokens: 1 << 40,
            },
            ..booking(WORKERS[0])
        },
        PeerBooking {
            further_blocks: u32::MAX,
            ..booking(WORKERS[0])
        },
    ] {
        let refused = router.book_for_peer(RequestId(1), &wrong, 0.0);
        assert!(matches!(refused, Err(Error::Parameter { .. })), "{refused:?}");
    }
    router
        .book_for_peer(RequestId(1), &booking(WORKERS[0]), 0.0)
        .unwrap();
    let again = router.book_for_peer(RequestId(1), &booking(WORKERS[0]), 0.0);
    assert_eq!(again, Err(Error::RequestExists(RequestId(1))));
    assert_eq!(load(&router)[0], (4000, 260, 1));
}
