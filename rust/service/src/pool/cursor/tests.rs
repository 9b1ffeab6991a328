//! Tests of the order of events, of lost events and of joins, on a cursor alone.

use super::*;
use wardrop_core::{EngineHash, LocalHash, StoredBlock, Tier};

const PUBLISHER: u64 = 7;
const LIMITS: TrustOptions = TrustOptions::new(30.0);

fn store(hashes: std::ops::Range<u64>) -> KvEvent {
    let block = |hash| StoredBlock {
        engine_hash: EngineHash(hash),
        local_hash: LocalHash(hash),
    };
    KvEvent::Stored {
        parent: None,
        blocks: hashes.map(block).collect(),
        tier: Tier::Device,
    }
}

fn advance(cursor: &mut EventCursor, event_id: u64) -> Step {
    cursor.advance(PUBLISHER, event_id, None)
}

/// Loads an empty dump, from its start to its end. Returns whether the cursor took it.
fn dump(cursor: &mut EventCursor, budget: &mut KeptBudget) -> bool {
    cursor.begin_dump(budget);
    finish(cursor, budget)
}

fn finish(cursor: &mut EventCursor, budget: &mut KeptBudget) -> bool {
    let taken = cursor.begin_load(false, budget).is_some();
    while cursor.take_kept(budget).is_some() {}
    taken
}

#[test]
fn stream_from_its_start_is_synced() {
    let mut cursor = EventCursor::default();
    assert_eq!(advance(&mut cursor, 1), Step::Apply);
    assert_eq!(advance(&mut cursor, 2), Step::Apply);
    assert!(cursor.is_synced() && !cursor.needs_resync());
}

#[test]
fn joining_in_mid_stream_lacks_blocks_and_a_dump_supplies_them() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    assert_eq!(advance(&mut cursor, 17), Step::Apply);
    assert_eq!(
        (cursor.state(), cursor.needs_resync()),
        (StreamState::Partial, true)
    );
    assert!(dump(&mut cursor, &mut budget));
    assert!(cursor.is_synced() && !cursor.needs_resync());
    assert_eq!(cursor.gaps, 0);
}

#[test]
fn gap_is_counted_and_makes_the_blocks_suspect() {
    let mut cursor = EventCursor::default();
    advance(&mut cursor, 1);
    assert_eq!(advance(&mut cursor, 4), Step::Apply);
    assert_eq!((cursor.gaps, cursor.lost_events), (1, 2));
    assert_eq!(
        (cursor.state(), cursor.needs_resync()),
        (StreamState::Suspect, true)
    );
}

#[test]
fn gap_that_opens_while_a_dump_is_read_makes_the_dump_useless() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    advance(&mut cursor, 17);
    assert!(cursor.begin_dump(&mut budget));
    advance(&mut cursor, 20);
    assert!(!finish(&mut cursor, &mut budget));
    assert_eq!(
        (cursor.state(), cursor.needs_resync()),
        (StreamState::Suspect, true)
    );
    assert!(dump(&mut cursor, &mut budget), "the next dump heals it");
    assert!(cursor.is_synced());
}

#[test]
fn restart_while_a_dump_is_read_makes_the_dump_useless() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    advance(&mut cursor, 17);
    assert!(cursor.begin_dump(&mut budget));
    assert_eq!(cursor.advance(8, 1, None), Step::NewIncarnation);
    assert!(!finish(&mut cursor, &mut budget));
    assert!(cursor.is_synced(), "the new incarnation is known from its start");
}

#[test]
fn gap_that_opens_while_blocks_are_loaded_leaves_them_suspect() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    advance(&mut cursor, 17);
    cursor.begin_dump(&mut budget);
    assert!(cursor.begin_load(true, &mut budget).is_some());
    advance(&mut cursor, 30);
    cursor.keep(&store(0..2), &mut budget);
    assert_eq!(cursor.take_kept(&mut budget), Some(vec![store(0..2)]));
    assert_eq!(cursor.take_kept(&mut budget), None);
    assert_eq!(
        (cursor.state(), cursor.needs_resync()),
        (StreamState::Suspect, true)
    );
}

#[test]
fn any_first_event_of_another_publisher_is_a_new_incarnation() {
    for event_id in [1, 2, 3, 9] {
        let mut cursor = EventCursor::default();
        advance(&mut cursor, 1);
        advance(&mut cursor, 2);
        assert_eq!(
            cursor.advance(8, event_id, None),
            Step::NewIncarnation,
            "{event_id}"
        );
        assert_eq!(cursor.is_synced(), event_id == 1);
        assert_eq!(cursor.advance(8, event_id + 1, None), Step::Apply);
    }
}

#[test]
fn former_publisher_can_no_longer_write_and_its_events_make_the_blocks_suspect() {
    let mut cursor = EventCursor::default();
    advance(&mut cursor, 1);
    cursor.advance(8, 1, None);
    assert_eq!(advance(&mut cursor, 2), Step::Superseded);
    assert_eq!((cursor.superseded, cursor.state()), (1, StreamState::Suspect));
    cursor.allow(PUBLISHER);
    assert_eq!(
        advance(&mut cursor, 3),
        Step::NewIncarnation,
        "discovery lists it again"
    );
}

#[test]
fn former_publishers_are_bounded() {
    let mut cursor = EventCursor::default();
    for publisher in 1..100 {
        cursor.advance(publisher, 1, None);
        assert!(cursor.former.len() <= FORMER_PUBLISHERS_LIMIT);
    }
}

#[test]
fn falling_id_is_a_new_incarnation() {
    let mut cursor = EventCursor::default();
    advance(&mut cursor, 1);
    advance(&mut cursor, 2);
    assert_eq!(advance(&mut cursor, 1), Step::NewIncarnation);
    assert!(cursor.is_synced());
    assert_eq!(advance(&mut cursor, 1), Step::Duplicate);
    assert_eq!(advance(&mut cursor, 2), Step::Apply);
}

#[test]
fn idle_worker_that_was_dumped_may_go_on_at_any_later_id() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    cursor.begin_dump(&mut budget);
    cursor.begin_load(true, &mut budget);
    assert_eq!(cursor.take_kept(&mut budget), None);
    assert_eq!(cursor.advance(PUBLISHER, 500, Some(PUBLISHER)), Step::Apply);
    assert!(cursor.is_synced());
}

#[test]
fn dumped_worker_whose_first_event_begins_a_life_restarted_after_the_dump() {
    for (event_id, followed) in [(1, Some(PUBLISHER)), (5, Some(8))] {
        let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
        cursor.begin_dump(&mut budget);
        cursor.begin_load(true, &mut budget);
        assert_eq!(cursor.take_kept(&mut budget), None);
        assert_eq!(
            cursor.advance(PUBLISHER, event_id, followed),
            Step::NewIncarnation
        );
    }
}

#[test]
fn suspect_blocks_are_forgotten_after_the_limit_only() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    advance(&mut cursor, 1);
    cursor.miss(0);
    assert!(!cursor.review(100.0, LIMITS, &mut budget));
    assert!(!cursor.review(130.0, LIMITS, &mut budget));
    assert!(cursor.review(130.1, LIMITS, &mut budget));
    cursor.begin_clear(StreamState::Partial, &mut budget);
    assert_eq!(cursor.take_kept(&mut budget), None);
    assert_eq!(
        (cursor.state(), cursor.needs_resync()),
        (StreamState::Partial, true)
    );
    assert!(!cursor.review(1e6, LIMITS, &mut budget));
}

#[test]
fn nothing_is_kept_without_a_dump_and_a_dump_that_hangs_is_given_up() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    advance(&mut cursor, 17);
    cursor.keep(&store(0..100), &mut budget);
    assert_eq!(budget.blocks, 0);
    cursor.begin_dump(&mut budget);
    cursor.keep(&store(0..100), &mut budget);
    assert_eq!(budget.blocks, 100);
    cursor.review(10.0, LIMITS, &mut budget);
    cursor.review(10.0 + LIMITS.dump_deadline_s + 0.1, LIMITS, &mut budget);
    assert_eq!((budget.blocks, cursor.awaits_dump()), (0, false));
    assert!(
        !finish(&mut cursor, &mut budget),
        "a late dump finds no kept events"
    );
}

#[test]
fn kept_events_are_bounded_per_worker_and_in_sum() {
    let mut budget = KeptBudget::default();
    let mut cursors: Vec<EventCursor> = (0..30).map(|_| EventCursor::default()).collect();
    for cursor in &mut cursors {
        advance(cursor, 9);
        cursor.begin_dump(&mut budget);
        for _ in 0..3 {
            cursor.keep(&store(0..KEPT_BLOCKS_LIMIT as u64 / 2), &mut budget);
            assert!(budget.blocks <= POOL_KEPT_BLOCKS_LIMIT);
        }
        assert!(!finish(cursor, &mut budget), "an incomplete dump is useless");
        assert_eq!(budget.blocks, 0);
    }
    for cursor in &mut cursors {
        cursor.begin_dump(&mut budget);
        cursor.keep(&store(0..KEPT_BLOCKS_LIMIT as u64), &mut budget);
        assert!(budget.blocks <= POOL_KEPT_BLOCKS_LIMIT);
    }
    assert_eq!(
        cursors
            .iter_mut()
            .filter_map(|cursor| cursor.begin_load(false, &mut budget))
            .count(),
        20
    );
}

#[test]
fn end_of_a_silent_stream_is_checked_by_a_dump_and_stays_synced() {
    let (mut cursor, mut budget) = (EventCursor::default(), KeptBudget::default());
    advance(&mut cursor, 1);
    assert!(!cursor.begin_dump(&mut budget), "nothing is missing");
    cursor.check_tail();
    assert!(cursor.is_synced() && cursor.tail_unchecked());
    assert!(dump(&mut cursor, &mut budget));
    assert!(cursor.is_synced() && !cursor.tail_unchecked());
}

fn restored(dump_follows: bool) -> EventCursor {
    let mut cursor = EventCursor::default();
    cursor.restore(PUBLISHER, Some(40), dump_follows);
    assert!(cursor.is_restored() && !cursor.is_synced() && !cursor.needs_resync());
    cursor
}

#[test]
fn next_event_confirms_restored_blocks() {
    let mut cursor = restored(true);
    let checked = cursor.check_restored(PUBLISHER, 41);
    assert_eq!(checked, Some((RestoreVerdict::Exact, Step::Apply)));
    assert!(cursor.is_synced() && !cursor.is_restored());
    assert_eq!(
        cursor.check_restored(PUBLISHER, 42),
        None,
        "the check happens once"
    );
    assert_eq!(advance(&mut cursor, 42), Step::Apply);
}

#[test]
fn later_event_asks_for_a_dump_or_forgets_where_none_can_come() {
    let mut cursor = restored(true);
    let checked = cursor.check_restored(PUBLISHER, 44);
    assert_eq!(checked, Some((RestoreVerdict::Outrun, Step::Apply)));
    assert!(cursor.needs_resync());
    assert_eq!(cursor.lost_events, 3);
    let checked = restored(false).check_restored(PUBLISHER, 44);
    assert_eq!(checked, Some((RestoreVerdict::Outrun, Step::Forget)));
}

#[test]
fn lower_equal_or_other_publishers_event_is_a_restart_of_a_restored_worker() {
    for (event_id, publisher) in [(1, PUBLISHER), (40, PUBLISHER), (41, 8), (1, 8)] {
        let mut cursor = restored(true);
        let checked = cursor.check_restored(publisher, event_id);
        assert_eq!(checked, Some((RestoreVerdict::Restarted, Step::NewIncarnation)));
        assert_eq!(
            (cursor.is_synced(), cursor.last_id()),
            (event_id == 1, Some(event_id))
        );
        assert_eq!(cursor.needs_resync(), event_id > 1);
    }
}

#[test]
fn restored_worker_without_an_event_id_needs_a_dump() {
    let mut budget = KeptBudget::default();
    let mut cursor = EventCursor::default();
    cursor.restore(PUBLISHER, None, true);
    let checked = cursor.check_restored(PUBLISHER, 2);
    assert_eq!(checked, Some((RestoreVerdict::Outrun, Step::Apply)));
    assert!(cursor.needs_resync());
    cursor.restore(PUBLISHER, None, true);
    let checked = cursor.check_restored(PUBLISHER, 1);
    assert_eq!(checked, Some((RestoreVerdict::Restarted, Step::NewIncarnation)));
    cursor.restore(PUBLISHER, None, true);
    assert!(dump(&mut cursor, &mut budget));
    assert_eq!(cursor.coverage(), Coverage::Dumped);
}
