//! The index as KV events: another index that applies the stores answers as the first one.

use wardrop_core::index::Prompt;
use wardrop_core::{KvEvent, Tier};

use crate::stream::{SLOTS, SLOTS_LEN, Step, Stream};
use crate::workers::{empty_index, worker_of};

#[test]
fn an_index_that_applies_the_stores_answers_as_the_first() {
    let (mut in_lower_tiers, mut with_parent, mut compared) = (0, 0, 0);
    for seed in 0..300 {
        let (mut stream, index) = (Stream::new(seed), empty_index());
        for _ in 0..60 {
            match stream.step() {
                Step::Event(slot, event) => {
                    let _ = index.apply(slot, &event);
                }
                Step::Leave(slot) => index.remove_worker(slot),
            }
        }
        let other = empty_index();
        for (worker, event) in index.stores() {
            let slot = SLOTS.into_iter().find(|slot| worker_of(*slot) == worker).unwrap();
            let KvEvent::Stored { parent, tier, .. } = &event else {
                panic!("{event:?} is no store")
            };
            in_lower_tiers += usize::from(*tier != Tier::Device);
            with_parent += usize::from(parent.is_some());
            // A run behind a hole names a parent that the worker does not hold; an index may refuse it.
            let _ = other.apply(slot, &event);
        }
        other.check();
        for _ in 0..30 {
            let (locals, sequence) = stream.question();
            let prompt = Prompt { locals, sequence };
            let expected = index.find_matches(&prompt, SLOTS_LEN);
            compared += usize::from(expected.iter().flatten().any(|&blocks| blocks > 0));
            assert_eq!(other.find_matches(&prompt, SLOTS_LEN), expected, "seed {seed}");
        }
    }
    assert!(
        in_lower_tiers > 100 && with_parent > 100 && compared > 1000,
        "{in_lower_tiers} {with_parent} {compared}"
    );
}

#[test]
fn a_worker_that_left_has_no_store() {
    let (mut stream, index) = (Stream::new(5), empty_index());
    for _ in 0..60 {
        if let Step::Event(slot, event) = stream.step() {
            let _ = index.apply(slot, &event);
        }
    }
    let of = |slot: wardrop_core::index::Slot| {
        let stores = index.stores();
        stores
            .iter()
            .filter(|(worker, _)| *worker == worker_of(slot))
            .count()
    };
    assert!(of(SLOTS[0]) > 0);
    index.remove_worker(SLOTS[0]);
    assert_eq!(of(SLOTS[0]), 0);
}
