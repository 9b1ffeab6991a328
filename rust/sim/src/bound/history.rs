//! Which blocks earlier requests named, in bounded memory: what an unlimited cache of the whole fleet could hold.
//!
//! Two generations of fingerprints stand for the blocks. A prompt enters the young generation as a whole, so a generation
//! that knows a block knows every block before it. A binary search finds the end of the known prefix. When the young
//! generation is full, it becomes the old one, and the former old one is forgotten. The history thus reaches back over at
//! least one full generation.
//!
//! Errors: two blocks of equal fingerprint count as one, which only lowers a bound. A forgotten block counts as new. So
//! the bound is that of the requests since the generation in memory began, with empty caches at its beginning.
//!
//! Cost per prompt: O(log blocks) look-ups, and one insertion per new block.

use rustc_hash::FxHashSet;

/// Fewest blocks of a generation.
const LEAST_BLOCKS: usize = 200_000;
/// Most blocks of a generation: two full generations take about 21 MB.
const MOST_BLOCKS: usize = 1_800_000;

/// Blocks that earlier requests named.
#[derive(Clone, Debug)]
pub struct History {
    young: FxHashSet<u32>,
    old: FxHashSet<u32>,
    generation_blocks: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            young: FxHashSet::default(),
            old: FxHashSet::default(),
            generation_blocks: LEAST_BLOCKS,
        }
    }
}

impl History {
    /// Lets a generation hold twice the blocks of a fleet, as far as the limits allow. A generation never shrinks.
    pub fn cover(&mut self, fleet_blocks: u64) {
        let wanted = usize::try_from(fleet_blocks.saturating_mul(2)).unwrap_or(usize::MAX);
        self.generation_blocks = self.generation_blocks.max(wanted.min(MOST_BLOCKS));
    }

    /// Number of leading blocks of a prompt that an earlier prompt named. The prompt itself becomes part of the history.
    ///
    /// `blocks` has one id per block, for the block and all blocks before it. Ids are spread evenly, as hashes are.
    pub fn note(&mut self, blocks: &[u64]) -> u32 {
        if self.young.len() >= self.generation_blocks {
            self.old = std::mem::take(&mut self.young);
        }
        let known = blocks.partition_point(|block| self.young.contains(&fingerprint(*block)));
        let new = &blocks[known..];
        let left = known + new.partition_point(|block| self.old.contains(&fingerprint(*block)));
        self.young.extend(new.iter().map(|block| fingerprint(*block)));
        left as u32
    }

    /// Forgets everything: some requests were not seen, so the history begins again.
    pub fn clear(&mut self) {
        self.young = FxHashSet::default();
        self.old = FxHashSet::default();
    }

    /// Number of blocks in memory.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether no block is in memory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The low bits of an id.
fn fingerprint(block: u64) -> u32 {
    block as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids of a prompt that shares its first `shared` blocks with prompt 0.
    fn prompt(number: u64, shared: u64, blocks: u64) -> Vec<u64> {
        (0..blocks)
            .map(|at| {
                (if at < shared { 0 } else { number } * 1_000 + at).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16
            })
            .collect()
    }

    #[test]
    fn a_prompt_finds_what_an_earlier_one_left_and_nothing_of_a_later_one() {
        let mut history = History::default();
        assert_eq!(history.note(&prompt(0, 0, 40)), 0);
        assert_eq!(history.note(&prompt(1, 25, 40)), 25);
        assert_eq!(history.note(&prompt(1, 25, 60)), 40);
        assert_eq!(history.note(&[]), 0);
        history.clear();
        assert_eq!(history.note(&prompt(0, 0, 40)), 0);
    }

    #[test]
    fn memory_is_bounded_and_reaches_back_over_a_whole_generation() {
        let mut history = History::default();
        history.note(&prompt(0, 0, 10));
        let per_prompt = 1_000;
        let prompts = (LEAST_BLOCKS / per_prompt) as u64;
        for number in 1..prompts {
            history.note(&prompt(number, 0, per_prompt as u64));
        }
        assert_eq!(history.note(&prompt(0, 0, 10)), 10, "within one generation");
        for number in prompts..4 * prompts {
            history.note(&prompt(number, 0, per_prompt as u64));
            assert!(history.len() <= 2 * LEAST_BLOCKS + 2 * per_prompt);
        }
        assert_eq!(
            history.note(&prompt(0, 0, 10)),
            0,
            "forgotten after two generations"
        );
    }

    #[test]
    fn a_larger_fleet_has_a_longer_history_up_to_the_limit() {
        let mut history = History::default();
        history.cover(1_000);
        assert_eq!(history.generation_blocks, LEAST_BLOCKS);
        history.cover(u64::MAX);
        assert_eq!(history.generation_blocks, MOST_BLOCKS);
    }
}
