//! Join of a dump with live events as a set of blocks.
//!
//! A dump and the live events overlap. In a set, a second store of a block and a removal of an absent block change nothing.
//! The last event about a block therefore decides whether the worker holds it. Complexity: O(blocks).
//!
//! [`super::bulk`] uses one set per replacement and drops it afterwards. Memory: one entry per held
//! block.

use std::collections::HashSet;

use wardrop_core::{EngineHash, KvEvent, StoredBlock, Tier};

/// The set of blocks a worker holds, while a dump is joined with live events.
#[derive(Default)]
pub(super) struct HeldBlocks(HashSet<(Tier, EngineHash)>);

impl HeldBlocks {
    /// Appends the effective part of `event` to `out`.
    ///
    /// A store of a held block and a removal of an absent block have no effect. A held block in the middle of a store splits the
    /// store in two: each store is one chain of new blocks below a parent.
    pub(super) fn apply(&mut self, event: KvEvent, out: &mut Vec<KvEvent>) {
        match event {
            KvEvent::Stored { parent, blocks, tier } => {
                let mut above = parent;
                let mut run: Vec<StoredBlock> = Vec::new();
                let mut run_parent = parent;
                for block in blocks {
                    if self.0.insert((tier, block.engine_hash)) {
                        if run.is_empty() {
                            run_parent = above;
                        }
                        run.push(block);
                    } else if !run.is_empty() {
                        out.push(KvEvent::Stored {
                            parent: run_parent,
                            blocks: std::mem::take(&mut run),
                            tier,
                        });
                    }
                    above = Some(block.engine_hash);
                }
                if !run.is_empty() {
                    out.push(KvEvent::Stored {
                        parent: run_parent,
                        blocks: run,
                        tier,
                    });
                }
            }
            KvEvent::Removed { mut blocks, tier } => {
                blocks.retain(|block| self.0.remove(&(tier, *block)));
                if !blocks.is_empty() {
                    out.push(KvEvent::Removed { blocks, tier });
                }
            }
            KvEvent::Cleared => {
                self.0.clear();
                out.push(KvEvent::Cleared);
            }
        }
    }
}
#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use wardrop_core::LocalHash;

    use super::*;

    fn store(parent: Option<u64>, hashes: &[u64]) -> KvEvent {
        let block = |&hash: &u64| StoredBlock {
            engine_hash: EngineHash(hash),
            local_hash: LocalHash(hash),
        };
        KvEvent::Stored {
            parent: parent.map(EngineHash),
            blocks: hashes.iter().map(block).collect(),
            tier: Tier::Device,
        }
    }

    fn remove(hashes: &[u64]) -> KvEvent {
        KvEvent::Removed {
            blocks: hashes.iter().map(|&hash| EngineHash(hash)).collect(),
            tier: Tier::Device,
        }
    }

    fn join(events: impl IntoIterator<Item = KvEvent>) -> Vec<KvEvent> {
        let (mut held, mut out) = (HeldBlocks::default(), Vec::new());
        for event in events {
            held.apply(event, &mut out);
        }
        out
    }

    #[test]
    fn block_in_dump_and_in_live_event_is_counted_once() {
        let joined = join([store(None, &[1]), store(Some(1), &[2]), store(Some(1), &[2, 3])]);
        assert_eq!(
            joined,
            vec![store(None, &[1]), store(Some(1), &[2]), store(Some(2), &[3])]
        );
    }

    /// Counts the copies of each block after `events`; a block that is stored twice counts 2.
    fn count(events: &[KvEvent]) -> BTreeMap<u64, i32> {
        let mut held = BTreeMap::new();
        for event in events {
            match event {
                KvEvent::Stored { blocks, .. } => {
                    for block in blocks {
                        *held.entry(block.engine_hash.0).or_insert(0) += 1;
                    }
                }
                KvEvent::Removed { blocks, .. } => {
                    for block in blocks {
                        *held.entry(block.0).or_insert(0) -= 1;
                    }
                }
                KvEvent::Cleared => held.clear(),
            }
        }
        held.retain(|_, n| *n != 0);
        held
    }

    proptest! {
        /// A dump from any point of the kept events joins to the same blocks, each counted once.
        #[test]
        fn any_overlap_of_dump_and_live_events_joins_exactly(ops in prop::collection::vec((any::<bool>(), 0u64..12), 1..60), from in 0usize..60, taken in 0usize..60) {
            // The true stream: a block is stored only while absent and removed only while present.
            let mut held = BTreeSet::new();
            let mut stream = Vec::new();
            for (add, block) in ops {
                if add && held.insert(block) { stream.push(store(None, &[block])); }
                if !add && held.remove(&block) { stream.push(remove(&[block])); }
            }
            let from = from % (stream.len() + 1);
            let taken = from + taken % (stream.len() - from + 1);
            let dump: Vec<KvEvent> = count(&stream[..taken]).into_keys().map(|b| store(None, &[b])).collect();
            let joined = count(&join(dump.into_iter().chain(stream[from..].iter().cloned())));
            prop_assert!(joined.values().all(|&n| n == 1));
            prop_assert_eq!(joined, count(&stream));
        }
    }
}
