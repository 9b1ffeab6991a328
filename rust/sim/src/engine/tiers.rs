//! Memory tiers below device memory: host (G2), local disk (G3) and network (G4).
//!
//! A block that the device evicts is written to the first tier, and a block that a tier evicts to the next one. A
//! prompt's prefix may continue in the tiers after it ends in device memory. The engine then reads the blocks from the
//! tiers before the request runs. Each tier has one link, and reads queue for it. A block enters a tier only if its use
//! counter is at least `promote_at`; KVBM's value is 2.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::block_pool::Evicted;
use crate::spec::TierSpec;

/// A change of a tier that routers have to learn of. `level` 0 is host memory, 1 is local disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TierChange {
    Stored { level: usize, block: u32, parent: u32 },
    Removed { level: usize, block: u32 },
}

/// A block in a tier.
#[derive(Clone, Copy, Debug)]
struct TierBlock {
    /// Stamp of the block's newest entry in [`Level::order`]. Older entries are stale.
    stamp: u64,
    block: Evicted,
}

/// An entry of the eviction order.
#[derive(Clone, Copy, Debug)]
struct OrderEntry {
    stamp: u64,
    block: u32,
}

/// One tier.
#[derive(Debug)]
struct Level {
    spec: TierSpec,
    blocks: FxHashMap<u32, TierBlock>,
    /// Blocks in order of their last write, oldest first. Stale entries are skipped.
    order: VecDeque<OrderEntry>,
    /// Time at which the link from this tier to the device becomes free.
    link_free_ms: f64,
}

/// The tiers of one worker.
#[derive(Debug)]
pub(crate) struct Tiers {
    levels: Vec<Level>,
    stamp: u64,
    block_bytes: f64,
}

impl Tiers {
    /// Empty tiers, nearest first.
    pub fn new(specs: &[TierSpec], block_bytes: f64) -> Self {
        let level = |spec: &TierSpec| Level {
            spec: *spec,
            blocks: FxHashMap::default(),
            order: VecDeque::new(),
            link_free_ms: 0.0,
        };
        Self {
            levels: specs.iter().map(level).collect(),
            stamp: 0,
            block_bytes,
        }
    }

    /// Whether there is no lower tier.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Writes a block that the device evicted to the first tier.
    pub fn offload(&mut self, evicted: Evicted, changes: &mut Vec<TierChange>) {
        self.insert(0, evicted, changes);
    }

    /// Writes a block to tier `at`. A full tier passes its oldest block on to the next tier, and the last
    /// tier drops it.
    fn insert(&mut self, at: usize, evicted: Evicted, changes: &mut Vec<TierChange>) {
        let Evicted { block, parent, uses } = evicted;
        let Some(level) = self.levels.get_mut(at) else {
            return;
        };
        if uses < level.spec.promote_at {
            return;
        }
        self.stamp += 1;
        let entry = TierBlock {
            stamp: self.stamp,
            block: evicted,
        };
        let is_new = level.blocks.insert(block, entry).is_none();
        level.order.push_back(OrderEntry {
            stamp: self.stamp,
            block,
        });
        if is_new {
            changes.push(TierChange::Stored {
                level: at,
                block,
                parent,
            });
        }
        if level.blocks.len() as u32 <= level.spec.num_blocks {
            level.compact();
            return;
        }
        while let Some(oldest) = level.order.pop_front() {
            if let Some(kept) = level.blocks.get(&oldest.block).copied()
                && kept.stamp == oldest.stamp
            {
                level.blocks.remove(&oldest.block);
                changes.push(TierChange::Removed {
                    level: at,
                    block: oldest.block,
                });
                self.insert(at + 1, kept.block, changes);
                return;
            }
        }
    }

    /// The nearest tier that holds `block`.
    pub fn holds(&self, block: u32) -> Option<usize> {
        self.levels
            .iter()
            .position(|level| level.blocks.contains_key(&block))
    }

    /// Queues a read of `counts[level]` blocks from each tier. Returns the time of the last byte, in milliseconds.
    pub fn read(&mut self, counts: &[u32], now_ms: f64) -> f64 {
        let mut done_ms = now_ms;
        for (level, count) in self.levels.iter_mut().zip(counts) {
            if *count == 0 {
                continue;
            }
            let start_ms = level.link_free_ms.max(now_ms);
            let bytes = f64::from(*count) * self.block_bytes;
            let end_ms = start_ms + bytes / level.spec.read_bytes_per_s * 1e3;
            level.link_free_ms = end_ms;
            done_ms = done_ms.max(end_ms + level.spec.latency_ms);
        }
        done_ms
    }

    /// Number of lower tiers.
    pub fn len(&self) -> usize {
        self.levels.len()
    }
}

impl Level {
    /// Drops stale entries once they outnumber the blocks, so that `order` stays proportional to the tier.
    fn compact(&mut self) {
        if self.order.len() > 2 * self.blocks.len() + 64 {
            let blocks = &self.blocks;
            self.order.retain(|entry| {
                blocks
                    .get(&entry.block)
                    .is_some_and(|kept| kept.stamp == entry.stamp)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(sizes: &[u32], promote_at: u16) -> Tiers {
        let spec = |num_blocks: &u32| TierSpec {
            num_blocks: *num_blocks,
            read_bytes_per_s: 1000.0,
            latency_ms: 2.0,
            promote_at,
        };
        Tiers::new(&sizes.iter().map(spec).collect::<Vec<_>>(), 10.0)
    }

    #[test]
    fn a_block_evicted_from_the_host_goes_to_disk() {
        let mut below = tiers(&[2, 2], 1);
        let mut changes = Vec::new();
        for block in 0..5 {
            below.offload(
                Evicted {
                    block,
                    parent: 0,
                    uses: 1,
                },
                &mut changes,
            );
        }
        assert_eq!(
            (below.holds(0), below.holds(1), below.holds(4)),
            (None, Some(1), Some(0))
        );
        let removed = changes
            .iter()
            .filter(|change| matches!(change, TierChange::Removed { .. }))
            .count();
        let stored = changes
            .iter()
            .filter(|change| matches!(change, TierChange::Stored { .. }))
            .count();
        assert_eq!(stored - removed, 4);
    }

    #[test]
    fn a_block_used_once_is_not_promoted() {
        let mut below = tiers(&[2], 2);
        let mut changes = Vec::new();
        below.offload(
            Evicted {
                block: 1,
                parent: 0,
                uses: 1,
            },
            &mut changes,
        );
        below.offload(
            Evicted {
                block: 2,
                parent: 0,
                uses: 4,
            },
            &mut changes,
        );
        assert_eq!((below.holds(1), below.holds(2)), (None, Some(0)));
    }

    #[test]
    fn reads_queue_for_the_link() {
        let mut below = tiers(&[4], 1);
        assert_eq!(below.read(&[5], 0.0), 52.0);
        assert_eq!(below.read(&[5], 10.0), 102.0);
    }
}
