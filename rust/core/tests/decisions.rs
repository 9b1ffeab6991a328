//! One decision path: a request is decided alike at once and by a queue, and a fleet that changes meanwhile stops no
//! queue.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use wardrop_core::price::Objective;
use wardrop_core::queue::{Cause, LateQueue, Offer, QueueConfig, QueuedRequest};
use wardrop_core::{
    EngineHash, Error, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig,
    StoredBlock, Tier, WorkerId, WorkerSpec,
};

const BLOCK: u32 = 16;

fn policies() -> impl Strategy<Value = PolicyConfig> {
    prop_oneof![
        Just(PolicyConfig::Toll(Objective::default())),
        Just(PolicyConfig::Dynamo(wardrop_core::DynamoConfig::default())),
        Just(PolicyConfig::LeastLoaded),
        Just(PolicyConfig::RoundRobin),
        Just(PolicyConfig::PowerOfTwo),
        Just(PolicyConfig::Sticky(wardrop_core::price::StickyConfig::default())),
    ]
}

fn router(policy: PolicyConfig, workers: u64) -> Router {
    let router = Router::new(RouterConfig::new(BLOCK).with_policy(policy)).unwrap();
    for instance in 0..workers {
        let spec = WorkerSpec::default().with_total_kv_blocks(1 << 20);
        router.add_worker(WorkerId::new(instance, 0), spec).unwrap();
    }
    router
}

/// Hashes of a prompt: prompts of one family share their first blocks.
fn hashes(family: u64, tail: u64, blocks: u64) -> Vec<LocalHash> {
    (0..blocks)
        .map(|i| LocalHash(if i < blocks / 2 { family } else { 1000 + tail } * 1_000_003 + i))
        .collect()
}

fn stored(hashes: &[LocalHash]) -> KvEvent {
    let block = |&local_hash: &LocalHash| StoredBlock {
        engine_hash: EngineHash(local_hash.0),
        local_hash,
    };
    KvEvent::Stored {
        parent: None,
        blocks: hashes.iter().map(block).collect(),
        tier: Tier::Device,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// A queue in which every worker always has room decides what a router without a queue decides, ties and samples
    /// included.
    #[test]
    fn with_room_a_late_decision_is_the_immediate_one(
        policy in policies(),
        workers in 1..9_u64,
        steps in prop::collection::vec((0..4_u64, 1..60_u64, 0..3_u8, 0.0..0.3_f64), 1..40),
    ) {
        let (at_once, late) = (router(policy.clone(), workers), router(policy, workers));
        // Only idle workers have room without shared passes, so every booking is past its prefill before the next
        // request.
        let mut queue = LateQueue::new(QueueConfig::default()).unwrap();
        let (mut placed, mut now_s, mut open) = (Vec::new(), 0.0, Vec::new());
        for (step, (family, blocks, end, gap_s)) in steps.into_iter().enumerate() {
            let id = RequestId(step as u64);
            now_s += gap_s;
            let locals = hashes(family, id.0, blocks);
            let request = QueuedRequest {
                explain: true,
                ..QueuedRequest::new(id, locals.clone().into(), locals.len() as u32 * BLOCK + 3)
            };
            let question = RouteRequest { explain: true, ..request.route_request() };
            let decision = at_once.route(&question, now_s).unwrap();
            prop_assert_eq!(queue.offer(&late, request.clone(), now_s).unwrap(), Offer::Taken);
            placed.clear();
            queue.pump(&late, now_s, &mut placed).unwrap();
            prop_assert_eq!(placed.len(), 1, "every worker has room");
            prop_assert_eq!(placed[0].cause, Cause::Room);
            prop_assert_eq!(
                (placed[0].worker, placed[0].overlap_blocks, placed[0].cost.to_bits(), &placed[0].candidates),
                (decision.worker, decision.overlap_blocks, decision.cost.to_bits(), &decision.candidates)
            );
            for router in [&at_once, &late] {
                router.apply(decision.worker, &stored(&locals)).unwrap();
                router.prefill_done(id, now_s + 0.01).unwrap();
            }
            open.push(id);
            for _ in 0..end.min(open.len() as u8) {
                let ended = open.remove(0);
                for router in [&at_once, &late] {
                    router.release(ended, now_s + 0.02).unwrap();
                }
            }
            now_s += 0.02;
        }
        prop_assert_eq!(at_once.snapshot(), late.snapshot());
    }
}

/// Workers that join, leave and become unavailable between any two steps of a pump never stop it, and no request is
/// lost.
#[test]
fn fleet_that_changes_while_a_queue_pumps_does_not_stop_it() {
    const REQUESTS: u64 = 3000;
    let router = router(PolicyConfig::Toll(Objective::default()), 4);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (router, done) = (&router, &done);
            scope.spawn(move || {
                // Workers 0 and 1 stay. The other workers come and go until the queue is empty.
                for turn in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let worker = WorkerId::new(2 + thread + 2 * (turn % 5), 0);
                    if router.add_worker(worker, WorkerSpec::default()).is_err() {
                        let _ = router.set_available(worker, turn % 3 == 0);
                        let _ = router.remove_worker(worker);
                    }
                }
            });
        }
        let mut queue = LateQueue::new(QueueConfig::default()).unwrap();
        let mut placed = Vec::new();
        for id in 0..REQUESTS {
            let now_s = id as f64 * 0.01;
            let request = QueuedRequest::new(RequestId(id), hashes(id % 5, id, 40).into(), 640);
            assert_eq!(queue.offer(&router, request, now_s).unwrap(), Offer::Taken);
            let from = placed.len();
            queue.pump(&router, now_s, &mut placed).unwrap();
            for dispatch in &placed[from..] {
                // The worker of this booking left, and its bookings left with it.
                match router.prefill_done(dispatch.id, now_s) {
                    Ok(_) | Err(Error::UnknownRequest(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                let _ = router.release(dispatch.id, now_s);
            }
        }
        done.store(true, Ordering::Relaxed);
        let mut now_s = REQUESTS as f64 * 0.01;
        while !queue.is_empty() {
            let from = placed.len();
            queue.pump(&router, now_s, &mut placed).unwrap();
            for dispatch in &placed[from..] {
                let _ = router.release(dispatch.id, now_s);
            }
            now_s += 1.0;
        }
        let mut ids: Vec<u64> = placed.iter().map(|dispatch| dispatch.id.0).collect();
        ids.sort_unstable();
        assert_eq!(
            ids,
            (0..REQUESTS).collect::<Vec<u64>>(),
            "each request is placed once"
        );
    });
}
