//! Late binding: nothing lost, nothing starved, everything bounded, empty when there is room.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use wardrop_core::ledger::EngineQueue;
use wardrop_core::price::Objective;
use wardrop_core::queue::{Cause, Dispatch, LateQueue, Limit, Offer, QueueConfig, QueuedRequest, Tenant};
use wardrop_core::{Error, LocalHash, PolicyConfig, RequestId, Router, RouterConfig, WorkerId, WorkerSpec};

const BLOCK: u32 = 64;

fn router(workers: u64, policy: PolicyConfig) -> Router {
    let router = Router::new(RouterConfig::new(BLOCK).with_policy(policy)).unwrap();
    for instance in 0..workers {
        let spec = WorkerSpec::default()
            .with_total_kv_blocks(4096)
            .with_max_num_seqs(64)
            .with_max_num_batched_tokens(8192);
        router.add_worker(WorkerId::new(instance, 0), spec).unwrap();
    }
    router
}

fn toll() -> PolicyConfig {
    PolicyConfig::Toll(Objective::default())
}

fn request(id: u64, blocks: u64) -> QueuedRequest {
    let hashes: Vec<LocalHash> = (0..blocks).map(|i| LocalHash(id * 1_000_003 + i)).collect();
    QueuedRequest::new(RequestId(id), hashes.into(), blocks as u32 * BLOCK)
}

/// A fleet that prefills one prompt at a time and decodes nothing: enough to drive the queue.
struct Toy {
    router: Router,
    queue: LateQueue,
    free_at_s: BTreeMap<WorkerId, f64>,
    ends: Vec<(f64, RequestId)>,
    blocks: BTreeMap<RequestId, u64>,
    placed: Vec<Dispatch>,
    now_s: f64,
}

impl Toy {
    fn new(workers: u64, policy: PolicyConfig, config: QueueConfig) -> Self {
        Self {
            router: router(workers, policy),
            queue: LateQueue::new(config).unwrap(),
            free_at_s: BTreeMap::new(),
            ends: Vec::new(),
            blocks: BTreeMap::new(),
            placed: Vec::new(),
            now_s: 0.0,
        }
    }

    fn arrive(&mut self, request: QueuedRequest) -> Offer {
        self.blocks.insert(request.id, request.local_hashes.len() as u64);
        let offer = self.queue.offer(&self.router, request, self.now_s).unwrap();
        self.pump();
        offer
    }

    fn pump(&mut self) {
        let from = self.placed.len();
        self.queue
            .pump(&self.router, self.now_s, &mut self.placed)
            .unwrap();
        for dispatch in &self.placed[from..] {
            let service_s = 0.012 + 3.0e-5 * (self.blocks[&dispatch.id] * u64::from(BLOCK)) as f64;
            let free = self.free_at_s.entry(dispatch.worker).or_default();
            *free = free.max(self.now_s) + service_s;
            self.ends.push((*free, dispatch.id));
        }
    }

    fn run_until(&mut self, until_s: f64) {
        loop {
            let next = self
                .ends
                .iter()
                .enumerate()
                .min_by(|a, b| a.1.0.total_cmp(&b.1.0))
                .map(|(i, e)| (i, e.0));
            let Some((at, end_s)) = next.filter(|(_, end_s)| *end_s <= until_s) else {
                break;
            };
            let (_, id) = self.ends.swap_remove(at);
            self.now_s = end_s;
            self.router.prefill_done(id, end_s).unwrap();
            self.router.release(id, end_s).unwrap();
            self.pump();
        }
        self.now_s = until_s;
    }
}

#[test]
fn idle_fleet_never_waits() {
    let mut toy = Toy::new(8, toll(), QueueConfig::default());
    for i in 0..200 {
        toy.run_until(i as f64 * 0.5);
        toy.arrive(request(i, 50));
        assert!(toy.queue.is_empty());
    }
    assert!(
        toy.placed
            .iter()
            .all(|d| d.waited_s == 0.0 && d.cause == Cause::Room)
    );
    assert_eq!(toy.placed.len(), 200);
    let workers: HashSet<WorkerId> = toy.placed.iter().map(|d| d.worker).collect();
    assert_eq!(workers.len(), 8, "ties of idle workers must be broken fairly");
}

#[test]
fn small_prompts_share_an_engine_pass_and_a_large_one_waits_for_the_next() {
    // An engine pass of 8,192 tokens has 128 blocks. A prompt that shares it has 32 blocks at most.
    let shapes = [(0, 32), (1, 32), (2, 40), (3, 32), (4, 32), (5, 8)];
    for (share_passes, at_once) in [(true, &[0, 1, 3, 4][..]), (false, &[0][..])] {
        let config = QueueConfig {
            share_passes,
            ..QueueConfig::default()
        };
        let mut toy = Toy::new(1, toll(), config);
        for (id, blocks) in shapes {
            toy.arrive(request(id, blocks));
        }
        let placed: Vec<u64> = toy.placed.iter().map(|d| d.id.0).collect();
        assert_eq!(
            placed, at_once,
            "40 blocks are too many to share, and four times 32 fill the pass"
        );
        toy.run_until(100.0);
        assert_eq!(toy.placed.len(), shapes.len());
    }
}

#[test]
fn engine_report_of_an_empty_queue_gives_room_before_the_first_token_comes() {
    let router = router(1, toll());
    let worker = WorkerId::new(0, 0);
    let mut queue = LateQueue::new(QueueConfig::default()).unwrap();
    let mut placed = Vec::new();
    for id in 0..2 {
        queue.offer(&router, request(id, 200), 0.0).unwrap();
    }
    queue.pump(&router, 0.0, &mut placed).unwrap();
    assert_eq!(placed.len(), 1);
    // The step computed the prompt. The rest of a chunked prompt is not reported, so the first token decides.
    let mut report = EngineQueue {
        computed_prompts: 1,
        ..EngineQueue::default()
    };
    assert!(router.report_engine_queue(worker, report, 0.5));
    queue.pump(&router, 0.5, &mut placed).unwrap();
    assert_eq!(placed.len(), 1);
    report.computed_prompts = 0;
    assert!(router.report_engine_queue(worker, report, 0.6));
    queue.pump(&router, 0.6, &mut placed).unwrap();
    assert_eq!(placed.len(), 2);
    assert!(!router.report_engine_queue(WorkerId::new(7, 0), report, 0.6));
}

#[test]
fn worker_that_reports_nothing_always_has_room() {
    let config = RouterConfig::new(BLOCK)
        .with_policy(toll())
        .with_booking_ttl_s(5.0);
    let router = Router::new(config).unwrap();
    router
        .add_worker(WorkerId::new(0, 0), WorkerSpec::default())
        .unwrap();
    let mut queue = LateQueue::new(QueueConfig::default()).unwrap();
    let mut placed = Vec::new();
    // Three bookings in a row end by expiry alone. From then on nothing is held back.
    for id in 0..4 {
        queue.offer(&router, request(id, 500), id as f64 * 10.0).unwrap();
        router.expire(id as f64 * 10.0);
        queue.pump(&router, id as f64 * 10.0, &mut placed).unwrap();
    }
    assert_eq!(placed.len(), 4);
    queue.offer(&router, request(9, 500), 30.1).unwrap();
    queue.pump(&router, 30.1, &mut placed).unwrap();
    assert_eq!((placed.len(), placed[4].cause), (5, Cause::Room));
}

#[test]
fn waiting_prompt_follows_its_prefix_that_was_placed_meanwhile() {
    // Two long prompts share 400 blocks. Both are matched at once, while no worker has room.
    let document = |id: u64| {
        let mut request = request(id, 410);
        for (i, hash) in request.local_hashes[..400].iter_mut().enumerate() {
            *hash = LocalHash(77_000_000 + i as u64);
        }
        request
    };
    for is_shared in [true, false] {
        let mut toy = Toy::new(2, toll(), QueueConfig::default());
        toy.arrive(request(0, 100));
        toy.arrive(request(1, 100));
        let [busy, other] = [toy.placed[0].worker, toy.placed[1].worker];
        assert_ne!(busy, other);
        toy.arrive(document(2));
        toy.arrive(if is_shared { document(3) } else { request(3, 410) });
        assert_eq!(toy.placed.len(), 2, "no worker has room");
        toy.now_s = 0.1;
        toy.router.prefill_done(RequestId(0), toy.now_s).unwrap();
        toy.pump();
        assert_eq!((toy.placed.len(), toy.placed[2].worker), (3, busy));
        let next = 5 - toy.placed[2].id.0;
        // The other worker gets room before the match is old enough to be made again.
        toy.now_s = 0.12;
        toy.router.prefill_done(RequestId(1), toy.now_s).unwrap();
        toy.pump();
        if is_shared {
            assert_eq!(toy.placed.len(), 3, "the prefix in flight is worth the wait");
            toy.now_s = 0.2;
            toy.router.prefill_done(toy.placed[2].id, toy.now_s).unwrap();
            toy.pump();
        }
        let chosen = if is_shared { busy } else { other };
        assert_eq!((toy.placed.len(), toy.placed[3].worker), (4, chosen));
        assert_eq!(toy.placed[3].id, RequestId(next));
    }
}

#[test]
fn without_late_completions_the_queue_is_not_wedged() {
    // No end is ever reported. Age places the waiting requests, and expiry ends the bookings.
    let config = QueueConfig {
        max_wait_s: 5.0,
        ..QueueConfig::default()
    };
    let mut queue = LateQueue::new(config).unwrap();
    let router = Router::new(
        RouterConfig::new(BLOCK)
            .with_policy(toll())
            .with_booking_ttl_s(20.0),
    )
    .unwrap();
    router
        .add_worker(WorkerId::new(0, 0), WorkerSpec::default().with_max_num_seqs(4))
        .unwrap();
    let mut placed = Vec::new();
    for i in 0..20 {
        queue.offer(&router, request(i, 1000), 0.0).unwrap();
    }
    queue.pump(&router, 0.0, &mut placed).unwrap();
    assert!(placed.len() < 20);
    queue.pump(&router, 5.1, &mut placed).unwrap();
    assert_eq!(placed.len(), 20);
    assert!(placed.iter().any(|d| d.cause == Cause::Age));
    assert_eq!(router.expire(1000.0), 20);
    queue.offer(&router, request(99, 10), 1000.0).unwrap();
    queue.pump(&router, 1000.0, &mut placed).unwrap();
    assert_eq!(placed.last().unwrap().cause, Cause::Room);
}

#[test]
fn bounds_refuse_with_a_time_to_retry() {
    let config = QueueConfig {
        max_requests: 10,
        max_bytes: 1000,
        max_requests_per_tenant: 4,
        ..QueueConfig::default()
    };
    let mut queue = LateQueue::new(config).unwrap();
    let router = router(1, toll());
    let tenant = |id: u64, tenant: u32, bytes: u64| QueuedRequest {
        tenant: Tenant(tenant),
        bytes,
        ..request(id, 10)
    };
    let refused = |offer: Offer| match offer {
        Offer::Refused { limit, retry_after_s } => {
            assert!((1.0..=60.0).contains(&retry_after_s));
            Some(limit)
        }
        Offer::Taken => None,
    };
    for i in 0..4 {
        assert_eq!(refused(queue.offer(&router, tenant(i, 0, 1), 0.0).unwrap()), None);
    }
    assert_eq!(
        refused(queue.offer(&router, tenant(4, 0, 1), 0.0).unwrap()),
        Some(Limit::Tenant)
    );
    assert_eq!(
        refused(queue.offer(&router, tenant(5, 1, 1000), 0.0).unwrap()),
        Some(Limit::Bytes)
    );
    for i in 6..12 {
        assert_eq!(
            refused(queue.offer(&router, tenant(i, i as u32, 1), 0.0).unwrap()),
            None
        );
    }
    assert_eq!(
        refused(queue.offer(&router, tenant(12, 99, 1), 0.0).unwrap()),
        Some(Limit::Requests)
    );
    let late = QueuedRequest {
        deadline_s: Some(0.001),
        ..request(13, 1000)
    };
    assert!(queue.cancel(RequestId(0)) && !queue.cancel(RequestId(0)));
    assert_eq!(
        refused(queue.offer(&router, late, 0.0).unwrap()),
        Some(Limit::Deadline)
    );
    assert!(matches!(
        queue.offer(&router, request(1, 1), 0.0),
        Err(Error::RequestExists(_))
    ));
    assert_eq!(queue.stats().refused, [1, 1, 1, 1, 0]);
}

#[test]
fn priority_and_fairness_move_places_only_when_switched_on() {
    let order_of = |config: QueueConfig, ask: &dyn Fn(u64) -> QueuedRequest| {
        let mut toy = Toy::new(1, toll(), config);
        for i in 0..12 {
            toy.arrive(ask(i));
        }
        toy.run_until(100.0);
        toy.placed.iter().map(|d| d.id.0).collect::<Vec<_>>()
    };
    let place = |order: &[u64], id: u64| order.iter().position(|&other| other == id).unwrap();
    let fcfs = QueueConfig {
        kappa: 0.0,
        backlog_s: 0.01,
        ..QueueConfig::default()
    };

    let urgent = |i| QueuedRequest {
        priority: i32::from(i == 11),
        ..request(i, 100)
    };
    assert_eq!(place(&order_of(fcfs, &urgent), 11), 11);
    assert!(
        place(
            &order_of(
                QueueConfig {
                    priority_s: 10.0,
                    ..fcfs
                },
                &urgent
            ),
            11
        ) <= 2
    );

    // Tenant 0 sends eleven requests at once, tenant 1 sends one. In a fair queue that one need not wait for all
    // eleven.
    let crowd = |i| QueuedRequest {
        tenant: Tenant(u32::from(i == 11)),
        ..request(i, 100)
    };
    assert_eq!(place(&order_of(fcfs, &crowd), 11), 11);
    assert!(place(&order_of(QueueConfig { fair: true, ..fcfs }, &crowd), 11) <= 2);
}

#[test]
fn patience_bounds_how_long_a_long_prompt_lets_others_pass() {
    let passed_by = |kappa, patience| {
        let config = QueueConfig {
            kappa,
            patience,
            share_passes: false,
            ..QueueConfig::default()
        };
        let mut toy = Toy::new(1, toll(), config);
        let long = RequestId(100);
        for i in 0..600 {
            toy.run_until(i as f64 * 0.040);
            toy.arrive(request(i, if i == long.0 { 1000 } else { 16 }));
        }
        toy.run_until(1000.0);
        let at = toy.placed.iter().position(|d| d.id == long).unwrap();
        toy.placed[..at].iter().filter(|d| d.id.0 > long.0).count()
    };
    // A small prompt takes 0.043 s, and one comes every 0.040 s. The long prompt takes 1.9 s, which costs it 19 s at
    // κ = 10.
    assert_eq!(passed_by(0.0, 0.0), 0);
    assert!(passed_by(10.0, 0.0) > 300);
    let patient = passed_by(10.0, 3.0);
    assert!((1..60).contains(&patient), "passed by {patient}");
    assert!(patient < passed_by(10.0, 9.0));
}

#[test]
fn removed_worker_is_never_chosen_again() {
    let mut toy = Toy::new(2, toll(), QueueConfig::default());
    for i in 0..30 {
        toy.arrive(request(i, 400));
    }
    let gone = WorkerId::new(0, 0);
    toy.router.remove_worker(gone).unwrap();
    toy.ends
        .retain(|(_, id)| toy.placed.iter().any(|d| d.id == *id && d.worker != gone));
    let before = toy.placed.len();
    toy.run_until(1000.0);
    assert!(toy.placed[before..].iter().all(|d| d.worker != gone));
    assert_eq!(toy.placed.len(), 30);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_placed_once_or_cancelled_and_none_starves(
        workers in 1..6_u64,
        arrivals in prop::collection::vec((0.0..0.2_f64, 1..400_u64, 0..20_u8), 1..150),
        kappa in prop_oneof![Just(0.0), Just(10.0), Just(30.0)],
        patience in prop_oneof![Just(0.0), Just(3.0)],
        window in 1..70_usize,
        by_toll in any::<bool>(),
    ) {
        let policy = if by_toll { toll() } else { PolicyConfig::LeastLoaded };
        let config = QueueConfig { kappa, patience, window, max_wait_s: 1e6, ..QueueConfig::default() };
        let mut toy = Toy::new(workers, policy, config);
        let mut arrived = BTreeMap::new();
        let mut cancelled = HashSet::new();
        for (i, (gap_s, blocks, dice)) in arrivals.into_iter().enumerate() {
            let id = i as u64;
            let next_s = toy.now_s + gap_s;
            toy.run_until(next_s);
            toy.arrive(request(id, blocks));
            arrived.insert(RequestId(id), (toy.now_s, blocks));
            if dice == 0 && toy.queue.cancel(RequestId(id)) {
                cancelled.insert(RequestId(id));
            }
            prop_assert_eq!(toy.queue.stats().waiting, toy.queue.len());
        }
        toy.run_until(1e6);
        prop_assert!(toy.queue.is_empty());
        let ids: HashSet<RequestId> = toy.placed.iter().map(|d| d.id).collect();
        prop_assert_eq!(ids.len(), toy.placed.len(), "a request was placed twice");
        prop_assert_eq!(ids.len() + cancelled.len(), arrived.len());
        // κ bounds overtaking on the learned curve, which may differ from the prior curve by a factor of 2.
        let prior_s = |blocks: u64| 0.012 + 3.0e-5 * (blocks * u64::from(BLOCK)) as f64;
        for (at, d) in toy.placed.iter().enumerate() {
            let (own_s, own_blocks) = arrived[&d.id];
            let reach_s = 2.0 * kappa * prior_s(own_blocks) + 1.0;
            for earlier in &toy.placed[..at] {
                if earlier.waited_s > 0.0 {
                    prop_assert!(arrived[&earlier.id].0 <= own_s + reach_s, "{:?} overtook {:?}", earlier, d);
                }
            }
        }
        prop_assert!(toy.queue.stats().bytes == 0 && toy.queue.stats().prefill_s < 1e-6);
    }
}

/// Prints the time per request in steady overload of 8 workers. The goal is 2 µs beyond match and booking.
#[test]
#[ignore = "a measurement"]
fn cost_of_the_queue_at_eight_workers() {
    let mut seconds = Vec::new();
    for (queued, share_passes) in [(false, false), (true, false), (true, true)] {
        let router = router(8, toll());
        let mut queue = LateQueue::new(QueueConfig {
            share_passes,
            ..QueueConfig::default()
        })
        .unwrap();
        let mut placed = Vec::new();
        let mut running: std::collections::VecDeque<RequestId> = std::collections::VecDeque::new();
        let n = 20_000_u64;
        let asks: Vec<QueuedRequest> = (0..n).map(|i| request(i, 16)).collect();
        let start = std::time::Instant::now();
        for (i, ask) in asks.into_iter().enumerate() {
            let now_s = i as f64 * 0.005;
            if queued {
                queue.offer(&router, ask, now_s).unwrap();
                queue.pump(&router, now_s, &mut placed).unwrap();
                running.extend(placed.drain(..).map(|d| d.id));
            } else {
                router.route(&ask.route_request(), now_s).unwrap();
                running.push_back(ask.id);
            }
            // As many requests end as are needed to keep about twenty in the queue.
            if running.len() > 32 || (queued && queue.len() > 20) {
                let id = running.pop_front().unwrap();
                router.prefill_done(id, now_s).unwrap();
                if queued {
                    queue.pump(&router, now_s, &mut placed).unwrap();
                }
                router.release(id, now_s).unwrap();
                if queued {
                    queue.pump(&router, now_s, &mut placed).unwrap();
                }
                running.extend(placed.drain(..).map(|d| d.id));
            }
        }
        seconds.push(start.elapsed().as_secs_f64() / n as f64);
        if queued {
            println!("waiting at the end: {}", queue.len());
        }
    }
    let [direct, queued, sharing] = seconds[..] else {
        unreachable!()
    };
    println!(
        "direct {:.2} µs, queued {:.2} µs, with shared passes {:.2} µs a request",
        1e6 * direct,
        1e6 * queued,
        1e6 * sharing
    );
    assert!(
        queued < 50e-6,
        "the goal is 2 µs more than direct; the bound leaves room for a busy machine"
    );
}
