//! The index as KV events: the stores that give another index the same blocks.
//!
//! A caller that has no image reader, such as Dynamo's indexer, reads these events instead of an image. Each store is a run of
//! neighbouring blocks that one worker holds in one tier of one frame. So a store has at most 64 blocks. O(blocks · holders),
//! under the writer's lock. Events wait meanwhile; matches do not.

use rustc_hash::FxHashMap;

use super::Slot;
use super::arena::get;
use super::frame::{BlockId, FrameId};
use super::parents_first::parents_first;
use super::shared::Shared;
use super::writer::Writer;
use crate::event::{KvEvent, StoredBlock, Tier};
use crate::hash::{EngineHash, LocalHash};
use crate::worker::WorkerId;

/// The stores of every registered worker, each parent before its children.
///
/// Copies beyond the first are left out: a second store of a block names no other block. A run behind a block without a
/// reported engine hash is left out too. A store could not name its parent, and no match reaches the run.
pub(super) fn stores(shared: &Shared, writer: &Writer) -> Vec<(WorkerId, KvEvent)> {
    let workers: FxHashMap<Slot, WorkerId> = writer.slot_of.iter().map(|(&id, &slot)| (slot, id)).collect();
    let (frames, _) = parents_first(shared, writer);
    let mut out = Vec::new();
    for frame in frames {
        for tier in Tier::ALL {
            let mut holders = shared.paths.holding(frame, tier);
            holders.sort_unstable();
            for (slot, mask) in holders {
                let Some(&worker) = workers.get(&slot) else {
                    continue;
                };
                let names = Names { shared, writer, slot };
                let runs = runs(mask).filter_map(|run| names.store(frame, run, tier));
                out.extend(runs.map(|event| (worker, event)));
            }
        }
    }
    out
}

/// Neighbouring blocks of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Offset of the first block.
    first: u32,
    /// Blocks, 1 to 64.
    len: u32,
}

/// The runs of set bits, from the lowest.
fn runs(mut mask: u64) -> impl Iterator<Item = Run> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let first = mask.trailing_zeros();
        let len = (mask >> first).trailing_ones();
        // A run up to the last bit leaves nothing, and a shift by 64 would overflow.
        mask &= u64::MAX.checked_shl(first + len).unwrap_or(0);
        Some(Run { first, len })
    })
}

/// Engine hashes as one worker reports them.
struct Names<'a> {
    shared: &'a Shared,
    writer: &'a Writer,
    slot: Slot,
}

impl Names<'_> {
    /// Engine hash of a block: the worker's own, else the common one.
    fn of(&self, block: BlockId) -> Option<EngineHash> {
        let own = self.writer.engine_hashes.alias(self.slot, block);
        let has_common = get(self.shared.paths.owner_word(block.frame())) >> block.offset() & 1 == 1;
        own.or_else(|| has_common.then(|| self.shared.engine_hash_of(block)))
            .map(EngineHash)
    }

    /// The store of a run; `None` where the block before it has no engine hash.
    fn store(&self, frame: FrameId, run: Run, tier: Tier) -> Option<KvEvent> {
        let above = match run.first {
            0 => self.shared.paths.parent(frame),
            first => BlockId::new(frame, first - 1),
        };
        let parent = if above == BlockId::ROOT {
            None
        } else {
            Some(self.of(above)?)
        };
        let blocks = (run.first..run.first + run.len).map(|offset| {
            let block = BlockId::new(frame, offset);
            Some(StoredBlock {
                engine_hash: self.of(block)?,
                local_hash: LocalHash(self.shared.paths.local_of(block)),
            })
        });
        let blocks = blocks.collect::<Option<Vec<_>>>()?;
        Some(KvEvent::Stored { parent, blocks, tier })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_neighbouring_bits() {
        let found: Vec<_> = runs(0b1_0110_0111).map(|run| (run.first, run.len)).collect();
        assert_eq!(found, [(0, 3), (5, 2), (8, 1)]);
        let whole: Vec<_> = runs(u64::MAX).map(|run| (run.first, run.len)).collect();
        assert_eq!(whole, [(0, 64)]);
        assert_eq!(runs(1 << 63).next(), Some(Run { first: 63, len: 1 }));
    }
}
