//! Arms with a limit relaxed: what they follow, and which of them have room.

use serde_json::{Value, json};

use super::*;
use crate::config::ServiceConfig;
use crate::service::Service;

fn routing(policy: &str, queue: Option<f64>) -> Routing {
    let queue = queue.map(|kappa| wardrop_core::queue::QueueConfig {
        kappa,
        ..Default::default()
    });
    let policy = serde_json::from_value(json!({ "name": policy })).expect("a policy");
    Routing { policy, queue }
}

/// A service whose model `m` has workers of 500 KV blocks each.
fn served(instances: &[u64]) -> (Arc<Service>, Arc<Model>) {
    let service = Service::new(ServiceConfig::default()).expect("a valid configuration");
    service
        .upsert_model(&json!({"name": "m", "block_size": 16}).to_string())
        .expect("a valid model");
    for instance in instances {
        join(&service, *instance);
    }
    let (model, _) = service.models.find("m").expect("a registered model");
    (service, model)
}

fn join(service: &Service, instance: u64) {
    let worker = json!({"model": "m", "role": "aggregated", "instance": instance, "total_kv_blocks": 500});
    service
        .upsert_worker(&worker.to_string())
        .expect("a valid worker");
}

fn options() -> ShadowOptions {
    ShadowOptions {
        limits: true,
        tick_s: 1.0,
        warm_ticks: 2,
        lag_s: 1.0,
        cpu_share: 1.0,
        ..ShadowOptions::default()
    }
}

/// Feeds two long prompts a second for 40 seconds from `from_s`, every one of them new, and simulates them.
fn feed(shadows: &mut ModelShadows, from_s: f64) {
    for at in 0..80_u64 {
        let id = from_s as u64 * 1_000 + at;
        let at_s = from_s + at as f64 * 0.5;
        shadows.take(Event::Arrived {
            id,
            model: Arc::from("m"),
            at_s,
            input_tokens: 1_600,
            hashes: (0..100)
                .map(|block| (id * 1_000 + block).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .collect(),
        });
        shadows.take(Event::Ended {
            id,
            model: Arc::from("m"),
            output_tokens: 100,
        });
        while shadows.advance(at_s) && shadows.is_due(at_s) {}
    }
}

fn saving(report: &Value, limit: &str) -> f64 {
    let found = report["limits"].as_array().expect("limits").iter();
    let found = found.filter(|found| found["limit"] == limit).collect::<Vec<_>>();
    found[0]["e2e_saving"]["value"].as_f64().expect("a saving")
}

#[test]
fn arms_with_a_limit_follow_workers_and_the_routing_in_force() {
    let (service, model) = served(&[1]);
    let mut shadows = ModelShadows::new(Arc::from("m"));
    let options = options();
    options.check().expect("limits without policies");
    shadows.follow(&model, &routing("round_robin", None), &options, 0.0);
    let report = |shadows: &ModelShadows, now_s| json!(shadows.report(&options, now_s));
    feed(&mut shadows, 10.0);
    let one = report(&shadows, 50.0);
    assert_eq!(one["arms"].as_array().map(Vec::len), Some(1), "{one}");
    assert_eq!(one["policies"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["limits"].as_array().map(Vec::len), Some(5));
    let of_one = saving(&one, "one_more_worker");
    assert!(of_one > 0.05, "a second worker beside one: {one}");

    (2..=8).for_each(|instance| join(&service, instance));
    shadows.follow(&model, &routing("round_robin", None), &options, 50.0);
    feed(&mut shadows, 50.0);
    let eight = report(&shadows, 90.0);
    assert_eq!(eight["workers"], 8);
    let of_eight = saving(&eight, "one_more_worker");
    assert!(
        of_eight < of_one / 2.0,
        "a ninth worker beside eight: {of_eight}, {of_one}"
    );
    for instance in 2..=8 {
        service
            .remove_worker("m", "aggregated", instance)
            .expect("a registered worker");
    }
    shadows.follow(&model, &routing("round_robin", None), &options, 90.0);
    feed(&mut shadows, 90.0);
    let again = saving(&report(&shadows, 130.0), "one_more_worker");
    assert!(again > of_one / 2.0, "one worker again: {again}, {of_one} before");

    // Another policy in force starts all comparisons over; equal seeds keep equal arms equal.
    join(&service, 2);
    shadows.follow(&model, &routing("least_loaded", None), &options, 130.0);
    feed(&mut shadows, 130.0);
    let other = report(&shadows, 170.0);
    assert_eq!(other["policies"][0]["policy"]["name"], "least_loaded");
    assert!(
        saving(&other, "shared_cache").abs() < 1e-9,
        "no prompt is like another: {other}"
    );

    // A queue in force is pooled already.
    shadows.follow(&model, &routing("toll", Some(0.0)), &options, 170.0);
    let queued = report(&shadows, 170.0);
    let names: Vec<_> = queued["limits"].as_array().expect("limits").iter().collect();
    assert_eq!(names.len(), 4, "{queued}");
    assert!(names.iter().all(|limit| limit["limit"] != "pooled_queue"));
}

#[test]
fn limits_without_room_are_named_and_the_others_run() {
    let (_service, model) = served(&[1, 2]);
    let mut shadows = ModelShadows::new(Arc::from("m"));
    // In force 1,000 blocks, two orders 1,000 each, one more worker 1,500.
    let small = ShadowOptions {
        max_blocks: 4_500,
        ..options()
    };
    shadows.follow(&model, &routing("toll", None), &small, 0.0);
    let report = json!(shadows.report(&small, 0.0));
    assert_eq!(
        report["limits_without_room"],
        json!(["shared_cache", "kv_memory"])
    );
    assert_eq!(report["limits"].as_array().map(Vec::len), Some(3), "{report}");
    let off = ShadowOptions {
        limits: false,
        ..small
    };
    shadows.follow(&model, &routing("toll", None), &off, 1.0);
    let report = json!(shadows.report(&off, 1.0));
    assert_eq!(
        (&report["limits_without_room"], &report["limits"]),
        (&json!([]), &json!([]))
    );
}
