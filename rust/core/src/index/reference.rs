//! The slow, readable index: a map from each block to who holds it. Tests compare the real one with it.
//!
//! A block is its sequence hash, and a worker calls each block that it holds by exactly one engine hash. Every operation is a few map look-ups per block; memory is not spared.

use std::collections::{BTreeMap, HashMap};

use super::{Refusal, Slot, TierOverlap};
use crate::event::{KvEvent, Tier};
use crate::hash::{EngineHash, LocalHash, SequenceHash, next_sequence_hash};

/// Copies of one block on one worker, per tier.
type Copies = [u32; 3];

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ReferenceIndex {
    holders: HashMap<SequenceHash, BTreeMap<Slot, Copies>>,
    names: HashMap<Slot, HashMap<EngineHash, SequenceHash>>,
    called: HashMap<(Slot, SequenceHash), EngineHash>,
}

impl ReferenceIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Apply one event of the worker in `slot`.
    pub fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        match event {
            KvEvent::Stored { parent, blocks, tier } => {
                let names = self.names.entry(slot).or_default();
                let mut previous = match parent {
                    Some(parent) => Some(*names.get(parent).ok_or(Refusal::UnknownParent)?),
                    None => None,
                };
                for block in blocks {
                    let hash = next_sequence_hash(previous, block.local_hash);
                    let name = block.engine_hash;
                    let known = names.get(&name).is_some_and(|&known| known != hash);
                    if known
                        || self
                            .called
                            .get(&(slot, hash))
                            .is_some_and(|&called| called != name)
                    {
                        return Err(Refusal::ConflictingBlock(name));
                    }
                    names.insert(name, hash);
                    self.called.insert((slot, hash), name);
                    self.holders.entry(hash).or_default().entry(slot).or_default()[tier.index()] += 1;
                    previous = Some(hash);
                }
                Ok(())
            }
            KvEvent::Removed { blocks, tier } => {
                let unknown = blocks
                    .iter()
                    .filter(|&&block| !self.remove_copy(slot, block, *tier))
                    .count();
                if unknown == 0 {
                    Ok(())
                } else {
                    Err(Refusal::UnknownBlocks(unknown))
                }
            }
            KvEvent::Cleared => {
                self.remove_worker(slot);
                Ok(())
            }
        }
    }

    fn remove_copy(&mut self, slot: Slot, block: EngineHash, tier: Tier) -> bool {
        let Some(&hash) = self.names.get(&slot).and_then(|names| names.get(&block)) else {
            return false;
        };
        let holders = self
            .holders
            .get_mut(&hash)
            .expect("a named block must have holders");
        let copies = holders
            .get_mut(&slot)
            .expect("a named block must be held by its worker");
        let count = &mut copies[tier.index()];
        if *count == 0 {
            return false;
        }
        *count -= 1;
        if *copies == [0; 3] {
            holders.remove(&slot);
            if holders.is_empty() {
                self.holders.remove(&hash);
            }
            self.names.get_mut(&slot).expect("checked above").remove(&block);
            self.called.remove(&(slot, hash));
        }
        true
    }

    /// Forget everything about a worker.
    pub fn remove_worker(&mut self, slot: Slot) {
        self.names.remove(&slot);
        self.called.retain(|&(of, _), _| of != slot);
        self.holders.retain(|_, holders| {
            holders.remove(&slot);
            !holders.is_empty()
        });
    }

    /// Overlap of a request per slot in `0..slots`.
    pub fn find_matches(&self, locals: &[LocalHash], slots: usize) -> Vec<TierOverlap> {
        let chain = crate::hash::sequence_hashes(locals);
        (0..slots)
            .map(|slot| self.overlap(&chain, Slot(slot as u32)))
            .collect()
    }

    /// Overlap of a prompt, given by its sequence hashes, on one slot.
    pub fn overlap(&self, chain: &[SequenceHash], slot: Slot) -> TierOverlap {
        let mut from = 0;
        Tier::ALL.map(|tier| {
            let run = chain[from..]
                .iter()
                .take_while(|hash| self.holds(**hash, slot, tier))
                .count();
            from += run;
            run as u32
        })
    }

    /// Whether a slot holds a block in a tier.
    pub fn holds(&self, hash: SequenceHash, slot: Slot, tier: Tier) -> bool {
        let copies = self.holders.get(&hash).and_then(|holders| holders.get(&slot));
        copies.is_some_and(|copies| copies[tier.index()] > 0)
    }

    /// Distinct blocks held by anyone.
    pub fn blocks(&self) -> u64 {
        self.holders.len() as u64
    }

    /// Blocks that a worker holds, per tier.
    pub fn held_blocks(&self, slot: Slot) -> [u64; 3] {
        let mut held = [0; 3];
        for copies in self.holders.values().filter_map(|holders| holders.get(&slot)) {
            for (sum, &count) in held.iter_mut().zip(copies) {
                *sum += u64::from(count > 0);
            }
        }
        held
    }
}
