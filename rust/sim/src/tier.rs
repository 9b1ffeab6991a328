//! Memory below the device: host (G2), local disk (G3), network (G4).
//!
//! What the device evicts is written to the first tier, what that evicts to the next. A prompt whose device prefix ends may
//! go on in the tiers; those blocks are then read back before the request runs. Each tier has one link per direction, whose
//! transfers queue: bandwidth is shared, never multiplied. A use count below `promote_at` keeps a block out (KVBM: 2).

use rustc_hash::FxHashMap;
use serde::Deserialize;

use crate::config::{SimError, bad};
use crate::pool::Evicted;

/// One level of memory.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierSpec {
    /// KV blocks it holds.
    pub num_blocks: u32,
    /// Bytes per second back to the device.
    pub read_bytes_per_s: f64,
    /// Time to the first byte, ms.
    pub latency_ms: f64,
    /// Uses that a block must have had to be kept here.
    pub promote_at: u16,
}

impl TierSpec {
    pub(crate) fn validate(&self) -> Result<(), SimError> {
        if self.num_blocks == 0 {
            return Err(bad("tier.num_blocks", 0, "at least 1"));
        }
        if self.read_bytes_per_s.is_nan() || self.read_bytes_per_s <= 0.0 {
            return Err(bad("tier.read_bytes_per_s", self.read_bytes_per_s, "above 0"));
        }
        if !(self.latency_ms.is_finite() && self.latency_ms >= 0.0) {
            return Err(bad("tier.latency_ms", self.latency_ms, "finite and at least 0"));
        }
        Ok(())
    }
}

/// A move between tiers that routers should hear of. `level` counts from 0 (host).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TierChange {
    Stored { level: usize, block: u32, parent: u32 },
    Removed { level: usize, block: u32 },
}

#[derive(Debug)]
struct Level {
    spec: TierSpec,
    /// Block → when it came; the queue holds (stamp, block), stale entries are skipped.
    blocks: FxHashMap<u32, (u64, Evicted)>,
    order: std::collections::VecDeque<(u64, u32)>,
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
    pub fn new(specs: &[TierSpec], block_bytes: f64) -> Self {
        let level = |spec: &TierSpec| Level {
            spec: *spec,
            blocks: FxHashMap::default(),
            order: std::collections::VecDeque::new(),
            link_free_ms: 0.0,
        };
        Self {
            levels: specs.iter().map(level).collect(),
            stamp: 0,
            block_bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Keep what the device gave up.
    pub fn offload(&mut self, gone: Evicted, changes: &mut Vec<TierChange>) {
        self.insert(0, gone, changes);
    }

    fn insert(&mut self, at: usize, gone: Evicted, changes: &mut Vec<TierChange>) {
        let Evicted { block, parent, uses } = gone;
        let Some(level) = self.levels.get_mut(at) else {
            return;
        };
        if uses < level.spec.promote_at {
            return;
        }
        self.stamp += 1;
        let fresh = level.blocks.insert(block, (self.stamp, gone)).is_none();
        level.order.push_back((self.stamp, block));
        if fresh {
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
        while let Some((stamp, old)) = level.order.pop_front() {
            if let Some((now, older)) = level.blocks.get(&old).copied()
                && now == stamp
            {
                level.blocks.remove(&old);
                changes.push(TierChange::Removed {
                    level: at,
                    block: old,
                });
                self.insert(at + 1, older, changes);
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

    /// Queue a read of `counts[level]` blocks from each level; returns when the last byte is in.
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

    pub fn len(&self) -> usize {
        self.levels.len()
    }
}

impl Level {
    /// Drop stale entries once they outnumber the live ones.
    fn compact(&mut self) {
        if self.order.len() > 2 * self.blocks.len() + 64 {
            let blocks = &self.blocks;
            self.order
                .retain(|(stamp, block)| blocks.get(block).is_some_and(|(now, _)| now == stamp));
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
    fn what_the_host_cannot_keep_goes_to_disk() {
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
