//! The index against the map-of-sets reference, over random event streams.
//!
//! `WARDROP_INDEX_SEEDS` sets how many streams run (default 2,000; `make fuzz` runs 100,000), `WARDROP_INDEX_FROM` the first seed.

mod stream;

use stream::{SLOTS, SLOTS_LEN, Step, Stream};
use wardrop_core::index::{Index, Prompt, ReferenceIndex, Refusal, Slot, TierOverlap};
use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier};

/// What is compared with the reference.
trait Subject {
    fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal>;
    fn leave(&mut self, slot: Slot);
    fn find_matches(&self, prompt: &Prompt<'_>) -> Vec<TierOverlap>;
    fn held_blocks(&self, slot: Slot) -> [u64; 3];
    fn blocks(&self) -> u64;
    fn check(&self);
}

impl Subject for Index {
    fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        Self::apply(self, slot, event)
    }
    fn leave(&mut self, slot: Slot) {
        self.remove_worker(slot);
    }
    fn find_matches(&self, prompt: &Prompt<'_>) -> Vec<TierOverlap> {
        Self::find_matches(self, prompt, SLOTS_LEN)
    }
    fn held_blocks(&self, slot: Slot) -> [u64; 3] {
        Self::held_blocks(self, slot)
    }
    fn blocks(&self) -> u64 {
        Self::blocks(self)
    }
    fn check(&self) {
        Self::check(self);
    }
}

/// Run one stream; the first difference, if any.
fn differential(seed: u64, steps: usize, subject: &mut impl Subject) -> Result<(), String> {
    let mut stream = Stream::new(seed);
    let mut reference = ReferenceIndex::new();
    for step in 0..steps {
        let what = stream.step();
        match &what {
            Step::Event(slot, event) => {
                let (got, expected) = (subject.apply(*slot, event), reference.apply(*slot, event));
                if got != expected {
                    return Err(format!("step {step}: {what:?}: {got:?}, expected {expected:?}"));
                }
            }
            Step::Leave(slot) => {
                subject.leave(*slot);
                reference.remove_worker(*slot);
            }
        }
        for _ in 0..2 {
            let (locals, sequence) = stream.question();
            let expected = reference.find_matches(locals, SLOTS_LEN);
            for sequence in [sequence, &[]] {
                let got = subject.find_matches(&Prompt { locals, sequence });
                if got != expected {
                    let at = got
                        .iter()
                        .zip(&expected)
                        .position(|(got, expected)| got != expected);
                    return Err(format!("step {step}: {what:?}: slot {at:?} differs"));
                }
            }
        }
        for slot in SLOTS {
            if subject.held_blocks(slot) != reference.held_blocks(slot) {
                return Err(format!(
                    "step {step}: {what:?}: {slot:?} is said to hold other counts"
                ));
            }
        }
        let (got, least) = (subject.blocks(), reference.blocks());
        if got < least || (least == 0 && got > 0) {
            return Err(format!("step {step}: {got} blocks, {least} held"));
        }
        if step % 16 == 0 {
            subject.check();
        }
    }
    for slot in SLOTS {
        subject.leave(slot);
    }
    subject.check();
    if subject.blocks() == 0 {
        Ok(())
    } else {
        Err(format!("{} blocks outlive every worker", subject.blocks()))
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("must be a number"))
}

#[test]
fn the_index_answers_like_the_reference() {
    let (from, seeds) = (
        setting("WARDROP_INDEX_FROM", 0),
        setting("WARDROP_INDEX_SEEDS", 2000),
    );
    for seed in from..from + seeds {
        if let Err(difference) = differential(seed, 60, &mut Index::new(u64::MAX)) {
            panic!("seed {seed}: {difference}");
        }
    }
    println!("{seeds} streams of 60 steps agree");
}

/// An index with a fault of which the comparison must hear.
struct Planted {
    index: Index,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Copies are not counted: one removal is enough.
    OneRemovalIsEnough,
    /// The host tier's removals get lost.
    HostRemovalsGetLost,
    /// A worker that leaves keeps its blocks.
    LeavingKeepsBlocks,
    /// A hole is not seen: a worker is credited up to its last block.
    HolesAreOverlooked,
}

impl Subject for Planted {
    fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        match (self.fault, event) {
            (Fault::OneRemovalIsEnough, KvEvent::Removed { blocks, .. }) if !blocks.is_empty() => {
                let first = self.index.apply(slot, event);
                while self.index.apply(slot, event) == Ok(()) {}
                first
            }
            (Fault::HostRemovalsGetLost, KvEvent::Removed { tier: Tier::Host, .. }) => Ok(()),
            _ => self.index.apply(slot, event),
        }
    }
    fn leave(&mut self, slot: Slot) {
        if !matches!(self.fault, Fault::LeavingKeepsBlocks) {
            self.index.remove_worker(slot);
        }
    }
    fn find_matches(&self, prompt: &Prompt<'_>) -> Vec<TierOverlap> {
        let mut found = self.index.find_matches(prompt, SLOTS_LEN);
        if matches!(self.fault, Fault::HolesAreOverlooked) {
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
        Fault::OneRemovalIsEnough,
        Fault::HostRemovalsGetLost,
        Fault::LeavingKeepsBlocks,
        Fault::HolesAreOverlooked,
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
    let mut index = Index::new(u64::MAX);
    index.apply(Slot(0), &chain(3)).unwrap();
    index.apply(Slot(0), &chain(3)).unwrap();
    index.apply(Slot(0), &remove(&[1001])).unwrap();
    assert_eq!(device(&index, 3, Slot(0)), 3);
    index.apply(Slot(0), &remove(&[1001])).unwrap();
    assert_eq!(device(&index, 3, Slot(0)), 1);
}

#[test]
fn a_filled_hole_counts_again() {
    let mut index = Index::new(u64::MAX);
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
fn what_nobody_holds_is_freed_at_once() {
    let mut index = Index::new(u64::MAX);
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
fn a_full_index_refuses_and_stays_true() {
    let mut index = Index::new(100);
    assert_eq!(index.apply(Slot(0), &chain(200)), Err(Refusal::Full));
    assert_eq!((index.blocks(), device(&index, 200, Slot(0))), (100, 100));
    assert_eq!(index.apply(Slot(1), &chain(100)), Ok(()));
    index.check();
}

#[test]
fn lower_tiers_go_on_where_the_nearer_one_ends() {
    let mut index = Index::new(u64::MAX);
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
