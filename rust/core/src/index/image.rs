//! The index as bytes, for restarts: what was held is known again without asking every engine.
//!
//! ```text
//! magic "wdindex\0" | version u32 | hashing u64 | length u64 of the body | xxh3-64 u64 of the body | body
//! body     workers, frames (parents first), copies, aliases; each a count u32, then its entries
//! worker   instance u64 | rank u32 | position u64 (MAX: none)
//! frame    parent's number u32 (MAX: none) | parent's offset u8 | blocks u8 | locals u64.. | named u64 | a name u64 per bit of it
//!          | per tier: holders u32, each worker's number u16 and mask u64
//! copies   frame u32 | offset u8 | worker u16 | tier u8 | copies beyond the first u32
//! alias    frame u32 | offset u8 | worker u16 | name u64
//! ```
//!
//! Little-endian. What is read is believed in nothing: each count is held against the bytes that are left before anything is
//! taken for it, and each rule of the structure is checked. After an error the index is as empty as before.
//! O(blocks + holders).

use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

use super::Slot;
use super::arena::get;
use super::frame::{BlockId, FRAME_BLOCKS, FrameId};
use super::holders::low_bits;
use super::slots::bits;
use super::tree::Shared;
use super::writer::Writer;
use crate::event::Tier;
use crate::hash::LocalHash;
use crate::worker::WorkerId;

const MAGIC: &[u8; 8] = b"wdindex\0";
/// Version of the form.
pub const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8;
const NONE: u32 = u32::MAX;

/// Why bytes are no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// They do not begin as one.
    #[error("not a saved index: the first bytes are others")]
    Magic,
    /// Of another version.
    #[error("a saved index of version {got}; this program reads version {VERSION}: start without it")]
    Version {
        /// Which.
        got: u32,
    },
    /// Its blocks were hashed in another way: block size, mode or key.
    #[error(
        "a saved index of blocks hashed in another way (block size, mode or key): start without it, or with the same configuration"
    )]
    Hashing,
    /// The end is missing, or something follows.
    #[error("a saved index of {expected} bytes, got {got}: the file is cut off or damaged")]
    Length {
        /// Bytes that it says it has.
        expected: u64,
        /// Bytes that there are.
        got: u64,
    },
    /// The bytes changed.
    #[error("a saved index whose checksum is wrong: the file is damaged")]
    Checksum,
    /// It breaks a rule of the index.
    #[error("a saved index that breaks a rule at byte {at}: {rule}")]
    Broken {
        /// Where.
        at: u64,
        /// Which.
        rule: &'static str,
    },
    /// There is something in the index already.
    #[error("an index with {blocks} blocks can not be restored into: restore before the first event")]
    NotEmpty {
        /// Distinct blocks in it.
        blocks: u64,
    },
    /// More blocks than the limit.
    #[error("a saved index that is larger than the limit of this one; raise the limit or start without it")]
    Full,
}

/// A worker of which something was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredWorker {
    /// Who.
    pub worker: WorkerId,
    /// Its blocks, per tier.
    pub blocks: [u64; 3],
    /// Where its feed stood, if that was told.
    pub position: Option<u64>,
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    const fn broken(&self, rule: &'static str) -> ImageError {
        ImageError::Broken {
            at: (HEADER_BYTES + self.at) as u64,
            rule,
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ImageError> {
        let taken = self.bytes[self.at..].get(..count);
        let taken = taken.ok_or_else(|| self.broken("an entry must not end behind the last byte"))?;
        self.at += count;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, ImageError> {
        let mut number = [0; 8];
        number[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(number))
    }

    fn u8(&mut self) -> Result<u32, ImageError> {
        self.number::<1>().map(|number| number as u32)
    }

    fn u16(&mut self) -> Result<usize, ImageError> {
        self.number::<2>().map(|number| number as usize)
    }

    fn u32(&mut self) -> Result<u32, ImageError> {
        self.number::<4>().map(|number| number as u32)
    }

    fn u64(&mut self) -> Result<u64, ImageError> {
        self.number::<8>()
    }

    /// A count of entries of at least so many bytes each.
    fn count(&mut self, entry_bytes: usize) -> Result<usize, ImageError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(entry_bytes) > self.bytes.len() - self.at {
            return Err(self.broken("a count must fit the bytes that are left"));
        }
        Ok(count)
    }
}

/// The body of a well-formed image.
fn body(bytes: &[u8], hashing: u64) -> Result<&[u8], ImageError> {
    if bytes.get(..8) != Some(MAGIC) {
        return Err(ImageError::Magic);
    }
    let (expected, got) = (HEADER_BYTES as u64, bytes.len() as u64);
    let length = ImageError::Length { expected, got };
    let header = bytes.get(8..HEADER_BYTES).ok_or(length)?;
    let word = |at: usize| {
        u64::from_le_bytes(
            header[at..at + 8]
                .try_into()
                .expect("eight bytes are eight bytes"),
        )
    };
    let version = word(0) as u32;
    if version != VERSION {
        return Err(ImageError::Version { got: version });
    }
    let body = &bytes[HEADER_BYTES..];
    if word(12) != body.len() as u64 {
        let expected = word(12).saturating_add(HEADER_BYTES as u64);
        return Err(ImageError::Length { expected, got });
    }
    if word(20) != xxh3_64(body) {
        return Err(ImageError::Checksum);
    }
    if word(4) != hashing {
        return Err(ImageError::Hashing);
    }
    Ok(body)
}

/// Writes an image. Slots without a registered worker hold nothing.
pub(super) fn write(
    shared: &Shared,
    writer: &Writer,
    hashing: u64,
    position: impl Fn(WorkerId) -> Option<u64>,
) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    let mut workers: Vec<(WorkerId, Slot)> = writer.slot_of.iter().map(|(&id, &slot)| (id, slot)).collect();
    workers.sort_unstable();
    let numbers = (0u32..)
        .zip(&workers)
        .map(|(number, &(_, slot))| (slot, number as u16));
    let numbers: FxHashMap<Slot, u16> = numbers.collect();
    out.extend((workers.len() as u32).to_le_bytes());
    for &(id, _) in &workers {
        out.extend(id.instance.to_le_bytes());
        out.extend(id.dp_rank.to_le_bytes());
        out.extend(position(id).unwrap_or(u64::MAX).to_le_bytes());
    }
    let (order, number_of) = parents_first(shared, writer);
    out.extend((order.len() as u32).to_le_bytes());
    for &id in &order {
        write_frame(&mut out, shared, id, &numbers, &number_of);
    }
    write_names(&mut out, writer, &numbers, &number_of);
    let (header, body) = out.split_at_mut(HEADER_BYTES);
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&hashing.to_le_bytes());
    header[20..28].copy_from_slice(&(body.len() as u64).to_le_bytes());
    header[28..36].copy_from_slice(&xxh3_64(body).to_le_bytes());
    out
}

fn parents_first(shared: &Shared, writer: &Writer) -> (Vec<FrameId>, Vec<u32>) {
    let (mut order, mut number_of) = (Vec::new(), vec![NONE; writer.pen.frames_ever()]);
    let mut above = Vec::new();
    for id in shared.paths.iter(&writer.pen) {
        let mut at = id;
        while number_of[at.0 as usize] == NONE {
            above.push(at);
            let parent = shared.paths.parent(at);
            if parent == BlockId::ROOT {
                break;
            }
            at = parent.frame();
        }
        while let Some(id) = above.pop() {
            number_of[id.0 as usize] = order.len() as u32;
            order.push(id);
        }
    }
    (order, number_of)
}

fn write_frame(
    out: &mut Vec<u8>,
    shared: &Shared,
    id: FrameId,
    numbers: &FxHashMap<Slot, u16>,
    number_of: &[u32],
) {
    let (paths, parent, len) = (&shared.paths, shared.paths.parent(id), shared.paths.len(id));
    let (above, offset) = if parent == BlockId::ROOT {
        (NONE, 0)
    } else {
        (number_of[parent.frame().0 as usize], parent.offset() as u8)
    };
    out.extend(above.to_le_bytes());
    out.extend([offset, len as u8]);
    for at in 0..len {
        out.extend(paths.local_of(BlockId::new(id, at)).to_le_bytes());
    }
    let named = get(paths.own(id));
    out.extend(named.to_le_bytes());
    for at in bits(named) {
        out.extend(shared.name_of(BlockId::new(id, at)).to_le_bytes());
    }
    for tier in Tier::ALL {
        let holders = paths.holding(id, tier);
        let holders = holders
            .iter()
            .filter_map(|(slot, mask)| Some((numbers.get(slot)?, mask)));
        let count_at = out.len();
        out.extend(0u32.to_le_bytes());
        let mut count = 0u32;
        for (number, mask) in holders {
            count += 1;
            out.extend(number.to_le_bytes());
            out.extend(mask.to_le_bytes());
        }
        out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
    }
}

fn write_names(out: &mut Vec<u8>, writer: &Writer, numbers: &FxHashMap<Slot, u16>, number_of: &[u32]) {
    let place = |block: BlockId| (number_of[block.frame().0 as usize], block.offset() as u8);
    let copies: Vec<_> = writer
        .copies
        .iter()
        .filter(|(_, slot, ..)| numbers.contains_key(slot))
        .collect();
    out.extend((copies.len() as u32).to_le_bytes());
    for (block, slot, tier, extra) in copies {
        let (frame, offset) = place(block);
        out.extend(frame.to_le_bytes());
        out.push(offset);
        out.extend(numbers[&slot].to_le_bytes());
        out.push(tier.index() as u8);
        out.extend(extra.to_le_bytes());
    }
    let aliases: Vec<_> = writer
        .names
        .aliases()
        .filter(|(slot, ..)| numbers.contains_key(slot))
        .collect();
    out.extend((aliases.len() as u32).to_le_bytes());
    for (slot, block, name) in aliases {
        let (frame, offset) = place(block);
        out.extend(frame.to_le_bytes());
        out.push(offset);
        out.extend(numbers[&slot].to_le_bytes());
        out.extend(name.to_le_bytes());
    }
}

/// One image on its way into an empty index.
struct Restore<'a> {
    bytes: Bytes<'a>,
    /// By the image's numbers: who, and their slots here, if they are registered.
    workers: Vec<(RestoredWorker, Option<Slot>)>,
    frames: Vec<FrameId>,
    blocks_max: u64,
}

/// Reads an image into an empty index: those workers of it that are registered.
pub(super) fn read(
    shared: &Shared,
    writer: &mut Writer,
    bytes: &[u8],
    (hashing, blocks_max): (u64, u64),
) -> Result<Vec<RestoredWorker>, ImageError> {
    let body = body(bytes, hashing)?;
    if writer.pen.blocks() > 0 {
        return Err(ImageError::NotEmpty {
            blocks: writer.pen.blocks(),
        });
    }
    let mut restore = Restore {
        bytes: Bytes { bytes: body, at: 0 },
        workers: Vec::new(),
        frames: Vec::new(),
        blocks_max,
    };
    let outcome = restore.run(shared, writer);
    if outcome.is_err() {
        for slot in 0..writer.held.len() as u32 {
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
        let blocks = writer.held.get(slot?.index()).map_or([0; 3], |held| held.blocks);
        Some(RestoredWorker { blocks, ..worker })
    });
    Ok(known.collect())
}

impl Restore<'_> {
    fn run(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        for _ in 0..self.bytes.count(20)? {
            let worker = WorkerId::new(self.bytes.u64()?, self.bytes.u32()?);
            let position = Some(self.bytes.u64()?).filter(|&position| position != u64::MAX);
            let slot = writer.slot_of.get(&worker).copied();
            if self
                .workers
                .iter()
                .next_back()
                .is_some_and(|(last, _)| last.worker >= worker)
            {
                return Err(self.bytes.broken("workers must be in order"));
            }
            if let Some(slot) = slot {
                writer.make_room_for(shared, slot);
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

    fn block(&mut self, shared: &Shared) -> Result<BlockId, ImageError> {
        let (number, offset) = (self.bytes.u32()?, self.bytes.u8()?);
        let id = self.frames.get(number as usize).copied();
        let id = id.filter(|&id| offset < shared.paths.len(id));
        let id = id.ok_or_else(|| self.bytes.broken("a block must be one of an earlier frame"))?;
        Ok(BlockId::new(id, offset))
    }

    fn parent(&mut self, shared: &Shared) -> Result<BlockId, ImageError> {
        if self.bytes.bytes[self.bytes.at..].starts_with(&NONE.to_le_bytes()) {
            self.bytes.take(5)?;
            return Ok(BlockId::ROOT);
        }
        self.block(shared)
    }

    fn frame(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        let parent = self.parent(shared)?;
        let len = self.bytes.u8()?;
        if !(1..=FRAME_BLOCKS).contains(&len) {
            return Err(self.bytes.broken("a frame must have 1 to 64 blocks"));
        }
        let locals = self.bytes.take(8 * len as usize)?.chunks_exact(8);
        let local = |bytes: &[u8]| LocalHash(u64::from_le_bytes(bytes.try_into().expect("chunks of eight")));
        let locals: Vec<LocalHash> = locals.map(local).collect();
        if shared.paths.step(parent, &locals).is_some() {
            return Err(self.bytes.broken("a path must be there once"));
        }
        if writer.pen.blocks() + u64::from(len) > self.blocks_max {
            return Err(ImageError::Full);
        }
        let added = shared.paths.add(&mut writer.pen, parent, &locals, false);
        let (id, ..) = added.ok_or(ImageError::Full)?;
        shared.engines.reserve(writer.pen.chunks());
        self.frames.push(id);
        self.names(shared, writer, (id, len))?;
        for tier in Tier::ALL {
            for _ in 0..self.bytes.count(10)? {
                self.holder(shared, writer, (id, len), tier)?;
            }
        }
        Ok(())
    }

    fn names(
        &mut self,
        shared: &Shared,
        writer: &mut Writer,
        (id, len): (FrameId, u32),
    ) -> Result<(), ImageError> {
        let named = self.bytes.u64()?;
        if named & !low_bits(len) != 0 {
            return Err(self.bytes.broken("only blocks of the frame have names"));
        }
        for offset in bits(named) {
            let (name, block) = (self.bytes.u64()?, BlockId::new(id, offset));
            if writer.insert_common(shared, name, block).is_some() {
                return Err(self.bytes.broken("a name must be that of one block"));
            }
        }
        Ok(())
    }

    fn slot(&mut self) -> Result<Option<Slot>, ImageError> {
        let number = self.bytes.u16()?;
        let worker = self.workers.get(number);
        worker
            .map(|&(_, slot)| slot)
            .ok_or_else(|| self.bytes.broken("a holder must be one of the workers"))
    }

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
            return Err(self.bytes.broken("a holder must be there once"));
        }
        shared.paths.set_mask(&mut writer.pen, id, (slot, tier), mask);
        writer.add_frame(slot, id);
        let held = &mut writer.held[slot.index()];
        let added = u64::from(mask.count_ones());
        held.blocks[tier.index()] += added;
        shared.count_lower(slot, tier, |blocks| blocks + added);
        Ok(())
    }

    fn copies(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        let block = self.block(shared)?;
        let slot = self.slot()?;
        let tier = self.bytes.u8()? as usize;
        let extra = self.bytes.u32()?;
        let tier = Tier::ALL.get(tier).copied();
        let tier = tier.ok_or_else(|| self.bytes.broken("a tier must be 0 to 2"))?;
        let Some(slot) = slot else { return Ok(()) };
        if extra == 0 || shared.paths.mask(block.frame(), slot, tier) >> block.offset() & 1 == 0 {
            return Err(self.bytes.broken("copies must be of a block that is held"));
        }
        writer.copies.set(block, slot, tier, extra);
        Ok(())
    }

    fn alias(&mut self, shared: &Shared, writer: &mut Writer) -> Result<(), ImageError> {
        let block = self.block(shared)?;
        let slot = self.slot()?;
        let name = self.bytes.u64()?;
        let Some(slot) = slot else { return Ok(()) };
        if shared.paths.mask_any(block.frame(), slot) >> block.offset() & 1 == 0 {
            return Err(self.bytes.broken("a name must be of a block that is held"));
        }
        let known = writer.names.aliased(slot, name).is_some() || writer.names.alias(slot, block).is_some();
        if known {
            return Err(self.bytes.broken("a worker's own name must be that of one block"));
        }
        writer.names.insert_alias(slot, name, block);
        Ok(())
    }
}
