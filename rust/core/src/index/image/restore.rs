//! Restoring an image into an empty index.
//!
//! An image is outside data: its checksum shows damage, and not that its writer was right. Every rule that
//! the index relies on is therefore checked while it is read, before anything is written that would break it.
//! A refused image leaves an empty index. O(blocks + holders), under the writer's lock.
//!
//! The order of the sections lets every reference be checked at once. Workers come first, then frames with
//! their parents before them, then the rare copies and aliases, which name earlier frames.
//!
//! Blocks are not stored as events would store them. Each frame of the image becomes a frame of the index
//! with the same blocks, so holes and holders stay as they were.
//!
//! Workers of the image that are not registered here are read and checked like the others, and then dropped.
//! A fleet that lost a worker over the restart keeps the rest of its image.

use super::super::Slot;
use super::super::frame::{BlockId, FRAME_BLOCKS, FrameId};
use super::super::shared::Shared;
use super::super::slots::{bits, low_bits};
use super::super::writer::Writer;
use super::reader::{Reader, body};
use super::{ImageError, NONE, RestoredWorker};
use crate::event::Tier;
use crate::hash::LocalHash;
use crate::worker::WorkerId;

/// A restore in progress. The numbers in the image are positions in these lists.
struct Restore<'a> {
    /// The unread part of the image.
    bytes: Reader<'a>,
    /// Workers by their number in the image, each with its slot here if it is registered. Invariant:
    /// ascending ids.
    workers: Vec<(RestoredWorker, Option<Slot>)>,
    /// Frames by their number in the image. Each is in the tree, held or not, until the end of the restore.
    frames: Vec<FrameId>,
    /// Limit of distinct blocks. The limit in bytes is not checked here: the next store evicts down to it.
    blocks_max: u64,
}

/// Restores the registered workers of an image into an empty index.
///
/// Blocks of workers that are not registered here are read, checked and dropped: `free_dead` frees the frames
/// that no worker holds in the end, children first.
///
/// # Errors
/// [`ImageError::NotEmpty`] before anything changes. Any other error empties the index again.
pub(in crate::index) fn read(
    shared: &Shared,
    writer: &mut Writer,
    bytes: &[u8],
    hashing: u64,
    blocks_max: u64,
) -> Result<Vec<RestoredWorker>, ImageError> {
    let body = body(bytes, hashing)?;
    if writer.allocator.blocks() > 0 {
        return Err(ImageError::NotEmpty {
            blocks: writer.allocator.blocks(),
        });
    }
    let mut restore = Restore {
        bytes: Reader { bytes: body, at: 0 },
        workers: Vec::new(),
        frames: Vec::new(),
        blocks_max,
    };
    // Frames without a holder stay until the end, because later frames may hang below them.
    let outcome = restore.run(shared, writer);
    if outcome.is_err() {
        for slot in 0..writer.workers.len() as u32 {
            writer.remove_worker(shared, Slot(slot));
        }
    }
    for &id in restore.frames.iter().rev() {
        if shared.paths.len(id) > 0 {
            writer.free_dead(shared, id);
        }
    }
    outcome?;
    let known = restore.workers.into_iter().filter_map(|(worker, slot)| {
        let blocks = writer
            .workers
            .get(slot?.index())
            .map_or([0; 3], |held| held.blocks);
        Some(RestoredWorker { blocks, ..worker })
    });
    Ok(known.collect())
}

impl Restore<'_> {
    /// Reads all sections of the image. The number beside each count is the least size of an entry in bytes.
    ///
    /// # Errors
    /// [`ImageError::Broken`] names the rule and the byte; [`ImageError::Full`] a limit.
    fn run(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        for _ in 0..self.bytes.count(20)? {
            let worker = WorkerId::new(self.bytes.u64()?, self.bytes.u32()?);
            let position = Some(self.bytes.u64()?).filter(|&position| position != u64::MAX);
            let slot = writer.slot_of.get(&worker).copied();
            // Order makes a repeated worker visible without a set of all workers.
            if self
                .workers
                .iter()
                .next_back()
                .is_some_and(|(last, _)| last.worker >= worker)
            {
                return Err(self.bytes.broken("workers must be in order"));
            }
            if let Some(slot) = slot {
                writer.ensure_slot(shared, slot);
            }
            let blocks = [0; 3];
            self.workers.push((
                RestoredWorker {
                    worker,
                    blocks,
                    position,
                },
                slot,
            ));
        }
        for _ in 0..self.bytes.count(34)? {
            self.frame(shared, writer)?;
        }
        for _ in 0..self.bytes.count(12)? {
            self.copies(shared, writer)?;
        }
        for _ in 0..self.bytes.count(15)? {
            self.alias(shared, writer)?;
        }
        if self.bytes.at < self.bytes.bytes.len() {
            return Err(self.bytes.broken("nothing must follow the last entry"));
        }
        Ok(())
    }

    /// A block of a frame that was read before. A reference to a later frame is refused, so no circle of
    /// parents is possible.
    fn block(&mut self, shared: &Shared) -> Result<BlockId, ImageError> {
        let (number, offset) = (self.bytes.u32()?, self.bytes.u8()?);
        let id = self.frames.get(number as usize).copied();
        let id = id.filter(|&id| offset < shared.paths.len(id));
        let id = id.ok_or_else(|| self.bytes.broken("a block must be one of an earlier frame"))?;
        Ok(BlockId::new(id, offset))
    }

    /// The parent of a frame: a block read before, or the root. The root's offset byte is skipped.
    fn parent(&mut self, shared: &Shared) -> Result<BlockId, ImageError> {
        if self.bytes.bytes[self.bytes.at..].starts_with(&NONE.to_le_bytes()) {
            self.bytes.take(5)?;
            return Ok(BlockId::ROOT);
        }
        self.block(shared)
    }

    /// Reads one frame with its hashes and holders.
    ///
    /// # Errors
    /// [`ImageError::Broken`] for a length outside 1 to 64 or a path that is in the image already.
    /// [`ImageError::Full`] beyond the block limit.
    fn frame(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        let parent = self.parent(shared)?;
        let len = self.bytes.u8()?;
        if !(1..=FRAME_BLOCKS).contains(&len) {
            return Err(self.bytes.broken("a frame must have 1 to 64 blocks"));
        }
        let locals = self.bytes.take(8 * len as usize)?.chunks_exact(8);
        let local = |bytes: &[u8]| {
            LocalHash(u64::from_le_bytes(
                bytes.try_into().expect("the chunk has eight bytes"),
            ))
        };
        let locals: Vec<LocalHash> = locals.map(local).collect();
        // Two frames for one path would let a match find either, and see half of the holders.
        if shared.paths.step(parent, &locals).is_some() {
            return Err(self.bytes.broken("a path must be in the image once"));
        }
        if writer.allocator.blocks() + u64::from(len) > self.blocks_max {
            return Err(ImageError::Full);
        }
        // Never extends the parent's frame: the image has its own frames, and their numbers must stay.
        let added = shared.paths.add(&mut writer.allocator, parent, &locals, false);
        let id = added.ok_or(ImageError::Full)?.first.frame();
        shared.engine_hashes.reserve(writer.allocator.chunks());
        self.frames.push(id);
        self.hashes(shared, writer, (id, len))?;
        for tier in Tier::ALL {
            for _ in 0..self.bytes.count(10)? {
                self.holder(shared, writer, (id, len), tier)?;
            }
        }
        Ok(())
    }

    /// Reads the common engine hashes of a frame. A bit mask says which blocks have one.
    ///
    /// Two blocks with one common hash would make the table answer with either, so the second one is refused.
    fn hashes(
        &mut self,
        shared: &Shared,
        writer: &mut Writer,
        (id, len): (FrameId, u32),
    ) -> Result<(), ImageError> {
        let named = self.bytes.u64()?;
        if named & !low_bits(len) != 0 {
            return Err(self
                .bytes
                .broken("only blocks of the frame may have engine hashes"));
        }
        for offset in bits(named) {
            let (engine_hash, block) = (self.bytes.u64()?, BlockId::new(id, offset));
            if writer.insert_common_hash(shared, engine_hash, block).is_some() {
                return Err(self.bytes.broken("an engine hash must belong to one block"));
            }
        }
        Ok(())
    }

    /// The slot of a worker given by its number; `None` when the worker is not registered here.
    fn slot(&mut self) -> Result<Option<Slot>, ImageError> {
        let number = self.bytes.u16()?;
        let worker = self.workers.get(number);
        worker
            .map(|&(_, slot)| slot)
            .ok_or_else(|| self.bytes.broken("a holder must be one of the workers"))
    }

    /// Reads one holder of a frame. A repeated holder would count its blocks twice.
    ///
    /// The holder of an unregistered worker is checked and skipped.
    fn holder(
        &mut self,
        shared: &Shared,
        writer: &mut Writer,
        (id, len): (FrameId, u32),
        tier: Tier,
    ) -> Result<(), ImageError> {
        let slot = self.slot()?;
        let mask = self.bytes.u64()?;
        if mask == 0 || mask & !low_bits(len) != 0 {
            return Err(self.bytes.broken("a holder must hold blocks of the frame"));
        }
        let Some(slot) = slot else { return Ok(()) };
        if shared.paths.mask(id, slot, tier) != 0 {
            return Err(self.bytes.broken("a holder must be in a tier of a frame once"));
        }
        shared
            .paths
            .set_mask(&mut writer.allocator, id, (slot, tier), mask);
        writer.add_frame(slot, id);
        let held = &mut writer.workers[slot.index()];
        let added = u64::from(mask.count_ones());
        held.blocks[tier.index()] += added;
        shared.count_lower(slot, tier, |blocks| blocks + added);
        Ok(())
    }

    /// Reads the copies of one block beyond the first. Copies of a block that is not held would never be removed.
    fn copies(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        let block = self.block(shared)?;
        let slot = self.slot()?;
        let tier = self.bytes.u8()? as usize;
        let extra = self.bytes.u32()?;
        let tier = Tier::ALL.get(tier).copied();
        let tier = tier.ok_or_else(|| self.bytes.broken("a tier must be 0 to 2"))?;
        let Some(slot) = slot else { return Ok(()) };
        if extra == 0 || shared.paths.mask(block.frame(), slot, tier) >> block.offset() & 1 == 0 {
            return Err(self.bytes.broken("copies must belong to a held block"));
        }
        writer.copies.set(block, slot, tier, extra);
        Ok(())
    }

    /// Reads one alias: a hash that one worker uses for a block with another common hash.
    ///
    /// # Errors
    /// [`ImageError::Broken`] for a block that the worker does not hold, or for a second alias of the same
    /// hash or block.
    fn alias(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        let block = self.block(shared)?;
        let slot = self.slot()?;
        let engine_hash = self.bytes.u64()?;
        let Some(slot) = slot else { return Ok(()) };
        if shared.paths.mask_any(block.frame(), slot) >> block.offset() & 1 == 0 {
            return Err(self.bytes.broken("an alias must belong to a held block"));
        }
        let known = writer.engine_hashes.aliased(slot, engine_hash).is_some()
            || writer.engine_hashes.alias(slot, block).is_some();
        if known {
            return Err(self.bytes.broken("an alias must belong to one block"));
        }
        writer.engine_hashes.insert_alias(slot, engine_hash, block);
        Ok(())
    }
}
