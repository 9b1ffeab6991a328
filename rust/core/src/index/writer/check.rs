//! Every rule that ties the writer's own structures to the tree, as assertions for tests.
//!
//! [`PathTree::check`](super::super::path_tree::PathTree::check) has the rules inside the tree. This file has
//! the rules between the tree and what the writer keeps beside it:
//!
//! * Only blocks in the tree have a common engine hash, and the table leads from each hash to its block.
//! * The table has no other entry.
//! * The counts and the frame set of each worker equal what the holders of the tree say.
//! * The counts of the lower tiers equal the sums over the workers.
//! * An empty index has no alias and no further copy.

use super::super::Slot;
use super::super::arena::get;
use super::super::frame::BlockId;
use super::super::shared::Shared;
use super::super::slots::{bits, low_bits};
use super::super::worker_blocks::WorkerBlocks;
use super::Writer;
use crate::event::Tier;

impl Writer {
    /// Panics unless every rule of the module's page holds. O(frames · workers), for tests. See
    /// [`Index::check`](super::super::Index::check).
    pub(in crate::index) fn check(&self, shared: &Shared) {
        let paths = &shared.paths;
        paths.check(&self.allocator);
        let mut held = vec![WorkerBlocks::default(); self.workers.len()];
        let mut named = 0;
        for id in paths.iter(&self.allocator) {
            let own = get(paths.owner_word(id));
            assert!(
                own & !low_bits(paths.len(id)) == 0,
                "only blocks in the tree may have engine hashes"
            );
            for offset in bits(own) {
                named += 1;
                let block = BlockId::new(id, offset);
                let found = self.find_common(shared, shared.engine_hash_of(block));
                assert_eq!(found, Some(block), "a common engine hash must lead to its block");
            }
            for (slot, held) in (0..).map(Slot).zip(&mut held) {
                for tier in Tier::ALL {
                    held.blocks[tier.index()] += u64::from(paths.mask(id, slot, tier).count_ones());
                }
                if paths.mask_any(id, slot) != 0 {
                    held.frames.insert(id);
                }
            }
        }
        assert_eq!(
            named,
            self.engine_hashes.common.len(),
            "the table must hold every common engine hash"
        );
        for (counted, found) in self.workers.iter().zip(&held) {
            assert_eq!(
                (&counted.frames, counted.blocks),
                (&found.frames, found.blocks),
                "the counts of a worker must equal what it holds"
            );
        }
        let sets: usize = self.workers.iter().map(|held| held.frames.bytes()).sum();
        assert_eq!(
            self.frame_set_bytes, sets,
            "the bytes of the frame sets must be counted"
        );
        let lower_of = |held: &WorkerBlocks| held.blocks[1] + held.blocks[2];
        let lower: u64 = held.iter().map(lower_of).sum();
        assert_eq!(get(&shared.lower_blocks), lower, "lower tiers must be counted");
        for (slot, held) in (0..).zip(&held) {
            assert_eq!(get(&shared.lower_by_slot.unit(slot)[0]), lower_of(held));
        }
        if self.allocator.blocks() == 0 {
            assert!(
                !self.engine_hashes.has_aliases() && self.copies.len() == 0,
                "an empty index must have no aliases and no copies"
            );
        }
    }
}
