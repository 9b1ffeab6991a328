//! Hostile figures: workers, engines, requests and clocks may report anything. No call panics, every decision
//! names a worker that may take the request, and no learned figure becomes undefined.
//!
//! `figures` draws the inputs, and `session` makes the calls and checks each answer.

mod figures;
mod session;

use proptest::prelude::*;
use wardrop_core::latency::{Pass, Prior};
use wardrop_core::ledger::EngineQueue;
use wardrop_core::price::{Objective, PaperConfig};
use wardrop_core::queue::{LateQueue, QueueConfig, QueuedRequest};
use wardrop_core::{
    Error, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, WorkerId, WorkerSpec,
};

use figures::{pass, policies, seconds, spec, step};
use session::{Session, assert_usable, router};

const BLOCK: u32 = 16;
const WORKERS: u64 = 4;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]
    #[test]
    fn hostile_figures_never_stop_a_router_of_any_policy(
        specs in proptest::collection::vec(spec(), WORKERS as usize),
        pool in prop_oneof![Just((true, true)), Just((true, false)), Just((false, true))],
        fair in any::<bool>(),
        steps in proptest::collection::vec((step(), seconds()), 1..60),
    ) {
        for policy in policies() {
            let config = QueueConfig { fair, priority_s: 1e6, kappa: 1e6, window: 4, ..QueueConfig::default() };
            let mut session = Session {
                router: router(policy, &specs, pool),
                queue: LateQueue::new(config).unwrap(),
                booked: Vec::new(),
                next_id: 0,
            };
            for (step, now_s) in steps.clone() {
                session.run(step, now_s);
            }
        }
    }

    #[test]
    fn one_extreme_report_moves_no_curve_far(extreme in pass(), seed in 0u64..1000) {
        let router = router(PolicyConfig::default(), &[WorkerSpec::default()], (true, true));
        let worker = WorkerId::new(0, 0);
        let mut rng = wardrop_core::rng::Rng::new(seed);
        for _ in 0..200 {
            let tokens = 1 + rng.below(20_000) as u64;
            let pass = Pass { prefills: 1, prefill_tokens: tokens, seconds: 0.01 + 3e-5 * tokens as f64, ..Pass::default() };
            router.report_pass(worker, &pass);
            let sequences = 1 + rng.below(100) as u64;
            let pass = Pass {
                decodes: sequences,
                decode_kv_tokens: 1000 * sequences,
                seconds: 0.008 + 3e-5 * sequences as f64,
                ..Pass::default()
            };
            router.report_pass(worker, &pass);
        }
        let figures = |router: &Router| {
            let curves = router.fleet_curves();
            [curves.prefill_s(2000, 0), curves.prefill_s(10_000, 5000), curves.step_s(20.0, 2e4)]
        };
        let before = figures(&router);
        router.report_pass(worker, &extreme);
        for (before, after) in before.into_iter().zip(figures(&router)) {
            prop_assert!((before / 2.0..before * 2.0).contains(&after), "{before} s became {after} s");
        }
    }
}

#[test]
fn reports_that_cannot_be_true_are_refused_and_counted() {
    let router = router(PolicyConfig::default(), &[WorkerSpec::default()], (true, true));
    let worker = WorkerId::new(0, 0);
    let pass = Pass {
        prefills: 1,
        prefill_tokens: 100,
        seconds: 0.1,
        ..Pass::default()
    };
    assert!(router.report_pass(worker, &pass));
    let impossible = [
        Pass {
            seconds: 1e120,
            ..pass
        },
        Pass {
            seconds: f64::NAN,
            ..pass
        },
        Pass {
            prefill_tokens: u64::MAX,
            ..pass
        },
        Pass {
            decodes: u64::MAX,
            ..pass
        },
    ];
    for pass in impossible {
        assert!(!router.report_pass(worker, &pass), "{pass:?}");
    }
    let queue = EngineQueue {
        waiting_tokens: u64::MAX,
        ..EngineQueue::default()
    };
    assert!(!router.report_engine_queue(worker, queue, 0.0));
    assert_eq!(router.snapshot().counters.reports_refused, 5);
}

#[test]
fn curve_that_shrank_to_nothing_restarts_within_bounds() {
    // A prefill curve of 0 has no relative error to clip, so the next sample sets its scale.
    let prior = Prior {
        prefill: [0.0, 0.0, 0.0, 1e6],
        step: [0.0, 0.0, 1e6],
    };
    let router = Router::new(RouterConfig::new(BLOCK).with_curves(prior)).unwrap();
    let worker = WorkerId::new(0, 0);
    router.add_worker(worker, WorkerSpec::default()).unwrap();
    let pass = Pass {
        prefills: 1,
        prefill_tokens: 1,
        prefill_kv_tokens: 1,
        seconds: 500.0,
        ..Pass::default()
    };
    for _ in 0..100 {
        router.report_pass(worker, &pass);
    }
    assert_usable(&router);
}

#[test]
fn sizes_of_zero_count_as_unknown() {
    let zero = WorkerSpec::default()
        .with_total_kv_blocks(0)
        .with_max_num_seqs(0)
        .with_max_num_batched_tokens(0);
    for policy in policies() {
        let router = router(policy, &[zero.clone(), zero.clone()], (true, true));
        for id in 0..8 {
            let request = RouteRequest {
                request_id: Some(RequestId(id)),
                input_tokens: 1000,
                ..RouteRequest::default()
            };
            let decision = router.route(&request, id as f64).unwrap();
            assert!(decision.cost.is_finite(), "{decision:?}");
        }
        let snapshot = router.snapshot();
        assert_eq!(snapshot.workers[0].spec, WorkerSpec::default());
        assert_eq!(snapshot.counters.unpriced, 0);
    }
}

#[test]
fn configuration_out_of_range_is_refused_by_field() {
    let field = |config: RouterConfig| match Router::new(config).err() {
        Some(Error::Parameter { field, .. }) => field,
        other => panic!("expected a refused parameter, got {other:?}"),
    };
    let base = || RouterConfig::new(BLOCK);
    for ttl_s in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        assert_eq!(field(base().with_booking_ttl_s(ttl_s)), "booking_ttl_s");
    }
    for coefficient in [-1.0, f64::NAN, f64::INFINITY, 1e127] {
        let mut curves = Prior::default();
        curves.step[1] = coefficient;
        assert_eq!(field(base().with_curves(curves)), "curves");
    }
    assert_eq!(field(base().with_max_bookings(usize::MAX)), "max_bookings");
    let paper = PaperConfig {
        dwell_s: f64::NAN,
        ..PaperConfig::default()
    };
    assert_eq!(field(base().with_policy(PolicyConfig::Paper(paper))), "dwell_s");
    let toll = Objective {
        ttft: f64::INFINITY,
        ..Objective::default()
    };
    assert_eq!(field(base().with_policy(PolicyConfig::Toll(toll))), "ttft");
    let queue_field = |config: QueueConfig| match config.validate().err() {
        Some(Error::Parameter { field, .. }) => field,
        other => panic!("expected a refused parameter, got {other:?}"),
    };
    let queue = QueueConfig::default();
    for value in [f64::NAN, -1.0, 1e20, f64::INFINITY] {
        assert_eq!(
            queue_field(QueueConfig {
                max_wait_s: value,
                ..queue
            }),
            "max_wait_s"
        );
        assert_eq!(
            queue_field(QueueConfig {
                backlog_s: value,
                ..queue
            }),
            "backlog_s"
        );
        assert_eq!(
            queue_field(QueueConfig {
                kappa: value,
                ..queue
            }),
            "kappa"
        );
        assert_eq!(
            queue_field(QueueConfig {
                patience: value,
                ..queue
            }),
            "patience"
        );
        assert_eq!(
            queue_field(QueueConfig {
                priority_s: value,
                ..queue
            }),
            "priority_s"
        );
    }
}

#[test]
fn request_without_candidates_delays_no_other_request_and_leaves_in_time() {
    let router = router(
        PolicyConfig::default(),
        &[WorkerSpec::default(), WorkerSpec::default()],
        (true, true),
    );
    let config = QueueConfig {
        max_wait_s: 10.0,
        window: 2,
        ..QueueConfig::default()
    };
    let mut queue = LateQueue::new(config).unwrap();
    let (first, second) = (WorkerId::new(0, 0), WorkerId::new(1, 0));
    let only = |id: u64, worker: WorkerId| QueuedRequest {
        allowed: Some(Box::new([worker])),
        ..QueuedRequest::new(RequestId(id), Box::new([LocalHash(1)]), 1000)
    };
    let mut placed = Vec::new();
    queue.offer(&router, only(1, first), 0.0).unwrap();
    router.remove_worker(first).unwrap();
    for id in 2..5 {
        queue.offer(&router, only(id, second), 0.1 * id as f64).unwrap();
        queue.pump(&router, 0.1 * id as f64, &mut placed).unwrap();
        let _ = router.release(RequestId(id), 0.1 * id as f64);
    }
    let ids: Vec<u64> = placed.iter().map(|dispatch| dispatch.id.0).collect();
    assert_eq!(ids, [2, 3, 4]);
    assert_eq!(queue.len(), 1);
    queue.pump(&router, 10.1, &mut placed).unwrap();
    assert_eq!(queue.take_too_late(), [RequestId(1)]);
    assert!(queue.is_empty());
}

#[test]
fn pump_reports_that_no_worker_is_left() {
    let router = router(PolicyConfig::default(), &[WorkerSpec::default()], (true, true));
    let mut queue = LateQueue::new(QueueConfig::default()).unwrap();
    let worker = WorkerId::new(0, 0);
    let request = QueuedRequest::new(RequestId(1), Box::new([LocalHash(1)]), 1000);
    queue.offer(&router, request, 0.0).unwrap();
    router.set_available(worker, false).unwrap();
    let mut placed = Vec::new();
    let outcome = queue.pump(&router, 0.1, &mut placed);
    assert!(matches!(outcome, Err(Error::NoWorker { .. })), "{outcome:?}");
    router.set_available(worker, true).unwrap();
    queue.pump(&router, 0.2, &mut placed).unwrap();
    assert_eq!(placed.len(), 1, "the request waited for the worker");
}

#[test]
fn request_booked_elsewhere_leaves_the_queue_and_delays_no_other_request() {
    let router = router(PolicyConfig::default(), &[WorkerSpec::default()], (true, true));
    let mut queue = LateQueue::new(QueueConfig::default()).unwrap();
    let mut placed = Vec::new();
    for id in [1, 2] {
        let request = QueuedRequest::new(RequestId(id), Box::new([LocalHash(id)]), 1000);
        queue.offer(&router, request, 0.0).unwrap();
    }
    let other = RouteRequest {
        request_id: Some(RequestId(1)),
        ..RouteRequest::default()
    };
    router.book(&other, WorkerId::new(0, 0), 0.0).unwrap();
    router.prefill_done(RequestId(1), 0.0).unwrap();
    queue.pump(&router, 0.1, &mut placed).unwrap();
    assert_eq!(queue.take_too_late(), [RequestId(1)]);
    assert_eq!(placed.len(), 1);
    assert_eq!(placed[0].id, RequestId(2));
}
