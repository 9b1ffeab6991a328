//! One shard of the engine-hash table: look-up, insertion, removal, growth.
//!
//! An entry lies in its home line or, when that is full, in one of the next [`PROBE_LINES`] lines. Invariant:
//! all lines from the home line up to the entry's line are full, so a look-up may stop at the first line with
//! a free lane. Entries without room lie in a sorted stash.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::frame::BlockId;
use super::layout::{
    BlockGroup, EntryLayout, LANES, Line, Lines, PAGE_LINES, PROBE_LINES, free_lanes, lanes,
};

/// Highest number of group bits: groups have 29 bits, and 0 marks a free lane.
const GROUP_BITS_MAX: u32 = 30;
/// Smallest number of prefix bits below the home line. A shard with fewer fetches the full keys when a new
/// layout can hold more.
const LINE_BITS_MIN: u32 = 5;
/// Bytes of a stash entry, with its share of the tree's nodes.
pub(super) const STASHED_BYTES: u64 = 24;
/// Below this number of home lines a shard grows by one half. Growth by one eighth would save nothing there.
const SMALL_HOME_LINES: u32 = 64;
/// Smallest number of lines that an entry must move ahead so that growth can work in place. Lines before that
/// are collected and inserted again.
const FIRST_SHIFT: u32 = PROBE_LINES + 2;

/// Limits up to which a shard keeps its layout.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    /// Highest number of names in the shard.
    len: u32,
    /// Highest number of names in the whole table.
    all: u64,
    /// Number of groups that `group_bits` can hold.
    groups: u32,
}

/// A shard; the module describes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    /// Present layout of the entries.
    pub layout: EntryLayout,
    /// Names in the shard.
    pub len: u32,
    /// Limits of the present layout.
    limits: Limits,
    /// Home lines, followed by [`PROBE_LINES`] more.
    pub(super) lines: Lines,
    /// Entries without room in their lines: (prefix, group) → number of equal entries.
    pub(super) stash: BTreeMap<(u64, u32), u32>,
}

impl Shard {
    /// Block with an engine hash; else the line and lane for its entry, or `None` when all its lines are
    /// full.
    #[inline]
    pub(super) fn find(
        &self,
        prefix: u64,
        block_in: impl Fn(BlockGroup) -> Option<BlockId>,
    ) -> Result<BlockId, Option<(u32, usize)>> {
        let layout = self.layout;
        if layout.home_lines == 0 {
            return Err(None);
        }
        let (home, tag) = (layout.home(prefix), layout.tag(prefix));
        for at in home..=home + PROBE_LINES {
            let line = self.lines.get(at);
            let free = free_lanes(line);
            let mut equal = lanes(line, |entry| entry.wrapping_shr(layout.group_bits) == tag) & !free;
            while equal != 0 {
                let entry = line.0[equal.trailing_zeros() as usize];
                equal &= equal - 1;
                if let Some(block) = block_in(layout.group(entry)) {
                    return Ok(block);
                }
            }
            // A line with a free lane ends the search: no entry lies beyond it.
            if free != 0 {
                return Err(Some((at, free.trailing_zeros() as usize)));
            }
        }
        if self.stash.is_empty() {
            return Err(None);
        }
        let stashed = self.stash.range((prefix, 0)..=(prefix, u32::MAX));
        let mut stashed = stashed.map(|(&(_, group), _)| BlockGroup(group));
        stashed.find_map(block_in).ok_or(None)
    }

    /// Reads the line `beyond` lines after a key's home, if the lines before it look full.
    ///
    /// The result has no meaning. The caller combines the results of several calls, so that the compiler keeps the reads.
    #[inline]
    pub(super) fn prefetch(&self, key: u64, beyond: u32) -> u32 {
        if self.layout.home_lines == 0 {
            return 0;
        }
        let home = self.layout.home(self.layout.prefix(key));
        let full = |line: u32| self.lines.get(line).0[LANES - 1] != 0;
        if (home..home + beyond).all(full) {
            self.lines.get(home + beyond).0[0]
        } else {
            0
        }
    }

    /// A group that may have the engine hash, without comparing. Only for prefetching: a wrong guess costs one read.
    #[inline]
    pub(super) fn guess_group(&self, key: u64) -> Option<BlockGroup> {
        let layout = self.layout;
        if layout.home_lines == 0 {
            return None;
        }
        let prefix = layout.prefix(key);
        let (line, tag) = (self.lines.get(layout.home(prefix)), layout.tag(prefix));
        let equal = lanes(line, |entry| {
            entry.wrapping_shr(layout.group_bits) == tag && entry != 0
        });
        (equal != 0).then(|| layout.group(line.0[equal.trailing_zeros() as usize]))
    }

    /// Inserts an entry into the first free lane at or after its home.
    fn insert_near_home(&mut self, prefix: u64, group: BlockGroup) {
        let home = self.layout.home(prefix);
        let free = (home..=home + PROBE_LINES).find_map(|at| {
            let free = free_lanes(self.lines.get(at));
            (free != 0).then(|| (at, free.trailing_zeros() as usize))
        });
        self.put(free, prefix, group);
    }

    /// Inserts an entry at a free lane found by [`Shard::find`], or into the stash.
    #[inline]
    pub(super) fn put(&mut self, free: Option<(u32, usize)>, prefix: u64, group: BlockGroup) {
        self.len += 1;
        if let Some((line, lane)) = free {
            self.lines.get_mut(line).0[lane] = self.layout.entry(prefix, group);
        } else {
            *self.stash.entry((prefix, group.0)).or_insert(0) += 1;
        }
    }

    /// Removes an entry; `false` when it is not in the shard.
    pub(super) fn remove(&mut self, key: u64, group: BlockGroup) -> bool {
        let layout = self.layout;
        if layout.home_lines == 0 {
            return false;
        }
        let prefix = layout.prefix(key);
        let (home, wanted) = (layout.home(prefix), layout.entry(prefix, group));
        for at in home..=home + PROBE_LINES {
            let line = self.lines.get_mut(at);
            if let Some(lane) = line.0.iter().position(|&entry| entry == wanted) {
                let was_full = free_lanes(line) == 0;
                line.0[lane] = 0;
                self.len -= 1;
                if was_full {
                    self.backfill(at, lane);
                }
                return true;
            }
        }
        let is_in = self.unstash((prefix, group.0));
        self.len -= u32::from(is_in);
        is_in
    }

    /// Removes one entry from the stash; `false` when it is not there.
    fn unstash(&mut self, entry: (u64, u32)) -> bool {
        match self.stash.get_mut(&entry) {
            None => return false,
            Some(1) => drop(self.stash.remove(&entry)),
            Some(more) => *more -= 1,
        }
        true
    }

    /// Restores the invariant after a full line lost an entry: moves a displaced entry back into it, and so
    /// on with the line that entry left.
    ///
    /// Without it a look-up would stop at the free lane and miss the entries behind it.
    fn backfill(&mut self, mut at: u32, mut lane: usize) {
        let layout = self.layout;
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
        let home_lines = (layout.first_of(at.saturating_sub(PROBE_LINES)), 0)..(layout.first_of(at + 1), 0);
        if let Some((&(prefix, group), _)) = self.stash.range(home_lines).next() {
            self.unstash((prefix, group));
            self.lines.get_mut(at).0[lane] = layout.entry(prefix, BlockGroup(group));
        }
    }

    /// An entry in a later line that may lie in line `at`: its home is `at` or before.
    fn displaced_over(&self, at: u32) -> Option<(u32, usize)> {
        let layout = self.layout;
        let limit = layout.first_of(at + 1);
        for from in at + 1..=(at + PROBE_LINES).min(layout.home_lines + PROBE_LINES - 1) {
            let (line, next_first) = (self.lines.get(from), layout.first_of(from + 1));
            let fits = |&entry: &u32| entry != 0 && layout.prefix_of(entry, next_first) < limit;
            if let Some(lane) = line.0.iter().position(fits) {
                return Some((from, lane));
            }
            // No entry lies beyond a line with a free lane.
            if free_lanes(line) != 0 {
                return None;
            }
        }
        None
    }

    /// Whether `more` names fit into the present layout, with `all` names in the whole table and groups up to
    /// `highest_group`.
    #[inline]
    pub(super) const fn has_room(&self, more: u32, all: u64, highest_group: u32) -> bool {
        let Limits {
            len,
            all: all_max,
            groups,
        } = self.limits;
        self.len as u64 + more as u64 <= len as u64 && all <= all_max && highest_group < groups
    }

    /// Layout for these numbers: the present one if it suffices.
    pub(super) fn layout_for(&self, more: u32, of: usize, all: u64, highest_group: u32) -> EntryLayout {
        let old = self.layout;
        let mut home_lines = old.home_lines.max(1);
        let fits = |home_lines| {
            let (len, all_max) = EntryLayout::limits(home_lines, of);
            self.len.saturating_add(more) <= len && all <= all_max
        };
        while !fits(home_lines) {
            home_lines += if home_lines < SMALL_HOME_LINES {
                home_lines.div_ceil(2)
            } else {
                home_lines / 8
            };
        }
        let has_bits = (highest_group + 1) >> old.group_bits == 0;
        if home_lines == old.home_lines && has_bits {
            return old;
        }
        // One eighth of reserve, so that new group numbers fit until the shard grows anyway.
        let groups = highest_group + 1 + highest_group / 8;
        let layout = EntryLayout::new(
            home_lines,
            (u32::BITS - groups.leading_zeros()).min(GROUP_BITS_MAX),
        );
        let is_scarce = old.key_bits < home_lines.ilog2() + LINE_BITS_MIN && layout.key_bits > old.key_bits;
        if old.home_lines == 0 || is_scarce {
            return layout;
        }
        EntryLayout {
            key_bits: layout.key_bits.min(old.key_bits),
            ..layout
        }
    }

    /// Changes the layout. `keys_in` is asked only where the new layout needs more key bits than the entries
    /// hold.
    pub(super) fn rebuild<H: Iterator<Item = u64>>(
        &mut self,
        layout: EntryLayout,
        of: usize,
        keys_in: impl Fn(BlockGroup) -> H,
    ) {
        let old = std::mem::replace(&mut self.layout, layout);
        let (len, all) = EntryLayout::limits(layout.home_lines, of);
        let groups = (1 << layout.group_bits) - 1;
        self.limits = Limits { len, all, groups };
        self.lines.reserve(layout.home_lines + PROBE_LINES);
        let mut all: Vec<(u32, u32)> = Vec::new();
        for ((prefix, group), count) in std::mem::take(&mut self.stash) {
            all.extend((0..count).map(|_| (prefix as u32, group)));
        }
        let lines = if old.home_lines == 0 {
            0
        } else {
            old.home_lines + PROBE_LINES
        };
        let has_bits = layout.key_bits <= old.key_bits;
        let first = match layout.home_lines.checked_sub(old.home_lines) {
            Some(more) if has_bits && (1..3 * old.home_lines).contains(&more) => {
                (FIRST_SHIFT * old.home_lines).div_ceil(more).min(lines)
            }
            _ => lines,
        };
        self.len = 0;
        self.move_forward(old, first..lines);
        for at in 0..first {
            self.drain_line(old, at, |prefix, group| all.push((prefix as u32, group.0)));
        }
        if has_bits {
            for (prefix, group) in all {
                self.insert_near_home(
                    u64::from(prefix) >> (old.key_bits - layout.key_bits),
                    BlockGroup(group),
                );
            }
            return;
        }
        // Equal prefixes of one group need their full keys: fetch the keys of the group once for all of them.
        all.sort_unstable();
        for equal in all.chunk_by(|one, other| one == other) {
            let (prefix, group) = (u64::from(equal[0].0), BlockGroup(equal[0].1));
            let mut keys = keys_in(group).filter(|&key| old.prefix(key) == prefix);
            for _ in equal {
                let key = keys.next();
                let key = key.expect("every entry must have an engine hash in its group");
                self.insert_near_home(layout.prefix(key), group);
            }
        }
    }

    /// Moves the entries of these lines from a layout with fewer home lines to their new places.
    ///
    /// It works from the last line backwards, so that each entry goes to a line behind its own or to one
    /// already emptied.
    fn move_forward(&mut self, old: EntryLayout, lines: Range<u32>) {
        let layout = self.layout;
        // Lines being filled, and their entries. Entries moved together lie close together, so 64 lines
        // suffice.
        let mut filled = [(u32::MAX, 0); 64];
        for at in lines.rev() {
            let Line(entries) = std::mem::take(self.lines.get_mut(at));
            let next_first = old.first_of(at + 1);
            let (mut prefixes, mut home_lines) = ([0; LANES], [0; LANES]);
            for lane in 0..LANES {
                prefixes[lane] = old.prefix_of(entries[lane], next_first) >> (old.key_bits - layout.key_bits);
                home_lines[lane] = layout.home(prefixes[lane]);
            }
            for lane in (0..LANES).filter(|&lane| entries[lane] != 0) {
                let (home, group) = (home_lines[lane], old.group(entries[lane]));
                assert!(home >= at, "a growing shard must move its entries forward");
                self.len += 1;
                let insert_near_home = (home..=home + PROBE_LINES).find_map(|line| {
                    let fill = &mut filled[line as usize % 64];
                    if fill.0 != line {
                        *fill = (line, 0);
                    }
                    fill.1 += 1;
                    (fill.1 <= LANES).then_some((line, fill.1 - 1))
                });
                if let Some((line, lane_there)) = insert_near_home {
                    self.lines.get_mut(line).0[lane_there] = layout.entry(prefixes[lane], group);
                } else {
                    *self.stash.entry((prefixes[lane], group.0)).or_insert(0) += 1;
                }
            }
        }
    }

    /// Takes the entries out of a line of an older layout: prefix and group of each.
    fn drain_line(&mut self, old: EntryLayout, at: u32, mut with: impl FnMut(u64, BlockGroup)) {
        let next_first = old.first_of(at + 1);
        for entry in std::mem::take(self.lines.get_mut(at)).0 {
            if entry != 0 {
                with(old.prefix_of(entry, next_first), old.group(entry));
            }
        }
    }

    /// Highest number of bytes that `more` names may allocate, growth as in [`Shard::layout_for`] included.
    pub(super) fn growth_bytes(&self, more: u32, of: usize, all: u64, highest_group: u32) -> u64 {
        let stash = u64::from(more) * STASHED_BYTES;
        if self.has_room(more, all, 0) {
            return stash;
        }
        let lines = |home_lines: u32| {
            if home_lines == 0 {
                0
            } else {
                home_lines + PROBE_LINES
            }
        };
        let grown = self.layout_for(more, of, all, highest_group).home_lines;
        // Growth copies the last page, collects the first lines, and may leave a few names to the stash.
        let together = u64::from(self.len + more) * (8 + STASHED_BYTES / 8) + stash;
        let page = PAGE_LINES.min(lines(self.layout.home_lines));
        u64::from(lines(grown) - lines(self.layout.home_lines) + page) * size_of::<Line>() as u64 + together
    }

    /// Bytes of the lines and the stash.
    pub(super) fn bytes(&self) -> u64 {
        let lines = if self.layout.home_lines == 0 {
            0
        } else {
            self.layout.home_lines + PROBE_LINES
        };
        u64::from(lines) * size_of::<Line>() as u64 + self.stash.len() as u64 * STASHED_BYTES
    }
}
