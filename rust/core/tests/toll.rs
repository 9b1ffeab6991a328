//! The toll's terms one by one, its objective, and the router that prices with it.

use proptest::prelude::*;
use wardrop_core::ledger::LatencyEstimate;
use wardrop_core::price::toll::{
    busy_period_s, eviction_s, hold_newcomers, memory_s, own_decode_s, own_first_token_s, stall_s, toll_s,
};
use wardrop_core::price::{Objective, TollWeights};
use wardrop_core::{
    EngineHash, KvEvent, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, StoredBlock,
    Tier, WorkerId, WorkerSpec,
};

fn busy() -> LatencyEstimate {
    LatencyEstimate {
        prefill_s: 0.2,
        wait_s: 1.0,
        step_s: 0.01,
        step_with_s: 0.012,
        chunk_s: 0.25,
        memory_wait_s: 0.5,
        footprint_s: 0.1,
        memory_share: 0.8,
        arrivals_per_s: 2.0,
        utilisation: 0.6,
        requests: 5.0,
        token_s: 3e-5,
        evicted_tokens: 1000.0,
        reuse: 0.5,
        transfer_s: 0.05,
        is_new: false,
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn each_term_is_its_formula() {
    let c = busy();
    assert!(close(own_first_token_s(&c), 1.2 * 1.04 + 0.05));
    assert!(close(own_decode_s(&c, 300.0), 3.6));
    assert!(close(stall_s(&c), 1.0));
    assert!(close(busy_period_s(&c), 0.2 * 2.0 * 1.7 * 2.0));
    let calm = LatencyEstimate {
        utilisation: 0.2,
        ..c
    };
    assert!(close(busy_period_s(&calm), 0.2 * 2.0 * 1.7 / 0.8));
    let held_s = 0.1 + 0.2 * 0.8;
    assert!((memory_s(&c, 300.0) - (0.5 + held_s * 2.0 * 0.6 / 0.2)).abs() < 1e-9);
    assert!(close(eviction_s(&c), 0.015));
    let w = Objective::default().weights().unwrap();
    let sum = w.own * own_first_token_s(&c)
        + w.decode * own_decode_s(&c, 300.0)
        + w.stall * stall_s(&c)
        + w.busy * busy_period_s(&c)
        + w.memory * memory_s(&c, 300.0)
        + w.eviction * eviction_s(&c);
    assert!(close(toll_s(&c, 300.0, &w), sum));
}

#[test]
fn prompt_that_fits_delays_at_most_the_requests_that_arrive_during_its_stay() {
    let fits = LatencyEstimate {
        memory_wait_s: 0.0,
        footprint_s: 7.0,
        memory_share: 0.95,
        ..busy()
    };
    let stay_s = 1.0 + 0.2 + 300.0 * 0.012;
    let held_s = 7.0 + 0.2 * 0.95;
    assert!(close(memory_s(&fits, 300.0), held_s * 2.0 * stay_s));
    let short = LatencyEstimate {
        memory_wait_s: 1.0,
        ..fits
    };
    assert!((memory_s(&short, 300.0) - (1.0 + held_s * 2.0 * (20.0 + stay_s))).abs() < 1e-9);
}

#[test]
fn a_long_prompt_pays_for_the_memory_that_those_in_flight_keep_meanwhile() {
    let of = |memory_share| LatencyEstimate {
        memory_wait_s: 0.0,
        memory_share,
        prefill_s: 2.0,
        ..busy()
    };
    let footprint_alone = |c: &LatencyEstimate| memory_s(&LatencyEstimate { prefill_s: 0.0, ..*c }, 300.0);
    let (empty, full) = (of(0.1), of(0.9));
    let paid = |c: &LatencyEstimate| memory_s(c, 300.0) - footprint_alone(c);
    assert!(
        paid(&full) > 9.0 * paid(&empty),
        "in proportion to what they hold, and to its price"
    );
}

#[test]
fn idle_fleet_pays_no_toll() {
    let idle = LatencyEstimate {
        prefill_s: 0.2,
        step_with_s: 0.01,
        chunk_s: 0.25,
        ..LatencyEstimate::default()
    };
    for term in [
        stall_s(&idle),
        busy_period_s(&idle),
        memory_s(&idle, 300.0),
        eviction_s(&idle),
    ] {
        assert_eq!(term, 0.0);
    }
}

#[test]
fn objective_is_a_mixture_and_nonsense_is_refused() {
    let of = |ttft, e2e| {
        Objective {
            ttft,
            e2e,
            ..Objective::default()
        }
        .weights()
        .unwrap()
    };
    let (first, last, both) = (of(1.0, 0.0), of(0.0, 1.0), of(5.0, 5.0));
    assert!(close(both.busy, f64::midpoint(first.busy, last.busy)));
    assert!(last.busy < first.busy);
    for bad in [
        Objective {
            ttft: 0.0,
            ..Objective::default()
        },
        Objective {
            itl: -1.0,
            ..Objective::default()
        },
        Objective {
            ttft: f64::NAN,
            ..Objective::default()
        },
        Objective {
            ttft_slo_s: 0.0,
            ..Objective::default()
        },
    ] {
        assert!(bad.weights().is_err(), "{bad:?}");
    }
    let unknown = serde_json::json!({"tail": 1.0});
    assert!(PolicyConfig::from_name("toll", unknown.as_object().unwrap()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn price_rises_with_load_and_falls_with_overlap(
        s in 0.0..5.0_f64, w in 0.0..50.0_f64, n in 0.0..200.0_f64, rho in 0.0..0.95_f64,
        lambda in 0.0..20.0_f64, more in 0.0..10.0_f64,
    ) {
        let weights: TollWeights = Objective::default().weights().unwrap();
        let at = |s: f64, w: f64, n: f64| {
            let c = LatencyEstimate { prefill_s: s, wait_s: w, requests: n, utilisation: rho, arrivals_per_s: lambda, ..busy() };
            toll_s(&c, 300.0, &weights)
        };
        prop_assert!(at(s, w + more, n) >= at(s, w, n));
        prop_assert!(at(s, w, n + more) >= at(s, w, n));
        prop_assert!(at(s + more, w, n) >= at(s, w, n));
        prop_assert!(at(s, w, n) >= 0.0 && at(s, w, n).is_finite());
    }
}

fn router(workers: u64) -> Router {
    let toll = PolicyConfig::Toll(Objective::default());
    let router = Router::new(RouterConfig::new(64).with_policy(toll)).unwrap();
    for instance in 0..workers {
        let spec = WorkerSpec::default()
            .with_total_kv_blocks(10_000)
            .with_max_num_batched_tokens(8192);
        router.add_worker(WorkerId::new(instance, 0), spec).unwrap();
    }
    router
}

fn hashes(from: u64, count: u64) -> Vec<LocalHash> {
    (from..from + count).map(LocalHash).collect()
}

fn ask(hashes: &[LocalHash], id: u64) -> RouteRequest<'_> {
    RouteRequest {
        request_id: Some(RequestId(id)),
        local_hashes: hashes,
        input_tokens: hashes.len() as u32 * 64,
        ..RouteRequest::default()
    }
}

#[test]
fn idle_toll_is_affinity_and_a_long_backlog_overrides_it() {
    let router = router(2);
    let prompt = hashes(1, 64);
    let blocks = prompt
        .iter()
        .map(|h| StoredBlock {
            engine_hash: EngineHash(h.0),
            local_hash: *h,
        })
        .collect();
    let hot = WorkerId::new(1, 0);
    router
        .apply(
            hot,
            &KvEvent::Stored {
                parent: None,
                blocks,
                tier: Tier::Device,
            },
        )
        .unwrap();
    assert_eq!(router.route(&ask(&prompt, 1), 0.0).unwrap().worker, hot);

    // Fifty cold prompts of 64 k tokens on the hot worker: its cache is no longer worth the wait.
    for i in 0..50 {
        let cold = hashes(1_000_000 * (i + 1), 1000);
        router.book(&ask(&cold, 100 + i), hot, 0.1).unwrap();
    }
    assert_eq!(
        router.route(&ask(&prompt, 2), 0.2).unwrap().worker,
        WorkerId::new(0, 0)
    );
}

#[test]
fn slow_worker_gets_fewer_requests_once_it_is_known() {
    let router = router(2);
    let mut free_at_s = [0.0_f64; 2];
    let mut sent = [0_u32; 2];
    let mut ends: Vec<(f64, u64)> = Vec::new();
    for i in 0..400_u64 {
        let now_s = i as f64 * 0.35;
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        while ends.first().is_some_and(|end| end.0 <= now_s) {
            let (at_s, id) = ends.remove(0);
            router.prefill_done(RequestId(id), at_s).unwrap();
            router.release(RequestId(id), at_s).unwrap();
        }
        let prompt = hashes(1_000_000 * (i + 1), 128);
        let chosen = router.route(&ask(&prompt, i), now_s).unwrap().worker.instance as usize;
        let service_s = if chosen == 0 { 0.25 } else { 1.0 };
        free_at_s[chosen] = free_at_s[chosen].max(now_s) + service_s;
        ends.push((free_at_s[chosen], i));
        if i >= 50 {
            sent[chosen] += 1;
        }
    }
    assert!(sent[0] > 10 * sent[1], "{sent:?} {:?}", router.curves());
}

#[test]
fn newcomer_gets_at_most_its_share_while_another_is_known() {
    // Ten requests in flight and one more, on three workers: at most four on a new worker.
    let requests = |i: usize| [3.0, 4.0, 3.0][i];
    let mut costs = [5.0, 1.0, 2.0];
    let some_new = [false, true, true];
    hold_newcomers(&some_new, requests, |_| 1000, &mut costs);
    assert_eq!(costs, [5.0, f64::INFINITY, 2.0]);
    let mut costs = [5.0, 1.0, 2.0];
    hold_newcomers(&some_new, requests, |i| [1000, 100, 1000][i], &mut costs);
    assert_eq!(costs, [5.0, 1.0, 2.0], "a tenth of the work is no guess");
    hold_newcomers(&some_new, requests, |i| [1000, 101, 1000][i], &mut costs);
    assert_eq!(costs, [5.0, f64::INFINITY, 2.0], "a system prompt is not enough");
    let mut costs = [5.0, 1.0, 2.0];
    hold_newcomers(&[true, true, true], requests, |_| 1000, &mut costs);
    assert_eq!(costs, [5.0, 1.0, 2.0], "no worker is known, so none is held");
}

#[test]
fn prefix_in_flight_counts_as_cached_by_the_next_turn() {
    let router = router(2);
    // A long prompt is being computed, and no KV event has reported its blocks. The next turn of its session arrives.
    let first = hashes(1, 2000);
    let worker = router.route(&ask(&first, 1), 0.0).unwrap().worker;
    let mut next = first.clone();
    next.extend(hashes(9000, 2));
    let turn = router.route(&ask(&next, 2), 0.5).unwrap();
    assert_eq!(turn.worker, worker);
    // The second turn is booked with the tokens that it adds, not with its whole prompt.
    let tokens = |id| {
        let snapshot = router.snapshot().workers;
        snapshot.iter().find(|w| w.worker == id).unwrap().prefill_tokens
    };
    assert_eq!(tokens(worker), 2002 * 64);
    // The first turn has ended and no KV event came, so the router knows of no cached block.
    for id in 1..=2 {
        router.prefill_done(RequestId(id), 20.0).unwrap();
        router.release(RequestId(id), 20.0).unwrap();
    }
    let again = router.route(&ask(&next, 3), 21.0).unwrap().worker;
    assert_eq!(tokens(again), 2002 * 64);
}

#[test]
fn flood_does_not_bury_a_worker_that_has_just_joined() {
    let router = router(4);
    // Four busy workers whose curves have outcomes.
    for i in 0..64 {
        router
            .route(&ask(&hashes(1000 * (i + 1), 20), i), i as f64 * 0.5)
            .unwrap();
        router.prefill_done(RequestId(i), i as f64 * 0.5 + 0.2).unwrap();
    }
    router
        .add_worker(WorkerId::new(9, 0), WorkerSpec::default())
        .unwrap();
    for i in 64..400 {
        router.route(&ask(&hashes(1000 * (i + 1), 20), i), 40.0).unwrap();
        let loads = router.snapshot().workers;
        let in_flight: u32 = loads.iter().map(|worker| worker.active_requests).sum();
        assert!(loads[4].active_requests <= in_flight.div_ceil(5), "{loads:?}");
    }
}

#[test]
fn decode_worker_pays_for_the_prompt_blocks_that_it_does_not_hold() {
    let config = RouterConfig::new(64)
        .with_policy(PolicyConfig::Toll(Objective::default()))
        .with_prefill_tracking(false);
    let costs = |config: RouterConfig| {
        let router = Router::new(config).unwrap();
        for instance in 0..2 {
            router
                .add_worker(WorkerId::new(instance, 0), WorkerSpec::default())
                .unwrap();
        }
        let prompt = hashes(1, 4);
        let blocks = prompt.iter().map(|&local_hash| StoredBlock {
            engine_hash: EngineHash(local_hash.0),
            local_hash,
        });
        let stored = KvEvent::Stored {
            parent: None,
            blocks: blocks.collect(),
            tier: Tier::Device,
        };
        router.apply(WorkerId::new(1, 0), &stored).unwrap();
        let mut question = ask(&prompt, 1);
        question.explain = true;
        let found = router.route(&question, 0.0).unwrap().candidates;
        for candidate in &found {
            let sum: f64 = candidate.parts.iter().map(|(_, cost)| cost).sum();
            assert_eq!(candidate.parts.iter().count(), 6);
            assert!((sum - candidate.cost).abs() < 1e-12, "{candidate:?}");
        }
        found[0].cost - found[1].cost
    };
    assert!(close(costs(config.clone()), 0.0));
    let moved_s = 4.0 * 64.0 * 1e-5;
    assert!((costs(config.clone().with_handoff_s_per_token(1e-5)) - moved_s).abs() < 1e-9);
    assert!(Router::new(config.with_handoff_s_per_token(f64::NAN)).is_err());
}

#[test]
fn full_cache_makes_new_blocks_dearer() {
    let price = |evicting: bool| {
        let router = router(1);
        for i in 0..2000_u64 {
            let block = StoredBlock {
                engine_hash: EngineHash(i),
                local_hash: LocalHash(i),
            };
            let stored = KvEvent::Stored {
                parent: None,
                blocks: vec![block],
                tier: Tier::Device,
            };
            router.apply(WorkerId::new(0, 0), &stored).unwrap();
            if evicting && i >= 1000 {
                let removed = KvEvent::Removed {
                    blocks: vec![EngineHash(i - 1000)],
                    tier: Tier::Device,
                };
                router.apply(WorkerId::new(0, 0), &removed).unwrap();
            }
        }
        // A prompt whose prefix was found in a cache, so that a cached block has a worth.
        router.route(&ask(&hashes(1500, 1), 1), 0.0).unwrap();
        router.route(&ask(&hashes(1_000_000, 50), 2), 1.0).unwrap().cost
    };
    assert!(price(true) > price(false));
}

#[test]
fn ledger_is_empty_when_everything_ended_or_expired() {
    let config = RouterConfig::new(64)
        .with_policy(PolicyConfig::Toll(Objective::default()))
        .with_booking_ttl_s(5.0);
    let router = Router::new(config).unwrap();
    let worker = WorkerId::new(0, 0);
    router.add_worker(worker, WorkerSpec::default()).unwrap();
    for i in 0..20 {
        router
            .route(&ask(&hashes(1000 * (i + 1), 10), i), i as f64 * 0.1)
            .unwrap();
    }
    for i in 0..10 {
        router.prefill_done(RequestId(i), 3.0).unwrap();
        router.release(RequestId(i), 4.0).unwrap();
    }
    assert!(router.occupancy(0, 4.0).backlog_s > 0.0);
    assert_eq!(router.expire(100.0), 10);
    assert!(router.occupancy(0, 100.0).backlog_s.abs() < 1e-9);
    assert_eq!(router.occupancy(0, 100.0).requests, 0);
}

#[test]
fn recorded_decision_has_the_seconds_from_before_its_booking() {
    let router = router(3);
    router.route(&ask(&hashes(7, 100), 7), 0.0).unwrap();
    assert!(
        router.take_decisions().is_empty(),
        "nothing is kept unless asked for"
    );
    router.release(RequestId(7), 0.0).unwrap();
    router.record_decisions(true);
    let first = router.route(&ask(&hashes(1, 100), 1), 0.0).unwrap().worker;
    let second = router
        .route(&ask(&hashes(1_000_000, 100), 2), 0.1)
        .unwrap()
        .worker;
    assert_ne!(first, second);
    let kept = router.take_decisions();
    assert_eq!([kept[0].request, kept[1].request], [RequestId(1), RequestId(2)]);
    assert!(
        kept[0].costs.wait_s.iter().all(|wait_s| wait_s.abs() < 1e-9),
        "{kept:?}"
    );
    assert_eq!(
        (kept[0].costs.prefill_s.len(), kept[0].peer_decode_s.len()),
        (3, 3)
    );
    assert!(kept[0].step_s > 0.0);
    let waiting: Vec<usize> = (0..3).filter(|&j| kept[1].costs.wait_s[j] > 1e-9).collect();
    assert_eq!(waiting, [first.instance as usize]);
    assert!(kept[1].costs.regret_s() < 1e-9);
    assert!(router.take_decisions().is_empty());
}

#[test]
fn recorded_decisions_that_are_not_taken_are_bounded() {
    let router = router(2);
    router.record_decisions(true);
    for i in 0..1000 {
        router.route(&ask(&hashes(i, 4), i + 1), 0.0).unwrap();
    }
    assert_eq!(router.take_decisions().len(), 256);
}

/// Cost of recording a decision for the price of anarchy. Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_keeping_a_decision() {
    for workers in [8, 64, 512] {
        let router = router(workers);
        let prompt = hashes(1, 100);
        let mut best_ns = [f64::INFINITY; 2];
        for _ in 0..2000 {
            for keep in [false, true] {
                router.record_decisions(keep);
                let started = std::time::Instant::now();
                for i in 0..20 {
                    router.route(&ask(&prompt, i + 1), 0.0).unwrap();
                    drop(router.take_decisions());
                }
                let best = &mut best_ns[usize::from(keep)];
                *best = best.min(started.elapsed().as_nanos() as f64 / 20.0);
                for i in 0..20 {
                    router.release(RequestId(i + 1), 0.0).unwrap();
                }
            }
        }
        let kept_ns = best_ns[1] - best_ns[0];
        println!(
            "{workers} workers: {:.0} ns, with keeping {:.0}: {:.1} per worker",
            best_ns[0],
            best_ns[1],
            kept_ns / workers as f64
        );
    }
}
