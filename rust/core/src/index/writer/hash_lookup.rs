//! Which block an engine means by one of its hashes, and how the index learns it.
//!
//! Engines name blocks by hashes of their own ([`EngineHash`]), and most engines of a fleet use the same name
//! for the same block. The index therefore has two levels, and a look-up asks them in this order:
//!
//! ```text
//! (worker, engine hash) ─▶ alias of this worker?        ─▶ its block
//!                       ─▶ common hash of some block?   ─▶ that block, unless the worker has an alias for it
//!                       ─▶ unknown
//! ```
//!
//! Example. Worker A stores block X as 7, so 7 becomes the common hash of X. Worker B stores X as 7 too:
//! nothing is written, since comparing the common hashes suffices. Worker C, which salts its hashes, stores X
//! as 9. The block already has a common hash, so 9 becomes an alias of C alone. For C, 7 now means nothing.
//!
//! Rules that every function here keeps:
//!
//! * A block has at most one common hash, and a common hash belongs to one block.
//! * A worker uses one engine hash per block that it holds. An event that says otherwise is refused as
//!   [`Refusal::ConflictingBlock`](super::super::Refusal::ConflictingBlock).
//! * A common hash stays while any worker holds the block, so a hash may outlive the holding of the worker
//!   that brought it.
//!
//! O(1) per hash, with about one cache miss in a large table.

use std::hint::black_box;

use super::super::Slot;
use super::super::arena::{get, set};
use super::super::engine_hashes::BlockGroup;
use super::super::frame::{BlockId, FRAME_BLOCKS, OWNER_WORD};
use super::super::path_tree::PathTree;
use super::super::shared::Shared;
use super::super::slots::low_bits;
use super::{PREFETCH_MIN, Writer};
use crate::event::StoredBlock;
use crate::hash::EngineHash;

impl Writer {
    /// Block with a common engine hash, regardless of who holds it. O(1), one cache miss in a large table.
    ///
    /// The table stores groups of eight blocks, not blocks
    /// ([`EngineHashTable`](super::super::engine_hashes)). The closure finds the block in its group by
    /// comparing one cache line of engine hashes.
    pub(in crate::index) fn find_common(&self, shared: &Shared, engine_hash: u64) -> Option<BlockId> {
        self.engine_hashes
            .common
            .find(engine_hash, |group| shared.block_in(group, engine_hash))
    }

    /// Gives a block without a common engine hash this one. If another block has the hash already, returns
    /// that block and changes nothing.
    ///
    /// The hash goes into the block's chunk after the table accepted it. The bit in the owner word comes
    /// last: it is what makes the hash valid for [`Shared::block_in`].
    pub(in crate::index) fn insert_common_hash(
        &mut self,
        shared: &Shared,
        engine_hash: u64,
        block: BlockId,
    ) -> Option<BlockId> {
        let other = self.engine_hashes.common.insert(
            engine_hash,
            BlockGroup::of(block),
            |group| shared.block_in(group, engine_hash),
            |group| shared.engine_hashes_in(group),
        );
        if other.is_none() {
            let header = shared.paths.header(block.frame());
            set(shared.engine_hash_word(header, block.offset()), engine_hash);
            set(
                &header[OWNER_WORD],
                get(&header[OWNER_WORD]) | 1 << block.offset(),
            );
        }
        other
    }

    /// Block that this worker means by an engine hash, whether or not it still holds the block.
    ///
    /// While no worker of the fleet has an alias, which is the usual case, neither alias map is read.
    pub(super) fn resolve(&self, shared: &Shared, slot: Slot, engine_hash: u64) -> Option<BlockId> {
        let aliases = self.engine_hashes.has_aliases();
        // An alias comes first: for this worker the hash means that block, regardless of other workers.
        if aliases && let Some(block) = self.engine_hashes.aliased(slot, engine_hash) {
            return Some(block);
        }
        let block = self.find_common(shared, engine_hash)?;
        (!(aliases && self.engine_hashes.alias(slot, block).is_some())).then_some(block)
    }

    /// Block that this worker means by an engine hash and holds.
    ///
    /// A hash may outlive the holding: the block stays for other workers. For this worker it is then unknown.
    pub(super) fn find_held(&self, shared: &Shared, slot: Slot, engine_hash: EngineHash) -> Option<BlockId> {
        let block = self.resolve(shared, slot, engine_hash.0)?;
        let held = shared.paths.mask_any(block.frame(), slot) >> block.offset() & 1 == 1;
        held.then_some(block)
    }

    /// Reads the memory that look-ups of these engine hashes will need, for at most 64 hashes.
    ///
    /// The reads do not depend on each other, so their cache misses overlap.
    ///
    /// `black_box` keeps the compiler from dropping reads whose values are not used. A real prefetch
    /// instruction would need `unsafe`, which the crate forbids.
    pub(super) fn prefetch_blocks(&self, shared: &Shared, hashes: impl Iterator<Item = u64> + Clone) {
        self.engine_hashes.common.prefetch(&hashes);
        let mut chunks = [None; FRAME_BLOCKS as usize];
        for (chunk, engine_hash) in chunks.iter_mut().zip(hashes) {
            *chunk = self.engine_hashes.common.guess_group(engine_hash).map(|group| {
                let first = group.block(0);
                PathTree::chunk(shared.paths.header(first.frame()), first.offset())
            });
        }
        let hashes = chunks
            .iter()
            .flatten()
            .map(|&chunk| get(&shared.engine_hashes.unit(chunk)[0]));
        black_box(hashes.fold(0, |read, engine_hash| read ^ engine_hash));
    }

    /// Records which engine hashes the worker uses for the blocks from `first` on. The blocks lie in one
    /// frame.
    ///
    /// The usual case ends early: when all blocks have common hashes and no worker has aliases, one
    /// comparison of cache lines decides. Otherwise each block is judged alone.
    ///
    /// # Errors
    /// How many blocks were recorded before an engine hash that means another block for this worker, and that
    /// hash. The recorded blocks stay.
    pub(super) fn record_engine_hashes(
        &mut self,
        shared: &Shared,
        slot: Slot,
        first: BlockId,
        blocks: &[StoredBlock],
    ) -> Result<u32, (u32, EngineHash)> {
        let (id, offset) = (first.frame(), first.offset());
        let range = low_bits(blocks.len() as u32) << offset;
        let all_common = || {
            let header = shared.paths.header(id);
            let engine_hash = |block: &StoredBlock| block.engine_hash.0;
            PathTree::equal(&shared.engine_hashes, header, offset, blocks, engine_hash) == blocks.len()
        };
        let all_named = get(shared.paths.owner_word(id)) & range == range;
        // Usual case: another worker stored these blocks under the same hashes, so comparing suffices.
        if all_named && !self.engine_hashes.has_aliases() && all_common() {
            return Ok(blocks.len() as u32);
        }
        if blocks.len() >= PREFETCH_MIN {
            let hashes = blocks.iter().map(|block| block.engine_hash.0);
            // A large table has few key bits per entry, so the groups themselves must be read too.
            if self.engine_hashes.common.exceeds_caches() {
                self.prefetch_blocks(shared, hashes);
            } else {
                self.engine_hashes.common.prefetch(&hashes);
            }
        }
        let held = shared.paths.mask_any(id, slot);
        for (at, block) in (0..).zip(blocks) {
            let place = BlockId::new(id, offset + at);
            let engine_hash = block.engine_hash.0;
            let is_new = get(shared.paths.owner_word(id)) >> place.offset() & 1 == 0;
            let named = if is_new && !self.engine_hashes.has_aliases() {
                let Some(other) = self.insert_common_hash(shared, engine_hash, place) else {
                    continue;
                };
                Some(other)
            } else {
                self.find_common(shared, engine_hash)
            };
            let held = held >> place.offset() & 1 == 1;
            // A hash that an earlier block of this same event took is a contradiction, although the worker
            // does not hold that block yet. An alias of that block means that the event gave it another hash.
            let of_this_event = |other: BlockId| {
                let before = other.frame() == id && (offset..offset + at).contains(&other.offset());
                before && self.engine_hashes.alias(slot, other).is_none()
            };
            let contradicts = named.is_some_and(of_this_event);
            if contradicts
                || !self.record_engine_hash(shared, slot, (place, held), (block.engine_hash, named))
            {
                return Err((at, block.engine_hash));
            }
        }
        Ok(blocks.len() as u32)
    }

    /// Records that the worker uses `engine_hash` for `block`; `false` when that contradicts an earlier event
    /// of the worker.
    ///
    /// `common` is the block with that common engine hash; `held` says whether the worker holds `block`. The
    /// cases, in order:
    ///
    /// 1. The worker has an alias with this hash: right only if the alias means this block.
    /// 2. The hash is common to another block, and the worker holds that block: a contradiction.
    /// 3. The worker holds this block already: right only if it uses the common hash.
    /// 4. The hash is the common hash of this block: nothing to record.
    /// 5. Neither the hash nor the block is taken: the hash becomes common. Otherwise it becomes an alias.
    fn record_engine_hash(
        &mut self,
        shared: &Shared,
        slot: Slot,
        (block, held): (BlockId, bool),
        (engine_hash, common): (EngineHash, Option<BlockId>),
    ) -> bool {
        if self.engine_hashes.has_aliases()
            && let Some(aliased) = self.engine_hashes.aliased(slot, engine_hash.0)
        {
            return aliased == block;
        }
        if let Some(other) = common
            && other != block
            && self.find_held(shared, slot, engine_hash) == Some(other)
        {
            return false;
        }
        let alias = self.engine_hashes.alias(slot, block);
        let has_common = get(shared.paths.owner_word(block.frame())) >> block.offset() & 1 == 1;
        let is_common = common == Some(block);
        if held {
            // The worker holds the block and has no such alias: its hash is the common one or another
            // alias.
            return is_common && alias.is_none();
        }
        if is_common {
            return true;
        }
        if common.is_none() && !has_common {
            let other = self.insert_common_hash(shared, engine_hash.0, block);
            assert_eq!(other, None, "an engine hash must belong to one block");
        } else {
            self.engine_hashes.insert_alias(slot, engine_hash.0, block);
        }
        true
    }
}
