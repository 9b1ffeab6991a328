//! One shard of the table of names: finding, placing, removing, growing.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::frame::BlockId;
use super::entry::{BEYOND, Form, Group, LANES, Line, Lines, PAGE_LINES, free_lanes, lanes};

/// Groups have 29 bits, and 0 means that there is no entry.
const GROUP_BITS_MAX: u32 = 30;
/// Fewer bits of the hash per line than these are not worth having when more can be had.
const LINE_BITS_MIN: u32 = 5;
/// Bytes of an entry in the stash, its share of the tree's nodes included.
pub const STASHED_BYTES: u64 = 24;
/// A shard with fewer homes grows by a half: less work, where an eighth is no gain.
const SMALL_HOMES: u32 = 64;
/// Lines of a growing shard are moved one after the other where each goes so many lines further, the first ones together.
const FIRST_SHIFT: u32 = BEYOND + 2;

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
    pub form: Form,
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

    /// Reads the line that is so many after a hash's home, if those before it look full: they should have been read.
    #[inline]
    pub fn touch(&self, hash: u64, beyond: u32) -> u32 {
        if self.form.homes == 0 {
            return 0;
        }
        let home = self.form.home(self.form.known(hash));
        let full = |line: u32| self.lines.get(line).0[LANES - 1] != 0;
        if (home..home + beyond).all(full) {
            self.lines.get(home + beyond).0[0]
        } else {
            0
        }
    }

    /// A group in which the name may be, not compared.
    #[inline]
    pub fn guess(&self, hash: u64) -> Option<Group> {
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
    pub fn put(&mut self, free: Option<(u32, usize)>, known: u64, group: Group) {
        self.len += 1;
        if let Some((line, lane)) = free {
            self.lines.get_mut(line).0[lane] = self.form.entry(known, group);
        } else {
            *self.stash.entry((known, group.0)).or_insert(0) += 1;
        }
    }

    /// `false`: it is not in.
    pub fn remove(&mut self, hash: u64, group: Group) -> bool {
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
    pub const fn has_room(&self, more: u32, all: u64, highest: u32) -> bool {
        let Limits {
            len,
            all: all_max,
            groups,
        } = self.limits;
        self.len as u64 + more as u64 <= len as u64 && all <= all_max && highest < groups
    }

    /// The form for that.
    pub fn form_for(&self, more: u32, of: usize, all: u64, highest: u32) -> Form {
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
    pub fn reform<H: Iterator<Item = u64>>(&mut self, form: Form, of: usize, hashes_in: impl Fn(Group) -> H) {
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

    /// Bytes that so many names more take from the system at most, those needed while it grows included: as
    /// [`Shard::form_for`].
    pub fn growth_bytes(&self, more: u32, of: usize, all: u64, highest: u32) -> u64 {
        let stash = u64::from(more) * STASHED_BYTES;
        if self.has_room(more, all, 0) {
            return stash;
        }
        let lines = |homes: u32| if homes == 0 { 0 } else { homes + BEYOND };
        let grown = self.form_for(more, of, all, highest).homes;
        // The last page is copied, the first lines are moved together, and a few names more may find no room.
        let together = u64::from(self.len + more) * (8 + STASHED_BYTES / 8) + stash;
        let page = PAGE_LINES.min(lines(self.form.homes));
        u64::from(lines(grown) - lines(self.form.homes) + page) * size_of::<Line>() as u64 + together
    }

    /// Bytes of the lines and the stash.
    pub fn bytes(&self) -> u64 {
        let lines = if self.form.homes == 0 {
            0
        } else {
            self.form.homes + BEYOND
        };
        u64::from(lines) * size_of::<Line>() as u64 + self.stash.len() as u64 * STASHED_BYTES
    }
}
