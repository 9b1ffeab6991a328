//! Falls and rises by evidence, by the feed and by incarnation, and what a price then believes.

use super::*;
use crate::index::Slot;

const BLOCK_TOKENS: u32 = 16;
const SLOT: Slot = Slot(0);

fn table() -> IndexTrust {
    let mut table = IndexTrust::new(true);
    table.add_worker(SLOT);
    table
}

/// A claim of `device_blocks` for a prompt of 100 blocks.
fn claim(table: &IndexTrust, device_blocks: u32) -> Claim {
    Claim {
        request_blocks: 100,
        device_blocks,
        all_tiers_blocks: device_blocks,
        epoch: table.epoch(SLOT),
        ..Claim::default()
    }
}

/// Reports `requests` requests, each with these numbers of listed and found blocks.
fn report(table: &mut IndexTrust, requests: u32, listed_blocks: u32, found_blocks: u32) {
    for _ in 0..requests {
        let claim = claim(table, listed_blocks);
        table.observe(SLOT, &claim, u64::from(found_blocks * BLOCK_TOKENS), BLOCK_TOKENS);
    }
}

/// Requests that such reports need to reach `mode`.
fn requests_until(table: &mut IndexTrust, mode: TrustMode, mut one: impl FnMut(&mut IndexTrust)) -> u32 {
    for requests in 1..=100 {
        one(table);
        if table.mode(SLOT) == mode {
            return requests;
        }
    }
    panic!("{mode:?} is not reached: {:?}", table.report(SLOT));
}

#[test]
fn a_new_worker_that_finds_nothing_is_degraded_by_4_and_load_only_by_8_requests() {
    let mut table = table();
    assert!(table.is_exact());
    report(&mut table, 3, 50, 0);
    assert_eq!(table.mode(SLOT), TrustMode::Exact, "3 requests are too few");
    report(&mut table, 1, 50, 0);
    assert_eq!(table.mode(SLOT), TrustMode::Degraded);
    assert!(!table.is_exact());
    assert_eq!(
        table.believed(SLOT, [50, 2, 3], 0),
        ([0; 3], true),
        "nothing listed was found"
    );
    report(&mut table, 4, 50, 0);
    assert_eq!(table.mode(SLOT), TrustMode::LoadOnly);
    assert_eq!(table.believed(SLOT, [50, 2, 3], 9), ([0; 3], false));
}

#[test]
fn a_proven_worker_is_degraded_by_4_and_load_only_by_36_requests_and_exact_again_by_40() {
    let mut table = table();
    report(&mut table, 500, 50, 50);
    let lie = |table: &mut IndexTrust| report(table, 1, 50, 0);
    assert_eq!(requests_until(&mut table, TrustMode::Degraded, lie), 4);
    assert_eq!(requests_until(&mut table, TrustMode::LoadOnly, lie), 32);
    let truth = |table: &mut IndexTrust| report(table, 1, 50, 50);
    let degraded = requests_until(&mut table, TrustMode::Degraded, truth);
    let exact = requests_until(&mut table, TrustMode::Exact, truth);
    assert!(degraded == 8 && degraded + exact <= 40, "{degraded} and {exact}");
    assert_eq!(table.report(SLOT).mode_changes, 4);
}

#[test]
fn share_between_the_thresholds_changes_no_mode_in_either_direction() {
    let mut exact = table();
    report(&mut exact, 300, 100, 85);
    assert_eq!(exact.mode(SLOT), TrustMode::Exact);
    let mut fallen = table();
    report(&mut fallen, 40, 100, 70);
    assert_eq!(fallen.mode(SLOT), TrustMode::Degraded);
    report(&mut fallen, 300, 100, 87);
    assert_eq!(fallen.mode(SLOT), TrustMode::Degraded);
    assert_eq!(
        fallen.believed(SLOT, [10, 10, 0], 0),
        ([10, 7, 0], true),
        "0.87 of 20 blocks"
    );
}

#[test]
fn blocks_that_the_index_lacks_fall_to_predictions_that_hold() {
    let mut table = table();
    let missing = |table: &mut IndexTrust| {
        let claim = Claim {
            placed_blocks: Some(40),
            ..claim(table, 0)
        };
        table.observe(SLOT, &claim, 40 * 16, BLOCK_TOKENS);
    };
    assert_eq!(requests_until(&mut table, TrustMode::Degraded, missing), 4);
    assert_eq!(requests_until(&mut table, TrustMode::Predicted, missing), 4);
    assert_eq!(table.believed(SLOT, [0; 3], 40), ([40, 0, 0], true));
    let wrong = |table: &mut IndexTrust| {
        let claim = Claim {
            placed_blocks: Some(40),
            ..claim(table, 40)
        };
        table.observe(SLOT, &claim, 0, BLOCK_TOKENS);
    };
    let fell = requests_until(&mut table, TrustMode::LoadOnly, wrong);
    assert!(
        fell <= 40,
        "predictions that do not hold are dropped after {fell} requests"
    );
}

#[test]
fn shared_prompts_in_flight_lower_tiers_and_the_last_block_are_no_errors() {
    let mut table = table();
    for _ in 0..50 {
        let in_flight = Claim {
            in_flight_blocks: 60,
            ..claim(&table, 10)
        };
        table.observe(SLOT, &in_flight, 60 * 16, BLOCK_TOKENS);
        let tiers = Claim {
            all_tiers_blocks: 30,
            ..claim(&table, 10)
        };
        table.observe(SLOT, &tiers, 29 * 16 + 15, BLOCK_TOKENS);
        let full = claim(&table, 100);
        table.observe(SLOT, &full, 100 * 16 - 1, BLOCK_TOKENS);
    }
    assert_eq!(
        (table.mode(SLOT), table.report(SLOT).score),
        (TrustMode::Exact, 1.0)
    );
}

#[test]
fn a_poor_feed_degrades_at_once_and_its_end_restores_at_once() {
    let mut table = table();
    assert!(table.set_feed_share(SLOT, 0.5));
    assert_eq!(table.mode(SLOT), TrustMode::Degraded);
    assert_eq!(table.believed(SLOT, [9, 0, 0], 0), ([4, 0, 0], true));
    report(&mut table, 2, 50, 50);
    assert!(table.set_feed_share(SLOT, 1.0));
    assert_eq!(table.mode(SLOT), TrustMode::Exact);
    for wrong in [f64::NAN, -1.0] {
        table.set_feed_share(SLOT, wrong);
        assert_eq!(
            table.report(SLOT).score,
            0.0,
            "a share that is no number is no trust"
        );
    }
}

#[test]
fn dropped_blocks_take_their_evidence_along_and_a_new_incarnation_the_mode_as_well() {
    let mut table = table();
    report(&mut table, 20, 50, 0);
    let before = claim(&table, 50);
    table.forget_blocks(SLOT);
    assert_eq!(
        (table.mode(SLOT), table.report(SLOT).score),
        (TrustMode::LoadOnly, 1.0)
    );
    for _ in 0..20 {
        table.observe(SLOT, &before, 0, BLOCK_TOKENS);
    }
    assert_eq!(
        table.report(SLOT).score,
        1.0,
        "a claim about dropped blocks is no evidence"
    );
    report(&mut table, 7, 50, 50);
    assert_eq!(table.mode(SLOT), TrustMode::LoadOnly, "a rise needs 8 requests");
    assert!(table.begin_incarnation(SLOT));
    assert_eq!(table.mode(SLOT), TrustMode::Exact);
    assert!(table.is_exact());
}

#[test]
fn without_measured_trust_every_worker_stays_exact() {
    let mut table = IndexTrust::new(false);
    table.add_worker(SLOT);
    report(&mut table, 100, 50, 0);
    table.set_feed_share(SLOT, 0.0);
    assert_eq!((table.mode(SLOT), table.is_exact()), (TrustMode::Exact, true));
    assert_eq!(
        table.report(SLOT).score,
        0.0,
        "the score is reported all the same"
    );
}

#[test]
fn listed_blocks_that_are_found_no_more_often_than_others_get_no_credit() {
    let mut table = table();
    for request in 0..200 {
        // The engine holds the prompt in one of four requests, whether the index lists it or not.
        let found_blocks = if request / 2 % 4 == 0 { 100 } else { 0 };
        report(&mut table, 1, 100 * (request % 2), found_blocks);
    }
    assert_eq!(table.mode(SLOT), TrustMode::Degraded);
    let ([believed, ..], _) = table.believed(SLOT, [100, 0, 0], 0);
    assert!(believed <= 10, "{believed} of 100 blocks are believed");
}

#[test]
fn degraded_workers_of_similar_shares_are_believed_alike_and_others_by_their_own() {
    let slots = [Slot(0), Slot(1), Slot(2)];
    let mut table = IndexTrust::new(true);
    for (&slot, found_blocks) in slots.iter().zip([50, 60, 15]) {
        table.add_worker(slot);
        for _ in 0..100 {
            let claim = Claim {
                request_blocks: 100,
                device_blocks: 100,
                all_tiers_blocks: 100,
                epoch: table.epoch(slot),
                ..Claim::default()
            };
            table.observe(slot, &claim, found_blocks * 16, BLOCK_TOKENS);
        }
    }
    let believed = slots.map(|slot| table.believed(slot, [100, 0, 0], 0).0[0]);
    assert_eq!(believed[0], believed[1], "{believed:?}");
    assert!((14..=16).contains(&believed[2]), "{believed:?}");
}
