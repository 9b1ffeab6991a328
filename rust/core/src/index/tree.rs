//! The index proper: applies events to the paths and answers who holds how much of a prompt.
//!
//! Cost: `apply` O(blocks of the event); `remove_worker` O(blocks that it held); matching as in [`super::paths`]. Memory per
//! block: 16 B of hashes, about 8 B of name table, and the frame's header shared by up to 64 blocks and all their holders.

use super::held::{Copies, Held};
use super::holders::{Holders, low_bits};
use super::names::Names;
use super::paths::{BlockId, Extra, Frame, FrameId, Paths, Prompt, Scratch, cut};
use super::slots::bits;
use super::{Refusal, Slot, TierOverlap};
use crate::event::{KvEvent, StoredBlock, Tier};
use crate::hash::EngineHash;

/// Frames with more full holders than this beside the storing worker are not extended: all of them would become partial.
const EXTEND_HOLDERS_MAX: u32 = 1;

/// What the index adds to a frame.
#[derive(Clone, Debug, Default)]
struct Cached {
    /// Common names of the blocks; valid where `named` has a bit.
    engines: Vec<u64>,
    named: u64,
    /// Holders in host memory and on disk; most frames have none.
    lower: Option<Box<[Holders; 2]>>,
}

impl Extra for Cached {
    fn live(&self, len: u32) -> u64 {
        self.lower
            .as_ref()
            .map_or(0, |lower| lower[0].union(len) | lower[1].union(len))
    }

    fn grown(&mut self, old_len: u32) {
        if let Some(lower) = &mut self.lower {
            lower.iter_mut().for_each(|holders| holders.grown(old_len));
        }
    }

    fn shrunk(&mut self, new_len: u32) {
        cut(&mut self.engines, new_len as usize);
        self.named &= low_bits(new_len);
        if let Some(lower) = &mut self.lower {
            lower.iter_mut().for_each(|holders| holders.shrunk(new_len));
        }
    }
}

impl Frame<Cached> {
    fn tier(&self, tier: Tier) -> Option<&Holders> {
        match tier {
            Tier::Device => Some(&self.holders),
            Tier::Host | Tier::Disk => self.extra.lower.as_ref().map(|lower| &lower[tier.index() - 1]),
        }
    }

    fn mask(&self, slot: Slot, tier: Tier) -> u64 {
        self.tier(tier)
            .map_or(0, |holders| holders.mask(slot, self.len()))
    }

    fn mask_any(&self, slot: Slot) -> u64 {
        let device = self.holders.mask(slot, self.len());
        if self.extra.lower.is_none() {
            return device;
        }
        device | self.mask(slot, Tier::Host) | self.mask(slot, Tier::Disk)
    }

    fn set_mask(&mut self, slot: Slot, tier: Tier, mask: u64) {
        let len = self.len();
        match tier {
            Tier::Device => self.holders.set_mask(slot, mask, len),
            Tier::Host | Tier::Disk => {
                let lower = self.extra.lower.get_or_insert_default();
                lower[tier.index() - 1].set_mask(slot, mask, len);
                if lower.iter().all(Holders::is_empty) {
                    self.extra.lower = None;
                }
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Index {
    paths: Paths<Cached>,
    names: Names,
    copies: Copies,
    held: Vec<Held>,
    /// (worker, block) pairs in host memory and on disk.
    lower_blocks: u64,
    blocks_max: u64,
}

impl Index {
    /// An empty index of at most `blocks_max` distinct blocks.
    pub fn new(blocks_max: u64) -> Self {
        Self {
            paths: Paths::default(),
            names: Names::default(),
            copies: Copies::default(),
            held: Vec::new(),
            lower_blocks: 0,
            blocks_max,
        }
    }

    /// Distinct blocks.
    pub const fn blocks(&self) -> u64 {
        self.paths.blocks()
    }

    /// The limit of distinct blocks.
    pub const fn blocks_max(&self) -> u64 {
        self.blocks_max
    }

    /// Blocks that a worker holds, per tier.
    pub fn held_blocks(&self, slot: Slot) -> [u64; 3] {
        self.held.get(slot.index()).map_or([0; 3], |held| held.blocks)
    }

    /// Bytes of its structures, estimated from their capacities. O(slots).
    pub fn bytes(&self) -> u64 {
        let frames: usize = self.held.iter().map(|held| held.frames.capacity() * 5).sum();
        self.paths.bytes() + self.blocks() * 8 + self.names.bytes() + self.copies.bytes() + frames as u64
    }

    /// Apply one event of the worker in `slot`. After a refusal the blocks before the refused one stay.
    pub fn apply(&mut self, slot: Slot, event: &KvEvent) -> Result<(), Refusal> {
        if self.held.len() <= slot.index() {
            self.held.resize_with(slot.index() + 1, Held::default);
        }
        match event {
            KvEvent::Stored { parent, blocks, tier } => self.store(slot, *parent, blocks, *tier),
            KvEvent::Removed { blocks, tier } => {
                let unknown = blocks
                    .iter()
                    .filter(|&&block| !self.remove(slot, block, *tier))
                    .count();
                if unknown == 0 {
                    Ok(())
                } else {
                    Err(Refusal::UnknownBlocks(unknown))
                }
            }
            KvEvent::Cleared => {
                self.remove_worker(slot);
                Ok(())
            }
        }
    }

    /// The block that this worker calls `name` and holds.
    fn find(&self, slot: Slot, name: EngineHash) -> Option<BlockId> {
        let aliases = self.names.has_aliases();
        if aliases && let Some(block) = self.names.aliased(slot, name.0) {
            return Some(block);
        }
        let block = self.names.common(name.0, |block| self.name_of(block))?;
        let frame = self.paths.frame(block.frame());
        let held = frame.mask_any(slot) >> block.offset() & 1 == 1;
        (held && !(aliases && self.names.alias(slot, block).is_some())).then_some(block)
    }

    fn name_of(&self, block: BlockId) -> u64 {
        name_in(&self.paths, block)
    }

    fn store(
        &mut self,
        slot: Slot,
        parent: Option<EngineHash>,
        blocks: &[StoredBlock],
        tier: Tier,
    ) -> Result<(), Refusal> {
        let mut after = match parent {
            Some(parent) => self.find(slot, parent).ok_or(Refusal::UnknownParent)?,
            None => BlockId::ROOT,
        };
        let locals: Vec<_> = blocks.iter().map(|block| block.local_hash).collect();
        let mut done = 0;
        while done < blocks.len() {
            let (frame, offset, count) = match self.paths.step(after, &locals[done..]) {
                Some(found) => found,
                None => self.add(slot, after, &locals[done..])?,
            };
            let names = &blocks[done..done + count as usize];
            let held = self.hold(slot, frame, offset, names, tier);
            if held.is_err() {
                self.free_dead(frame);
            }
            held?;
            done += count as usize;
            after = BlockId::new(frame, offset + count - 1);
        }
        Ok(())
    }

    fn add(
        &mut self,
        slot: Slot,
        after: BlockId,
        locals: &[crate::hash::LocalHash],
    ) -> Result<(FrameId, u32, u32), Refusal> {
        let room = self
            .blocks_max
            .saturating_sub(self.blocks())
            .min(locals.len() as u64) as usize;
        if room == 0 {
            return Err(Refusal::Full);
        }
        let extend = after != BlockId::ROOT && {
            let frame = self.paths.frame(after.frame());
            let few = |holders: &Holders| !holders.full.exceeds_beside(slot, EXTEND_HOLDERS_MAX);
            few(&frame.holders)
                && frame
                    .extra
                    .lower
                    .as_ref()
                    .is_none_or(|lower| lower.iter().all(few))
        };
        let added = self
            .paths
            .add(after, &locals[..room], extend)
            .ok_or(Refusal::Full)?;
        let frame = self.paths.frame_mut(added.0);
        let len = frame.len() as usize;
        frame.extra.engines.reserve_exact(len - frame.extra.engines.len());
        frame.extra.engines.resize(len, 0);
        Ok(added)
    }

    /// The worker holds one copy more of the blocks at `offset` and after, under these names.
    fn hold(
        &mut self,
        slot: Slot,
        id: FrameId,
        offset: u32,
        blocks: &[StoredBlock],
        tier: Tier,
    ) -> Result<(), Refusal> {
        let named = self.name_all(slot, id, offset, blocks);
        let count = named.unwrap_or_else(|(count, _)| count);
        if count > 0 {
            let frame = self.paths.frame_mut(id);
            let wanted = low_bits(count) << offset;
            let before = frame.mask(slot, tier);
            frame.set_mask(slot, tier, before | wanted);
            if before | wanted == low_bits(frame.len()) {
                self.paths.refresh_end(id);
            }
            for again in bits(before & wanted) {
                self.copies.add(BlockId::new(id, again), slot, tier);
            }
            let held = &mut self.held[slot.index()];
            held.frames.insert(id);
            let added = u64::from((wanted & !before).count_ones());
            held.blocks[tier.index()] += added;
            self.lower_blocks += if tier == Tier::Device { 0 } else { added };
        }
        named
            .map(|_| ())
            .map_err(|(_, name)| Refusal::ConflictingBlock(name))
    }

    /// Record what the worker calls these blocks. `Err`: how many were named before one whose name has another meaning.
    fn name_all(
        &mut self,
        slot: Slot,
        id: FrameId,
        offset: u32,
        blocks: &[StoredBlock],
    ) -> Result<u32, (u32, EngineHash)> {
        let frame = self.paths.frame(id);
        let range = low_bits(blocks.len() as u32) << offset;
        let common = &frame.extra.engines[offset as usize..];
        let all_common = frame.extra.named & range == range
            && common
                .iter()
                .zip(blocks)
                .all(|(&name, block)| name == block.engine_hash.0);
        if all_common && !self.names.has_aliases() {
            return Ok(blocks.len() as u32);
        }
        let held = frame.mask_any(slot);
        for (at, block) in (0..).zip(blocks) {
            let place = BlockId::new(id, offset + at);
            let held = held >> place.offset() & 1 == 1;
            let named = self
                .names
                .common(block.engine_hash.0, |block| self.name_of(block));
            let of_this_event = |other: BlockId| {
                let before = other.frame() == id && (offset..offset + at).contains(&other.offset());
                before && self.names.alias(slot, other).is_none()
            };
            if named.is_some_and(of_this_event) || !self.name(slot, place, block.engine_hash, named, held) {
                return Err((at, block.engine_hash));
            }
        }
        Ok(blocks.len() as u32)
    }

    /// The worker calls `block` so; `false` when that contradicts what it said before.
    /// `common` is the block with that common name; `held` tells whether the worker holds `block`.
    fn name(
        &mut self,
        slot: Slot,
        block: BlockId,
        name: EngineHash,
        common: Option<BlockId>,
        held: bool,
    ) -> bool {
        if self.names.has_aliases()
            && let Some(aliased) = self.names.aliased(slot, name.0)
        {
            return aliased == block;
        }
        if let Some(other) = common
            && other != block
            && self.find(slot, name) == Some(other)
        {
            return false;
        }
        let alias = self.names.alias(slot, block);
        let extra = &mut self.paths.frame_mut(block.frame()).extra;
        let bit = 1 << block.offset();
        let has_common = extra.named & bit != 0;
        let is_common = common == Some(block);
        if held {
            // Held and not aliased so: it has a name already, the common one or another alias.
            return is_common && alias.is_none();
        }
        if is_common {
            return true;
        }
        if common.is_none() && !has_common {
            extra.engines[block.offset() as usize] = name.0;
            extra.named |= bit;
            self.names
                .insert_common(name.0, block, |block| name_in(&self.paths, block));
        } else {
            self.names.insert_alias(slot, name.0, block);
        }
        true
    }

    fn remove(&mut self, slot: Slot, name: EngineHash, tier: Tier) -> bool {
        let Some(block) = self.find(slot, name) else {
            return false;
        };
        let frame = self.paths.frame_mut(block.frame());
        let bit = 1 << block.offset();
        let mask = frame.mask(slot, tier);
        if mask & bit == 0 {
            return false;
        }
        if self.copies.take(block, slot, tier) {
            return true;
        }
        frame.set_mask(slot, tier, mask & !bit);
        let left = frame.mask_any(slot);
        let held = &mut self.held[slot.index()];
        held.blocks[tier.index()] -= 1;
        self.lower_blocks -= u64::from(tier != Tier::Device);
        if left & bit == 0 && self.names.has_aliases() {
            self.names.remove_alias(slot, block);
        }
        if left == 0 {
            held.frames.remove(&block.frame());
        }
        self.free_dead(block.frame());
        true
    }

    /// Forget everything that a worker holds.
    pub fn remove_worker(&mut self, slot: Slot) {
        let Some(held) = self.held.get_mut(slot.index()).map(std::mem::take) else {
            return;
        };
        self.lower_blocks -= held.blocks[1] + held.blocks[2];
        for &id in &held.frames {
            for tier in Tier::ALL {
                let frame = self.paths.frame_mut(id);
                let mask = frame.mask(slot, tier);
                if mask == 0 {
                    continue;
                }
                frame.set_mask(slot, tier, 0);
                for offset in bits(mask) {
                    self.copies.forget(BlockId::new(id, offset), slot, tier);
                    if self.names.has_aliases() {
                        self.names.remove_alias(slot, BlockId::new(id, offset));
                    }
                }
            }
            self.free_dead(id);
        }
    }

    fn free_dead(&mut self, id: FrameId) {
        let names = &mut self.names;
        self.paths.free_dead(id, &mut |block, frame: &mut Frame<Cached>| {
            let bit = 1 << block.offset();
            if frame.extra.named & bit != 0 {
                frame.extra.named &= !bit;
                names.remove_common(frame.extra.engines[block.offset() as usize], block);
            }
        });
    }

    /// Leading blocks in device memory, per slot. As [`Paths::overlap`].
    pub fn device_overlap(
        &self,
        prompt: &Prompt<'_>,
        slots: &[u64],
        depth: &mut [u32],
        scratch: &mut Scratch,
    ) {
        self.paths.overlap(prompt, slots, depth, scratch);
    }

    /// Whether any worker holds anything in host memory or on disk.
    pub const fn any_lower(&self) -> bool {
        self.lower_blocks > 0
    }

    /// Whether the worker holds anything in host memory or on disk.
    pub fn has_lower(&self, slot: Slot) -> bool {
        self.held
            .get(slot.index())
            .is_some_and(|held| held.blocks[1] + held.blocks[2] > 0)
    }

    /// Blocks of the prompt beyond the first `device` that the worker holds in host memory, and beyond those on disk.
    /// O(frames of the prompt).
    pub fn lower_overlap(&self, prompt: &Prompt<'_>, slot: Slot, device: u32) -> [u32; 2] {
        let host = self.tier_run(prompt, slot, Tier::Host, device);
        [host, self.tier_run(prompt, slot, Tier::Disk, device + host)]
    }

    fn tier_run(&self, prompt: &Prompt<'_>, slot: Slot, tier: Tier, from: u32) -> u32 {
        let mut reached = from;
        for (id, start, common) in self
            .paths
            .walk(*prompt)
            .filter(|(_, start, common)| start + common > from)
        {
            if start > reached {
                break;
            }
            let offset = reached - start;
            let run = (self.paths.frame(id).mask(slot, tier) >> offset).trailing_ones();
            reached += run.min(common - offset);
            if reached < start + common {
                break;
            }
        }
        reached - from
    }

    /// Overlap per slot in `0..slots`, every tier.
    pub fn find_matches(&self, prompt: &Prompt<'_>, slots: usize) -> Vec<TierOverlap> {
        let mut depth = vec![0; slots];
        let everyone = all_slots(slots);
        self.device_overlap(prompt, &everyone, &mut depth, &mut Scratch::default());
        let overlap = |(slot, device): (u32, u32)| {
            let slot = Slot(slot);
            let [host, disk] = if self.has_lower(slot) {
                self.lower_overlap(prompt, slot, device)
            } else {
                [0; 2]
            };
            [device, host, disk]
        };
        (0..).zip(depth).map(overlap).collect()
    }

    /// Panics unless every rule of the structure holds. For tests: O(everything).
    pub fn check(&self) {
        self.paths.check();
        let mut held = vec![Held::default(); self.held.len()];
        let mut named = 0;
        for (id, frame) in self.paths.iter() {
            assert_eq!(
                frame.extra.engines.len(),
                frame.len() as usize,
                "names must cover the frame"
            );
            for offset in bits(frame.extra.named) {
                named += 1;
                let block = BlockId::new(id, offset);
                let found = self
                    .names
                    .common(frame.extra.engines[offset as usize], |block| self.name_of(block));
                assert_eq!(found, Some(block), "a common name must lead to its block");
            }
            for (slot, held) in (0..).map(Slot).zip(&mut held) {
                for tier in Tier::ALL {
                    held.blocks[tier.index()] += u64::from(frame.mask(slot, tier).count_ones());
                }
                if frame.mask_any(slot) != 0 {
                    held.frames.insert(id);
                }
            }
        }
        assert_eq!(
            named,
            self.names.common_len(),
            "the name table must hold the named blocks"
        );
        for (counted, found) in self.held.iter().zip(&held) {
            assert_eq!(
                (&counted.frames, counted.blocks),
                (&found.frames, found.blocks),
                "what is held must be counted"
            );
        }
        let lower: u64 = held.iter().map(|held| held.blocks[1] + held.blocks[2]).sum();
        assert_eq!(self.lower_blocks, lower, "lower tiers must be counted");
        if self.blocks() == 0 {
            assert!(
                !self.names.has_aliases() && self.copies.len() == 0,
                "nothing must be left of nothing"
            );
        }
    }
}

fn name_in(paths: &Paths<Cached>, block: BlockId) -> u64 {
    paths.frame(block.frame()).extra.engines[block.offset() as usize]
}

/// The first `slots` slots as words of bits; at least one word.
pub fn all_slots(slots: usize) -> Vec<u64> {
    let words = slots.div_ceil(64).max(1);
    (0..words)
        .map(|at| low_bits(slots.saturating_sub(at * 64).min(64) as u32))
        .collect()
}
