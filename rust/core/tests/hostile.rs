//! Hostile figures: workers, engines, requests and clocks may report anything. No call panics, every decision
//! names a worker that may take the request, and no learned figure becomes undefined.

use proptest::prelude::*;
use wardrop_core::latency::{Pass, Prior};
use wardrop_core::ledger::{EngineQueue, Outcome};
use wardrop_core::price::{DynamoConfig, Objective, PaperConfig};
use wardrop_core::queue::{LateQueue, QueueConfig, QueuedRequest, Tenant};
use wardrop_core::{
    Error, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, WorkerId, WorkerSpec,
};

const BLOCK: u32 = 16;
const WORKERS: u64 = 4;

/// Every policy, with a temperature where the policy has one.
fn policies() -> Vec<PolicyConfig> {
    let mut all: Vec<PolicyConfig> = PolicyConfig::NAMES
        .iter()
        .map(|name| PolicyConfig::from_name(name, &serde_json::Map::new()).unwrap())
        .collect();
    all.push(PolicyConfig::Dynamo(DynamoConfig {
        router_temperature: 0.7,
        overlap_score_credit_decay: 1e9,
        ..DynamoConfig::default()
    }));
    all
}

/// Counts that outside data contains: the ends of every range, and ordinary ones.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(1 << 31),
        Just(u64::from(u32::MAX)),
        Just(1 << 52),
        Just(u64::MAX),
        1u64..100_000,
    ]
}

fn small_count() -> impl Strategy<Value = u32> {
    count().prop_map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// Seconds that outside data, or a broken clock, contains.
fn seconds() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(f64::MAX),
        Just(-1e300),
        Just(1e120),
        Just(5e-324),
        Just(0.0),
        0.0..1e4_f64,
        0.0..10.0_f64,
    ]
}

fn spec() -> impl Strategy<Value = WorkerSpec> {
    let size = || proptest::option::of(count());
    (size(), size(), size()).prop_map(|(blocks, sequences, tokens)| {
        let u32_of = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let mut spec = WorkerSpec::default();
        spec.total_kv_blocks = blocks;
        spec.max_num_seqs = sequences.map(u32_of);
        spec.max_num_batched_tokens = tokens.map(u32_of);
        spec
    })
}

#[derive(Clone, Debug)]
enum Step {
    Route {
        input_tokens: u32,
        output_tokens: Option<u32>,
        blocks: usize,
    },
    Offer {
        input_tokens: u32,
        weight: f64,
        priority: i32,
        deadline_s: Option<f64>,
    },
    FirstToken {
        at: usize,
    },
    Finish {
        at: usize,
        output_tokens: Option<u32>,
    },
    Pass(Pass),
    Queue(EngineQueue),
    Rejoin(WorkerSpec),
    Availability {
        at: u64,
        available: bool,
    },
    Observe(f64),
    Expire,
}

fn pass() -> impl Strategy<Value = Pass> {
    (0u64..3, count(), count(), 0u64..3, count(), seconds()).prop_map(
        |(prefills, prefill_tokens, prefill_kv_tokens, decodes, decode_kv_tokens, seconds)| Pass {
            prefills,
            prefill_tokens,
            prefill_kv_tokens,
            decodes,
            decode_kv_tokens,
            seconds,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let output = || proptest::option::of(small_count());
    prop_oneof![
        3 => (small_count(), output(), 0usize..80).prop_map(|(input_tokens, output_tokens, blocks)| Step::Route {
            input_tokens,
            output_tokens,
            blocks,
        }),
        3 => (small_count(), seconds(), any::<i32>(), proptest::option::of(seconds())).prop_map(
            |(input_tokens, weight, priority, deadline_s)| Step::Offer { input_tokens, weight, priority, deadline_s }
        ),
        2 => (0usize..8).prop_map(|at| Step::FirstToken { at }),
        2 => (0usize..8, output()).prop_map(|(at, output_tokens)| Step::Finish { at, output_tokens }),
        2 => pass().prop_map(Step::Pass),
        2 => (small_count(), count(), small_count()).prop_map(|(waiting_prompts, waiting_tokens, computed_prompts)| {
            Step::Queue(EngineQueue { waiting_prompts, waiting_tokens, computed_prompts })
        }),
        1 => spec().prop_map(Step::Rejoin),
        1 => (0..WORKERS, any::<bool>()).prop_map(|(at, available)| Step::Availability { at, available }),
        1 => seconds().prop_map(Step::Observe),
        1 => Just(Step::Expire),
    ]
}

fn router(policy: PolicyConfig, specs: &[WorkerSpec], (prefills, decodes): (bool, bool)) -> Router {
    let config = RouterConfig::new(BLOCK)
        .with_policy(policy)
        .with_prefill_tracking(prefills)
        .with_decode_tracking(decodes);
    let router = Router::new(config).unwrap();
    for (at, spec) in specs.iter().enumerate() {
        router
            .add_worker(WorkerId::new(at as u64, 0), spec.clone())
            .unwrap();
    }
    router
}

/// Errors that a hostile request may get. Any other error means that a figure was misread.
fn is_expected(error: &Error) -> bool {
    matches!(
        error,
        Error::NoWorker { .. } | Error::Parameter { .. } | Error::RequestExists(_) | Error::UnknownRequest(_)
    )
}

fn assert_usable(router: &Router) {
    let curves = router.fleet_curves();
    for seconds in [
        curves.prefill_s(1, 0),
        curves.prefill_s(100_000, 10_000),
        curves.step_s(100.0, 1e6),
        router.mean_output_tokens(),
    ] {
        assert!(seconds.is_finite() && seconds >= 0.0, "{seconds}");
    }
    let load = router.fleet_load(1.0);
    assert!(
        load.backlog_s.is_finite() && load.kv_tokens.is_finite(),
        "{load:?}"
    );
}

/// A router with its queue, under hostile calls.
struct Session {
    router: Router,
    queue: LateQueue,
    booked: Vec<RequestId>,
    next_id: u64,
}

impl Session {
    fn id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id)
    }

    fn booked(&mut self, at: usize) -> Option<RequestId> {
        let len = self.booked.len();
        (len > 0).then(|| self.booked[at % len])
    }

    fn pump(&mut self, now_s: f64) {
        let mut placed = Vec::new();
        if let Err(error) = self.queue.pump(&self.router, now_s, &mut placed) {
            assert!(is_expected(&error), "{error}");
        }
        for dispatch in placed {
            assert!(!dispatch.cost.is_nan());
            self.booked.push(dispatch.id);
        }
        self.queue.take_too_late();
    }

    fn run(&mut self, step: Step, now_s: f64) {
        let worker = WorkerId::new(0, 0);
        match step {
            Step::Route {
                input_tokens,
                output_tokens,
                blocks,
            } => {
                let id = self.id();
                let hashes: Vec<LocalHash> = (0..blocks as u64).map(LocalHash).collect();
                let request = RouteRequest {
                    request_id: Some(id),
                    local_hashes: &hashes,
                    input_tokens,
                    expected_output_tokens: output_tokens,
                    explain: true,
                    ..RouteRequest::default()
                };
                match self.router.route(&request, now_s) {
                    Ok(decision) => {
                        assert!(!decision.cost.is_nan());
                        assert!(self.router.workers().any(|worker| worker == decision.worker));
                        self.booked.push(id);
                    }
                    Err(error) => assert!(is_expected(&error), "{error}"),
                }
            }
            Step::Offer {
                input_tokens,
                weight,
                priority,
                deadline_s,
            } => {
                let id = self.id();
                let request = QueuedRequest {
                    weight,
                    priority,
                    deadline_s,
                    tenant: Tenant(priority.unsigned_abs() % 5),
                    ..QueuedRequest::new(id, Box::new([LocalHash(7); 3]), input_tokens)
                };
                if let Err(error) = self.queue.offer(&self.router, request, now_s) {
                    assert!(is_expected(&error), "{error}");
                }
                self.pump(now_s);
            }
            Step::FirstToken { at } => {
                if let Some(id) = self.booked(at) {
                    let _ = self.router.prefill_done(id, now_s);
                }
            }
            Step::Finish { at, output_tokens } => {
                if let Some(id) = self.booked(at) {
                    let outcome = Outcome {
                        output_tokens,
                        ..Outcome::default()
                    };
                    let _ = self.router.finish(id, outcome, now_s);
                    self.pump(now_s);
                }
            }
            Step::Pass(pass) => {
                self.router.report_pass(worker, &pass);
            }
            Step::Queue(queue) => {
                self.router.report_engine_queue(worker, queue, now_s);
                self.pump(now_s);
            }
            Step::Rejoin(spec) => {
                self.router.remove_worker(worker).unwrap();
                self.router.add_worker(worker, spec).unwrap();
                self.pump(now_s);
            }
            Step::Availability { at, available } => {
                self.router
                    .set_available(WorkerId::new(at, 0), available)
                    .unwrap();
                self.pump(now_s);
            }
            Step::Observe(ttft_s) => self.router.observe_first_token(ttft_s, now_s),
            Step::Expire => {
                self.router.expire(now_s);
            }
        }
        assert_usable(&self.router);
    }
}

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
fn request_without_candidates_holds_up_nobody_and_leaves_in_time() {
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
fn request_booked_elsewhere_leaves_the_queue_and_holds_up_nobody() {
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
