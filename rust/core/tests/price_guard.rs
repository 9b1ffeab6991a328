//! The price guard inside a router: which ends of requests count as reports of first tokens.

use wardrop_core::ledger::Outcome;
use wardrop_core::price::Objective;
use wardrop_core::price_guard::Misfit;
use wardrop_core::{
    LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, WorkerId, WorkerSpec,
};

const BOOKING_TTL_S: f64 = 300.0;

fn guarded(tracks_decode: bool) -> Router {
    let mut config = RouterConfig::new(16).with_policy(PolicyConfig::Toll(Objective::default()));
    config.guards_price = true;
    config.tracks_decode = tracks_decode;
    config.booking_ttl_s = BOOKING_TTL_S;
    let router = Router::new(config).expect("the configuration is valid");
    router
        .add_worker(WorkerId::new(1, 0), WorkerSpec::default())
        .expect("the worker is new");
    router
}

/// Places request `id`, whose prompt shares nothing with other prompts.
fn place(router: &Router, id: u64, now_s: f64) {
    let hashes: Vec<LocalHash> = (0..4).map(|block| LocalHash(1_000 * id + block)).collect();
    let request = RouteRequest {
        request_id: Some(RequestId(id)),
        local_hashes: &hashes,
        input_tokens: 64,
        ..RouteRequest::default()
    };
    router.route(&request, now_s).expect("a worker is available");
}

/// A prefill pool: each request ends with its first token, and `lost` requests end late without one.
fn misfit_of_a_prefill_pool(good: u64, lost: u64) -> Option<Misfit> {
    let router = guarded(false);
    let mut now_s = 0.0;
    for id in 0..good + lost {
        place(&router, id, now_s);
        now_s += 5.0;
        let outcome = Outcome {
            at_first_token: id >= lost,
            ..Outcome::default()
        };
        router
            .finish(RequestId(id), outcome, now_s)
            .expect("the request is booked");
    }
    router
        .price_guard()
        .misfit
        .filter(|misfit| *misfit == Misfit::FirstTokensUnreported)
}

#[test]
fn ends_at_the_first_token_are_reports() {
    assert_eq!(
        misfit_of_a_prefill_pool(0, 8),
        Some(Misfit::FirstTokensUnreported)
    );
    assert_eq!(misfit_of_a_prefill_pool(100, 8), None, "the reports came back");
}

#[test]
fn bookings_that_expire_after_a_reported_first_token_are_reports() {
    let router = guarded(true);
    // A caller that reports first tokens and no ends, and loses one report in twenty.
    for id in 0..400 {
        let now_s = id as f64;
        place(&router, id, now_s);
        if id % 20 > 0 {
            router
                .prefill_done(RequestId(id), now_s + 0.01)
                .expect("the request is booked");
        }
    }
    place(&router, 1_000, 400.0 + 2.0 * BOOKING_TTL_S);
    let report = router.price_guard();
    assert!(report.reported_share > 0.8, "{report:?}");
    assert_ne!(report.misfit, Some(Misfit::FirstTokensUnreported));
}
