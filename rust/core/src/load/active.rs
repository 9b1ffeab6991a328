//! Blocks in flight: per worker the union of its requests' blocks, and the part that a new prompt shares.
//!
//! Requests cover leading blocks of paths. So the structure stores one end per request and frame instead of a
//! count per block: booking 1,024 blocks touches 16 frames. In each frame a worker has all blocks before its
//! furthest end.
//!
//! The set of a worker is a union: a block counts once, regardless of how many requests have it. That is what
//! the engine's memory holds, since requests share the blocks of a common prefix.
//!
//! Example. In a frame A B C D a worker has a request that ends at B and one that ends at D. Its ends are the
//! bits 0b1010, and it covers four blocks. When the request at D goes, the highest bit is that of B: two
//! blocks are left, and two leave the load.
//!
//! The tree is that of the index ([`PathTree`]) with bookings in place of KV events. It also serves the
//! predicted caches ([`crate::predicted`]), which are the same sets with longer lives.

use crate::event::Tier;
use crate::index::frame::BlockId;
use crate::index::hash_tables::{Map, make_room};
use crate::index::path_tree::PathTree;
use crate::index::slots::low_bits;
use crate::index::tree_allocator::TreeAllocator;
use crate::index::{Prompt, Scratch, Slot};

/// Highest number of other full holders of a frame that a booking may extend, as for stores in the index.
const EXTEND_HOLDERS_MAX: u32 = 1;

/// Blocks in flight on every worker; the module describes it.
#[derive(Debug, Default)]
pub(crate) struct ActiveBlocks {
    /// Tree of the prompts in flight; its holders are the workers. Only device memory is used.
    paths: PathTree,
    /// The right to write the tree.
    allocator: TreeAllocator,
    /// Per (frame, slot): bit i is set while the blocks of some request end at block i of the frame. Never 0.
    ends: Map<(u32, Slot), u64>,
    /// Number of requests beyond the first that end at a block, per (block, slot). Equal prompts at the same
    /// time make such entries.
    same_end: Map<(BlockId, Slot), u32>,
}

/// Blocks of one request: the last block of the request in every frame. 16 entries for 1,024 blocks, in
/// prompt order.
pub(crate) type RequestPath = Box<[BlockId]>;

impl ActiveBlocks {
    /// Leading blocks of the prompt in flight, per slot, as [`PathTree::overlap`].
    pub(crate) fn shared(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        depth: &mut [u32],
        scratch: &mut Scratch,
    ) {
        if self.allocator.blocks() > 0 {
            let read = self.paths.overlap(prompt, slots, depth, scratch);
            read.expect("a shared borrow excludes writers");
        } else {
            depth.fill(0);
        }
    }

    /// Puts the blocks of a request in flight on a worker; its path, and the number of blocks that are new
    /// there.
    ///
    /// Beyond 4 · 10⁹ blocks in flight no block id is left; the rest of the prompt then does not count.
    ///
    /// O(blocks / 64) frames, plus the comparison of the local hashes.
    pub(crate) fn add(&mut self, slot: Slot, prompt: &Prompt<'_>) -> (RequestPath, u64) {
        let mut path: Vec<BlockId> = Vec::with_capacity(prompt.locals.len() / 64 + 2);
        let mut done = 0;
        while done < prompt.locals.len() {
            let after = path.last().copied().unwrap_or(BlockId::ROOT);
            let rest = &prompt.locals[done..];
            let found = self.paths.step(after, rest).or_else(|| {
                let extend = after != BlockId::ROOT
                    && !self
                        .paths
                        .has_full_beside(after.frame(), slot, EXTEND_HOLDERS_MAX);
                self.paths.add(&mut self.allocator, after, rest, extend)
            });
            let Some(run) = found else {
                break;
            };
            let end = run.last();
            match path.last_mut() {
                Some(last) if last.frame() == end.frame() => *last = end,
                _ => path.push(end),
            }
            done += run.len as usize;
        }
        let added = path.iter().map(|&end| self.add_end(slot, end)).sum();
        (path.into_boxed_slice(), added)
    }

    /// Adds one end of a request; the number of blocks that are new on the worker.
    fn add_end(&mut self, slot: Slot, end: BlockId) -> u64 {
        make_room(&mut self.ends);
        let ends = self.ends.entry((end.frame().0, slot)).or_insert(0);
        let bit = 1 << end.offset();
        if *ends & bit != 0 {
            make_room(&mut self.same_end);
            *self.same_end.entry((end, slot)).or_insert(0) += 1;
            return 0;
        }
        let before = covered(*ends);
        *ends |= bit;
        let after = covered(*ends);
        self.cover(end, slot, after);
        u64::from(after - before)
    }

    /// Takes the blocks of a request out of flight; the number that no other request of the worker has.
    pub(crate) fn remove(&mut self, slot: Slot, path: &[BlockId]) -> u64 {
        // From the end of the prompt: a frame is dead only once its children are gone.
        path.iter().rev().map(|&end| self.remove_end(slot, end)).sum()
    }

    /// Removes one end of a request; the number of blocks that leave the worker.
    fn remove_end(&mut self, slot: Slot, end: BlockId) -> u64 {
        if let Some(more) = self.same_end.get_mut(&(end, slot)) {
            *more -= 1;
            if *more == 0 {
                self.same_end.remove(&(end, slot));
            }
            return 0;
        }
        let key = (end.frame().0, slot);
        let ends = self
            .ends
            .get_mut(&key)
            .expect("an end must be added before its removal");
        let before = covered(*ends);
        *ends &= !(1 << end.offset());
        let after = covered(*ends);
        if *ends == 0 {
            self.ends.remove(&key);
        }
        self.cover(end, slot, after);
        self.paths
            .free_dead(&mut self.allocator, end.frame(), &mut |_, _| {});
        u64::from(before - after)
    }

    /// Distinct blocks in flight on any worker.
    #[cfg(test)]
    pub(crate) const fn blocks(&self) -> u64 {
        self.allocator.blocks()
    }

    /// Makes the worker hold the first `blocks` blocks of a frame.
    fn cover(&mut self, end: BlockId, slot: Slot, blocks: u32) {
        let held = (slot, Tier::Device);
        self.paths
            .set_mask(&mut self.allocator, end.frame(), held, low_bits(blocks));
    }
}

/// Blocks before the furthest end: a request that ends at a block also has every block before it.
const fn covered(ends: u64) -> u32 {
    64 - ends.leading_zeros()
}
