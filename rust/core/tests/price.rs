//! Costs of every policy, compared with values worked out by hand.

use serde_json::{Map, json};
use wardrop_core::{
    Candidate, DynamoConfig, EngineHash, Error, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest,
    Router, RouterConfig, StoredBlock, Tier, WorkerId, WorkerSpec,
};

const A: WorkerId = WorkerId::new(1, 0);
const B: WorkerId = WorkerId::new(2, 0);

fn router(config: RouterConfig) -> Router {
    let router = Router::new(config).unwrap();
    router.add_worker(A, WorkerSpec::default()).unwrap();
    router.add_worker(B, WorkerSpec::default()).unwrap();
    router
}

fn stored(n: u64, tier: Tier) -> KvEvent {
    let block = |i| StoredBlock {
        engine_hash: EngineHash(100 + i),
        local_hash: LocalHash(i),
    };
    KvEvent::Stored {
        parent: None,
        blocks: (1..=n).map(block).collect(),
        tier,
    }
}

fn prompt(blocks: u64) -> Vec<LocalHash> {
    (1..=blocks).map(LocalHash).collect()
}

fn costs(router: &mut Router, hashes: &[LocalHash], input_tokens: u32) -> Vec<f64> {
    let request = RouteRequest {
        local_hashes: hashes,
        input_tokens,
        explain: true,
        ..RouteRequest::default()
    };
    let candidates = router.route(&request, 0.0).unwrap().candidates;
    let sum = |candidate: &Candidate| candidate.parts.iter().map(|(_, cost)| cost).sum::<f64>();
    for candidate in candidates
        .iter()
        .filter(|candidate| candidate.parts.iter().count() > 0)
    {
        assert!((sum(candidate) - candidate.cost).abs() < 1e-9, "{candidate:?}");
    }
    candidates.iter().map(|candidate| candidate.cost).collect()
}

fn dynamo(config: DynamoConfig) -> RouterConfig {
    RouterConfig::new(16).with_policy(PolicyConfig::Dynamo(config))
}

#[test]
fn a_780_token_prompt_costs_48_75_hot_and_96_75_cold() {
    let mut router = router(dynamo(DynamoConfig::default()));
    router.apply(A, &stored(48, Tier::Device)).unwrap();
    assert_eq!(costs(&mut router, &prompt(48), 780), [48.75, 96.75]);
}

#[test]
fn lower_tiers_earn_their_weights() {
    let mut router = router(dynamo(DynamoConfig::default()));
    router.apply(A, &stored(8, Tier::Host)).unwrap();
    router.apply(B, &stored(8, Tier::Disk)).unwrap();
    assert_eq!(
        costs(&mut router, &prompt(10), 160),
        [10.0 - 6.0 + 10.0, 10.0 - 2.0 + 10.0]
    );
}

#[test]
fn blocks_in_flight_are_counted_once() {
    let mut router = router(dynamo(DynamoConfig::default()));
    let hashes = prompt(4);
    let booked = RouteRequest {
        request_id: Some(RequestId(1)),
        local_hashes: &hashes,
        input_tokens: 64,
        ..RouteRequest::default()
    };
    router.book(&booked, A, 0.0).unwrap();
    assert_eq!(costs(&mut router, &prompt(6), 96), [10.0 + 6.0, 6.0 + 6.0]);
    router.prefill_done(RequestId(1), 1.0).unwrap();
    assert_eq!(costs(&mut router, &prompt(6), 96), [12.0, 12.0]);
    router.release(RequestId(1), 1.0).unwrap();
    assert_eq!(costs(&mut router, &prompt(6), 96), [12.0, 12.0]);
}

#[test]
fn the_prefill_leg_counts_no_decode_block() {
    let mut router = router(dynamo(DynamoConfig::default()).with_decode_tracking(false));
    router.apply(A, &stored(48, Tier::Device)).unwrap();
    assert_eq!(costs(&mut router, &prompt(48), 780), [0.75, 48.75]);
}

#[test]
fn the_decode_leg_counts_blocks_and_requests_only() {
    let config = DynamoConfig {
        decode_active_request_weight: 0.5,
        ..DynamoConfig::decode_leg()
    };
    let mut router = router(dynamo(config).with_prefill_tracking(false));
    router.apply(A, &stored(4, Tier::Device)).unwrap();
    let hashes = prompt(4);
    let booked = RouteRequest {
        request_id: Some(RequestId(1)),
        local_hashes: &hashes,
        input_tokens: 64,
        ..RouteRequest::default()
    };
    router.book(&booked, B, 0.0).unwrap();
    assert_eq!(router.snapshot().workers[1].prefill_tokens, 0);
    assert_eq!(costs(&mut router, &prompt(6), 96), [6.0, 6.5]);
}

#[test]
fn the_credit_decays_with_the_backlog() {
    let config = DynamoConfig {
        overlap_score_credit_decay: 2.0,
        ..DynamoConfig::default()
    };
    let mut router = router(dynamo(config));
    router.apply(A, &stored(4, Tier::Device)).unwrap();
    let backlog = RouteRequest {
        request_id: Some(RequestId(1)),
        input_tokens: 64,
        ..RouteRequest::default()
    };
    router.book(&backlog, A, 0.0).unwrap();
    // 4 blocks of excess for a prompt of 4: credit 4 / (1 + 2·1).
    let [hot, cold] = costs(&mut router, &prompt(4), 64)[..] else {
        panic!("two candidates")
    };
    assert!((hot - (8.0 - 4.0 / 3.0 + 4.0)).abs() < 1e-12);
    assert_eq!(cold, 8.0);
}

#[test]
fn ties_are_shared_evenly() {
    let router = router(dynamo(DynamoConfig::default()));
    let to_a = (0..4000)
        .filter(|_| router.route(&RouteRequest::default(), 0.0).unwrap().worker == A)
        .count();
    assert!((1850..2150).contains(&to_a), "{to_a} of 4000"); // ± 4.7 standard deviations
}

#[test]
fn temperature_is_normalised_by_the_range() {
    let config = DynamoConfig {
        router_temperature: 0.7,
        ..DynamoConfig::default()
    };
    let router = router(dynamo(config));
    router.apply(A, &stored(1, Tier::Device)).unwrap();
    let hashes = prompt(1);
    let request = RouteRequest {
        local_hashes: &hashes,
        input_tokens: 16,
        ..RouteRequest::default()
    };
    let to_a = (0..20_000)
        .filter(|_| router.route(&request, 0.0).unwrap().worker == A)
        .count();
    let expected = 20_000.0 / (1.0 + (-1.0 / 0.7_f64).exp()); // 0.807 of the picks, regardless of the gap
    assert!(
        (to_a as f64 - expected).abs() < 260.0,
        "{to_a} against {expected}"
    ); // 4.7 standard deviations
}

#[test]
fn power_of_two_takes_the_less_loaded_of_two() {
    let router = router(RouterConfig::new(16).with_policy(PolicyConfig::PowerOfTwo));
    let busy = RouteRequest {
        request_id: Some(RequestId(1)),
        ..RouteRequest::default()
    };
    router.book(&busy, A, 0.0).unwrap();
    for _ in 0..20 {
        assert_eq!(router.route(&RouteRequest::default(), 0.0).unwrap().worker, B);
    }
}

#[test]
fn a_policy_is_named_and_its_parameters_are_checked() {
    let parameters = |value: serde_json::Value| value.as_object().cloned().unwrap_or_default();
    let config = PolicyConfig::from_name("dynamo", &parameters(json!({"prefill_load_scale": 4.0}))).unwrap();
    assert_eq!(
        config,
        PolicyConfig::Dynamo(DynamoConfig {
            prefill_load_scale: 4.0,
            ..DynamoConfig::default()
        })
    );
    for name in PolicyConfig::NAMES {
        let config = PolicyConfig::from_name(name, &Map::new()).unwrap();
        assert_eq!(config.name(), *name);
        assert_eq!(config.build().unwrap().name(), *name);
    }
    assert!(matches!(
        PolicyConfig::from_name("greedy", &Map::new()),
        Err(Error::UnknownPolicy { .. })
    ));
    let unknown = PolicyConfig::from_name("dynamo", &parameters(json!({"overlap": 1})));
    assert!(
        unknown.unwrap_err().to_string().contains("overlap_score_credit"),
        "the error must list the known names"
    );
    let negative = PolicyConfig::from_name("dynamo", &parameters(json!({"prefill_load_scale": -1.0})));
    assert!(matches!(
        negative,
        Err(Error::Parameter {
            field: "prefill_load_scale",
            ..
        })
    ));
    assert!(PolicyConfig::from_name("round_robin", &parameters(json!({"x": 1}))).is_err());
}

fn policy(name: &str, parameters: &serde_json::Value) -> PolicyConfig {
    PolicyConfig::from_name(name, parameters.as_object().unwrap()).unwrap()
}

fn busy(router: &mut Router, id: u64, worker: WorkerId, input_tokens: u32) {
    let request = RouteRequest {
        request_id: Some(RequestId(id)),
        input_tokens,
        ..RouteRequest::default()
    };
    router.book(&request, worker, 0.0).unwrap();
}

#[test]
fn lmetric_multiplies_new_tokens_and_batch() {
    let mut router = router(RouterConfig::new(16).with_policy(PolicyConfig::Lmetric));
    router.apply(A, &stored(3, Tier::Device)).unwrap();
    busy(&mut router, 1, A, 40);
    assert_eq!(
        costs(&mut router, &prompt(4), 70),
        [f64::from(40 + 70 - 48) * 2.0, 70.0]
    );
}

#[test]
fn two_tier_follows_a_long_match_and_else_the_load() {
    let mut router =
        router(RouterConfig::new(16).with_policy(policy("two_tier", &json!({"match_share": 0.5}))));
    router.apply(A, &stored(2, Tier::Device)).unwrap();
    busy(&mut router, 1, A, 1000);
    assert_eq!(costs(&mut router, &prompt(4), 64), [2.0, 4.0]);
    assert_eq!(costs(&mut router, &prompt(5), 80), [1.0, 0.0]);
}

#[test]
fn sticky_keeps_to_the_holders_of_a_long_prefix() {
    let mut router = router(RouterConfig::new(16).with_policy(policy("sticky", &json!({}))));
    router.apply(A, &stored(3, Tier::Device)).unwrap();
    busy(&mut router, 1, A, 500);
    assert_eq!(costs(&mut router, &prompt(10), 160), [500.0, f64::INFINITY]);
    assert_eq!(costs(&mut router, &prompt(11), 176), [500.0, 0.0]); // 3 of 11 blocks are below the minimum share
}

#[test]
fn chwbl_keeps_a_family_together_until_its_worker_is_full() {
    let router = router(RouterConfig::new(16).with_policy(policy("chwbl", &json!({"load_factor": 1.25}))));
    let hashes = prompt(3);
    let mut picks = Vec::new();
    for id in 0..4 {
        let request = RouteRequest {
            request_id: Some(RequestId(id)),
            local_hashes: &hashes,
            input_tokens: 48,
            ..RouteRequest::default()
        };
        picks.push(router.route(&request, 0.0).unwrap().worker);
    }
    // Bounds ⌈1.25·(k + 1)/2⌉ = 1, 2, 2, 3: one, then one more, then it is full, then it has room again.
    assert_eq!(picks[0], picks[1]);
    assert_ne!(picks[1], picks[2]);
    assert_eq!(picks[3], picks[0]);
    assert!(PolicyConfig::from_name("chwbl", json!({"load_factor": 1.0}).as_object().unwrap()).is_err());
}
