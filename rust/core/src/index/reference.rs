//! The slow, readable index: a map from each block to its holders. Tests compare [`Index`](super::Index) with
//! it.
//!
//! A block is its sequence hash, and a worker uses exactly one engine hash for each block that it holds.
//! Every operation costs a few map look-ups per block; memory does not matter here.
//!
//! It has no frames, no budget and no threads, so each rule of [`KvEvent`] is a few lines. Random event
//! streams run through both indexes and compare every answer (`rust/core/tests/index`). A fault that was
//! planted in the fast index must show there.

use std::collections::{BTreeMap, HashMap};

use super::{Refusal, Slot, TierOverlap};
use crate::event::{KvEvent, Tier};
use crate::hash::{EngineHash, LocalHash, SequenceHash, next_sequence_hash};

/// Copies of one block on one worker, per tier. The worker holds the block while any count is above 0.
type Copies = [u32; 3];

/// Reference implementation of the index; the module describes it.
#[derive(Clone, Debug, Default)]
pub struct ReferenceIndex {
    /// Copies of each block on each worker that holds it. A block without holders has no entry.
    holders: HashMap<SequenceHash, BTreeMap<Slot, Copies>>,
    /// Blocks that each worker holds, by engine hash.
    blocks_by_hash: HashMap<Slot, HashMap<EngineHash, SequenceHash>>,
    /// Engine hash of each held block, by worker: the inverse of `blocks_by_hash`.
    hash_of: HashMap<(Slot, SequenceHash), EngineHash>,
}

impl ReferenceIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one event of the worker in `slot`.
    ///
    /// # Errors
    /// [`Refusal`], exactly as the fast index refuses it. Blocks before a refused block stay.
    pub fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        match event {
            KvEvent::Stored { parent, blocks, tier } => {
                let blocks_by_hash = self.blocks_by_hash.entry(slot).or_default();
                let mut previous = match parent {
                    Some(parent) => Some(*blocks_by_hash.get(parent).ok_or(Refusal::UnknownParent)?),
                    None => None,
                };
                for block in blocks {
                    let hash = next_sequence_hash(previous, block.local_hash);
                    let engine_hash = block.engine_hash;
                    let known = blocks_by_hash
                        .get(&engine_hash)
                        .is_some_and(|&known| known != hash);
                    if known
                        || self
                            .hash_of
                            .get(&(slot, hash))
                            .is_some_and(|&hash_of| hash_of != engine_hash)
                    {
                        return Err(Refusal::ConflictingBlock(engine_hash));
                    }
                    blocks_by_hash.insert(engine_hash, hash);
                    self.hash_of.insert((slot, hash), engine_hash);
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

    /// Removes one copy of a block; `false` when the worker does not hold it in this tier.
    fn remove_copy(&mut self, slot: Slot, block: EngineHash, tier: Tier) -> bool {
        let Some(&hash) = self
            .blocks_by_hash
            .get(&slot)
            .and_then(|blocks_by_hash| blocks_by_hash.get(&block))
        else {
            return false;
        };
        let holders = self
            .holders
            .get_mut(&hash)
            .expect("a block with an engine hash must have holders");
        let copies = holders
            .get_mut(&slot)
            .expect("a block with an engine hash must be held by its worker");
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
            self.blocks_by_hash
                .get_mut(&slot)
                .expect("checked above")
                .remove(&block);
            self.hash_of.remove(&(slot, hash));
        }
        true
    }

    /// Forgets everything that a worker holds. O(whole index), since it keeps no list per worker.
    pub fn remove_worker(&mut self, slot: Slot) {
        self.blocks_by_hash.remove(&slot);
        self.hash_of.retain(|&(of, _), _| of != slot);
        self.holders.retain(|_, holders| {
            holders.remove(&slot);
            !holders.is_empty()
        });
    }

    /// Overlap of a prompt in every tier, for each slot in `0..slots`.
    pub fn find_matches(&self, locals: &[LocalHash], slots: usize) -> Vec<TierOverlap> {
        let chain = crate::hash::sequence_hashes(locals);
        (0..slots)
            .map(|slot| self.overlap(&chain, Slot(slot as u32)))
            .collect()
    }

    /// Overlap on one slot of a prompt given by its sequence hashes.
    ///
    /// Each tier counts from where the tier before it ended, as [`WorkerOverlap`](super::WorkerOverlap)
    /// defines it.
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

    /// Distinct blocks that some worker holds.
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
