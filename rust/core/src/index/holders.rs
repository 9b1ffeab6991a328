//! Holders of one frame: full holders as a set of slots, partial holders with a mask of their blocks.
//!
//! Four words of the frame's header hold them, with [`Extents`] where the words do not suffice:
//!
//! ```text
//! word 0, 1  full holders: a bitmap while all slots are below 64,
//!            else a list of up to eight slots of 16 bits, else the extent of a bitset
//! word 2     high half: layout of the full holders, length of their list, size class and length of the partial list
//! word 3     low half: extent of the partial list, entries (slot, mask) sorted by slot
//! ```
//!
//! Most holders of most frames are full: engines keep prefixes whole and evict from the end. A full holder
//! costs one bit. A prefix shared by 64 workers takes 0.5 bytes per worker and block, hashes included.
//! Partial holders are few, and a list of them is searched by halving.
//!
//! Example. A frame of four blocks; workers 3 and 70 hold all of it, worker 5 holds the first two blocks.
//! Slot 70 does not fit the bitmap. The full holders are the list 3, 70, and the partial list has the entry
//! (5, 0b0011).
//!
//! A reader copies the words inside a section of the frame's [`super::seqlock`] and reads the extents inside
//! the same section. `holder_changes.rs` writes them.
//!
//! Cost: O(1) to ask for one slot among full holders, and O(log partial holders) for its mask. A step of a
//! match costs O(words of the set + partial holders).

use std::sync::atomic::AtomicU64;

use super::Slot;
use super::arena::{get, high, low};
use super::extents::Extents;
use super::frame::PromptRange;
use super::slots::{bits, low_bits};

/// Highest length of the list of full holders: eight slots of 16 bits fill words 0 and 1.
pub(super) const LIST_SLOTS: usize = 8;

/// Storage of the full holders. The smallest layout that fits them is used, except where a change of layout
/// at each step would cost more than it saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FullLayout {
    /// Bit i of the first word stands for slot i.
    Bitmap,
    /// List of slots of 16 bits; the value is its length.
    List(u32),
    /// Extent and its number of words: bit i of word w stands for slot 64·w + i.
    Bitset(u32, usize),
}

/// Copy of a frame's holder words. A slot is a full holder, a partial holder, or holds nothing of the frame.
///
/// Invariant: the partial list is sorted by slot, has no slot twice, and no mask in it is empty or whole. A
/// whole mask would hide a holder from the set operations of a match.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holders {
    /// The first two words: a bitmap, a list or the place of a bitset, as `shape` says.
    pub(super) full: [u64; 2],
    /// Layout, list length, and size class and length of the partial list.
    pub(super) shape: u32,
    /// Extent of the partial list. Without meaning while the list is empty.
    pub(super) partial: u32,
}

/// Bits of `shape` with the layout: 0 bitmap, 1 list, 2 bitset.
const LAYOUT_BITS: u32 = 0b11;
/// Position in `shape` of the list's length, four bits.
pub(super) const LIST_LEN_SHIFT: u32 = 2;
/// Position in `shape` of the partial list's size class, five bits.
pub(super) const CLASS_SHIFT: u32 = 6;
/// Position in `shape` of the partial list's length.
pub(super) const LEN_SHIFT: u32 = 11;

impl Holders {
    /// Copies the words. A reader may use the copy only if its section is valid.
    ///
    /// Four relaxed loads. What they point to, an extent, may only be read inside the same section.
    #[inline]
    pub(crate) fn of(words: &[AtomicU64]) -> Self {
        Self {
            full: [get(&words[0]), get(&words[1])],
            shape: high(get(&words[2])),
            partial: low(get(&words[3])),
        }
    }

    /// Storage of the full holders.
    #[inline]
    pub(super) const fn layout(&self) -> FullLayout {
        match self.shape & LAYOUT_BITS {
            0 => FullLayout::Bitmap,
            1 => FullLayout::List(self.shape >> LIST_LEN_SHIFT & 15),
            _ => FullLayout::Bitset(low(self.full[0]), high(self.full[0]) as usize),
        }
    }

    /// Number of partial holders.
    #[inline]
    pub(crate) const fn partial_len(&self) -> usize {
        (self.shape >> LEN_SHIFT) as usize
    }

    /// Size class of the partial list's extent.
    pub(super) const fn partial_class(&self) -> u32 {
        self.shape >> CLASS_SHIFT & 31
    }

    /// Entry of the list of full holders.
    #[inline]
    const fn list_slot(&self, at: u32) -> u16 {
        (self.full[(at / 4) as usize] >> (16 * (at % 4))) as u16
    }

    /// Words of the partial list: slot and mask in turns.
    ///
    /// Two words per entry: a mask needs all 64 bits, so the slot has a word of its own.
    #[inline]
    pub(super) fn partial_words<'a>(&self, extents: &'a Extents) -> &'a [AtomicU64] {
        if self.partial_len() == 0 {
            return &[];
        }
        extents.words(self.partial, 2 * self.partial_len())
    }

    /// Partial holders with their masks, by slot.
    pub(crate) fn partials<'a>(&self, extents: &'a Extents) -> impl Iterator<Item = (Slot, u64)> + 'a {
        let partial_words = self.partial_words(extents).chunks_exact(2);
        partial_words.map(|entry| (Slot(get(&entry[0]) as u32), get(&entry[1])))
    }

    /// Entry of a slot in the partial list, or the entry before which it belongs. O(log partial holders).
    pub(super) fn find_partial(&self, extents: &Extents, slot: Slot) -> Result<usize, usize> {
        let partial_words = self.partial_words(extents);
        let (mut from, mut to) = (0, self.partial_len());
        while from < to {
            let middle = usize::midpoint(from, to);
            match (get(&partial_words[2 * middle]) as u32).cmp(&slot.0) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        Err(from)
    }

    /// Whether there is no full holder. O(words of a bitset), else O(1).
    pub(crate) fn full_is_empty(&self, extents: &Extents) -> bool {
        match self.layout() {
            FullLayout::Bitmap => self.full[0] == 0,
            FullLayout::List(len) => len == 0,
            FullLayout::Bitset(at, words) => extents.words(at, words).iter().all(|word| get(word) == 0),
        }
    }

    /// Whether no slot holds any block.
    pub(crate) fn is_empty(&self, extents: &Extents) -> bool {
        self.partial_len() == 0 && self.full_is_empty(extents)
    }

    /// Number of full holders. O(words of a bitset), else O(1).
    pub(crate) fn full_len(&self, extents: &Extents) -> u32 {
        match self.layout() {
            FullLayout::Bitmap => self.full[0].count_ones(),
            FullLayout::List(len) => len,
            FullLayout::Bitset(at, words) => extents
                .words(at, words)
                .iter()
                .map(|word| get(word).count_ones())
                .sum(),
        }
    }

    /// Whether `slot` is a full holder. At most eight comparisons.
    pub(crate) fn is_full(&self, extents: &Extents, slot: Slot) -> bool {
        let bit = slot.index() % 64;
        match self.layout() {
            FullLayout::Bitmap => slot.index() < 64 && self.full[0] >> bit & 1 == 1,
            FullLayout::List(len) => (0..len).any(|at| self.list_slot(at) == slot.as_u16()),
            FullLayout::Bitset(at, words) => {
                slot.index() / 64 < words && get(&extents.words(at, words)[slot.index() / 64]) >> bit & 1 == 1
            }
        }
    }

    /// Whether there are more than `limit` full holders besides `slot`. The writer asks before it extends a
    /// frame.
    pub(crate) fn exceeds_beside(&self, extents: &Extents, slot: Slot, limit: u32) -> bool {
        self.full_len(extents) - u32::from(self.is_full(extents, slot)) > limit
    }

    /// The full holders, sorted unless they are a list.
    pub(crate) fn full_slots(&self, extents: &Extents) -> Vec<Slot> {
        match self.layout() {
            FullLayout::Bitmap => bits(self.full[0]).map(Slot).collect(),
            FullLayout::List(len) => (0..len).map(|at| Slot(u32::from(self.list_slot(at)))).collect(),
            FullLayout::Bitset(at, words) => (0..)
                .zip(extents.words(at, words))
                .flat_map(|(at, word)| bits(get(word)).map(move |bit| Slot(at * 64 + bit)))
                .collect(),
        }
    }

    /// Blocks that `slot` holds of a frame of `len` blocks, as bits. O(log partial holders).
    pub(crate) fn mask(&self, extents: &Extents, slot: Slot, len: u32) -> u64 {
        if self.is_full(extents, slot) {
            return low_bits(len);
        }
        let partial_words = self.partial_words(extents);
        self.find_partial(extents, slot)
            .map_or(0, |at| get(&partial_words[2 * at + 1]))
    }

    /// Blocks of a frame of `len` blocks that some slot holds, as bits. One full holder settles it.
    pub(crate) fn union(&self, extents: &Extents, len: u32) -> u64 {
        if !self.full_is_empty(extents) {
            return low_bits(len);
        }
        self.partials(extents).fold(0, |union, (_, mask)| union | mask)
    }

    /// Sets `keep` to `active` ∩ full holders and returns whether `active` loses a slot.
    ///
    /// `keep` must be as long as `active`. Where nothing is lost, `keep` may be left unwritten.
    ///
    /// Three loops and not one: for up to 64 workers the whole step is a single `and`.
    #[inline]
    fn intersect(&self, extents: &Extents, active: &[u64], keep: &mut [u64]) -> bool {
        match self.layout() {
            FullLayout::Bitmap => {
                let held = active[0] & self.full[0];
                let lost = held != active[0] || active[1..].iter().any(|&word| word != 0);
                if lost {
                    keep.fill(0);
                    keep[0] = held;
                }
                lost
            }
            FullLayout::List(len) => {
                keep.fill(0);
                // A reader may see a slot beyond its own words: a worker that joined after the roster was read.
                for at in 0..len {
                    let slot = usize::from(self.list_slot(at));
                    if let (Some(keep), Some(active)) = (keep.get_mut(slot / 64), active.get(slot / 64)) {
                        *keep |= active & 1 << (slot % 64);
                    }
                }
                keep.iter().zip(active).any(|(keep, active)| keep != active)
            }
            FullLayout::Bitset(at, words) => {
                let held = extents.words(at, words);
                let shared = words.min(active.len());
                let mut lost = 0;
                for ((keep, &active), held) in keep.iter_mut().zip(&active[..shared]).zip(held) {
                    let held = get(held);
                    *keep = active & held;
                    lost |= active & !held;
                }
                keep[shared..].fill(0);
                lost != 0 || active[shared..].iter().any(|&word| word != 0)
            }
        }
    }

    /// Sets `keep` to the slots of `active` that hold the whole range, and writes how far each other slot
    /// gets.
    ///
    /// `depth[slot] = range.start + leading blocks held`. Returns `false` when every active slot holds the
    /// range; `keep` then has no meaning. Calling it again for the same frame overwrites the results, as a
    /// repeated section needs. O(words + slots that leave + partial holders).
    ///
    /// Example. The range is blocks 64 to 67 of the prompt. Slots 0, 1 and 2 are active. Slot 0 is a full
    /// holder, slot 1 has the mask 0b1011, slot 2 holds nothing. Then `keep` is slot 0, `depth[1]` is 66 and
    /// `depth[2]` is 64. The last block of slot 1 does not count, because block 66 is a hole before it.
    #[inline]
    pub(crate) fn filter_active(
        &self,
        extents: &Extents,
        (active, keep): (&[u64], &mut [u64]),
        range: PromptRange,
        depth: &mut [u32],
    ) -> bool {
        if !self.intersect(extents, active, keep) {
            return false;
        }
        let PromptRange { start, len: matched } = range;
        // Active partial holders with the number of leading blocks that they hold. A hole ends the count: blocks
        // behind it cannot be used without the block in it.
        let partial = || {
            let of_list = self.partial_words(extents).chunks_exact(2);
            let entry = |entry: &[AtomicU64]| (get(&entry[0]) as usize, get(&entry[1]).trailing_ones());
            let is_active = |&(slot, _): &(usize, u32)| {
                active
                    .get(slot / 64)
                    .is_some_and(|word| word >> (slot % 64) & 1 == 1)
            };
            of_list.map(entry).filter(is_active)
        };
        for (slot, _) in partial().filter(|&(_, held)| held >= matched) {
            keep[slot / 64] |= 1 << (slot % 64);
        }
        // First every slot that leaves gets the start of the frame, then partial holders get what they hold of it.
        for (at, (active, keep)) in active.iter().zip(&*keep).enumerate() {
            write_depth(active & !keep, start, &mut depth[at * 64..]);
        }
        for (slot, held) in partial().filter(|&(_, held)| held < matched) {
            depth[slot] = start + held;
        }
        true
    }
}

/// `depth[bit] = value` for every set bit of a word.
#[inline]
pub(super) fn write_depth(word: u64, value: u32, depth: &mut [u32]) {
    // One fill is cheaper than 64 single writes, but it may run only where all 64 slots are set.
    if word == u64::MAX {
        depth[..64].fill(value);
    } else {
        for bit in bits(word) {
            depth[bit as usize] = value;
        }
    }
}
