//! Reading the tree on the caller's thread, without a lock, while it is written.
//!
//! Each frame is read inside a section of its [`seqlock`] and believed when the section is valid. The step to a child is
//! believed when the frame it was made from is still the same one ([`seqlock::is_same`]) after the child was read: then the
//! child hung there. A read that the writer is in the way of tries again, so many times and no more; then its answer ends where
//! the writer is. What it may see is written down in `docs/core.md`.
//!
//! Matching a prompt of D blocks: per frame one cache line, one compare of the prefix hash (or of up to 64 local hashes) and
//! one intersection of sets: O(D / 64 + slots).

use super::Slot;
use super::arena::{get, high, low};
use super::children::Find;
use super::frame::{
    BlockId, END, FIRST, FrameId, HOLDERS, Header, LINKS, NONE, SHAPE, VERSION, has_end, len_of, mark_used,
};
use super::holders::{Holders, write_depth};
use super::paths::{Paths, Prompt};
use super::seqlock::{self, Stamp};
use crate::event::Tier;

/// Times that one frame is tried, and times that one prompt is.
const TRIES: usize = 200;
const STARTS: usize = 16;

/// The writer was in the way more often than a read tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raced;

/// Why a walk did not come to its end.
enum Stop {
    /// A writer is at the frame after so many blocks; those are true.
    Busy(u32),
    /// What was walked on is gone: nothing of the walk is true.
    Changed,
}

/// A frame as one section saw it.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    header: &'a Header,
    stamp: Stamp,
    parent: BlockId,
    next: FrameId,
    first: u64,
    end: u64,
    shape: u64,
    holders: Holders,
}

/// What is done with each frame of a prompt.
trait Visitor {
    /// Looks at a frame of which `common` blocks equal the prompt's from `start` on. May happen again for the same frame.
    fn look(&mut self, paths: &Paths, seen: &Seen<'_>, start: u32, common: u32);
    /// What was looked at was true. `false`: the rest is of no interest.
    fn take(&mut self, id: FrameId, seen: &Seen<'_>, start: u32, common: u32) -> bool;
}

/// Kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    active: Vec<u64>,
    keep: Vec<u64>,
    trail: Vec<Passed>,
}

/// A frame that a prompt runs through.
#[derive(Clone, Copy, Debug)]
struct Passed {
    id: FrameId,
    stamp: Stamp,
    start: u32,
    common: u32,
}

struct Overlap<'a> {
    active: &'a mut Vec<u64>,
    keep: &'a mut Vec<u64>,
    depth: &'a mut [u32],
    lost: bool,
}

impl Visitor for Overlap<'_> {
    #[inline]
    fn look(&mut self, paths: &Paths, seen: &Seen<'_>, start: u32, common: u32) {
        self.lost = seen.holders.retain(
            &paths.extents,
            (self.active, self.keep),
            (start, common),
            self.depth,
        );
    }

    #[inline]
    fn take(&mut self, _: FrameId, _: &Seen<'_>, _: u32, _: u32) -> bool {
        if self.lost {
            std::mem::swap(self.active, self.keep);
            return self.active.iter().any(|&word| word != 0);
        }
        true
    }
}

struct Trail<'a>(&'a mut Vec<Passed>);

impl Visitor for Trail<'_> {
    fn look(&mut self, _: &Paths, _: &Seen<'_>, _: u32, _: u32) {}

    fn take(&mut self, id: FrameId, seen: &Seen<'_>, start: u32, common: u32) -> bool {
        let stamp = seen.stamp;
        self.0.push(Passed {
            id,
            stamp,
            start,
            common,
        });
        true
    }
}

impl Paths {
    /// Overlap of a prompt per slot: `depth[slot]` = leading blocks that the slot holds without a hole.
    ///
    /// `slots` are the slots of interest, as words of bits; `depth` must cover them all, is written for each of them, and is left
    /// alone elsewhere. `Err`: the depths are true, but end where the writer was in the way.
    pub fn overlap(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        depth: &mut [u32],
        scratch: &mut Scratch,
    ) -> Result<(), Raced> {
        if slots.is_empty() {
            return Ok(());
        }
        let Scratch { active, keep, .. } = scratch;
        keep.clear();
        keep.resize(slots.len(), 0);
        for _ in 0..STARTS {
            active.clear();
            active.extend_from_slice(slots);
            let mut overlap = Overlap {
                active,
                keep,
                depth,
                lost: false,
            };
            let (reached, outcome) = match self.walk(prompt, &mut overlap) {
                Ok(reached) => (reached, Ok(())),
                Err(Stop::Busy(reached)) => (Some(reached), Err(Raced)),
                Err(Stop::Changed) => continue,
            };
            if let Some(matched) = reached {
                write_depths(active, matched, depth);
            }
            return outcome;
        }
        write_depths(slots, 0, depth);
        Err(Raced)
    }

    /// Follows the prompt to remember its way: for [`Paths::tier_run`].
    pub fn follow(&self, prompt: &Prompt<'_>, scratch: &mut Scratch) -> Result<(), Raced> {
        for _ in 0..STARTS {
            scratch.trail.clear();
            match self.walk(prompt, &mut Trail(&mut scratch.trail)) {
                Ok(_) => return Ok(()),
                Err(Stop::Busy(_)) => return Err(Raced),
                Err(Stop::Changed) => {}
            }
        }
        scratch.trail.clear();
        Err(Raced)
    }

    /// Blocks from `from` on that `slot` holds in `tier` without a hole, along the way that was followed last.
    pub fn tier_run(&self, scratch: &Scratch, slot: Slot, tier: Tier, from: u32) -> u32 {
        let mut reached = from;
        let beyond = |passed: &&Passed| passed.start + passed.common > from;
        for passed in scratch.trail.iter().filter(beyond) {
            if passed.start > reached {
                break;
            }
            let offset = reached - passed.start;
            let run = (self.read_mask(passed, slot, tier) >> offset).trailing_ones();
            reached += run.min(passed.common - offset);
            if reached < passed.start + passed.common {
                break;
            }
        }
        reached - from
    }

    /// Blocks of a frame that a slot holds in a lower tier; none when it is another frame by now.
    fn read_mask(&self, passed: &Passed, slot: Slot, tier: Tier) -> u64 {
        let header = self.header(passed.id);
        for _ in 0..TRIES {
            let Some(stamp) = seqlock::begin_read(&header[VERSION]) else {
                std::hint::spin_loop();
                continue;
            };
            let (lower, shape) = (Self::lower_of(header), get(&header[SHAPE]));
            if !seqlock::is_same(&header[VERSION], passed.stamp) {
                return 0;
            }
            if !seqlock::is_valid(&header[VERSION], stamp) {
                continue;
            }
            let holders = self.lower_holders(lower, tier);
            if !seqlock::is_valid(&header[VERSION], stamp) {
                continue;
            }
            let mask = holders.map_or(0, |holders| holders.mask(&self.extents, slot, len_of(shape)));
            if seqlock::is_valid(&header[VERSION], stamp) {
                return mask;
            }
        }
        0
    }

    /// Goes along the prompt; how many blocks of it there are, unless the visitor had seen enough.
    #[inline]
    fn walk(&self, prompt: &Prompt<'_>, visitor: &mut impl Visitor) -> Result<Option<u32>, Stop> {
        let mut at = BlockId::ROOT;
        let mut next = NONE;
        let mut from: Option<(&Header, Stamp)> = None;
        let mut matched = 0;
        while let Some(local) = prompt.locals.get(matched) {
            let found = self.pass(prompt, (at, next, local.0), matched, visitor);
            if let Some((header, stamp)) = from
                && !seqlock::is_same(&header[VERSION], stamp)
            {
                return Err(Stop::Changed);
            }
            let Some((id, seen, common)) = found.map_err(|Raced| Stop::Busy(matched as u32))? else {
                break;
            };
            let start = matched as u32;
            matched += common as usize;
            if !visitor.take(id, &seen, start, common) {
                return Ok(None);
            }
            at = BlockId::new(id, common - 1);
            next = if common == len_of(seen.shape) {
                seen.next
            } else {
                NONE
            };
            from = Some((seen.header, seen.stamp));
        }
        Ok(Some(matched as u32))
    }

    /// The frame that goes on from a block, looked at in one valid section.
    #[inline]
    fn pass<'a>(
        &'a self,
        prompt: &Prompt<'_>,
        (parent, next, local): (BlockId, FrameId, u64),
        matched: usize,
        visitor: &mut impl Visitor,
    ) -> Result<Option<(FrameId, Seen<'a>, u32)>, Raced> {
        let is = |seen: &Seen<'_>| seen.first == local && seen.parent == parent && len_of(seen.shape) > 0;
        let mut next = next;
        for _ in 0..TRIES {
            let id = if next == NONE {
                match self.children.find(&self.headers, parent, local) {
                    Find::Missing => return Ok(None),
                    Find::Found(id) => id,
                    Find::Raced => {
                        std::hint::spin_loop();
                        continue;
                    }
                }
            } else {
                next
            };
            let Some(seen) = self.see(id) else {
                std::hint::spin_loop();
                continue;
            };
            if !is(&seen) {
                next = NONE;
                continue;
            }
            let common = self.common(&seen, prompt, matched);
            visitor.look(self, &seen, matched as u32, common);
            if seqlock::is_valid(&seen.header[VERSION], seen.stamp) {
                mark_used(seen.header, seen.shape);
                return Ok(Some((id, seen, common)));
            }
        }
        Err(Raced)
    }

    #[inline]
    fn see(&self, id: FrameId) -> Option<Seen<'_>> {
        let header = self.header(id);
        let stamp = seqlock::begin_read(&header[VERSION])?;
        let links = get(&header[LINKS]);
        let seen = Seen {
            header,
            stamp,
            parent: BlockId::from_number(low(links)),
            next: FrameId(high(links)),
            first: get(&header[FIRST]),
            end: get(&header[END]),
            shape: get(&header[SHAPE]),
            holders: Holders::of(&header[HOLDERS..HOLDERS + 4]),
        };
        seqlock::is_valid(&header[VERSION], stamp).then_some(seen)
    }

    /// How many blocks from the start of the frame equal the prompt from block `at` on: at least the first.
    #[inline]
    fn common(&self, seen: &Seen<'_>, prompt: &Prompt<'_>, at: usize) -> u32 {
        let len = len_of(seen.shape);
        let last = at + len as usize - 1;
        if has_end(seen.shape) && prompt.sequence.get(last).is_some_and(|hash| hash.0 == seen.end) {
            return len;
        }
        let wanted = &prompt.locals[at..];
        let wanted = &wanted[..(len as usize).min(wanted.len())];
        let common = Self::equal(&self.locals, seen.header, 0, wanted, |local| local.0);
        // In a section that is not valid even the first may differ.
        common.max(1) as u32
    }
}

/// `depth[slot] = value` for every slot of `slots`.
#[inline]
fn write_depths(slots: &[u64], value: u32, depth: &mut [u32]) {
    for (at, &word) in slots.iter().enumerate() {
        write_depth(word, value, &mut depth[at * 64..]);
    }
}
