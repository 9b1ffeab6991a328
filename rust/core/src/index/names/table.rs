//! Names of blocks by their hashes, in four to five bytes each: name → the group of eight blocks in which it is.
//!
//! Three things keep it small. An entry is 32 bits and names a group, not a block: the names of a group lie in one cache line
//! and are compared there. The bits that groups do not need have a part of the hash: with the line in which an entry lies they
//! tell so much of its hash that a table grows without a look at a single name (quotienting: J. Cleary, 1984). And since the hash
//! is known, a line is chosen by scaling it, so that a shard can grow by an eighth instead of by itself.
//!
//! A line is one cache line of 16 entries. What finds its home line full goes into one of the next three, and what finds all of
//! them full into a sorted stash: below one name in 200. A removal fills its place from there, so that nothing is left behind of
//! what is gone. An insertion touches one line, mostly; a shard that grows is read and written once, in order.
//!
//! Bits run short beyond some 5 · 10⁸ blocks: then more names are compared in vain, and more of them lie in the stash.

use std::hint::black_box;

use super::super::children::mix;
use super::super::frame::BlockId;
use super::entry::{BEYOND, Group};
use super::shard::Shard;

/// Shards grow on their own, so that no insertion waits for all.
pub const SHARD_BITS: u32 = 6;
/// So many.
pub const SHARDS: usize = 1 << SHARD_BITS;

/// The hash of a name: its first bits choose the shard.
const fn hash(name: u64) -> u64 {
    mix(name, 0x517C_C1B7_2722_0A95)
}

const fn shard_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SHARD_BITS)) as usize
}

/// See the module.
#[derive(Clone, Debug)]
pub struct NameTable {
    shards: Vec<Shard>,
    /// Of the groups ever named since it was empty.
    highest: u32,
    len: usize,
    bytes: u64,
}

impl Default for NameTable {
    fn default() -> Self {
        Self {
            shards: vec![Shard::default(); SHARDS],
            highest: 0,
            len: 0,
            bytes: 0,
        }
    }
}

impl NameTable {
    /// The block with this name. `block_in` compares the names of a group.
    #[inline]
    pub fn find(&self, name: u64, block_in: impl Fn(Group) -> Option<BlockId>) -> Option<BlockId> {
        let hash = hash(name);
        let shard = &self.shards[shard_of(hash)];
        shard.find(shard.form.known(hash), block_in).ok()
    }

    /// Reads where these names would be: each read waits for memory, but they wait together, and what is asked of the names next
    /// is in the cache.
    #[inline]
    pub fn touch(&self, names: &(impl Iterator<Item = u64> + Clone)) {
        // A small table is in a cache anyway: what it would spare is less than the work.
        let lines = if self.is_large() { BEYOND } else { 1 };
        for beyond in 0..lines {
            black_box(names.clone().fold(0, |read, name| {
                let hash = hash(name);
                read ^ self.shards[shard_of(hash)].touch(hash, beyond)
            }));
        }
    }

    /// A group that may have the name; the names in it were not compared.
    #[inline]
    pub fn guess(&self, name: u64) -> Option<Group> {
        let hash = hash(name);
        self.shards[shard_of(hash)].guess(hash)
    }

    /// Puts in a name of a block in `group`, unless it is in: then the block that has it. `names_in`: the names in a group that
    /// are in already.
    #[inline]
    pub fn insert<N: Iterator<Item = u64>>(
        &mut self,
        name: u64,
        group: Group,
        block_in: impl Fn(Group) -> Option<BlockId>,
        names_in: impl Fn(Group) -> N,
    ) -> Option<BlockId> {
        let hash = hash(name);
        let own = shard_of(hash);
        let shard = &mut self.shards[own];
        self.highest = self.highest.max(group.0);
        if !shard.has_room(1, self.len as u64 + 1, self.highest) {
            self.bytes -= shard.bytes();
            let form = shard.form_for(1, own, self.len as u64 + 1, self.highest);
            shard.reform(form, own, |group| {
                names_in(group)
                    .map(self::hash)
                    .filter(move |&hash| shard_of(hash) == own)
            });
            self.bytes += shard.bytes();
        }
        let known = shard.form.known(hash);
        match shard.find(known, block_in) {
            Ok(block) => return Some(block),
            Err(Some(free)) => shard.put(Some(free), known, group),
            Err(None) => {
                self.bytes -= shard.bytes();
                shard.put(None, known, group);
                self.bytes += shard.bytes();
            }
        }
        self.len += 1;
        None
    }

    /// Takes a name out. `false`: it was not in.
    pub fn remove(&mut self, name: u64, group: Group) -> bool {
        let hash = hash(name);
        let shard = &mut self.shards[shard_of(hash)];
        let before = shard.bytes();
        let was_in = shard.remove(hash, group);
        self.len -= usize::from(was_in);
        if shard.len == 0 {
            *shard = Shard::default();
        }
        if self.len == 0 {
            self.highest = 0;
        }
        self.bytes = self.bytes + shard.bytes() - before;
        was_in
    }

    /// Whether it is past the caches, and its entries have so few bits of a hash that one name in ten is compared in vain.
    pub const fn is_large(&self) -> bool {
        self.len >= 1 << 23
    }

    /// Names.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the lines and the stashes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that these names more take from the system at most, those needed while a shard grows included.
    pub fn growth_bytes(&self, names: impl Iterator<Item = u64>) -> u64 {
        let mut more = [0; SHARDS];
        let mut all = self.len as u64;
        for name in names {
            more[shard_of(hash(name))] += 1;
            all += 1;
        }
        let growing = self.shards.iter().enumerate().zip(more);
        let growing = growing.filter(|&(_, more)| more > 0);
        let bytes = growing.map(|((of, shard), more)| shard.growth_bytes(more, of, all, self.highest));
        bytes.sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::entry::free_lanes;
    use super::*;
    use crate::rng::Rng;

    /// The table, and what is in it: by group up to eight names.
    #[derive(Default)]
    struct Pair {
        table: NameTable,
        groups: HashMap<u32, Vec<u64>>,
    }

    impl Pair {
        fn insert(&mut self, name: u64, group: u32) {
            let Self { table, groups } = self;
            let names_in = |group: Group| groups.get(&group.0).cloned().unwrap_or_default();
            let block_in = |group: Group| names_in(group).contains(&name).then(|| group.block(0));
            let before = table.insert(name, Group(group), block_in, |group| names_in(group).into_iter());
            assert_eq!(before, None);
            groups.entry(group).or_default().push(name);
        }

        fn remove(&mut self, name: u64, group: u32) {
            assert!(self.table.remove(name, Group(group)));
            let names = self.groups.get_mut(&group).expect("it has names");
            names.retain(|&other| other != name);
            if names.is_empty() {
                self.groups.remove(&group);
            }
        }

        /// The group of a name, as the number of its first block.
        fn find(&self, name: u64) -> Option<u32> {
            let block_in = |group: Group| {
                let has = self
                    .groups
                    .get(&group.0)
                    .is_some_and(|names| names.contains(&name));
                has.then(|| group.block(0))
            };
            self.table.find(name, block_in).map(|block| Group::of(block).0)
        }

        fn check(&self) {
            let mut len = 0;
            for (&group, names) in &self.groups {
                for &name in names {
                    assert_eq!(self.find(name), Some(group));
                    assert!(self.find(!name).is_none());
                    len += 1;
                }
            }
            assert_eq!(self.table.len(), len);
            let bytes: u64 = self.table.shards.iter().map(Shard::bytes).sum();
            assert_eq!(self.table.bytes(), bytes);
            for shard in &self.table.shards {
                let homes = shard.form.homes;
                let lines = if homes == 0 { 0 } else { homes + BEYOND };
                let full = |at: u32| free_lanes(shard.lines.get(at)) == 0;
                for at in 0..lines {
                    let next_first = shard.form.first_of(at + 1);
                    for &entry in shard.lines.get(at).0.iter().filter(|&&entry| entry != 0) {
                        let home = shard.form.home(shard.form.known_of(entry, next_first));
                        assert!(home <= at && at <= home + BEYOND && (home..at).all(full));
                    }
                }
                for &(known, _) in shard.stash.keys() {
                    let home = shard.form.home(known);
                    assert!((home..=home + BEYOND).all(full));
                }
            }
        }
    }

    /// Inserts and removes names in groups below `groups`, about `live` of them at a time.
    fn churn(seed: u64, groups: u32, live: usize, steps: usize) {
        let (mut pair, mut rng) = (Pair::default(), Rng::new(seed));
        let mut names: Vec<(u64, u32)> = Vec::new();
        for step in 0..steps {
            if names.len() > rng.below(2 * live) {
                let (name, group) = names.swap_remove(rng.below(names.len()));
                pair.remove(name, group);
            } else {
                let (name, group) = (rng.next_u64(), rng.below(groups as usize) as u32);
                if pair.groups.get(&group).is_none_or(|names| names.len() < 8) {
                    pair.insert(name, group);
                    names.push((name, group));
                }
            }
            if step % (steps / 5) == 0 {
                pair.check();
            }
        }
        pair.check();
        for (name, group) in names {
            pair.remove(name, group);
        }
        assert_eq!((pair.table.len(), pair.table.bytes()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn the_table_is_a_map(seed: u64, group_bits in 4u32..29, live in 1usize..6000) {
            churn(seed, 1 << group_bits, live.min(4 << group_bits), 4 * live + 10);
        }
    }

    #[test]
    fn bits_that_are_missing_are_taken_from_the_names() {
        // Group numbers leave few bits for hashes when the first names come; then the table grows far.
        let mut pair = Pair::default();
        let mut rng = Rng::new(3);
        for of in 0..100_000u32 {
            pair.insert(rng.next_u64(), (1 << 29) - 1 - of % 20_000);
        }
        pair.check();
        let names = pair.groups.clone();
        for (group, names) in names {
            for name in names {
                pair.remove(name, group);
            }
        }
        assert_eq!(pair.table.bytes(), 0);
    }

    #[test]
    fn a_name_takes_five_bytes_and_a_removed_one_none() {
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
            let name = std::mem::replace(&mut of_group[at], of);
            pair.remove(name, at as u32 / 8);
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
