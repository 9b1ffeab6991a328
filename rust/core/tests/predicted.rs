//! Predicted caches: against the slow reference, and through the router.

use proptest::prelude::*;
use wardrop_core::index::{Prompt, Slot, all_slots};
use wardrop_core::predicted::{Predicted, RaiseScratch, ReferencePredicted};
use wardrop_core::{
    DynamoConfig, EngineHash, KvEvent, LocalHash, PolicyConfig, PredictedConfig, PredictedUse, RequestId,
    RouteRequest, Router, RouterConfig, StoredBlock, Tier, WorkerId, WorkerSpec,
};

const CAPACITIES: [u64; 3] = [40, 150, 1000];

#[derive(Clone, Debug)]
enum Step {
    Insert {
        slot: u32,
        family: u64,
        len: usize,
        request: u64,
    },
    FirstToken(u64),
    Finished(u64),
    Clear(u32),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..3, 0u64..4, 0usize..180, 0u64..20)
            .prop_map(|(slot, family, len, request)| Step::Insert { slot, family, len, request }),
        2 => (0u64..20).prop_map(Step::FirstToken),
        2 => (0u64..20).prop_map(Step::Finished),
        1 => (0u32..3).prop_map(Step::Clear),
        2 => (0u32..6).prop_map(Step::Wait),
    ]
}

/// Prompts of a family share 70 blocks and the blocks between.
fn prompt_of(family: u64, len: usize) -> Vec<LocalHash> {
    let local = |at: u64| LocalHash(if at < 70 { family / 2 } else { family });
    (0..len as u64).map(local).collect()
}

fn prompt(locals: &[LocalHash]) -> Prompt<'_> {
    Prompt {
        locals,
        sequence: &[],
    }
}

/// The first difference between the prediction and its reference over these steps.
fn differ(config: PredictedConfig, steps: &[Step], planted: bool) -> Option<String> {
    let mut subject = Predicted::new(config);
    for (slot, capacity) in (0..).map(Slot).zip(CAPACITIES) {
        subject.add_worker(slot, Some(if planted { capacity + 1 } else { capacity }));
    }
    let mut reference = ReferencePredicted::new(config, CAPACITIES.to_vec());
    let mut now_s = 0.0;
    for step in steps {
        match *step {
            Step::Insert {
                slot,
                family,
                len,
                request,
            } => {
                let (slot, locals) = (Slot(slot), prompt_of(family, len));
                subject.insert(slot, &prompt(&locals), Some(RequestId(request)), now_s);
                reference.insert(slot, &locals, Some(RequestId(request)), now_s);
            }
            Step::FirstToken(request) => {
                subject.first_token(RequestId(request), now_s);
                reference.first_token(RequestId(request), now_s);
            }
            Step::Finished(request) => {
                subject.finished(RequestId(request), now_s);
                reference.finished(RequestId(request), now_s);
            }
            Step::Clear(slot) => {
                subject.clear(Slot(slot));
                reference.clear(Slot(slot));
            }
            Step::Wait(seconds) => {
                now_s += f64::from(seconds);
                subject.expire(now_s);
                reference.expire(now_s);
            }
        }
        let size = subject.size();
        let blocks: usize = (0..3).map(|slot| reference.held(Slot(slot)).len()).sum();
        if (size.records, size.blocks) != (reference.len() as u64, blocks as u64) {
            return Some(format!(
                "{step:?}: {size:?}, expected {} records, {blocks} blocks",
                reference.len()
            ));
        }
        for family in 0..4 {
            let locals = prompt_of(family, 180);
            let mut depth = [0; 3];
            subject.raise_overlap(
                &prompt(&locals),
                &all_slots(3),
                &mut depth,
                &mut RaiseScratch::default(),
            );
            let expected = [0, 1, 2].map(|slot| reference.overlap(&locals, Slot(slot)));
            if depth != expected {
                return Some(format!(
                    "{step:?}: family {family}: {depth:?}, expected {expected:?}"
                ));
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]
    #[test]
    fn the_prediction_answers_like_the_reference(
        steps in prop::collection::vec(step(), 1..120),
        beside in any::<bool>(),
        max_records in prop_oneof![Just(4usize), Just(1_000)],
    ) {
        let used = if beside { PredictedUse::Beside } else { PredictedUse::Alone };
        let config = PredictedConfig::new(used).with_ttl_s(9.0).with_settle_s(3.0).with_max_records(max_records);
        prop_assert_eq!(differ(config, &steps, false), None);
    }
}

#[test]
fn a_planted_error_in_the_capacity_is_found() {
    let config = PredictedConfig::new(PredictedUse::Alone);
    let steps: Vec<Step> = (0..4)
        .map(|family| Step::Insert {
            slot: 0,
            family,
            len: 35,
            request: family,
        })
        .collect();
    assert_eq!(differ(config, &steps, false), None);
    let full = [Step::Insert {
        slot: 0,
        family: 0,
        len: 41,
        request: 0,
    }];
    assert!(differ(config, &full, true).is_some());
}

#[test]
fn a_stream_of_requests_keeps_memory_bounded() {
    let config = PredictedConfig::new(PredictedUse::Alone).with_max_records(100);
    let mut predicted = Predicted::new(config);
    predicted.add_worker(Slot(0), Some(500));
    for request in 0..5_000u64 {
        let locals = [LocalHash(request), LocalHash(request + 1)];
        predicted.insert(Slot(0), &prompt(&locals), Some(RequestId(request)), 0.0);
        predicted.finished(RequestId(request), 0.0);
        let size = predicted.size();
        assert!(size.records <= 100 && size.blocks <= 200);
    }
    assert_eq!(predicted.size().inserted, 5_000);
    assert_eq!(predicted.size().evicted, 4_900);
}

fn fleet(policy: PolicyConfig, predicted: PredictedConfig, workers: u64) -> Router {
    let config = RouterConfig::new(16)
        .with_policy(policy)
        .with_predicted(predicted)
        .with_seed(3);
    let router = Router::new(config).unwrap();
    for worker in 0..workers {
        router
            .add_worker(WorkerId::new(worker, 0), WorkerSpec::default())
            .unwrap();
    }
    router
}

/// A prompt of 64 shared blocks and two blocks of its own.
fn burst_prompt(of: u64) -> Vec<LocalHash> {
    let own = [LocalHash(1000 + of), LocalHash(5000 + of)];
    (0..64).map(LocalHash).chain(own).collect()
}

fn ask(router: &mut Router, id: u64, locals: &[LocalHash], now_s: f64) -> (WorkerId, u32) {
    let request = RouteRequest {
        request_id: Some(RequestId(id)),
        local_hashes: locals,
        input_tokens: locals.len() as u32 * 16,
        ..RouteRequest::default()
    };
    let decision = router.route(&request, now_s).unwrap();
    (decision.worker, decision.overlap_blocks)
}

/// 50 requests with one new prefix meet 8 idle workers before any event arrives.
///
/// Returns the number of workers that compute the prefix, and the most requests that one worker got.
fn burst(policy: PolicyConfig, used: PredictedUse) -> (usize, usize) {
    let mut router = fleet(policy, PredictedConfig::new(used), 8);
    let mut per_worker = [0usize; 8];
    let mut computing = std::collections::BTreeSet::new();
    for id in 0..50 {
        let (worker, overlap) = ask(&mut router, id, &burst_prompt(id), 0.0);
        per_worker[worker.instance as usize] += 1;
        if overlap == 0 {
            computing.insert((worker, id));
        }
    }
    (computing.len(), per_worker.into_iter().max().unwrap())
}

#[test]
fn a_burst_with_one_new_prefix_does_not_scatter_beside_events() {
    for policy in [
        PolicyConfig::from_name("toll", &serde_json::Map::new()).unwrap(),
        PolicyConfig::Dynamo(DynamoConfig::default()),
        PolicyConfig::Lmetric,
        PolicyConfig::from_name("two_tier", &serde_json::Map::new()).unwrap(),
        PolicyConfig::from_name("sticky", &serde_json::Map::new()).unwrap(),
    ] {
        let (blind, _) = burst(policy.clone(), PredictedUse::Off);
        let (seeing, most) = burst(policy.clone(), PredictedUse::Beside);
        println!(
            "{policy:?}: {blind} of 50 compute the prefix without, {seeing} with; at most {most} on one"
        );
        assert_eq!(
            blind, 50,
            "{policy:?}: without a prediction no worker has an overlap"
        );
        assert!(
            seeing <= 8,
            "{policy:?}: {seeing} requests compute a prefix that another worker computes already"
        );
    }
}

fn stored(locals: &[LocalHash]) -> KvEvent {
    let block = |&local_hash: &LocalHash| StoredBlock {
        engine_hash: EngineHash(local_hash.0 ^ 0x4d),
        local_hash,
    };
    KvEvent::Stored {
        parent: None,
        blocks: locals.iter().map(block).collect(),
        tier: Tier::Device,
    }
}

#[test]
fn beside_events_the_stored_event_replaces_the_prediction_after_the_first_token() {
    let mut router = fleet(
        PolicyConfig::Dynamo(DynamoConfig::default()),
        PredictedConfig::new(PredictedUse::Beside).with_settle_s(1.0),
        4,
    );
    let locals = burst_prompt(0);
    let (worker, overlap) = ask(&mut router, 1, &locals, 0.0);
    assert_eq!(overlap, 0);
    assert_eq!(router.find_matches(&locals)[0].device, 66);
    router.prefill_done(RequestId(1), 0.5).unwrap();
    router.expire(1.4);
    assert_eq!(router.find_matches(&locals)[0].device, 66);
    router.expire(1.6);
    assert!(router.find_matches(&locals).is_empty(), "no event confirmed it");
    router.apply(worker, &stored(&locals)).unwrap();
    assert_eq!(router.find_matches(&locals)[0].device, 66);
}

#[test]
fn without_events_a_session_returns_to_its_worker_until_its_record_expires() {
    let mut router = fleet(
        PolicyConfig::Dynamo(DynamoConfig::default()),
        PredictedConfig::new(PredictedUse::Alone).with_ttl_s(120.0),
        8,
    );
    let (first, _) = ask(&mut router, 0, &burst_prompt(0), 0.0);
    router.prefill_done(RequestId(0), 0.2).unwrap();
    router.release(RequestId(0), 30.0).unwrap();
    let (again, overlap) = ask(&mut router, 1, &burst_prompt(1), 149.0);
    assert_eq!((again, overlap), (first, 64), "its use ended at 30 s");
    router.release(RequestId(1), 149.0).unwrap();
    let (_, overlap) = ask(&mut router, 2, &burst_prompt(2), 270.0);
    assert_eq!(overlap, 0);
}

#[test]
fn a_restarted_or_removed_worker_is_predicted_to_hold_nothing() {
    let mut router = fleet(
        PolicyConfig::RoundRobin,
        PredictedConfig::new(PredictedUse::Alone),
        2,
    );
    let (first, _) = ask(&mut router, 0, &burst_prompt(0), 0.0);
    let (second, _) = ask(&mut router, 1, &burst_prompt(0), 0.0);
    assert_eq!(router.find_matches(&burst_prompt(0)).len(), 2);
    router.apply(first, &KvEvent::Cleared).unwrap();
    router.remove_worker(second).unwrap();
    assert!(router.find_matches(&burst_prompt(0)).is_empty());
    let predicted = router.snapshot().predicted;
    assert_eq!(
        (predicted.records, predicted.blocks, predicted.cleared),
        (0, 0, 2)
    );
}

#[test]
fn a_booking_of_another_placer_is_predicted_too() {
    let router = fleet(
        PolicyConfig::LeastLoaded,
        PredictedConfig::new(PredictedUse::Alone),
        2,
    );
    let locals = burst_prompt(0);
    let request = RouteRequest {
        request_id: Some(RequestId(9)),
        local_hashes: &locals,
        input_tokens: 66 * 16,
        ..RouteRequest::default()
    };
    router.book(&request, WorkerId::new(1, 0), 0.0).unwrap();
    let found = router.find_matches(&locals);
    assert_eq!((found[0].worker.instance, found[0].device), (1, 66));
    assert_eq!(router.snapshot().workers[1].prefill_tokens, 66 * 16);
    let again = RouteRequest {
        request_id: Some(RequestId(10)),
        ..request
    };
    router.book(&again, WorkerId::new(1, 0), 0.0).unwrap();
    assert_eq!(
        router.snapshot().workers[1].prefill_tokens,
        66 * 16,
        "the worker must be predicted to hold the prefix"
    );
}

#[test]
fn a_parameter_out_of_range_is_refused() {
    for config in [
        PredictedConfig::default().with_ttl_s(0.0),
        PredictedConfig::default().with_settle_s(-1.0),
        PredictedConfig::default().with_capacity_blocks(0),
        PredictedConfig::default().with_max_records(0),
    ] {
        assert!(Router::new(RouterConfig::new(16).with_predicted(config)).is_err());
    }
}
