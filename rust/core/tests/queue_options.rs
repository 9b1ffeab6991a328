//! The queue's options: tenants by weight and bound, deadlines that pass while a request waits, explained placements.

use wardrop_core::ledger::Outcome;
use wardrop_core::price::Objective;
use wardrop_core::queue::{Dispatch, LateQueue, Limit, Offer, QueueConfig, QueuedRequest, Tenant};
use wardrop_core::{LocalHash, PolicyConfig, RequestId, Router, RouterConfig, WorkerId, WorkerSpec};

const BLOCK: u32 = 64;

fn router(workers: u64) -> Router {
    let config = RouterConfig::new(BLOCK).with_policy(PolicyConfig::Toll(Objective::default()));
    let router = Router::new(config).unwrap();
    for instance in 0..workers {
        let spec = WorkerSpec::default().with_total_kv_blocks(1 << 20);
        router.add_worker(WorkerId::new(instance, 0), spec).unwrap();
    }
    router
}

fn request(id: u64, tenant: u32) -> QueuedRequest {
    let blocks = 100;
    let hashes: Vec<LocalHash> = (0..blocks).map(|i| LocalHash(id * 1_000_003 + i)).collect();
    QueuedRequest {
        tenant: Tenant(tenant),
        ..QueuedRequest::new(RequestId(id), hashes.into(), blocks as u32 * BLOCK)
    }
}

fn refused(offer: &Offer) -> Option<Limit> {
    match offer {
        Offer::Refused { limit, .. } => Some(*limit),
        Offer::Taken => None,
    }
}

/// A worker that is busy with request 1,000,000 until it is released.
fn busy(config: QueueConfig) -> (Router, LateQueue) {
    let (router, mut queue) = (router(1), LateQueue::new(config).unwrap());
    queue
        .offer(&router, request(1_000_000, u32::MAX - 1), 0.0)
        .unwrap();
    let mut placed = Vec::new();
    queue.pump(&router, 0.0, &mut placed).unwrap();
    assert_eq!(placed.len(), 1);
    (router, queue)
}

/// Places every waiting request, one at a time, for 0.1 s each. Returns the ids in order of placement.
fn drained(router: &Router, queue: &mut LateQueue, mut now_s: f64) -> Vec<u64> {
    let mut running = RequestId(1_000_000);
    let mut order = Vec::new();
    while !queue.is_empty() {
        now_s += 0.1;
        router.finish(running, Outcome::default(), now_s).unwrap();
        let mut placed: Vec<Dispatch> = Vec::new();
        queue.pump(router, now_s, &mut placed).unwrap();
        assert_eq!(placed.len(), 1, "one worker takes one prompt at a time");
        running = placed[0].id;
        order.push(running.0);
    }
    order
}

const FCFS: QueueConfig = QueueConfig {
    kappa: 0.0,
    patience: 0.0,
    backlog_s: 1.0,
    share_passes: false,
    window: 1024,
    max_requests: 4096,
    max_bytes: 1 << 30,
    max_requests_per_tenant: 4096,
    max_bytes_per_tenant: 1 << 30,
    max_tenants: 1024,
    max_wait_s: 1e6,
    priority_s: 0.0,
    fair: false,
};

/// Requests of tenant 0 among the first 20 placed ones. Tenants 0 and 1 sent 40 requests each, in turn. Tenant 0 has
/// the given weight.
fn served_of_tenant_0(config: QueueConfig, weight: f64) -> usize {
    let (router, mut queue) = busy(config);
    for id in 0..80 {
        let tenant = id as u32 % 2;
        let weight = if tenant == 0 { weight } else { 1.0 };
        let asked = QueuedRequest {
            weight,
            ..request(id, tenant)
        };
        assert_eq!(refused(&queue.offer(&router, asked, 0.0).unwrap()), None);
    }
    let order = drained(&router, &mut queue, 0.0);
    assert_eq!(order.len(), 80);
    order[..20].iter().filter(|&id| id % 2 == 0).count()
}

#[test]
fn tenants_are_served_by_their_weight_when_the_queue_is_fair() {
    let fair = QueueConfig { fair: true, ..FCFS };
    assert_eq!(served_of_tenant_0(fair, 1.0), 10);
    assert!((14..=16).contains(&served_of_tenant_0(fair, 3.0)));
    assert!((4..=6).contains(&served_of_tenant_0(fair, 1.0 / 3.0)));
    assert_eq!(
        served_of_tenant_0(FCFS, 3.0),
        10,
        "weights count in a fair queue only"
    );
}

#[test]
fn bytes_of_one_tenant_are_bounded_and_anothers_are_not_touched() {
    let config = QueueConfig {
        max_bytes_per_tenant: 100,
        ..FCFS
    };
    let (router, mut queue) = busy(config);
    let mut offer = |id, tenant, bytes| {
        let asked = QueuedRequest {
            bytes,
            ..request(id, tenant)
        };
        refused(&queue.offer(&router, asked, 0.0).unwrap())
    };
    assert_eq!(offer(1, 1, 60), None);
    assert_eq!(offer(2, 1, 60), Some(Limit::TenantBytes));
    assert_eq!(offer(3, 2, 60), None);
    assert_eq!(offer(4, 1, 40), None);
    assert_eq!(queue.stats().refused, [0, 0, 0, 0, 1]);
    assert!(queue.cancel(RequestId(1)));
    let asked = QueuedRequest {
        bytes: 60,
        ..request(5, 1)
    };
    assert_eq!(
        refused(&queue.offer(&router, asked, 0.0).unwrap()),
        None,
        "what left gives its bytes back"
    );
}

#[test]
fn tenants_beyond_the_bound_share_one_place() {
    let few = QueueConfig {
        max_tenants: 3,
        max_requests_per_tenant: 2,
        ..FCFS
    };
    let refusals = |config: QueueConfig| {
        let (router, mut queue) = busy(config);
        let offers: Vec<_> = (0..8)
            .map(|tenant| {
                queue
                    .offer(&router, request(u64::from(tenant), tenant), 0.0)
                    .unwrap()
            })
            .collect();
        assert!(queue.tenants() <= config.max_tenants + 1);
        offers.iter().filter_map(refused).collect::<Vec<_>>()
    };
    // Three tenants have accounts. The five other tenants share one account, in which two requests may wait.
    assert_eq!(refusals(few), [Limit::Tenant; 3]);
    assert_eq!(
        refusals(QueueConfig {
            max_tenants: 8,
            ..few
        }),
        []
    );
}

#[test]
fn invented_tenants_take_a_bounded_memory_and_one_share() {
    let fair = QueueConfig {
        fair: true,
        max_tenants: 4,
        ..FCFS
    };
    let first_of_the_honest = |config: QueueConfig| {
        let (router, mut queue) = busy(config);
        // The honest tenant has its account before many invented tenants come.
        queue.offer(&router, request(0, 0), 0.0).unwrap();
        for id in 1..200 {
            queue.offer(&router, request(id, id as u32), 0.0).unwrap();
        }
        for id in 200..220 {
            queue.offer(&router, request(id, 0), 0.0).unwrap();
        }
        assert!(queue.tenants() <= config.max_tenants + 1);
        let order = drained(&router, &mut queue, 0.0);
        let honest = |id: &u64| *id == 0 || *id >= 200;
        order[..40].iter().filter(|id| honest(id)).count()
    };
    // Most invented tenants share one account, and take turns with the honest tenant. With an account for each of
    // them, the honest tenant gets one of the first forty places.
    assert!((18..=20).contains(&first_of_the_honest(fair)));
    let unbounded = QueueConfig {
        max_tenants: 1024,
        ..fair
    };
    assert!(first_of_the_honest(unbounded) <= 1);
}

#[test]
fn tenants_that_owe_nothing_are_forgotten_for_new_ones() {
    let config = QueueConfig {
        fair: true,
        max_tenants: 2,
        max_requests_per_tenant: 1,
        ..FCFS
    };
    let (router, mut queue) = busy(config);
    for id in 0..2 {
        queue.offer(&router, request(id, id as u32), 0.0).unwrap();
    }
    drained(&router, &mut queue, 0.0);
    // Long after, both tenants are forgotten, so two new tenants get accounts of their own.
    for id in 10..12 {
        let offer = queue.offer(&router, request(id, id as u32), 1000.0).unwrap();
        assert_eq!(refused(&offer), None);
    }
    assert_eq!(queue.tenants(), 2);
}

#[test]
fn deadline_that_passes_while_a_request_waits_takes_it_out() {
    let (router, mut queue) = busy(FCFS);
    let with_deadline = |id, deadline_s| QueuedRequest {
        deadline_s: Some(deadline_s),
        ..request(id, 0)
    };
    for (id, deadline_s) in [(1, 3.0), (2, 50.0)] {
        let offer = queue.offer(&router, with_deadline(id, deadline_s), 0.0).unwrap();
        assert_eq!(refused(&offer), None);
    }
    queue.offer(&router, request(3, 0), 0.0).unwrap();
    let mut placed = Vec::new();
    queue.pump(&router, 2.0, &mut placed).unwrap();
    assert_eq!(queue.take_too_late(), [], "there is time yet");
    queue.pump(&router, 4.0, &mut placed).unwrap();
    assert_eq!(queue.take_too_late(), [RequestId(1)]);
    assert_eq!(queue.take_too_late(), [], "a dropped request is reported once");
    assert_eq!((queue.len(), queue.stats().refused), (2, [0, 0, 0, 1, 0]));
    assert!(placed.is_empty());
    assert_eq!(
        drained(&router, &mut queue, 4.0),
        [2, 3],
        "requests placed in time are not given up later"
    );
    queue.pump(&router, 100.0, &mut placed).unwrap();
    assert_eq!(queue.take_too_late(), []);
    assert_eq!(queue.stats().bytes, 0);
}

#[test]
fn placement_is_explained_when_asked_for() {
    let (router, mut queue) = (router(3), LateQueue::new(FCFS).unwrap());
    for (id, explain) in [(1, true), (2, false)] {
        let asked = QueuedRequest {
            explain,
            ..request(id, 0)
        };
        queue.offer(&router, asked, 0.0).unwrap();
    }
    let mut placed = Vec::new();
    queue.pump(&router, 0.0, &mut placed).unwrap();
    let [explained, plain] = &placed[..] else {
        panic!("both go at once, got {placed:?}");
    };
    assert!(plain.candidates.is_empty());
    assert_eq!(explained.candidates.len(), 3);
    let chosen = explained
        .candidates
        .iter()
        .find(|c| c.worker == explained.worker)
        .unwrap();
    assert_eq!(chosen.cost, explained.cost);
    for candidate in &explained.candidates {
        assert!(candidate.cost >= explained.cost);
        assert_eq!(candidate.parts.iter().count(), 6, "the toll has six terms");
        let sum: f64 = candidate.parts.iter().map(|(_, cost_s)| cost_s).sum();
        assert!((sum - candidate.cost).abs() < 1e-12);
    }
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    for (config, name) in [
        (
            QueueConfig {
                max_tenants: 0,
                ..FCFS
            },
            "max_tenants",
        ),
        (
            QueueConfig {
                max_wait_s: f64::NAN,
                ..FCFS
            },
            "max_wait_s",
        ),
        (
            QueueConfig {
                priority_s: -1.0,
                ..FCFS
            },
            "priority_s",
        ),
    ] {
        let error = LateQueue::new(config).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
