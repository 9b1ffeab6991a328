//! An index at its budget: never above it, never overstating a worker, and keeping recently used blocks.

use proptest::prelude::*;
use wardrop_core::index::{Budget, Index, Prompt, ReferenceIndex, Refusal, Slot};
use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier, WorkerId};

use crate::stream::{SLOTS, SLOTS_LEN, Step, Stream};

/// Applies a step to the reference and, unless the worker contradicts itself, to the index.
fn step(index: &Index, reference: &mut ReferenceIndex, what: &Step) {
    match what {
        Step::Leave(slot) => {
            index.remove_worker(*slot);
            reference.remove_worker(*slot);
        }
        Step::Event(slot, event) => {
            let mut after = reference.clone();
            if !matches!(after.apply(*slot, event), Err(Refusal::ConflictingBlock(_))) {
                *reference = after;
                let _ = index.apply(*slot, event);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_full_index_keeps_within_its_budget_and_tells_no_more_than_the_truth(
        seed in any::<u64>(),
        blocks in prop_oneof![Just(u64::MAX), 1u64..300],
        bytes in prop_oneof![Just(u64::MAX), 30_000u64..80_000],
    ) {
        let mut stream = Stream::new(seed);
        let index = Index::with_budget(Budget { blocks, bytes });
        let mut reference = ReferenceIndex::new();
        for _ in 0..120 {
            let what = stream.step();
            step(&index, &mut reference, &what);
            prop_assert!(index.blocks() <= blocks);
            prop_assert!(index.bytes() <= bytes, "{} bytes of {bytes} after {what:?}", index.bytes());
            let (locals, sequence) = stream.question();
            let chain = wardrop_core::sequence_hashes(locals);
            let found = index.find_matches(&Prompt { locals, sequence }, SLOTS_LEN);
            for slot in SLOTS {
                let mut at = 0;
                for (tier, &count) in Tier::ALL.into_iter().zip(&found[slot.index()]) {
                    for hash in &chain[at..at + count as usize] {
                        prop_assert!(reference.holds(*hash, slot, tier), "{slot:?} is credited with too much");
                    }
                    at += count as usize;
                }
            }
        }
        index.check();
        for slot in SLOTS {
            index.remove_worker(slot);
        }
        prop_assert_eq!(index.blocks(), 0);
        index.check();
    }
}

fn chain(of: u64, from: u64, to: u64) -> KvEvent {
    let name = |at: u64| EngineHash(of * 10_000 + at + 1);
    let block = |at: u64| StoredBlock {
        engine_hash: name(at),
        local_hash: LocalHash(of * 10_000 + at),
    };
    KvEvent::Stored {
        parent: from.checked_sub(1).map(name),
        blocks: (from..to).map(block).collect(),
        tier: Tier::Device,
    }
}

fn depth(index: &Index, of: u64, blocks: u64) -> u32 {
    let locals: Vec<LocalHash> = (0..blocks).map(|at| LocalHash(of * 10_000 + at)).collect();
    let prompt = Prompt {
        locals: &locals,
        sequence: &[],
    };
    index.find_matches(&prompt, 1)[0][0]
}

#[test]
fn the_eviction_keeps_recently_matched_conversations() {
    let index = Index::new(64 * 20);
    for of in 0..20 {
        index.apply(Slot(0), &chain(of, 0, 64)).unwrap();
    }
    // The first eviction clears all marks; afterwards only the frames matched since then have one.
    index.apply(Slot(0), &chain(100, 0, 64)).unwrap();
    let matched: Vec<u64> = (0..20)
        .filter(|&of| of >= 10 && depth(&index, of, 64) == 64)
        .collect();
    for of in 101..109 {
        index.apply(Slot(0), &chain(of, 0, 64)).unwrap();
    }
    let kept = matched.iter().filter(|&&of| depth(&index, of, 64) == 64).count();
    let newest = (101..109).filter(|&of| depth(&index, of, 64) == 64).count();
    assert_eq!((kept, newest), (matched.len(), 8));
    assert_eq!(index.blocks(), 64 * 20);
}

#[test]
fn the_eviction_takes_a_conversation_from_its_end() {
    let index = Index::new(64 * 12);
    index.apply(Slot(0), &chain(1, 0, 64 * 10)).unwrap();
    index.apply(Slot(0), &chain(2, 0, 64 * 4)).unwrap();
    let left = depth(&index, 1, 640);
    assert_eq!((left, depth(&index, 2, 256)), (512, 256));
    index.check();
}

#[test]
fn evicted_blocks_are_counted() {
    let index = Index::new(100);
    let worker = WorkerId::new(1, 0);
    index.register(worker, Slot(0));
    index.apply_from(worker, &chain(1, 0, 64)).unwrap();
    index.apply_from(worker, &chain(2, 0, 64)).unwrap();
    assert_eq!(index.counters().blocks_evicted, 64);
    assert_eq!(index.held_blocks(Slot(0)), [64, 0, 0]);
    let gone = KvEvent::Removed {
        blocks: vec![EngineHash(10_001)],
        tier: Tier::Device,
    };
    assert_eq!(index.apply_from(worker, &gone), Err(Refusal::UnknownBlocks(1)));
}

#[test]
fn a_full_index_still_takes_new_conversations() {
    let bytes = 1 << 20;
    let index = Index::with_budget(Budget {
        blocks: u64::MAX,
        bytes,
    });
    for of in 0..200 {
        assert_eq!(
            index.apply(Slot(0), &chain(of, 0, 640)),
            Ok(()),
            "conversation {of}"
        );
        assert!(index.bytes() <= bytes);
        assert_eq!(depth(&index, of, 640), 640);
    }
    assert!(
        index.blocks() > 640 * 20,
        "only {} blocks are used",
        index.blocks()
    );
    index.check();
}
