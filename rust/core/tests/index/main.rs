//! The index against the reference over random event streams. `make fuzz` runs many more of them.

mod budget;
mod differential;
mod image;
mod stores;
mod stream;
mod workers;

use differential::{Restarting, Subject, differential};
use stream::SLOTS_LEN;
use wardrop_core::index::{Index, Prompt, Refusal, Slot, TierOverlap};
use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier};

/// Streams in an ordinary run.
const SEEDS: u64 = 2000;

#[test]
fn the_index_answers_like_the_reference() {
    for seed in 0..SEEDS {
        if let Err(difference) = differential(seed, 60, &mut Index::new(u64::MAX)) {
            panic!("seed {seed}: {difference}");
        }
    }
    println!("{SEEDS} streams of 60 steps agree");
}

#[test]
fn an_index_restored_at_intervals_answers_like_the_reference() {
    for seed in 0..SEEDS / 4 {
        if let Err(difference) = differential(seed, 60, &mut Restarting::new()) {
            panic!("seed {seed}: {difference}");
        }
    }
    println!("{} streams of 60 steps agree", SEEDS / 4);
}

/// An index with a planted fault, which the comparison must find.
struct Planted {
    index: Index,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The index counts no copies: one removal is enough.
    IgnoresCopies,
    /// The index ignores removals from the host tier.
    IgnoresHostRemovals,
    /// A worker that leaves keeps its blocks.
    KeepsBlocksOfLeavers,
    /// The index ignores holes: a worker gets credit up to its last block.
    IgnoresHoles,
}

impl Subject for Planted {
    fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        match (self.fault, event) {
            (Fault::IgnoresCopies, KvEvent::Removed { blocks, .. }) if !blocks.is_empty() => {
                let first = self.index.apply(slot, event);
                while self.index.apply(slot, event) == Ok(()) {}
                first
            }
            (Fault::IgnoresHostRemovals, KvEvent::Removed { tier: Tier::Host, .. }) => Ok(()),
            _ => self.index.apply(slot, event),
        }
    }
    fn leave(&mut self, slot: Slot) {
        if !matches!(self.fault, Fault::KeepsBlocksOfLeavers) {
            self.index.remove_worker(slot);
        }
    }
    fn find_matches(&self, prompt: &Prompt<'_>) -> Vec<TierOverlap> {
        let mut found = self.index.find_matches(prompt, SLOTS_LEN);
        if matches!(self.fault, Fault::IgnoresHoles) {
            for overlap in &mut found {
                overlap[0] += u32::from(overlap[0] > 0 && (overlap[0] as usize) < prompt.locals.len());
            }
        }
        found
    }
    fn held_blocks(&self, slot: Slot) -> [u64; 3] {
        self.index.held_blocks(slot)
    }
    fn blocks(&self) -> u64 {
        self.index.blocks()
    }
    fn check(&self) {}
}

#[test]
fn planted_faults_are_caught() {
    for fault in [
        Fault::IgnoresCopies,
        Fault::IgnoresHostRemovals,
        Fault::KeepsBlocksOfLeavers,
        Fault::IgnoresHoles,
    ] {
        let caught = |seed: &u64| {
            differential(
                *seed,
                60,
                &mut Planted {
                    index: Index::new(u64::MAX),
                    fault,
                },
            )
            .is_err()
        };
        assert!((0..40).any(|seed| caught(&seed)), "{fault:?} must be caught");
    }
}

fn chain(n: u64) -> KvEvent {
    let block = |i| StoredBlock {
        engine_hash: EngineHash(1000 + i),
        local_hash: LocalHash(i),
    };
    KvEvent::Stored {
        parent: None,
        blocks: (0..n).map(block).collect(),
        tier: Tier::Device,
    }
}

fn device(index: &Index, blocks: u64, slot: Slot) -> u32 {
    let locals: Vec<LocalHash> = (0..blocks).map(LocalHash).collect();
    index.find_matches(
        &Prompt {
            locals: &locals,
            sequence: &[],
        },
        SLOTS_LEN,
    )[slot.index()][0]
}

fn remove(names: &[u64]) -> KvEvent {
    KvEvent::Removed {
        blocks: names.iter().map(|&name| EngineHash(name)).collect(),
        tier: Tier::Device,
    }
}

#[test]
fn a_block_stored_twice_needs_two_removals() {
    let index = Index::new(u64::MAX);
    index.apply(Slot(0), &chain(3)).unwrap();
    index.apply(Slot(0), &chain(3)).unwrap();
    index.apply(Slot(0), &remove(&[1001])).unwrap();
    assert_eq!(device(&index, 3, Slot(0)), 3);
    index.apply(Slot(0), &remove(&[1001])).unwrap();
    assert_eq!(device(&index, 3, Slot(0)), 1);
}

#[test]
fn a_block_removed_twice_in_one_event_is_gone_once() {
    let index = Index::new(u64::MAX);
    index.apply(Slot(0), &chain(3)).unwrap();
    let twice = remove(&[1001, 1002, 1001]);
    assert_eq!(index.apply(Slot(0), &twice), Err(Refusal::UnknownBlocks(1)));
    assert_eq!(device(&index, 3, Slot(0)), 1);
    index.apply(Slot(0), &chain(3)).unwrap();
    index.apply(Slot(0), &chain(2)).unwrap();
    assert_eq!(index.apply(Slot(0), &twice), Ok(()));
    assert_eq!(device(&index, 3, Slot(0)), 1);
    index.check();
}

/// Enough engine hashes to make their table grow often and to fill some lines.
#[test]
fn a_large_index_answers_like_sets() {
    const PROMPTS: u64 = 600;
    const DEPTH: u64 = 300;
    let index = Index::new(u64::MAX);
    let mut rng = wardrop_core::rng::Rng::new(5);
    let name = |of: u64, at: u64| (of << 20 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let local = |of: u64, at: u64| LocalHash(of << 20 | at);
    let slot = |of: u64| Slot((of % 8) as u32);
    let mut held = vec![vec![false; DEPTH as usize]; PROMPTS as usize];
    for round in 0..6 {
        for of in 0..PROMPTS {
            let held = &mut held[of as usize];
            let from = held.iter().take_while(|&&held| held).count();
            let to = (from..DEPTH as usize).take_while(|&at| !held[at]).count() + from;
            held[from..to].fill(true);
            let block = |at: usize| StoredBlock {
                engine_hash: EngineHash(name(of, at as u64)),
                local_hash: local(of, at as u64),
            };
            let event = KvEvent::Stored {
                parent: from.checked_sub(1).map(|at| EngineHash(name(of, at as u64))),
                blocks: (from..to).map(block).collect(),
                tier: Tier::Device,
            };
            index.apply(slot(of), &event).unwrap();
        }
        for worker in 0..8 {
            let mut going: Vec<u64> = Vec::new();
            for of in (0..PROMPTS).filter(|of| of % 8 == worker) {
                for at in 0..DEPTH {
                    let held = &mut held[of as usize][at as usize];
                    if *held && rng.below(4) == 0 {
                        *held = false;
                        going.push(name(of, at));
                    }
                }
            }
            for at in (1..going.len()).rev().filter(|_| round % 2 == 0) {
                going.swap(at, rng.below(at + 1));
            }
            index.apply(Slot(worker as u32), &remove(&going)).unwrap();
        }
        for of in 0..PROMPTS {
            let locals: Vec<LocalHash> = (0..DEPTH).map(|at| local(of, at)).collect();
            let prompt = Prompt {
                locals: &locals,
                sequence: &[],
            };
            let expected = held[of as usize].iter().take_while(|&&held| held).count();
            assert_eq!(
                index.find_matches(&prompt, 8)[slot(of).index()][0] as usize,
                expected
            );
        }
        index.check();
    }
    (0..8).for_each(|slot| index.remove_worker(Slot(slot)));
    assert_eq!((index.blocks(), index.footprint().engine_hash_bytes), (0, 0));
}

#[test]
fn a_filled_hole_counts_again() {
    let index = Index::new(u64::MAX);
    index.apply(Slot(0), &chain(200)).unwrap();
    index.apply(Slot(0), &remove(&[1100])).unwrap();
    assert_eq!(device(&index, 200, Slot(0)), 100);
    let hole = StoredBlock {
        engine_hash: EngineHash(1100),
        local_hash: LocalHash(100),
    };
    let refill = KvEvent::Stored {
        parent: Some(EngineHash(1099)),
        blocks: vec![hole],
        tier: Tier::Device,
    };
    index.apply(Slot(0), &refill).unwrap();
    assert_eq!(device(&index, 200, Slot(0)), 200);
}

#[test]
fn blocks_without_a_holder_are_freed_at_once() {
    let index = Index::new(u64::MAX);
    for slot in [0, 1, 299] {
        index.apply(Slot(slot), &chain(200)).unwrap();
    }
    assert_eq!(index.blocks(), 200);
    index.remove_worker(Slot(1));
    index.apply(Slot(0), &KvEvent::Cleared).unwrap();
    assert_eq!(index.blocks(), 200);
    index
        .apply(Slot(299), &remove(&(1150..1200).rev().collect::<Vec<_>>()))
        .unwrap();
    assert_eq!(index.blocks(), 150);
    index.remove_worker(Slot(299));
    assert_eq!(index.blocks(), 0);
}

#[test]
fn a_full_index_refuses_a_store_and_stays_consistent() {
    let index = Index::new(100);
    assert_eq!(index.apply(Slot(0), &chain(200)), Err(Refusal::Full));
    assert_eq!((index.blocks(), device(&index, 200, Slot(0))), (100, 100));
    assert_eq!(index.apply(Slot(1), &chain(100)), Ok(()));
    index.check();
}

#[test]
fn a_lower_tier_continues_where_the_nearer_tier_ends() {
    let index = Index::new(u64::MAX);
    index.apply(Slot(0), &chain(70)).unwrap();
    let KvEvent::Stored { blocks, .. } = chain(150) else {
        unreachable!()
    };
    let host = KvEvent::Stored {
        parent: None,
        blocks: blocks[..130].to_vec(),
        tier: Tier::Host,
    };
    index.apply(Slot(0), &host).unwrap();
    let disk = KvEvent::Stored {
        parent: Some(blocks[129].engine_hash),
        blocks: blocks[130..].to_vec(),
        tier: Tier::Disk,
    };
    index.apply(Slot(0), &disk).unwrap();
    let locals: Vec<LocalHash> = (0..150).map(LocalHash).collect();
    let found = index.find_matches(
        &Prompt {
            locals: &locals,
            sequence: &[],
        },
        1,
    );
    assert_eq!(found, [[70, 60, 20]]);
}
