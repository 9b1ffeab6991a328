//! Common engine hashes in four to five bytes each: engine hash → the group of eight blocks that has it.
//!
//! Three ideas keep the table small:
//!
//! * An entry has 32 bits and names a group, not a block. The engine hashes of a group lie in one cache line,
//!   and the look-up compares them there.
//! * The bits that group numbers leave free hold a part of the key. With the line of an entry they give so
//!   much of its key that the table grows without reading one engine hash (quotienting: J. Cleary, 1984).
//! * The key scales to the line, so a shard can grow by one eighth instead of doubling.
//!
//! A line is a cache line of 16 entries. An entry that finds its home line full goes to one of the next three
//! lines, and from there to a sorted stash: below one in 200 entries. A removal refills its place, so removed
//! entries leave nothing behind. An insertion usually touches one line; a growing shard is read and written
//! once, in order.
//!
//! Beyond about 5 · 10⁸ blocks the key bits run short: more comparisons fail, and more entries lie in the
//! stash.

use std::hint::black_box;

use super::super::frame::BlockId;
use super::super::hash_tables::mix;
use super::layout::{BlockGroup, PROBE_LINES, SHARD_BITS, SHARDS};
use super::shard::Shard;

/// Key of an engine hash; its first bits choose the shard.
const fn key_of(engine_hash: u64) -> u64 {
    mix(engine_hash, 0x517C_C1B7_2722_0A95)
}

/// Shard of a key: its first six bits.
const fn shard_of(key: u64) -> usize {
    (key >> (u64::BITS - SHARD_BITS)) as usize
}

/// Table of common engine hashes; the module describes it.
///
/// The table knows groups and never reads the tree by itself. Callers pass closures that compare the engine
/// hashes of a group.
#[derive(Clone, Debug)]
pub(crate) struct EngineHashTable {
    /// The shards, by the first bits of the key.
    shards: Vec<Shard>,
    /// Highest group number since the table was last empty. It decides how many bits of an entry a group
    /// takes.
    highest_group: u32,
    /// Entries of all shards.
    len: usize,
    /// Bytes of all shards, kept as a sum: the budget asks for it at every store.
    bytes: u64,
}

impl Default for EngineHashTable {
    fn default() -> Self {
        Self {
            shards: vec![Shard::default(); SHARDS],
            highest_group: 0,
            len: 0,
            bytes: 0,
        }
    }
}

impl EngineHashTable {
    /// Block with this engine hash. `block_in` compares the engine hashes of a group. O(1): one line of the
    /// table and one line of engine hashes in most cases.
    #[inline]
    pub(crate) fn find(
        &self,
        engine_hash: u64,
        block_in: impl Fn(BlockGroup) -> Option<BlockId>,
    ) -> Option<BlockId> {
        let key = key_of(engine_hash);
        let shard = &self.shards[shard_of(key)];
        shard.find(shard.layout.prefix(key), block_in).ok()
    }

    /// Reads the lines that look-ups of these engine hashes will need. The reads are independent, so their
    /// cache misses overlap.
    #[inline]
    pub(crate) fn prefetch(&self, names: &(impl Iterator<Item = u64> + Clone)) {
        // A small table lies in a cache anyway: prefetching more lines costs more than it saves.
        let lines = if self.exceeds_caches() { PROBE_LINES } else { 1 };
        for beyond in 0..lines {
            black_box(names.clone().fold(0, |read, engine_hash| {
                let key = key_of(engine_hash);
                read ^ self.shards[shard_of(key)].prefetch(key, beyond)
            }));
        }
    }

    /// A group that may have this engine hash, without comparing. It serves prefetching only.
    #[inline]
    pub(crate) fn guess_group(&self, engine_hash: u64) -> Option<BlockGroup> {
        let key = key_of(engine_hash);
        self.shards[shard_of(key)].guess_group(key)
    }

    /// Inserts an engine hash of a block in `group`, unless the table has it: then returns its block.
    ///
    /// `engine_hashes_in` lists the engine hashes of a group that the table already has.
    ///
    /// O(1) amortised. A shard that is full grows by an eighth at once: 3.7 ns per engine hash of the shard.
    #[inline]
    pub(crate) fn insert<N: Iterator<Item = u64>>(
        &mut self,
        engine_hash: u64,
        group: BlockGroup,
        block_in: impl Fn(BlockGroup) -> Option<BlockId>,
        engine_hashes_in: impl Fn(BlockGroup) -> N,
    ) -> Option<BlockId> {
        let key = key_of(engine_hash);
        let own = shard_of(key);
        let shard = &mut self.shards[own];
        self.highest_group = self.highest_group.max(group.0);
        if !shard.has_room(1, self.len as u64 + 1, self.highest_group) {
            self.bytes -= shard.bytes();
            let layout = shard.layout_for(1, own, self.len as u64 + 1, self.highest_group);
            shard.rebuild(layout, own, |group| {
                engine_hashes_in(group)
                    .map(key_of)
                    .filter(move |&key| shard_of(key) == own)
            });
            self.bytes += shard.bytes();
        }
        let prefix = shard.layout.prefix(key);
        match shard.find(prefix, block_in) {
            Ok(block) => return Some(block),
            Err(Some(free)) => shard.put(Some(free), prefix, group),
            Err(None) => {
                self.bytes -= shard.bytes();
                shard.put(None, prefix, group);
                self.bytes += shard.bytes();
            }
        }
        self.len += 1;
        None
    }

    /// Removes an engine hash; `false` when the table does not have it. O(1), and an empty shard gives its
    /// lines back.
    pub(crate) fn remove(&mut self, engine_hash: u64, group: BlockGroup) -> bool {
        let key = key_of(engine_hash);
        let shard = &mut self.shards[shard_of(key)];
        let before = shard.bytes();
        let was_in = shard.remove(key, group);
        self.len -= usize::from(was_in);
        if shard.len == 0 {
            *shard = Shard::default();
        }
        if self.len == 0 {
            self.highest_group = 0;
        }
        self.bytes = self.bytes + shard.bytes() - before;
        was_in
    }

    /// Whether the table exceeds the caches. Its entries then have so few key bits that one comparison in ten
    /// fails.
    pub(crate) const fn exceeds_caches(&self) -> bool {
        self.len >= 1 << 23
    }

    /// Number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the lines and the stashes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Highest number of bytes that these engine hashes may allocate, the growth of shards included.
    pub(crate) fn growth_bytes(&self, names: impl Iterator<Item = u64>) -> u64 {
        let mut more = [0; SHARDS];
        let mut all = self.len as u64;
        for engine_hash in names {
            more[shard_of(key_of(engine_hash))] += 1;
            all += 1;
        }
        let growing = self.shards.iter().enumerate().zip(more);
        let growing = growing.filter(|&(_, more)| more > 0);
        let bytes = growing.map(|((of, shard), more)| shard.growth_bytes(more, of, all, self.highest_group));
        bytes.sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::layout::free_lanes;
    use super::*;
    use crate::rng::Rng;

    /// The table beside a plain map: up to eight engine hashes per group.
    #[derive(Default)]
    struct Pair {
        table: EngineHashTable,
        groups: HashMap<u32, Vec<u64>>,
    }

    impl Pair {
        fn insert(&mut self, engine_hash: u64, group: u32) {
            let Self { table, groups } = self;
            let engine_hashes_in = |group: BlockGroup| groups.get(&group.0).cloned().unwrap_or_default();
            let block_in = |group: BlockGroup| {
                engine_hashes_in(group)
                    .contains(&engine_hash)
                    .then(|| group.block(0))
            };
            let before = table.insert(engine_hash, BlockGroup(group), block_in, |group| {
                engine_hashes_in(group).into_iter()
            });
            assert_eq!(before, None);
            groups.entry(group).or_default().push(engine_hash);
        }

        fn remove(&mut self, engine_hash: u64, group: u32) {
            assert!(self.table.remove(engine_hash, BlockGroup(group)));
            let names = self
                .groups
                .get_mut(&group)
                .expect("the group must have engine hashes");
            names.retain(|&other| other != engine_hash);
            if names.is_empty() {
                self.groups.remove(&group);
            }
        }

        /// Group of an engine hash.
        fn find(&self, engine_hash: u64) -> Option<u32> {
            let block_in = |group: BlockGroup| {
                let has = self
                    .groups
                    .get(&group.0)
                    .is_some_and(|names| names.contains(&engine_hash));
                has.then(|| group.block(0))
            };
            self.table
                .find(engine_hash, block_in)
                .map(|block| BlockGroup::of(block).0)
        }

        fn check(&self) {
            let mut len = 0;
            for (&group, names) in &self.groups {
                for &engine_hash in names {
                    assert_eq!(self.find(engine_hash), Some(group));
                    assert!(self.find(!engine_hash).is_none());
                    len += 1;
                }
            }
            assert_eq!(self.table.len(), len);
            let bytes: u64 = self.table.shards.iter().map(Shard::bytes).sum();
            assert_eq!(self.table.bytes(), bytes);
            for shard in &self.table.shards {
                let home_lines = shard.layout.home_lines;
                let lines = if home_lines == 0 {
                    0
                } else {
                    home_lines + PROBE_LINES
                };
                let full = |at: u32| free_lanes(shard.lines.get(at)) == 0;
                for at in 0..lines {
                    let next_first = shard.layout.first_of(at + 1);
                    for &entry in shard.lines.get(at).0.iter().filter(|&&entry| entry != 0) {
                        let home = shard.layout.home(shard.layout.prefix_of(entry, next_first));
                        assert!(home <= at && at <= home + PROBE_LINES && (home..at).all(full));
                    }
                }
                for &(prefix, _) in shard.stash.keys() {
                    let home = shard.layout.home(prefix);
                    assert!((home..=home + PROBE_LINES).all(full));
                }
            }
        }
    }

    /// Inserts and removes engine hashes in groups below `groups`, keeping about `live` of them.
    fn churn(seed: u64, groups: u32, live: usize, steps: usize) {
        let (mut pair, mut rng) = (Pair::default(), Rng::new(seed));
        let mut names: Vec<(u64, u32)> = Vec::new();
        for step in 0..steps {
            if names.len() > rng.below(2 * live) {
                let (engine_hash, group) = names.swap_remove(rng.below(names.len()));
                pair.remove(engine_hash, group);
            } else {
                let (engine_hash, group) = (rng.next_u64(), rng.below(groups as usize) as u32);
                if pair.groups.get(&group).is_none_or(|names| names.len() < 8) {
                    pair.insert(engine_hash, group);
                    names.push((engine_hash, group));
                }
            }
            if step % (steps / 5) == 0 {
                pair.check();
            }
        }
        pair.check();
        for (engine_hash, group) in names {
            pair.remove(engine_hash, group);
        }
        assert_eq!((pair.table.len(), pair.table.bytes()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn the_table_equals_a_map_under_churn(seed: u64, group_bits in 4u32..29, live in 1usize..6000) {
            churn(seed, 1 << group_bits, live.min(4 << group_bits), 4 * live + 10);
        }
    }

    #[test]
    fn a_growing_shard_fetches_missing_key_bits_from_the_engine_hashes() {
        // Large group numbers leave few key bits at first; then the table grows far.
        let mut pair = Pair::default();
        let mut rng = Rng::new(3);
        for of in 0..100_000u32 {
            pair.insert(rng.next_u64(), (1 << 29) - 1 - of % 20_000);
        }
        pair.check();
        let names = pair.groups.clone();
        for (group, names) in names {
            for engine_hash in names {
                pair.remove(engine_hash, group);
            }
        }
        assert_eq!(pair.table.bytes(), 0);
    }

    #[test]
    fn an_engine_hash_takes_five_bytes_and_a_removed_one_none() {
        let mut pair = Pair::default();
        let mut bytes = Vec::new();
        for of in 0..400_000u64 {
            pair.insert(of, of as u32 / 8);
            if of >= 100_000 && of.is_multiple_of(1000) {
                bytes.push(pair.table.bytes() as f64 / (of + 1) as f64);
            }
        }
        assert!(
            bytes.iter().all(|&bytes| (4.7..5.6).contains(&bytes)),
            "{bytes:?}"
        );
        let full = pair.table.bytes();
        let mut rng = Rng::new(9);
        let mut of_group: Vec<u64> = (0..400_000).collect();
        for of in 400_000..2_000_000 {
            let at = rng.below(400_000);
            let engine_hash = std::mem::replace(&mut of_group[at], of);
            pair.remove(engine_hash, at as u32 / 8);
            pair.insert(of, at as u32 / 8);
        }
        pair.check();
        assert!(
            pair.table.bytes() <= full + full / 50,
            "{full} became {}",
            pair.table.bytes()
        );
    }
}
