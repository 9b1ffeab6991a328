//! One shard of the engine-hash table: look-up, insertion, removal. `growth.rs` changes its layout.
//!
//! An entry lies in its home line or, when that is full, in one of the next [`PROBE_LINES`] lines. Invariant:
//! all lines from the home line up to the entry's line are full. A look-up may therefore stop at the first
//! line with a free lane. Entries without room lie in a sorted stash.
//!
//! A removal could break the invariant: it frees a lane in a line behind which displaced entries lie. So it
//! refills the lane with a displaced entry, and continues with the lane that this entry left. Nothing marks
//! removed entries, and churn leaves no trace.
//!
//! Cost: O(1). Below 1 in 200 entries lie in the stash at 81 to 91 % of the lanes in use. Displacement
//! without end was rejected: at 85 % full, runs of full lines grow long
//! (`docs/adr/0010-a-table-of-names-of-our-own.md`).

use std::collections::BTreeMap;

use super::super::frame::BlockId;
use super::growth::Limits;
use super::layout::{BlockGroup, EntryLayout, LANES, Line, Lines, PROBE_LINES, free_lanes, lanes};

/// Bytes of a stash entry, with its share of the tree's nodes: an estimate for the budget.
pub(super) const STASHED_BYTES: u64 = 24;

/// A shard; the module describes it. A new shard is empty and has no lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    /// Present layout of the entries.
    pub layout: EntryLayout,
    /// Entries of the shard, stash included.
    pub len: u32,
    /// Limits of the present layout.
    pub(super) limits: Limits,
    /// Home lines, followed by [`PROBE_LINES`] more.
    pub(super) lines: Lines,
    /// Entries without room in their lines: (prefix, group) → number of equal entries.
    ///
    /// Two engine hashes of one group may have equal prefixes. Their entries are equal, hence the number.
    /// Sorted, so that a look-up finds all groups of a prefix, and a freed line all prefixes of its range.
    pub(super) stash: BTreeMap<(u64, u32), u32>,
}

impl Shard {
    /// Block with an engine hash; else the line and lane for its entry, or `None` when all its lines are
    /// full.
    ///
    /// A tag that is equal by chance costs one comparison of engine hashes in vain. `Err` is the usual answer
    /// of an insertion, which then needs no second search.
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

    /// Inserts an entry into the first free lane at or after its home. For a shard that grows, where no entry
    /// needs comparing.
    pub(super) fn insert_near_home(&mut self, prefix: u64, group: BlockGroup) {
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
    ///
    /// Any entry with the same prefix and group will do: entries that look equal are equal to every later
    /// look-up.
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
    /// on with the line that entry left. At the end the stash may give an entry for the last free lane.
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

    /// An entry in a later line that may lie in line `at`: its home is `at` or before. `None`: no line behind
    /// has one.
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
