//! Random event streams that resemble a fleet's: shared prefixes, several engine hashes per block, copies,
//! holes, tiers, restarts.

use wardrop_core::index::Slot;
use wardrop_core::rng::Rng;
use wardrop_core::{EngineHash, KvEvent, LocalHash, SequenceHash, StoredBlock, Tier, sequence_hashes};

/// Slots in use, on both sides of the borders between the layouts of a holder set.
pub const SLOTS: [Slot; 12] = [
    Slot(0),
    Slot(1),
    Slot(2),
    Slot(5),
    Slot(63),
    Slot(64),
    Slot(65),
    Slot(127),
    Slot(128),
    Slot(200),
    Slot(255),
    Slot(299),
];

/// Tests ask for every slot below this one.
pub const SLOTS_LEN: usize = 300;

/// One step of a stream.
#[derive(Clone, Debug)]
pub enum Step {
    /// An event of a worker.
    Event(Slot, KvEvent),
    /// A worker leaves.
    Leave(Slot),
}

struct Prompt {
    locals: Vec<LocalHash>,
    sequence: Vec<SequenceHash>,
}

impl Prompt {
    fn new(locals: Vec<LocalHash>) -> Self {
        let sequence = sequence_hashes(&locals);
        Self { locals, sequence }
    }
}

/// Generator of steps and of prompts to match.
pub struct Stream {
    rng: Rng,
    prompts: Vec<Prompt>,
    workers: usize,
    depth_max: usize,
}

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let workers = 1 + rng.below(SLOTS.len());
        let depth_max = [6, 40, 200][rng.below(3)];
        let mut stream = Self {
            rng,
            prompts: vec![],
            workers,
            depth_max,
        };
        stream.prompts.push(Prompt::new(vec![LocalHash(1)]));
        for _ in 0..3 {
            stream.branch();
        }
        stream
    }

    fn branch(&mut self) {
        let from = self.rng.below(self.prompts.len());
        let stem = &self.prompts[from].locals;
        let kept = self.rng.below(stem.len() + 1);
        let mut locals = stem[..kept].to_vec();
        let wanted = 1 + self.rng.below(self.depth_max);
        while locals.len() < wanted {
            locals.push(LocalHash(self.rng.below(3) as u64));
        }
        let prompt = Prompt::new(locals);
        if self.prompts.len() < 12 {
            self.prompts.push(prompt);
        } else {
            let at = self.rng.below(12);
            self.prompts[at] = prompt;
        }
    }

    /// Engine hash that a worker uses for a block. Most workers agree, some have a scheme of their own, few
    /// contradict themselves.
    fn name(&mut self, worker: usize, hash: SequenceHash) -> EngineHash {
        let odd = self.rng.below(400) == 0;
        let salt = if worker % 3 == 2 { worker as u64 } else { 0 };
        if odd {
            EngineHash(7 + self.rng.below(3) as u64)
        } else {
            EngineHash(hash.0 ^ salt)
        }
    }

    fn tier(&mut self) -> Tier {
        [Tier::Device, Tier::Device, Tier::Device, Tier::Host, Tier::Disk][self.rng.below(5)]
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        if self.rng.below(6) == 0 {
            self.branch();
        }
        let worker = self.rng.below(self.workers);
        match self.rng.below(100) {
            0 => Step::Leave(SLOTS[worker]),
            1 => Step::Event(SLOTS[worker], KvEvent::Cleared),
            2..=54 => Step::Event(SLOTS[worker], self.stored(worker)),
            _ => Step::Event(SLOTS[worker], self.removed(worker)),
        }
    }

    fn stored(&mut self, worker: usize) -> KvEvent {
        let of = self.rng.below(self.prompts.len());
        let len = self.prompts[of].locals.len();
        let from = if self.rng.below(3) == 0 {
            self.rng.below(len)
        } else {
            0
        };
        let to = from + 1 + self.rng.below(len - from);
        let parent = if from == 0 {
            None
        } else {
            Some(self.name(worker, self.prompts[of].sequence[from - 1]))
        };
        let block = |at: usize| StoredBlock {
            engine_hash: self.name(worker, self.prompts[of].sequence[at]),
            local_hash: self.prompts[of].locals[at],
        };
        KvEvent::Stored {
            parent,
            blocks: (from..to).map(block).collect(),
            tier: self.tier(),
        }
    }

    fn removed(&mut self, worker: usize) -> KvEvent {
        let of = self.rng.below(self.prompts.len());
        let len = self.prompts[of].locals.len();
        let mut places: Vec<usize> = match self.rng.below(4) {
            0 => vec![self.rng.below(len)],                             // a hole
            1 => (self.rng.below(len)..len).rev().collect(),            // the tail, last first
            2 => (0..len).collect(),                                    // everything
            _ => (0..len).filter(|_| self.rng.below(4) == 0).collect(), // a few
        };
        for at in (1..places.len()).rev().filter(|_| of.is_multiple_of(2)) {
            let other = self.rng.below(at + 1);
            places.swap(at, other);
        }
        let mut hashes: Vec<SequenceHash> = places.iter().map(|&at| self.prompts[of].sequence[at]).collect();
        match self.rng.below(8) {
            // One block twice: two copies, or one removal too many.
            0 if !hashes.is_empty() => {
                let (from, to) = (self.rng.below(hashes.len()), self.rng.below(hashes.len()));
                hashes.insert(to, hashes[from]);
            }
            // Blocks of another prompt in between.
            1 => {
                let other = self.rng.below(self.prompts.len());
                for at in 0..self.prompts[other].sequence.len().min(20) {
                    let to = self.rng.below(hashes.len() + 1);
                    hashes.insert(to, self.prompts[other].sequence[at]);
                }
            }
            _ => {}
        }
        let blocks = hashes.iter().map(|&hash| self.name(worker, hash)).collect();
        KvEvent::Removed {
            blocks,
            tier: self.tier(),
        }
    }

    /// A prompt to match, with its sequence hashes.
    pub fn question(&mut self) -> (&[LocalHash], &[SequenceHash]) {
        let of = self.rng.below(self.prompts.len());
        let prompt = &self.prompts[of];
        let len = 1 + self.rng.below(prompt.locals.len());
        (&prompt.locals[..len], &prompt.sequence[..len])
    }
}
