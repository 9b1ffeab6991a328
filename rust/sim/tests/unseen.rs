//! Waits and work that no report shows, beside faults of the fleet.

use wardrop_core::RouterConfig;
use wardrop_sim::{EngineSpec, Fault, FaultKind, FleetSpec, Unseen, Workload, simulate};

const BLOCK_TOKENS: u32 = 16;
const REQUESTS: u32 = 400;

fn workload() -> Workload {
    let mut workload = Workload {
        block_start: vec![0],
        block_size: BLOCK_TOKENS,
        ..Workload::default()
    };
    for row in 0..REQUESTS {
        workload.arrival_ms.push(f64::from(row) * 5.0);
        workload.input_tokens.push(2 * BLOCK_TOKENS);
        workload.output_tokens.push(4);
        workload.blocks.extend([2 * row, 2 * row + 1]);
        workload.block_start.push(workload.blocks.len() as u64);
        workload.after.push(u32::MAX);
        workload.think_ms.push(0.0);
    }
    workload
}

fn engine() -> EngineSpec {
    EngineSpec {
        block_size: BLOCK_TOKENS,
        num_blocks: 4_000,
        ..EngineSpec::default()
    }
}

fn fault(at_ms: f64, kind: FaultKind) -> Fault {
    Fault {
        at_ms,
        worker: 0,
        kind,
    }
}

#[test]
fn requests_on_their_way_into_a_worker_that_crashes_are_tried_again() {
    // Discovery removes the worker before most of its requests have entered, and once it joins again before they have.
    for back_ms in [None, Some(510.0), Some(900.0)] {
        let mut faults = vec![fault(500.0, FaultKind::Crash { detect_ms: 20.0 })];
        faults.extend(back_ms.map(|at_ms| fault(at_ms, FaultKind::Join)));
        let fleet = FleetSpec {
            faults,
            unseen: Unseen {
                wait_ms: 400.0,
                ..Unseen::default()
            },
            ..FleetSpec::aggregated(3, engine())
        };
        let config = RouterConfig::new(BLOCK_TOKENS);
        let outcome = simulate(&fleet, &workload(), &[config]).expect("the run must go to its end");
        assert!(
            outcome.requests.first_token_ms.iter().all(|ms| ms.is_finite()),
            "{back_ms:?}"
        );
        assert!(
            outcome.requests.retries.iter().sum::<u32>() > 10,
            "{back_ms:?}: the crash must meet waiting requests"
        );
    }
}

#[test]
fn another_client_of_a_split_fleet_is_refused() {
    let fleet = FleetSpec {
        unseen: Unseen {
            other_client_every: 3,
            other_client_workers: 1,
            ..Unseen::default()
        },
        ..FleetSpec::split(1, 1, &engine())
    };
    let configs = [RouterConfig::new(BLOCK_TOKENS), RouterConfig::new(BLOCK_TOKENS)];
    let refused = simulate(&fleet, &workload(), &configs).expect_err("a split fleet has no such client");
    assert!(
        refused.to_string().contains("unseen.other_client_every"),
        "{refused}"
    );
}
