//! What a full cache costs: how much it evicts per stored block, and how likely an evicted token is wanted
//! again.
//!
//! The toll multiplies both with the new tokens of a request and the seconds per token: the time that this
//! request will cost later ones. Both rates forget by count and not by time, so an idle hour changes nothing.

/// Memory of the eviction rate, stored blocks.
const MEMORY_BLOCKS: f64 = 4096.0;
/// Stored blocks below which the eviction rate counts as 0.
const MIN_BLOCKS: f64 = 16.0;

/// Blocks removed per block stored, by a worker's own KV events, over about the last 4,096 stored blocks. It is 0
/// while the cache has space, and 1 when every new block evicts an old one. The engine's own reports need no guess of
/// its capacity, nor of the blocks that running answers hold.
///
/// Example. 4,000 stored and 1,000 removed blocks: a new block evicts a quarter of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct EvictionRate {
    /// Blocks stored, with older ones decayed.
    stored: f64,
    /// Blocks removed, decayed by the same factor.
    removed: f64,
}

impl EvictionRate {
    /// Counts the blocks of one event. The decay depends on the stored blocks: a removal forgets nothing.
    pub fn count(&mut self, stored: usize, removed: usize) {
        let kept = 1.0 - (stored as f64 / MEMORY_BLOCKS).min(1.0);
        self.stored = self.stored * kept + stored as f64;
        self.removed = self.removed * kept + removed as f64;
    }

    /// Blocks that one new block evicts, 0 to 1.
    pub fn evicted_per_block(&self) -> f64 {
        if self.stored < MIN_BLOCKS {
            return 0.0;
        }
        (self.removed / self.stored).min(1.0)
    }
}

/// Memory of the reuse rate, requests.
const MEMORY_REQUESTS: f64 = 500.0;

/// Share of prompt tokens found in a cache, over about the last 500 requests. It stands for the chance that a cached
/// token is wanted again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ReuseRate {
    /// Prompt tokens found in a cache, decayed per request.
    cached: f64,
    /// All prompt tokens, decayed by the same factor.
    all: f64,
}

impl ReuseRate {
    /// Counts one placement.
    pub fn add(&mut self, cached_tokens: u64, new_tokens: u64) {
        let kept = 1.0 - 1.0 / MEMORY_REQUESTS;
        self.cached = self.cached * kept + cached_tokens as f64;
        self.all = self.all * kept + (cached_tokens + new_tokens) as f64;
    }

    /// The share, 0 to 1. 0 before the first placement.
    pub fn share(&self) -> f64 {
        if self.all > 0.0 {
            self.cached / self.all
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_with_space_evicts_nothing_and_a_full_one_block_for_block() {
        let mut rate = EvictionRate::default();
        assert_eq!(rate.evicted_per_block(), 0.0);
        (0..1000).for_each(|_| rate.count(8, 0));
        assert_eq!(rate.evicted_per_block(), 0.0);
        (0..4000).for_each(|_| rate.count(8, 8));
        assert!((rate.evicted_per_block() - 1.0).abs() < 0.01);
        rate.count(0, 100_000);
        assert_eq!(rate.evicted_per_block(), 1.0);
        rate.count(10_000, 0);
        assert_eq!(rate.evicted_per_block(), 0.0);
    }

    #[test]
    fn reuse_is_the_share_of_tokens_found_and_follows_the_traffic() {
        let mut reuse = ReuseRate::default();
        assert_eq!(reuse.share(), 0.0);
        (0..100).for_each(|_| reuse.add(300, 100));
        assert!((reuse.share() - 0.75).abs() < 1e-9);
        (0..5000).for_each(|_| reuse.add(0, 400));
        assert!(reuse.share() < 0.01);
    }
}
