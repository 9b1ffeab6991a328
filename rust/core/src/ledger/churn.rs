//! What a full cache costs: how much it throws out per block taken in, and how likely somebody wants that again.

/// Blocks over which a worker's churn is remembered.
const MEMORY_BLOCKS: f64 = 4096.0;
/// Below so many blocks stored nothing is said.
const MIN_BLOCKS: f64 = 16.0;

/// Blocks removed per block stored, from a worker's own KV events, over about the last 4,096 stored: 0 while its cache has
/// space, 1 when every new block pushes an old one out. What the engine itself reports needs no guess of its capacity or
/// of the blocks that running answers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Churn {
    stored: f64,
    removed: f64,
}

impl Churn {
    /// Counts one event's blocks.
    pub fn count(&mut self, stored: usize, removed: usize) {
        let kept = 1.0 - (stored as f64 / MEMORY_BLOCKS).min(1.0);
        self.stored = self.stored * kept + stored as f64;
        self.removed = self.removed * kept + removed as f64;
    }

    /// Blocks that one new block pushes out, 0 to 1.
    pub fn evicted_per_block(&self) -> f64 {
        if self.stored < MIN_BLOCKS {
            return 0.0;
        }
        (self.removed / self.stored).min(1.0)
    }
}

/// Requests over which reuse is remembered.
const MEMORY_REQUESTS: f64 = 500.0;

/// Share of prompt tokens that were found in a cache, over about the last 500 requests: the chance that a cached token is
/// wanted again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reuse {
    cached: f64,
    all: f64,
}

impl Reuse {
    /// Counts one placement.
    pub fn add(&mut self, cached_tokens: u64, new_tokens: u64) {
        let kept = 1.0 - 1.0 / MEMORY_REQUESTS;
        self.cached = self.cached * kept + cached_tokens as f64;
        self.all = self.all * kept + (cached_tokens + new_tokens) as f64;
    }

    /// The share, 0 to 1; 0 before anything was seen.
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
        let mut churn = Churn::default();
        assert_eq!(churn.evicted_per_block(), 0.0);
        (0..1000).for_each(|_| churn.count(8, 0));
        assert_eq!(churn.evicted_per_block(), 0.0);
        (0..4000).for_each(|_| churn.count(8, 8));
        assert!((churn.evicted_per_block() - 1.0).abs() < 0.01);
        churn.count(0, 100_000);
        assert_eq!(churn.evicted_per_block(), 1.0);
        churn.count(10_000, 0);
        assert_eq!(churn.evicted_per_block(), 0.0);
    }

    #[test]
    fn reuse_is_the_share_of_tokens_found_and_follows_the_traffic() {
        let mut reuse = Reuse::default();
        assert_eq!(reuse.share(), 0.0);
        (0..100).for_each(|_| reuse.add(300, 100));
        assert!((reuse.share() - 0.75).abs() < 1e-9);
        (0..5000).for_each(|_| reuse.add(0, 400));
        assert!(reuse.share() < 0.01);
    }
}
