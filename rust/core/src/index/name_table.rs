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

use std::collections::BTreeMap;
use std::ops::Range;

use super::children::mix;
use super::paths::{BlockId, CHUNK_BLOCKS};

/// Shards grow on their own, so that no insertion waits for all.
const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;
/// Entries of a line.
const LANES: usize = 16;
/// Lines after its home in which an entry may lie.
const BEYOND: u32 = 3;
/// Groups have 29 bits, and 0 means that there is no entry.
const GROUP_BITS_MAX: u32 = 30;
/// Fewer bits of the hash per line than these are not worth having when more can be had.
const LINE_BITS_MIN: u32 = 5;
/// Bytes of an entry in the stash, its share of the tree's nodes included.
const STASHED_BYTES: u64 = 24;

/// Lines of a page.
const PAGE_LINES: u32 = 256;
/// A shard with fewer homes grows by a half: less work, where an eighth is no gain.
const SMALL_HOMES: u32 = 64;
/// Lines of a growing shard are moved one after the other where each goes so many lines further, the first ones together.
const FIRST_SHIFT: u32 = BEYOND + 2;

/// Entries, 0 where there is none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Line([u32; LANES]);

const fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// The hash of a name: its first bits choose the shard.
const fn hash(name: u64) -> u64 {
    mix(name, 0x517C_C1B7_2722_0A95)
}

const fn shard_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SHARD_BITS)) as usize
}

/// Eight blocks of a frame, whose names lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub u32);

impl Group {
    /// That of a block.
    pub const fn of(block: BlockId) -> Self {
        Self(block.get() / CHUNK_BLOCKS)
    }

    /// The block of it at a place below 8.
    pub const fn block(self, at: u32) -> BlockId {
        BlockId::from_number(self.0 * CHUNK_BLOCKS + at)
    }
}

/// Lines in pages, the last of which is as long as needed: to grow moves little and leaves no holes with the allocator.
#[derive(Clone, Debug, Default)]
struct Lines {
    pages: Vec<Box<[Line]>>,
}

impl Lines {
    /// Makes sure that every line below `end` is there.
    fn reserve(&mut self, end: u32) {
        let mut have = self.pages.last().map_or(0, |last| last.len());
        have += self.pages.len().saturating_sub(1) * PAGE_LINES as usize;
        let end = end as usize;
        while have < end {
            let before = have % PAGE_LINES as usize;
            let page = (before + end - have).min(PAGE_LINES as usize);
            let mut lines = vec![Line::default(); page].into_boxed_slice();
            if before > 0 {
                let last = self.pages.pop().expect("it has a part of a page");
                lines[..before].copy_from_slice(&last);
            }
            self.pages.push(lines);
            have += page - before;
        }
    }

    #[inline]
    fn get(&self, line: u32) -> &Line {
        &self.pages[(line / PAGE_LINES) as usize][(line % PAGE_LINES) as usize]
    }

    #[inline]
    fn get_mut(&mut self, line: u32) -> &mut Line {
        &mut self.pages[(line / PAGE_LINES) as usize][(line % PAGE_LINES) as usize]
    }
}

/// Of which lanes something is true, as bits.
#[inline]
fn lanes(line: &Line, is: impl Fn(u32) -> bool) -> u32 {
    let mut lanes = 0;
    for lane in 0..LANES {
        lanes |= u32::from(is(line.0[lane])) << lane;
    }
    lanes
}

#[inline]
fn free_lanes(line: &Line) -> u32 {
    lanes(line, |entry| entry == 0)
}

/// Where the parts of an entry and of a hash are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Form {
    /// Lines that are a home; [`BEYOND`] more follow. 0: there is nothing yet.
    homes: u32,
    /// Low bits of an entry: its group's number + 1. The others: the low bits of what is known of its hash.
    group_bits: u32,
    /// How many bits of a hash are known.
    hash_bits: u32,
}

impl Form {
    /// The most that can be known of hashes: where an entry may lie must leave no doubt of the bits that it does not have.
    fn new(homes: u32, group_bits: u32) -> Self {
        Self {
            homes,
            group_bits,
            hash_bits: min(
                homes.ilog2() + (u32::BITS - group_bits) - (BEYOND + 1).ilog2(),
                u32::BITS,
            ),
        }
    }

    /// What fits into so many homes of a shard.
    ///
    /// Names of the whole table, since hashes are spread evenly: a shard that happens to have more than the others stays as it is,
    /// and churn makes nothing grow. 81 to 91 % of the entries, another share for each shard, so that not all grow at once.
    const fn limits(homes: u32, of: usize) -> (u32, u64) {
        let lanes = homes as u64 * LANES as u64;
        (
            (lanes - lanes / 20) as u32,
            lanes * SHARDS as u64 * 880 / (968 + 2 * of as u64),
        )
    }

    /// The part of a hash that is known.
    #[inline]
    const fn known(self, hash: u64) -> u64 {
        (hash << SHARD_BITS >> 1).wrapping_shr(63 - self.hash_bits)
    }

    #[inline]
    const fn home(self, known: u64) -> u32 {
        (known.wrapping_mul(self.homes as u64)).wrapping_shr(self.hash_bits) as u32
    }

    #[inline]
    const fn tag(self, known: u64) -> u32 {
        (known as u32) & u32::MAX.wrapping_shr(self.group_bits)
    }

    #[inline]
    const fn entry(self, known: u64, group: Group) -> u32 {
        self.tag(known).wrapping_shl(self.group_bits) | (group.0 + 1)
    }

    #[inline]
    const fn group(self, entry: u32) -> Group {
        Group((entry & !u32::MAX.wrapping_shl(self.group_bits)) - 1)
    }

    /// The least hash whose home is this line or a later one.
    const fn first_of(self, line: u32) -> u64 {
        ((line as u64) << self.hash_bits).div_ceil(self.homes as u64)
    }

    /// What is known of an entry in the line before that with this first hash: the only hash that may lie there with its tag.
    #[inline]
    const fn known_of(self, entry: u32, next_first: u64) -> u64 {
        let (last, tag) = (next_first - 1, (entry.wrapping_shr(self.group_bits)) as u64);
        last - (last.wrapping_sub(tag) & u32::MAX.wrapping_shr(self.group_bits) as u64)
    }
}

/// What a shard has room for: names of its own, names of the whole table, numbers of groups.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    len: u32,
    all: u64,
    groups: u32,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    form: Form,
    len: u32,
    /// Up to here it stays as it is.
    limits: Limits,
    lines: Lines,
    /// Entries for which there was no room in their lines: what is known of the hash, then the group; and how many are equal.
    stash: BTreeMap<(u64, u32), u32>,
}

impl Shard {
    /// The block with a name, or where its entry goes: line and lane, unless all of its lines are full.
    #[inline]
    fn find(
        &self,
        known: u64,
        block_in: impl Fn(Group) -> Option<BlockId>,
    ) -> Result<BlockId, Option<(u32, usize)>> {
        let form = self.form;
        if form.homes == 0 {
            return Err(None);
        }
        let (home, tag) = (form.home(known), form.tag(known));
        for at in home..=home + BEYOND {
            let line = self.lines.get(at);
            let free = free_lanes(line);
            let mut equal = lanes(line, |entry| entry.wrapping_shr(form.group_bits) == tag) & !free;
            while equal != 0 {
                let entry = line.0[equal.trailing_zeros() as usize];
                equal &= equal - 1;
                if let Some(block) = block_in(form.group(entry)) {
                    return Ok(block);
                }
            }
            if free != 0 {
                return Err(Some((at, free.trailing_zeros() as usize)));
            }
        }
        if self.stash.is_empty() {
            return Err(None);
        }
        let stashed = self.stash.range((known, 0)..=(known, u32::MAX));
        let mut stashed = stashed.map(|(&(_, group), _)| Group(group));
        stashed.find_map(block_in).ok_or(None)
    }

    /// A group in which the name may be, not compared.
    #[inline]
    fn guess(&self, hash: u64) -> Option<Group> {
        let form = self.form;
        if form.homes == 0 {
            return None;
        }
        let known = form.known(hash);
        let (line, tag) = (self.lines.get(form.home(known)), form.tag(known));
        let equal = lanes(line, |entry| {
            entry.wrapping_shr(form.group_bits) == tag && entry != 0
        });
        (equal != 0).then(|| form.group(line.0[equal.trailing_zeros() as usize]))
    }

    fn place(&mut self, known: u64, group: Group) {
        let home = self.form.home(known);
        let free = (home..=home + BEYOND).find_map(|at| {
            let free = free_lanes(self.lines.get(at));
            (free != 0).then(|| (at, free.trailing_zeros() as usize))
        });
        self.put(free, known, group);
    }

    #[inline]
    fn put(&mut self, free: Option<(u32, usize)>, known: u64, group: Group) {
        self.len += 1;
        if let Some((line, lane)) = free {
            self.lines.get_mut(line).0[lane] = self.form.entry(known, group);
        } else {
            *self.stash.entry((known, group.0)).or_insert(0) += 1;
        }
    }

    /// `false`: it is not in.
    fn remove(&mut self, hash: u64, group: Group) -> bool {
        let form = self.form;
        if form.homes == 0 {
            return false;
        }
        let known = form.known(hash);
        let (home, wanted) = (form.home(known), form.entry(known, group));
        for at in home..=home + BEYOND {
            let line = self.lines.get_mut(at);
            if let Some(lane) = line.0.iter().position(|&entry| entry == wanted) {
                let was_full = free_lanes(line) == 0;
                line.0[lane] = 0;
                self.len -= 1;
                if was_full {
                    self.fill(at, lane);
                }
                return true;
            }
        }
        let is_in = self.unstash((known, group.0));
        self.len -= u32::from(is_in);
        is_in
    }

    fn unstash(&mut self, entry: (u64, u32)) -> bool {
        match self.stash.get_mut(&entry) {
            None => return false,
            Some(1) => drop(self.stash.remove(&entry)),
            Some(more) => *more -= 1,
        }
        true
    }

    /// A full line lost an entry: one that lies further on than it must comes back, and so on with its line.
    fn fill(&mut self, mut at: u32, mut lane: usize) {
        let form = self.form;
        while let Some((from, of)) = self.displaced_over(at) {
            let line = self.lines.get_mut(from);
            let was_full = free_lanes(line) == 0;
            let entry = std::mem::take(&mut line.0[of]);
            self.lines.get_mut(at).0[lane] = entry;
            if !was_full {
                return;
            }
            (at, lane) = (from, of);
        }
        let homes = (form.first_of(at.saturating_sub(BEYOND)), 0)..(form.first_of(at + 1), 0);
        if let Some((&(known, group), _)) = self.stash.range(homes).next() {
            self.unstash((known, group));
            self.lines.get_mut(at).0[lane] = form.entry(known, Group(group));
        }
    }

    /// An entry behind a line that may lie in it.
    fn displaced_over(&self, at: u32) -> Option<(u32, usize)> {
        let form = self.form;
        let limit = form.first_of(at + 1);
        for from in at + 1..=(at + BEYOND).min(form.homes + BEYOND - 1) {
            let (line, next_first) = (self.lines.get(from), form.first_of(from + 1));
            let fits = |&entry: &u32| entry != 0 && form.known_of(entry, next_first) < limit;
            if let Some(lane) = line.0.iter().position(fits) {
                return Some((from, lane));
            }
            if free_lanes(line) != 0 {
                return None;
            }
        }
        None
    }

    /// Whether so many names more fit as it is, when the table has `all` then, of groups up to `highest`.
    #[inline]
    const fn has_room(&self, more: u32, all: u64, highest: u32) -> bool {
        let Limits {
            len,
            all: all_max,
            groups,
        } = self.limits;
        self.len as u64 + more as u64 <= len as u64 && all <= all_max && highest < groups
    }

    /// The form for that.
    fn form_for(&self, more: u32, of: usize, all: u64, highest: u32) -> Form {
        let old = self.form;
        let mut homes = old.homes.max(1);
        let fits = |homes| {
            let (len, all_max) = Form::limits(homes, of);
            self.len.saturating_add(more) <= len && all <= all_max
        };
        while !fits(homes) {
            homes += if homes < SMALL_HOMES {
                homes.div_ceil(2)
            } else {
                homes / 8
            };
        }
        let is_known = (highest + 1) >> old.group_bits == 0;
        if homes == old.homes && is_known {
            return old;
        }
        // An eighth more than now, so that the next numbers fit until it grows anyway.
        let groups = highest + 1 + highest / 8;
        let form = Form::new(homes, (u32::BITS - groups.leading_zeros()).min(GROUP_BITS_MAX));
        let is_scarce = old.hash_bits < homes.ilog2() + LINE_BITS_MIN && form.hash_bits > old.hash_bits;
        if old.homes == 0 || is_scarce {
            return form;
        }
        Form {
            hash_bits: form.hash_bits.min(old.hash_bits),
            ..form
        }
    }

    /// Brings everything into another form. `hashes_in` is asked only where that needs more bits than are known.
    fn reform<H: Iterator<Item = u64>>(&mut self, form: Form, of: usize, hashes_in: impl Fn(Group) -> H) {
        let old = std::mem::replace(&mut self.form, form);
        let (len, all) = Form::limits(form.homes, of);
        let groups = (1 << form.group_bits) - 1;
        self.limits = Limits { len, all, groups };
        self.lines.reserve(form.homes + BEYOND);
        let mut all: Vec<(u32, u32)> = Vec::new();
        for ((known, group), count) in std::mem::take(&mut self.stash) {
            all.extend((0..count).map(|_| (known as u32, group)));
        }
        let lines = if old.homes == 0 { 0 } else { old.homes + BEYOND };
        let is_known = form.hash_bits <= old.hash_bits;
        let first = match form.homes.checked_sub(old.homes) {
            Some(more) if is_known && (1..3 * old.homes).contains(&more) => {
                (FIRST_SHIFT * old.homes).div_ceil(more).min(lines)
            }
            _ => lines,
        };
        self.len = 0;
        self.move_on(old, first..lines);
        for at in 0..first {
            self.take_line(old, at, |known, group| all.push((known as u32, group.0)));
        }
        if is_known {
            for (known, group) in all {
                self.place(u64::from(known) >> (old.hash_bits - form.hash_bits), Group(group));
            }
            return;
        }
        all.sort_unstable();
        for equal in all.chunk_by(|one, other| one == other) {
            let (known, group) = (u64::from(equal[0].0), Group(equal[0].1));
            let mut hashes = hashes_in(group).filter(|&hash| old.known(hash) == known);
            for _ in equal {
                let hash = hashes.next();
                let hash = hash.expect("what is in the table must be a name of its group");
                self.place(form.known(hash), group);
            }
        }
    }

    /// Moves what lies in these lines, of an older form with fewer homes, to its new places: from the last line on, so that each
    /// goes to a line that is behind it or was left.
    fn move_on(&mut self, old: Form, lines: Range<u32>) {
        let form = self.form;
        // Of the lines that are filled now: which, and how far. What is moved together lies close together.
        let mut filled = [(u32::MAX, 0); 64];
        for at in lines.rev() {
            let Line(entries) = std::mem::take(self.lines.get_mut(at));
            let next_first = old.first_of(at + 1);
            let (mut knowns, mut homes) = ([0; LANES], [0; LANES]);
            for lane in 0..LANES {
                knowns[lane] = old.known_of(entries[lane], next_first) >> (old.hash_bits - form.hash_bits);
                homes[lane] = form.home(knowns[lane]);
            }
            for lane in (0..LANES).filter(|&lane| entries[lane] != 0) {
                let (home, group) = (homes[lane], old.group(entries[lane]));
                assert!(home >= at, "a growing shard must move its entries on");
                self.len += 1;
                let place = (home..=home + BEYOND).find_map(|line| {
                    let fill = &mut filled[line as usize % 64];
                    if fill.0 != line {
                        *fill = (line, 0);
                    }
                    fill.1 += 1;
                    (fill.1 <= LANES).then_some((line, fill.1 - 1))
                });
                if let Some((line, lane_there)) = place {
                    self.lines.get_mut(line).0[lane_there] = form.entry(knowns[lane], group);
                } else {
                    *self.stash.entry((knowns[lane], group.0)).or_insert(0) += 1;
                }
            }
        }
    }

    /// Takes out what lies in a line, in an older form: what is known of its hash, and the group.
    fn take_line(&mut self, old: Form, at: u32, mut with: impl FnMut(u64, Group)) {
        let next_first = old.first_of(at + 1);
        for entry in std::mem::take(self.lines.get_mut(at)).0 {
            if entry != 0 {
                with(old.known_of(entry, next_first), old.group(entry));
            }
        }
    }

    fn bytes(&self) -> u64 {
        let lines = if self.form.homes == 0 {
            0
        } else {
            self.form.homes + BEYOND
        };
        u64::from(lines) * size_of::<Line>() as u64 + self.stash.len() as u64 * STASHED_BYTES
    }
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

    /// Where a name would be is read: what is asked of it soon is in the cache then.
    #[inline]
    pub fn touch(&self, name: u64) -> u32 {
        let hash = hash(name);
        let Shard { form, lines, .. } = &self.shards[shard_of(hash)];
        if form.homes == 0 {
            return 0;
        }
        lines.get(form.home(form.known(hash))).0[0]
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
        let bytes = growing.map(|((of, shard), more)| {
            let homes = if shard.has_room(more, all, 0) {
                shard.form.homes
            } else {
                shard.form_for(more, of, all, self.highest).homes
            };
            if homes == shard.form.homes {
                return u64::from(more) * STASHED_BYTES;
            }
            let pad = if shard.form.homes == 0 { BEYOND } else { 0 };
            let lines = homes - shard.form.homes + pad;
            u64::from(lines) * size_of::<Line>() as u64
                + u64::from(shard.len + more) * (8 + STASHED_BYTES / 8)
        });
        bytes.sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

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
            names.into_iter().for_each(|name| pair.remove(name, group));
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
