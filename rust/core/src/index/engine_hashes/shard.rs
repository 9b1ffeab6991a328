//! One shard of the table of names: finding, placing, removing, growing.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::frame::BlockId;
use super::layout::{
    BlockGroup, EntryLayout, LANES, Line, Lines, PAGE_LINES, PROBE_LINES, free_lanes, lanes,
};

/// Groups have 29 bits, and 0 means that there is no entry.
const GROUP_BITS_MAX: u32 = 30;
/// Fewer bits of the hash per line than these are not worth having when more can be had.
const LINE_BITS_MIN: u32 = 5;
/// Bytes of an entry in the stash, its share of the tree's nodes included.
pub const STASHED_BYTES: u64 = 24;
/// A shard with fewer homes grows by a half: less work, where an eighth is no gain.
const SMALL_HOME_LINES: u32 = 64;
/// Lines of a growing shard are moved one after the other where each goes so many lines further, the first ones together.
const FIRST_SHIFT: u32 = PROBE_LINES + 2;

/// What a shard has room for: names of its own, names of the whole table, numbers of groups.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    len: u32,
    all: u64,
    groups: u32,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// Where things are now.
    pub layout: EntryLayout,
    /// Names.
    pub len: u32,
    /// Up to here it stays as it is.
    limits: Limits,
    pub(super) lines: Lines,
    /// Entries for which there was no room in their lines: what is known of the hash, then the group; and how many are equal.
    pub(super) stash: BTreeMap<(u64, u32), u32>,
}

impl Shard {
    /// The block with a name, or where its entry goes: line and lane, unless all of its lines are full.
    #[inline]
    pub fn find(
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

    /// Reads the line that is so many after a hash's home, if those before it look full: they should have been read.
    #[inline]
    pub fn prefetch(&self, key: u64, beyond: u32) -> u32 {
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

    /// A group in which the name may be, not compared.
    #[inline]
    pub fn guess_group(&self, key: u64) -> Option<BlockGroup> {
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

    fn insert_near_home(&mut self, prefix: u64, group: BlockGroup) {
        let home = self.layout.home(prefix);
        let free = (home..=home + PROBE_LINES).find_map(|at| {
            let free = free_lanes(self.lines.get(at));
            (free != 0).then(|| (at, free.trailing_zeros() as usize))
        });
        self.put(free, prefix, group);
    }

    #[inline]
    pub fn put(&mut self, free: Option<(u32, usize)>, prefix: u64, group: BlockGroup) {
        self.len += 1;
        if let Some((line, lane)) = free {
            self.lines.get_mut(line).0[lane] = self.layout.entry(prefix, group);
        } else {
            *self.stash.entry((prefix, group.0)).or_insert(0) += 1;
        }
    }

    /// `false`: it is not in.
    pub fn remove(&mut self, key: u64, group: BlockGroup) -> bool {
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

    fn unstash(&mut self, entry: (u64, u32)) -> bool {
        match self.stash.get_mut(&entry) {
            None => return false,
            Some(1) => drop(self.stash.remove(&entry)),
            Some(more) => *more -= 1,
        }
        true
    }

    /// A full line lost an entry: one that lies further on than it must comes back, and so on with its line.
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

    /// An entry behind a line that may lie in it.
    fn displaced_over(&self, at: u32) -> Option<(u32, usize)> {
        let layout = self.layout;
        let limit = layout.first_of(at + 1);
        for from in at + 1..=(at + PROBE_LINES).min(layout.home_lines + PROBE_LINES - 1) {
            let (line, next_first) = (self.lines.get(from), layout.first_of(from + 1));
            let fits = |&entry: &u32| entry != 0 && layout.prefix_of(entry, next_first) < limit;
            if let Some(lane) = line.0.iter().position(fits) {
                return Some((from, lane));
            }
            if free_lanes(line) != 0 {
                return None;
            }
        }
        None
    }

    /// Whether so many names more fit as it is, when the table has `all` then, of groups up to `highest_group`.
    #[inline]
    pub const fn has_room(&self, more: u32, all: u64, highest_group: u32) -> bool {
        let Limits {
            len,
            all: all_max,
            groups,
        } = self.limits;
        self.len as u64 + more as u64 <= len as u64 && all <= all_max && highest_group < groups
    }

    /// The form for that.
    pub fn layout_for(&self, more: u32, of: usize, all: u64, highest_group: u32) -> EntryLayout {
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
        // An eighth more than now, so that the next numbers fit until it grows anyway.
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

    /// Brings everything into another form. `keys_in` is asked only where that needs more bits than are known.
    pub fn rebuild<H: Iterator<Item = u64>>(
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
        all.sort_unstable();
        for equal in all.chunk_by(|one, other| one == other) {
            let (prefix, group) = (u64::from(equal[0].0), BlockGroup(equal[0].1));
            let mut keys = keys_in(group).filter(|&key| old.prefix(key) == prefix);
            for _ in equal {
                let key = keys.next();
                let key = key.expect("what is in the table must be a engine_hash of its group");
                self.insert_near_home(layout.prefix(key), group);
            }
        }
    }

    /// Moves what lies in these lines, of an older form with fewer homes, to its new places: from the last line on, so that each
    /// goes to a line that is behind it or was left.
    fn move_forward(&mut self, old: EntryLayout, lines: Range<u32>) {
        let layout = self.layout;
        // Of the lines that are filled now: which, and how far. What is moved together lies close together.
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
                assert!(home >= at, "a growing shard must move its entries on");
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

    /// Takes out what lies in a line, in an older form: what is known of its hash, and the group.
    fn drain_line(&mut self, old: EntryLayout, at: u32, mut with: impl FnMut(u64, BlockGroup)) {
        let next_first = old.first_of(at + 1);
        for entry in std::mem::take(self.lines.get_mut(at)).0 {
            if entry != 0 {
                with(old.prefix_of(entry, next_first), old.group(entry));
            }
        }
    }

    /// Bytes that so many names more take from the system at most, those needed while it grows included: as
    /// [`Shard::layout_for`].
    pub fn growth_bytes(&self, more: u32, of: usize, all: u64, highest_group: u32) -> u64 {
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
        // The last page is copied, the first lines are moved together, and a few names more may find no room.
        let together = u64::from(self.len + more) * (8 + STASHED_BYTES / 8) + stash;
        let page = PAGE_LINES.min(lines(self.layout.home_lines));
        u64::from(lines(grown) - lines(self.layout.home_lines) + page) * size_of::<Line>() as u64 + together
    }

    /// Bytes of the lines and the stash.
    pub fn bytes(&self) -> u64 {
        let lines = if self.layout.home_lines == 0 {
            0
        } else {
            self.layout.home_lines + PROBE_LINES
        };
        u64::from(lines) * size_of::<Line>() as u64 + self.stash.len() as u64 * STASHED_BYTES
    }
}
