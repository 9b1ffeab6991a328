//! Applies one stream to an index and to the reference, and compares their answers.

use wardrop_core::index::{Index, Prompt, ReferenceIndex, Refusal, Slot, TierOverlap};
use wardrop_core::{KvEvent, WorkerId};

use crate::stream::{SLOTS, SLOTS_LEN, Step, Stream};

/// An index that can be compared with the reference.
pub trait Subject {
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

/// An index that is saved and restored into an empty index at regular intervals.
pub struct Restarting {
    index: Index,
    applied: u32,
}

impl Restarting {
    pub fn new() -> Self {
        Self {
            index: Self::empty(),
            applied: 0,
        }
    }

    fn empty() -> Index {
        let index = Index::new(u64::MAX);
        for slot in SLOTS {
            index.register(WorkerId::new(u64::from(slot.0), 0), slot);
        }
        index
    }
}

impl Subject for Restarting {
    fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        self.applied += 1;
        if self.applied.is_multiple_of(9) {
            let restored = Self::empty();
            let image = self.index.image(1, |_| None);
            restored
                .restore(&image, 1)
                .expect("a saved index can be restored");
            self.index = restored;
        }
        self.index.apply(slot, event)
    }
    fn leave(&mut self, slot: Slot) {
        self.index.remove_worker(slot);
    }
    fn find_matches(&self, prompt: &Prompt<'_>) -> Vec<TierOverlap> {
        self.index.find_matches(prompt, SLOTS_LEN)
    }
    fn held_blocks(&self, slot: Slot) -> [u64; 3] {
        self.index.held_blocks(slot)
    }
    fn blocks(&self) -> u64 {
        self.index.blocks()
    }
    fn check(&self) {
        self.index.check();
    }
}

/// Runs one stream; returns the first difference, if there is one.
pub fn differential(seed: u64, steps: usize, subject: &mut impl Subject) -> Result<(), String> {
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
            let chain = wardrop_core::sequence_hashes(locals);
            for sequence in [sequence, &[]] {
                let mut got = subject.find_matches(&Prompt { locals, sequence });
                for slot in SLOTS {
                    let (found, expected) = (
                        std::mem::take(&mut got[slot.index()]),
                        reference.overlap(&chain, slot),
                    );
                    if found != expected {
                        return Err(format!(
                            "step {step}: {what:?}: {slot:?}: {found:?}, expected {expected:?}"
                        ));
                    }
                }
                if got.iter().any(|found| *found != [0; 3]) {
                    return Err(format!(
                        "step {step}: {what:?}: a slot without a worker holds blocks"
                    ));
                }
            }
        }
        for slot in SLOTS {
            if subject.held_blocks(slot) != reference.held_blocks(slot) {
                return Err(format!(
                    "step {step}: {what:?}: the block counts of {slot:?} differ"
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
