//! Reading the tree on the caller's thread, without a lock, while it is written.
//!
//! Each frame is read inside a section of its [`seqlock`] and believed when the section is valid. The step to a child is
//! believed when the frame it was made from is still the same one ([`seqlock::has_same_identity`]) after the child was read: then the
//! child hung there. A read that the writer is in the way of tries again, so many times and no more; then its answer ends where
//! the writer is. What it may see is written down in `docs/core.md`.
//!
//! Matching a prompt of D blocks: per frame one cache line, one compare of the prefix hash (or of up to 64 local hashes) and
//! one intersection of sets: O(D / 64 + slots).

use super::Slot;
use super::arena::{get, high, low};
use super::child_table::Find;
use super::frame::{
    BlockId, DEVICE_HOLDERS, END_SEQUENCE, FIRST_LOCAL, FrameId, Header, LEN_AND_FLAGS, LINKS, NONE, VERSION,
    has_end, len_of, mark_used,
};
use super::holders::{Holders, write_depth};
use super::path_tree::{PathTree, Prompt, PromptRange};
use super::seqlock::{self, Stamp};
use crate::event::Tier;

/// Times that one frame is tried, and times that one prompt is.
const TRIES: usize = 200;
const STARTS: usize = 16;

/// The writer was in the way more often than a read tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raced;

/// Why a walk did not come to its end.
enum Interruption {
    /// A writer is at the frame after so many blocks; those are true.
    WriterBusy(u32),
    /// What was walked on is gone: nothing of the walk is true.
    PathReplaced,
}

/// A frame as one section saw it.
#[derive(Clone, Copy)]
pub struct FrameView<'a> {
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
    fn examine(&mut self, paths: &PathTree, view: &FrameView<'_>, range: PromptRange);
    /// What was looked at was true. `false`: the rest is of no interest.
    fn accept(&mut self, id: FrameId, view: &FrameView<'_>, range: PromptRange) -> bool;
}

/// Kept between calls to spare the allocations.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    active: Vec<u64>,
    keep: Vec<u64>,
    trail: Vec<PathStep>,
}

/// A frame that a prompt runs through.
#[derive(Clone, Copy, Debug)]
struct PathStep {
    id: FrameId,
    stamp: Stamp,
    range: PromptRange,
}

struct Overlap<'a> {
    active: &'a mut Vec<u64>,
    keep: &'a mut Vec<u64>,
    depth: &'a mut [u32],
    lost: bool,
}

impl Visitor for Overlap<'_> {
    #[inline]
    fn examine(&mut self, paths: &PathTree, view: &FrameView<'_>, range: PromptRange) {
        self.lost = view
            .holders
            .filter_active(&paths.extents, (self.active, self.keep), range, self.depth);
    }

    #[inline]
    fn accept(&mut self, _: FrameId, _: &FrameView<'_>, _: PromptRange) -> bool {
        if self.lost {
            std::mem::swap(self.active, self.keep);
            return self.active.iter().any(|&word| word != 0);
        }
        true
    }
}

struct Trail<'a>(&'a mut Vec<PathStep>);

impl Visitor for Trail<'_> {
    fn examine(&mut self, _: &PathTree, _: &FrameView<'_>, _: PromptRange) {}

    fn accept(&mut self, id: FrameId, view: &FrameView<'_>, range: PromptRange) -> bool {
        let stamp = view.stamp;
        self.0.push(PathStep { id, stamp, range });
        true
    }
}

impl PathTree {
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
                Err(Interruption::WriterBusy(reached)) => (Some(reached), Err(Raced)),
                Err(Interruption::PathReplaced) => continue,
            };
            if let Some(matched) = reached {
                write_depths(active, matched, depth);
            }
            return outcome;
        }
        write_depths(slots, 0, depth);
        Err(Raced)
    }

    /// Follows the prompt to remember its way: for [`PathTree::tier_run`].
    pub fn follow(&self, prompt: &Prompt<'_>, scratch: &mut Scratch) -> Result<(), Raced> {
        for _ in 0..STARTS {
            scratch.trail.clear();
            match self.walk(prompt, &mut Trail(&mut scratch.trail)) {
                Ok(_) => return Ok(()),
                Err(Interruption::WriterBusy(_)) => return Err(Raced),
                Err(Interruption::PathReplaced) => {}
            }
        }
        scratch.trail.clear();
        Err(Raced)
    }

    /// Blocks from `from` on that `slot` holds in `tier` without a hole, along the way that was followed last.
    pub fn tier_run(&self, scratch: &Scratch, slot: Slot, tier: Tier, from: u32) -> u32 {
        let mut reached = from;
        let beyond = |step: &&PathStep| step.range.end() > from;
        for step in scratch.trail.iter().filter(beyond) {
            if step.range.start > reached {
                break;
            }
            let offset = reached - step.range.start;
            let run = (self.read_mask(step, slot, tier) >> offset).trailing_ones();
            reached += run.min(step.range.len - offset);
            if reached < step.range.end() {
                break;
            }
        }
        reached - from
    }

    /// Blocks of a frame that a slot holds in a lower tier; none when it is another frame by now.
    fn read_mask(&self, step: &PathStep, slot: Slot, tier: Tier) -> u64 {
        let header = self.header(step.id);
        for _ in 0..TRIES {
            let Some(stamp) = seqlock::begin_read(&header[VERSION]) else {
                std::hint::spin_loop();
                continue;
            };
            let (lower, shape) = (Self::lower_word(header), get(&header[LEN_AND_FLAGS]));
            if !seqlock::has_same_identity(&header[VERSION], step.stamp) {
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
    fn walk(&self, prompt: &Prompt<'_>, visitor: &mut impl Visitor) -> Result<Option<u32>, Interruption> {
        let mut at = BlockId::ROOT;
        let mut next = NONE;
        let mut from: Option<(&Header, Stamp)> = None;
        let mut matched = 0;
        while let Some(local) = prompt.locals.get(matched) {
            let found = self.next_frame(prompt, (at, next, local.0), matched, visitor);
            if let Some((header, stamp)) = from
                && !seqlock::has_same_identity(&header[VERSION], stamp)
            {
                return Err(Interruption::PathReplaced);
            }
            let Some((id, view, common)) = found.map_err(|Raced| Interruption::WriterBusy(matched as u32))?
            else {
                break;
            };
            let range = PromptRange {
                start: matched as u32,
                len: common,
            };
            matched += common as usize;
            if !visitor.accept(id, &view, range) {
                return Ok(None);
            }
            at = BlockId::new(id, common - 1);
            next = if common == len_of(view.shape) {
                view.next
            } else {
                NONE
            };
            from = Some((view.header, view.stamp));
        }
        Ok(Some(matched as u32))
    }

    /// The frame that goes on from a block, looked at in one valid section.
    #[inline]
    fn next_frame<'a>(
        &'a self,
        prompt: &Prompt<'_>,
        (parent, next, local): (BlockId, FrameId, u64),
        matched: usize,
        visitor: &mut impl Visitor,
    ) -> Result<Option<(FrameId, FrameView<'a>, u32)>, Raced> {
        let is =
            |view: &FrameView<'_>| view.first == local && view.parent == parent && len_of(view.shape) > 0;
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
            let Some(view) = self.view(id) else {
                std::hint::spin_loop();
                continue;
            };
            if !is(&view) {
                next = NONE;
                continue;
            }
            let common = self.common(&view, prompt, matched);
            let range = PromptRange {
                start: matched as u32,
                len: common,
            };
            visitor.examine(self, &view, range);
            if seqlock::is_valid(&view.header[VERSION], view.stamp) {
                mark_used(view.header, view.shape);
                return Ok(Some((id, view, common)));
            }
        }
        Err(Raced)
    }

    #[inline]
    fn view(&self, id: FrameId) -> Option<FrameView<'_>> {
        let header = self.header(id);
        let stamp = seqlock::begin_read(&header[VERSION])?;
        let links = get(&header[LINKS]);
        let view = FrameView {
            header,
            stamp,
            parent: BlockId::from_number(low(links)),
            next: FrameId(high(links)),
            first: get(&header[FIRST_LOCAL]),
            end: get(&header[END_SEQUENCE]),
            shape: get(&header[LEN_AND_FLAGS]),
            holders: Holders::of(&header[DEVICE_HOLDERS..DEVICE_HOLDERS + 4]),
        };
        seqlock::is_valid(&header[VERSION], stamp).then_some(view)
    }

    /// How many blocks from the start of the frame equal the prompt from block `at` on: at least the first.
    #[inline]
    fn common(&self, view: &FrameView<'_>, prompt: &Prompt<'_>, at: usize) -> u32 {
        let len = len_of(view.shape);
        let last = at + len as usize - 1;
        if has_end(view.shape) && prompt.sequence.get(last).is_some_and(|hash| hash.0 == view.end) {
            return len;
        }
        let wanted = &prompt.locals[at..];
        let wanted = &wanted[..(len as usize).min(wanted.len())];
        let common = Self::equal(&self.locals, view.header, 0, wanted, |local| local.0);
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
