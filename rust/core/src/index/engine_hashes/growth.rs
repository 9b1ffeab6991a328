//! How a shard of the engine-hash table grows, and what growth may cost in bytes.
//!
//! A shard has room until one of three limits is reached: entries in the shard, entries in the whole table,
//! or group numbers that the group bits can hold. Then it gets a new layout with an eighth more lines, or
//! more group bits.
//!
//! ```text
//! entries as they lie ─▶ prefix of each, from its line and tag ─▶ home line in the new layout
//! ```
//!
//! No engine hash is read: line and tag give enough of the key for the larger layout, as long as key bits
//! last. When too few are left below the home line, the shard fetches the full keys once from the engine
//! hashes of its groups.
//!
//! Growth works in place, from the last line backwards, since every entry moves to a later line. Only the
//! first few lines, whose entries move less than the probe distance, are collected and inserted again.
//!
//! Doubling was the alternative. It leaves a table half full on average, and a general table took 5.7 to 11.4
//! bytes per engine hash. Growth by an eighth keeps it at about five bytes.
//!
//! Cost: O(entries of the shard), 3.7 ns per entry: 0.3 ms for a table of 5 million.

use std::ops::Range;

use super::layout::{BlockGroup, EntryLayout, LANES, Line, PAGE_LINES, PROBE_LINES};
use super::shard::{STASHED_BYTES, Shard};

/// Highest number of group bits: groups have 29 bits, and 0 marks a free lane.
const GROUP_BITS_MAX: u32 = 30;
/// Smallest number of prefix bits below the home line. A shard with fewer fetches the full keys when a new
/// layout can hold more.
const LINE_BITS_MIN: u32 = 5;
/// Below this number of home lines a shard grows by one half. Growth by one eighth would save nothing there.
const SMALL_HOME_LINES: u32 = 64;
/// Smallest number of lines that an entry must move ahead so that growth can work in place. Lines before that
/// are collected and inserted again.
const FIRST_SHIFT: u32 = PROBE_LINES + 2;

/// Limits up to which a shard keeps its layout. The zero of an empty shard makes the first insertion grow it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Highest number of entries in the shard.
    len: u32,
    /// Highest number of entries in the whole table.
    all: u64,
    /// Number of groups that `group_bits` can hold.
    groups: u32,
}

impl Shard {
    /// Whether `more` entries fit into the present layout, with `all` entries in the whole table and groups
    /// up to `highest_group`.
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
    ///
    /// The new layout keeps the key bits of the old one where it can, so that no full key is needed. It asks
    /// for more only when too few bits lie below the home line ([`LINE_BITS_MIN`]).
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
    ///
    /// `of` is the number of the shard. O(entries of the shard).
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
        // Lines before `first` are collected: their entries do not move far enough ahead to be moved in
        // place.
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
    ///
    /// Panics when an entry would move backwards. The choice of the first line in [`Shard::rebuild`] excludes
    /// it.
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

    /// Takes the entries out of a line of an older layout: prefix and group of each. The line is empty
    /// afterwards.
    fn drain_line(&mut self, old: EntryLayout, at: u32, mut with: impl FnMut(u64, BlockGroup)) {
        let next_first = old.first_of(at + 1);
        for entry in std::mem::take(self.lines.get_mut(at)).0 {
            if entry != 0 {
                with(old.prefix_of(entry, next_first), old.group(entry));
            }
        }
    }

    /// Highest number of bytes that `more` entries may allocate, growth as in [`Shard::layout_for`] included.
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
}
