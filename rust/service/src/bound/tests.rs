//! Windows of a meter: what they wait for, what they refuse, and what they leave out.

use serde_json::json;

use super::*;
use crate::config::ServiceConfig;
use crate::service::Service;

const LONG: Duration = Duration::from_secs(200);

/// A service with a model of two workers, and its model.
fn served() -> (Arc<Service>, Arc<Model>) {
    let service = Service::new(ServiceConfig::default()).expect("a valid configuration");
    service
        .upsert_model(&json!({"name": "m", "block_size": 16}).to_string())
        .expect("a valid model");
    for instance in [1, 2] {
        let worker =
            json!({"model": "m", "role": "aggregated", "instance": instance, "total_kv_blocks": 500});
        service
            .upsert_worker(&worker.to_string())
            .expect("a valid worker");
    }
    let (model, _) = service.models.find("m").expect("a registered model");
    (service, model)
}

fn meter() -> Arc<BoundMeter> {
    BoundMeter::new(10.0, Arc::new(Account::new()))
}

fn prompt(blocks: usize) -> Prompt {
    let hashes: Vec<_> = (0..blocks as u64)
        .map(|at| wardrop_core::LocalHash(at + 1))
        .collect();
    let sequence = wardrop_core::sequence_hashes(&hashes);
    Prompt::from_hashes(hashes, sequence, blocks as u32 * 16 + 3)
}

fn arrive(meter: &Arc<BoundMeter>, at_s: f64) -> Option<BoundTicket> {
    meter.arrive(at_s, &prompt(10), 16)
}

fn finished() -> ReceiptOutcome {
    ReceiptOutcome {
        how: "finished",
        status: 200,
        ttft_s: Some(0.5),
        e2e_s: Some(1.0),
        output_tokens: Some(10),
        cached_tokens: Some(40),
        ..ReceiptOutcome::default()
    }
}

#[test]
fn a_window_waits_for_its_last_request_and_for_nothing_else() {
    let (_service, model) = served();
    let meter = meter();
    let first = arrive(&meter, 1.0).expect("an open window");
    let late = arrive(&meter, 2.0).expect("the same window");
    assert_eq!(first.window(), late.window());
    let other = arrive(&meter, 12.0).expect("the next window");
    assert_eq!(other.window(), first.window() + 1);
    first.end(&finished());
    assert!(
        meter.next_window(&model, 13.0).is_none(),
        "a request is in flight"
    );
    late.end(&ReceiptOutcome::refused(503));
    let window = meter.next_window(&model, 14.0).expect("all requests have ended");
    assert_eq!((window.ended.len(), window.arrived), (2, 2));
    assert_eq!(
        window.ended[0].found_blocks, 2,
        "the engine found 40 tokens in its cache"
    );
    assert!(window.ended[0].paid.is_some() && window.ended[1].paid.is_none());
    assert_eq!(window.fleet.bound_fleet().known_blocks(), 1_000);
    // The open window closes by its age, and gives up on a request that never ends.
    assert!(meter.next_window(&model, 30.0).is_none());
    let window = meter
        .next_window(&model, 12.0 + 10.0 + WAIT_S)
        .expect("the longest wait is over");
    assert_eq!((window.ended.len(), window.in_flight), (0, 1));
    other.end(&finished());
}

#[test]
fn a_figure_that_is_missing_says_why() {
    let (service, model) = served();
    let meter = meter();
    let reason = |meter: &BoundMeter| meter.report(20.0).missing;
    assert_eq!(reason(&meter), Some(Missing::NoWindow));
    arrive(&meter, 1.0).expect("an open window").end(&finished());
    meter.solve(&model, 12.0, None);
    assert_eq!(reason(&meter), Some(Missing::NoCurves));
    assert!(
        meter.report(20.0).history_blocks == 10,
        "a refused window is history too"
    );
    let evidence = CurveEvidence {
        prefill_samples: 1_000,
        step_samples: 1_000,
        ..CurveEvidence::default()
    };
    let ended = |at_s: f64| {
        arrive(&meter, at_s).expect("an open window").end(&finished());
        meter.next_window(&model, at_s + 10.0).expect("a closed window")
    };
    let (_, priced) = meter.price(ended(20.0), &evidence);
    let price = priced.expect("a covered fleet");
    assert!(price.e2e.requests == 1 && price.e2e.lower_s > 0.0);
    let mut mixed = ended(40.0);
    mixed.fleet.is_mixed = true;
    let (_, refused) = meter.price(mixed, &evidence);
    assert!(matches!(refused, Err((Missing::NotCovered, Some(_)))));
    for instance in [1, 2] {
        service
            .remove_worker("m", "aggregated", instance)
            .expect("a known role");
    }
    let (_, empty) = meter.price(ended(60.0), &evidence);
    assert!(matches!(empty, Err((Missing::NoWorker, None))));
}

#[test]
fn workers_that_left_within_a_window_count_for_all_of_it() {
    let (service, model) = served();
    let meter = meter();
    let ticket = arrive(&meter, 1.0).expect("an open window");
    assert!(meter.next_window(&model, 2.0).is_none());
    service.remove_worker("m", "aggregated", 1).expect("a known role");
    ticket.end(&finished());
    let window = meter.next_window(&model, 12.0).expect("a closed window");
    assert_eq!(window.fleet.bound_fleet().pools[0].workers.len(), 2);
}

#[test]
fn an_overdrawn_account_leaves_whole_windows_out_and_the_history_begins_again() {
    let (_service, model) = served();
    let meter = meter();
    let first = arrive(&meter, 1.0).expect("an open window");
    let number = first.window();
    meter.account.charge(Duration::from_secs(1));
    arrive(&meter, 2.0)
        .expect("an open window is finished")
        .end(&finished());
    assert!(arrive(&meter, 12.0).is_none(), "no window opens");
    first.end(&finished());
    meter.solve(&model, 13.0, None);
    meter.account.pass(LONG);
    let next = arrive(&meter, 14.0).expect("the debt is paid off");
    assert_eq!(next.window(), number + 2, "a jump tells of the hole");
    next.end(&finished());
    meter.solve(&model, 30.0, None);
    let report = meter.report(30.0);
    assert_eq!((report.passed_over, report.history_restarts), (1, 1));
    assert_eq!(report.history_blocks, 10);
}

#[test]
fn memory_is_bounded_when_requests_do_not_end() {
    let meter = meter();
    let mut tickets = Vec::new();
    for window in 0..20 {
        tickets.extend(arrive(&meter, f64::from(window) * 11.0));
    }
    assert_eq!(tickets.len(), MAX_CLOSED);
    let full = BoundMeter::new(3_600.0, Arc::new(Account::new()));
    let first = full
        .arrive(0.0, &prompt(window::MAX_BLOCKS), 16)
        .expect("an open window");
    let second = full.arrive(0.1, &prompt(1), 16).expect("the next window");
    assert_eq!(second.window(), first.window() + 1);
    assert!(full.arrive(0.2, &Prompt::unknown(100, true), 16).is_none());
}

/// Run with `cargo test --release -p wardrop-service cost_of_recording -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_recording_a_request() {
    for blocks in [10, 100, 1_000] {
        let prompt = prompt(blocks);
        let mut least = Duration::MAX;
        for _ in 0..50 {
            let meter = meter();
            let started = Instant::now();
            for number in 0..1_000 {
                let ticket = meter.arrive(f64::from(number) * 1e-4, &prompt, 16);
                if let Some(ticket) = ticket {
                    ticket.end(&finished());
                }
            }
            least = least.min(started.elapsed() / 1_000);
        }
        println!("{blocks} blocks: {least:?} per request");
    }
}
