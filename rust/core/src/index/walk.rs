//! Matching a prompt without a lock, while a writer may change the tree.
//!
//! The walk follows the prompt from frame to frame. Two rules make its answer true:
//!
//! 1. It reads each frame inside a section of the frame's [`seqlock`] and uses the copy only if the section
//!    is valid.
//! 2. It uses a child only if the frame it came from still has the same identity
//!    ([`seqlock::has_same_identity`]) after the child was read. Then the child belonged to that path.
//!
//! Why rule 2 is needed: a link names a frame by its id, and ids are reused. Between reading the link and
//! reading the child, the writer may free both frames and give them to another prompt. Each section alone is
//! valid then, and the pair is a path that never existed. `models.rs` has this case as a loom model, with the
//! rule and without it.
//!
//! A read that meets the writer tries again, a bounded number of times; then the answer ends at that frame. A
//! short answer is safe: it understates the overlap. Waiting would not be safe, since a writer that lost its
//! processor inside a section would stop every decision.
//!
//! For each worker the walk keeps one bit: whether the worker holds every block so far. A worker that lacks a
//! block loses its bit: its depth is written, and the rest of the walk ignores it. So a frame costs one set
//! operation, not a loop over workers:
//!
//! ```text
//! active = all slots
//! per frame:  keep   = active ∩ holders of the whole matched range
//!             depth  of (active − keep) = start of the frame + leading blocks that the slot holds
//!             active = keep;  stop when it is empty
//! at the end: depth of active = matched blocks
//! ```
//!
//! Cost for a prompt of D blocks: per frame one cache line, one comparison of a sequence hash (or of up to 64
//! local hashes) and one intersection of sets: O(D / 64 + slots).

use super::Slot;
use super::arena::{get, high, low};
use super::child_table::Find;
use super::frame::{
    BlockId, DEVICE_HOLDERS, END_SEQUENCE, FIRST_LOCAL, FrameId, Header, LEN_AND_FLAGS, LINKS, NONE,
    PromptRange, VERSION, has_end, len_of, mark_used,
};
use super::holders::{Holders, write_depth};
use super::path_tree::{PathTree, Prompt};
use super::seqlock::{self, Stamp};
use crate::event::Tier;

/// Attempts to read one frame before the walk gives up: some microseconds. Write sections are short, so only
/// a writer that lost its processor makes a reader use them all.
const FRAME_ATTEMPTS: usize = 200;
/// Attempts to walk one prompt from its start. A new attempt follows when a frame on the path lost blocks.
const WALK_ATTEMPTS: usize = 16;

/// A read met the writer in every attempt. The index counts these reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raced;

/// Reason why a walk ended early.
enum Interruption {
    /// The writer was at the next frame in every attempt. The matched blocks before it, whose number this is,
    /// are true.
    WriterBusy(u32),
    /// A frame on the path now belongs to another path: nothing of this walk is true.
    PathReplaced,
}

/// Copy of a frame's first cache line, from one valid section.
///
/// The walk takes every decision on this copy. It returns to the header only to compare hashes and to check
/// the version.
#[derive(Clone, Copy)]
pub(super) struct FrameView<'a> {
    /// Header that the copy is from.
    header: &'a Header,
    /// Start of the section; later checks compare with it.
    stamp: Stamp,
    /// Block before the frame's first block.
    parent: BlockId,
    /// Child at the frame's last block, or [`NONE`]. A hint: the child is checked by its own key.
    next: FrameId,
    /// Local hash of the first block.
    first: u64,
    /// Sequence hash of the last block, valid if `shape` says so.
    end: u64,
    /// Word with the length and the flags.
    shape: u64,
    /// Holders in device memory.
    holders: Holders,
}

/// Work to do at each frame of a prompt.
///
/// The walk calls `examine` inside the section, and `accept` once the section proved valid. A visitor may
/// therefore write results in `examine` only if a repeated call overwrites them.
trait Visitor {
    /// Reads a frame whose first blocks equal `range` of the prompt. The section may turn out invalid; then
    /// the walk calls this again for the same frame.
    fn examine(&mut self, paths: &PathTree, view: &FrameView<'_>, range: PromptRange);
    /// Confirms that the last call of `examine` saw a valid section. Returns `false` when the rest of the
    /// prompt is of no interest.
    fn accept(&mut self, id: FrameId, view: &FrameView<'_>, range: PromptRange) -> bool;
}

/// Buffers that live between calls and spare allocations. Their contents mean nothing between two calls,
/// except the path that [`PathTree::follow`] recorded.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Slots that hold all blocks so far, as words of bits.
    active: Vec<u64>,
    /// Slots that also hold the frame being examined.
    keep: Vec<u64>,
    /// Frames of the prompt followed last.
    trail: Vec<PathStep>,
}

/// One frame on a prompt's path. The stamp lets a later read find out whether the frame still belongs to the
/// path.
#[derive(Clone, Copy, Debug)]
struct PathStep {
    /// The frame.
    id: FrameId,
    stamp: Stamp,
    /// Blocks of the prompt that match it.
    range: PromptRange,
}

/// Visitor that computes the overlap of every slot.
struct Overlap<'a> {
    /// Slots that hold all blocks so far, as words of bits.
    active: &'a mut Vec<u64>,
    /// Slots of `active` that also hold the frame examined last. Valid only if `lost`.
    keep: &'a mut Vec<u64>,
    /// Leading blocks of each slot that left `active`.
    depth: &'a mut [u32],
    /// Whether a slot left `active` at the frame examined last. If none did, `keep` has no meaning and the
    /// sets stay.
    lost: bool,
}

impl Visitor for Overlap<'_> {
    #[inline]
    fn examine(&mut self, paths: &PathTree, view: &FrameView<'_>, range: PromptRange) {
        self.lost = view
            .holders
            .filter_active(&paths.extents, (self.active, self.keep), range, self.depth);
    }

    /// The swap makes `keep` the new `active` without a copy. An empty set ends the walk: no worker holds
    /// more.
    #[inline]
    fn accept(&mut self, _: FrameId, _: &FrameView<'_>, _: PromptRange) -> bool {
        if self.lost {
            std::mem::swap(self.active, self.keep);
            return self.active.iter().any(|&word| word != 0);
        }
        true
    }
}

/// Visitor that records the path.
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
    /// `slots` are the slots of interest, as words of bits. `depth` must cover all of them; only their
    /// entries are written.
    ///
    /// # Errors
    /// [`Raced`] when the writer was in the way: the depths are true, but end where the writer was.
    pub(crate) fn overlap(
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
        // Each attempt starts from the root, since a replaced frame makes the whole path untrue.
        for _ in 0..WALK_ATTEMPTS {
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

    /// Records the path of a prompt, for [`PathTree::tier_run`]. O(frames of the prompt).
    ///
    /// Only fleets with blocks in host memory or on disk need the path. Overlaps in device memory come from
    /// [`PathTree::overlap`] without it.
    ///
    /// # Errors
    /// [`Raced`] when the writer was in the way: the path ends there.
    pub(crate) fn follow(&self, prompt: &Prompt<'_>, scratch: &mut Scratch) -> Result<(), Raced> {
        for _ in 0..WALK_ATTEMPTS {
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

    /// Number of blocks that `slot` holds in `tier` without a hole, from block `from` on, along the path
    /// followed last.
    pub(crate) fn tier_run(&self, scratch: &Scratch, slot: Slot, tier: Tier, from: u32) -> u32 {
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

    /// Blocks of a frame that a slot holds in a lower tier, as bits; 0 when the frame belongs to another path
    /// by now.
    ///
    /// The holders of the lower tiers lie in an extent, one step further than the header. So the section is
    /// checked three times: before the extent is followed, after its four words were copied, and after what
    /// they name was read.
    fn read_mask(&self, step: &PathStep, slot: Slot, tier: Tier) -> u64 {
        let header = self.header(step.id);
        for _ in 0..FRAME_ATTEMPTS {
            let Some(stamp) = seqlock::begin_read(&header[VERSION]) else {
                std::hint::spin_loop();
                continue;
            };
            let (lower, shape) = (Self::lower_word(header), get(&header[LEN_AND_FLAGS]));
            // The frame was recycled for another path since the walk.
            if !seqlock::has_same_identity(&header[VERSION], step.stamp) {
                return 0;
            }
            if !seqlock::is_valid(&header[VERSION], stamp) {
                continue;
            }
            // Only a valid section makes `lower` an extent that may be read.
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

    /// Follows the prompt. Returns the number of its blocks in the tree, or `None` when the visitor saw
    /// enough.
    ///
    /// # Errors
    /// The [`Interruption`]. After [`Interruption::PathReplaced`] the caller must start again, with all
    /// results forgotten.
    #[inline]
    fn walk(&self, prompt: &Prompt<'_>, visitor: &mut impl Visitor) -> Result<Option<u32>, Interruption> {
        let mut at = BlockId::ROOT;
        let mut next = NONE;
        let mut from: Option<(&Header, Stamp)> = None;
        let mut matched = 0;
        while let Some(local) = prompt.locals.get(matched) {
            let found = self.next_frame(prompt, (at, next, local.0), matched, visitor);
            // Rule 2: before anything of the new frame counts, check the frame it hung on.
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
            // The direct link leads on only from the last block of a frame.
            next = if common == len_of(view.shape) {
                view.next
            } else {
                NONE
            };
            from = Some((view.header, view.stamp));
        }
        Ok(Some(matched as u32))
    }

    /// The frame that continues from a block, examined in one valid section. `None`: the tree has no such
    /// frame.
    ///
    /// The direct link `next` is tried first, and the child table when the link turns out stale.
    ///
    /// # Errors
    /// [`Raced`] when every attempt met the writer.
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
        for _ in 0..FRAME_ATTEMPTS {
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
            // The direct link was stale: ask the child table.
            if !is(&view) {
                next = NONE;
                continue;
            }
            // Still inside the section: the comparison reads chunks that the writer may free.
            let common = self.common(&view, prompt, matched);
            let range = PromptRange {
                start: matched as u32,
                len: common,
            };
            visitor.examine(self, &view, range);
            if seqlock::is_valid(&view.header[VERSION], view.stamp) {
                // Only a frame that was really matched counts as used.
                mark_used(view.header, view.shape);
                return Ok(Some((id, view, common)));
            }
        }
        Err(Raced)
    }

    /// Copies a frame's first cache line; `None` when the section is not valid.
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

    /// Leading blocks of a frame that equal the prompt from block `at` on; at least 1, since the first local
    /// hash is equal.
    ///
    /// With sequence hashes one comparison proves the whole frame: equal sequence hashes mean equal prompts
    /// so far, up to a collision of 64 bits. Where the prompt ends or diverges inside the frame, local hashes
    /// are compared.
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
        // In an invalid section even the first hash may differ; the caller's check rejects the result.
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
