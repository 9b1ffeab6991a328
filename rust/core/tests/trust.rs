//! Trust in the index through the router: what decisions believe, and what they go on to compare.

use wardrop_core::ledger::Outcome;
use wardrop_core::{
    EngineHash, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, StoredBlock,
    Tier, TrustMode, WorkerId, WorkerSpec,
};

const BLOCK_TOKENS: u32 = 16;

fn id(instance: u64) -> WorkerId {
    WorkerId::new(instance, 0)
}

fn hashes(blocks: u64) -> Vec<LocalHash> {
    (1..=blocks).map(LocalHash).collect()
}

/// A router of two workers. The index lists the first 20 blocks for worker 1.
fn router(config: RouterConfig) -> Router {
    let router = Router::new(config.with_policy(PolicyConfig::Lmetric)).unwrap();
    for instance in [1, 2] {
        router.add_worker(id(instance), WorkerSpec::default()).unwrap();
    }
    let block = |hash| StoredBlock {
        engine_hash: EngineHash(hash),
        local_hash: LocalHash(hash),
    };
    let event = KvEvent::Stored {
        parent: None,
        blocks: (1..=20).map(block).collect(),
        tier: Tier::Device,
    };
    router.apply(id(1), &event).unwrap();
    router
}

/// Serves one prompt of 20 blocks to the end; the engine finds `found_blocks` of them. Returns the worker and the overlap.
fn serve(router: &Router, request: u64, found_blocks: u32) -> (u64, u32) {
    let locals = hashes(20);
    let question = RouteRequest {
        request_id: Some(RequestId(request)),
        local_hashes: &locals,
        input_tokens: 20 * BLOCK_TOKENS,
        explain: true,
        ..RouteRequest::default()
    };
    let decision = router.route(&question, request as f64).unwrap();
    let first = &decision.candidates[0];
    assert_eq!(
        first.trust,
        router.trust(id(1)).unwrap().mode,
        "the receipt names the mode"
    );
    assert_eq!(first.listed_blocks, 20, "the receipt names what the index lists");
    let outcome = Outcome {
        cached_tokens: Some(found_blocks * BLOCK_TOKENS),
        ..Outcome::default()
    };
    router
        .finish(RequestId(request), outcome, request as f64 + 0.5)
        .unwrap();
    (decision.worker.instance, decision.overlap_blocks)
}

fn mode(router: &Router) -> TrustMode {
    router.trust(id(1)).unwrap().mode
}

#[test]
fn ghosts_attract_no_request_once_they_are_found() {
    let router = router(RouterConfig::new(BLOCK_TOKENS));
    for request in 0..4 {
        assert_eq!(serve(&router, request, 0), (1, 20));
    }
    assert_eq!(mode(&router), TrustMode::Degraded);
    let placed: Vec<u64> = (4..104).map(|request| serve(&router, request, 0).0).collect();
    let on_the_liar = placed.iter().filter(|&&worker| worker == 1).count();
    assert!(
        (25..=75).contains(&on_the_liar),
        "{on_the_liar} of 100 requests: both workers are alike"
    );
    assert_eq!(mode(&router), TrustMode::LoadOnly);
    let report = router.trust(id(1)).unwrap();
    assert_eq!(
        (report.score, report.indexed_tokens),
        (0.0, report.requests * 320)
    );
}

/// The negative control: without the measured trust, the liar gets every request.
#[test]
fn without_measured_trust_ghosts_attract_every_request() {
    let router = router(RouterConfig::new(BLOCK_TOKENS).with_measured_trust(false));
    assert!((0..104).all(|request| serve(&router, request, 0) == (1, 20)));
    assert_eq!(mode(&router), TrustMode::Exact);
}

#[test]
fn a_liar_that_becomes_honest_is_believed_again() {
    let router = router(RouterConfig::new(BLOCK_TOKENS));
    for request in 0..40 {
        serve(&router, request, 0);
    }
    assert_eq!(mode(&router), TrustMode::LoadOnly);
    let mut request = 40;
    while mode(&router) != TrustMode::Exact {
        assert!(request < 240, "{:?}", router.trust(id(1)));
        serve(&router, request, 20);
        request += 1;
    }
    assert_eq!(serve(&router, request, 20), (1, 20));
}

#[test]
fn lost_feed_shortens_the_overlap_and_its_return_restores_it() {
    let router = router(RouterConfig::new(BLOCK_TOKENS));
    router.set_feed_share(id(1), 0.5).unwrap();
    assert_eq!(serve(&router, 1, 20), (1, 10));
    router.set_feed_share(id(1), 1.0).unwrap();
    assert_eq!(serve(&router, 2, 20), (1, 20));
    assert!(router.set_feed_share(id(9), 1.0).is_err(), "an unknown worker");
}

#[test]
fn worker_whose_index_lacks_blocks_is_priced_by_the_requests_placed_on_it() {
    let router = Router::new(RouterConfig::new(BLOCK_TOKENS)).unwrap();
    router.add_worker(id(1), WorkerSpec::default()).unwrap();
    let locals = hashes(20);
    let mut overlaps = Vec::new();
    for request in 0..60 {
        let question = RouteRequest {
            request_id: Some(RequestId(request)),
            local_hashes: &locals,
            input_tokens: 20 * BLOCK_TOKENS,
            ..RouteRequest::default()
        };
        overlaps.push(router.route(&question, request as f64).unwrap().overlap_blocks);
        let outcome = Outcome {
            cached_tokens: Some(if request == 0 { 0 } else { 19 * BLOCK_TOKENS }),
            ..Outcome::default()
        };
        router
            .finish(RequestId(request), outcome, request as f64)
            .unwrap();
    }
    assert_eq!(mode(&router), TrustMode::Predicted);
    assert_eq!((overlaps[0], overlaps[59]), (0, 20));
    let clear = KvEvent::Cleared;
    router.apply(id(1), &clear).unwrap();
    assert_eq!(
        router.snapshot().predicted.records,
        0,
        "a cleared cache has no predicted block"
    );
    assert_eq!(
        router.trust(id(1)).unwrap().score,
        1.0,
        "evidence about dropped blocks is dropped"
    );
}
