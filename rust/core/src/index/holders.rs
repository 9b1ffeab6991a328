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
//! A reader copies the words inside a section of the frame's [`super::seqlock`] and reads the extents inside
//! the same section.

use std::sync::atomic::AtomicU64;

use super::Slot;
use super::arena::{get, high, low, pack, set, set_high, set_low};
use super::extents::{ExtentAllocator, Extents, class_of};
use super::path_tree::PromptRange;
use super::slots::{bits, low_bits};

/// Highest length of the list of full holders.
const LIST_SLOTS: usize = 8;

/// Storage of the full holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FullLayout {
    /// Bit i of the first word stands for slot i.
    Bitmap,
    /// List of slots of 16 bits; the value is its length.
    List(u32),
    /// Extent and its number of words: bit i of word w stands for slot 64·w + i.
    Bitset(u32, usize),
}

/// Copy of a frame's holder words. A slot is a full holder, a partial holder, or holds nothing of the frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holders {
    full: [u64; 2],
    /// Layout, list length, and size class and length of the partial list.
    shape: u32,
    /// Extent of the partial list.
    partial: u32,
}

/// Bits of `shape` with the layout: 0 bitmap, 1 list, 2 bitset.
const LAYOUT_BITS: u32 = 0b11;
/// Position in `shape` of the list's length, four bits.
const LIST_LEN_SHIFT: u32 = 2;
/// Position in `shape` of the partial list's size class, five bits.
const CLASS_SHIFT: u32 = 6;
/// Position in `shape` of the partial list's length.
const LEN_SHIFT: u32 = 11;

impl Holders {
    /// Copies the words. A reader may use the copy only if its section is valid.
    #[inline]
    pub(crate) fn of(words: &[AtomicU64]) -> Self {
        Self {
            full: [get(&words[0]), get(&words[1])],
            shape: high(get(&words[2])),
            partial: low(get(&words[3])),
        }
    }

    #[inline]
    const fn layout(&self) -> FullLayout {
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
    const fn partial_class(&self) -> u32 {
        self.shape >> CLASS_SHIFT & 31
    }

    /// Entry of the list of full holders.
    #[inline]
    const fn list_slot(&self, at: u32) -> u16 {
        (self.full[(at / 4) as usize] >> (16 * (at % 4))) as u16
    }

    /// Words of the partial list: slot and mask in turns.
    #[inline]
    fn partial_words<'a>(&self, extents: &'a Extents) -> &'a [AtomicU64] {
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

    /// Entry of a slot in the partial list, or the entry before which it belongs.
    fn find_partial(&self, extents: &Extents, slot: Slot) -> Result<usize, usize> {
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

    /// Whether there is no full holder.
    pub(crate) fn full_is_empty(&self, extents: &Extents) -> bool {
        match self.layout() {
            FullLayout::Bitmap => self.full[0] == 0,
            FullLayout::List(len) => len == 0,
            FullLayout::Bitset(at, words) => extents.words(at, words).iter().all(|word| get(word) == 0),
        }
    }

    /// Whether nobody holds any block.
    pub(crate) fn is_empty(&self, extents: &Extents) -> bool {
        self.partial_len() == 0 && self.full_is_empty(extents)
    }

    /// Number of full holders.
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

    /// Whether `slot` is a full holder.
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

    /// Whether there are more than `limit` full holders besides `slot`.
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

    /// Blocks that `slot` holds of a frame of `len` blocks, as bits.
    pub(crate) fn mask(&self, extents: &Extents, slot: Slot, len: u32) -> u64 {
        if self.is_full(extents, slot) {
            return low_bits(len);
        }
        let partial_words = self.partial_words(extents);
        self.find_partial(extents, slot)
            .map_or(0, |at| get(&partial_words[2 * at + 1]))
    }

    /// Blocks of a frame of `len` blocks that anybody holds, as bits.
    pub(crate) fn union(&self, extents: &Extents, len: u32) -> u64 {
        if !self.full_is_empty(extents) {
            return low_bits(len);
        }
        self.partials(extents).fold(0, |union, (_, mask)| union | mask)
    }

    /// Sets `keep` to `active` ∩ full holders and returns whether `active` loses a slot.
    ///
    /// `keep` must be as long as `active`. Where nothing is lost, `keep` may be left unwritten.
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
    /// range; `keep` then has no meaning. Calling it again for the same frame overwrites the results. O(words
    /// + slots that leave + partial holders).
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
        // Active partial holders with the number of leading blocks that they hold.
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

/// Write access to the holders of one frame, inside a write section of the frame's seqlock.
pub(crate) struct HoldersMut<'a> {
    /// The four words.
    pub words: &'a [AtomicU64],
    /// Words of all extents.
    pub extents: &'a Extents,
    /// Free extents.
    pub extent_allocator: &'a mut ExtentAllocator,
}

impl HoldersMut<'_> {
    /// The holders as they are now.
    fn current(&self) -> Holders {
        Holders::of(self.words)
    }

    /// Replaces the shape half-word.
    fn set_shape(&self, shape: u32) {
        set_high(&self.words[2], shape);
    }

    /// Makes `slot` hold exactly `mask` of a frame of `len` blocks.
    pub(crate) fn set_mask(&mut self, slot: Slot, mask: u64, len: u32) {
        let current = self.current();
        if mask == low_bits(len) {
            if !current.is_full(self.extents, slot) {
                if let Ok(at) = current.find_partial(self.extents, slot) {
                    self.remove_partial(at);
                }
                self.insert_full(slot);
            }
            return;
        }
        self.remove_full(slot);
        match (self.current().find_partial(self.extents, slot), mask) {
            (Ok(at), 0) => self.remove_partial(at),
            (Ok(at), mask) => set(&current.partial_words(self.extents)[2 * at + 1], mask),
            (Err(_), 0) => {}
            (Err(at), mask) => self.insert_partial(at, slot, mask),
        }
    }

    /// Inserts an entry into the partial list, which moves to a larger extent when it is full.
    fn insert_partial(&mut self, at: usize, slot: Slot, mask: u64) {
        let current = self.current();
        let len = current.partial_len();
        let (mut partial_words, mut class) = (current.partial, current.partial_class());
        if len == 0 {
            (partial_words, class) = (self.extent_allocator.allocate(self.extents, 0), 0);
        } else if len == 1 << class {
            class += 1;
            partial_words = self.extent_allocator.allocate(self.extents, class);
            copy(
                current.partial_words(self.extents),
                self.extents.words(partial_words, 2 * len),
            );
            self.extent_allocator
                .free(self.extents, current.partial, class - 1);
        }
        let words = self.extents.words(partial_words, 2 * (len + 1));
        for word in (2 * at..2 * len).rev() {
            set(&words[word + 2], get(&words[word]));
        }
        set(&words[2 * at], u64::from(slot.0));
        set(&words[2 * at + 1], mask);
        self.set_list(partial_words, class, len + 1);
    }

    /// Removes an entry of the partial list, which moves to a smaller extent at a quarter of its capacity.
    fn remove_partial(&mut self, at: usize) {
        let current = self.current();
        let (len, class) = (current.partial_len(), current.partial_class());
        let words = current.partial_words(self.extents);
        for word in 2 * at + 2..2 * len {
            set(&words[word - 2], get(&words[word]));
        }
        if len == 1 {
            self.extent_allocator.free(self.extents, current.partial, class);
            self.set_list(0, 0, 0);
        } else if class >= 2 && len - 1 <= 1 << (class - 2) {
            let partial_words = self.extent_allocator.allocate(self.extents, class - 1);
            copy(
                &words[..2 * (len - 1)],
                self.extents.words(partial_words, 2 * (len - 1)),
            );
            self.extent_allocator.free(self.extents, current.partial, class);
            self.set_list(partial_words, class - 1, len - 1);
        } else {
            self.set_list(current.partial, class, len - 1);
        }
    }

    /// Replaces extent, size class and length of the partial list.
    fn set_list(&self, partial_words: u32, class: u32, len: usize) {
        let kept = self.current().shape & ((1 << CLASS_SHIFT) - 1);
        self.set_shape(kept | class << CLASS_SHIFT | (len as u32) << LEN_SHIFT);
        set_low(&self.words[3], partial_words);
    }

    /// Replaces the layout of the full holders and the length of their list.
    fn set_layout(&self, layout: u32, list_len: u32) {
        let kept = self.current().shape & !((1 << CLASS_SHIFT) - 1);
        self.set_shape(kept | layout | list_len << LIST_LEN_SHIFT);
    }

    /// Adds a full holder. A full list, or a slot beyond the bitmap or bitset, changes the layout.
    fn insert_full(&mut self, slot: Slot) {
        let current = self.current();
        match current.layout() {
            FullLayout::Bitmap if slot.index() < 64 => {
                set(&self.words[0], current.full[0] | 1 << slot.index());
            }
            FullLayout::List(len) if (len as usize) < LIST_SLOTS => {
                let word = &self.words[(len / 4) as usize];
                set(word, get(word) | u64::from(slot.as_u16()) << (16 * (len % 4)));
                self.set_layout(1, len + 1);
            }
            FullLayout::Bitset(at, words) if slot.index() / 64 < words => {
                let word = &self.extents.words(at, words)[slot.index() / 64];
                set(word, get(word) | 1 << (slot.index() % 64));
            }
            _ => {
                let mut all = current.full_slots(self.extents);
                all.push(slot);
                self.set_full(&all);
            }
        }
    }

    /// Removes `slot` from the full holders, if it is one.
    fn remove_full(&mut self, slot: Slot) {
        let current = self.current();
        if !current.is_full(self.extents, slot) {
            return;
        }
        match current.layout() {
            FullLayout::Bitmap => set(&self.words[0], current.full[0] & !(1 << slot.index())),
            FullLayout::List(_) => {
                let mut left = current.full_slots(self.extents);
                left.retain(|&other| other != slot);
                self.set_full(&left);
            }
            FullLayout::Bitset(at, words) => {
                let bitset = self.extents.words(at, words);
                let word = &bitset[slot.index() / 64];
                set(word, get(word) & !(1 << (slot.index() % 64)));
                if current.full_len(self.extents) as usize <= LIST_SLOTS / 2 {
                    let left = current.full_slots(self.extents);
                    self.set_full(&left);
                }
            }
        }
    }

    /// Replaces the full holders, in the smallest layout that fits them.
    fn set_full(&mut self, slots: &[Slot]) {
        if let FullLayout::Bitset(at, words) = self.current().layout() {
            self.extent_allocator.free(self.extents, at, class_of(words));
        }
        let highest = slots.iter().map(|slot| slot.index()).max().unwrap_or(0);
        let mut full = [0; 2];
        if highest < 64 {
            full[0] = slots.iter().fold(0, |word, slot| word | 1 << slot.index());
            self.set_layout(0, 0);
        } else if slots.len() <= LIST_SLOTS {
            for (at, slot) in slots.iter().enumerate() {
                full[at / 4] |= u64::from(slot.as_u16()) << (16 * (at % 4));
            }
            self.set_layout(1, slots.len() as u32);
        } else {
            let words = 2 * (highest / 64 + 1).div_ceil(2);
            let at = self.extent_allocator.allocate(self.extents, class_of(words));
            let bitset = self.extents.words(at, words);
            for word in bitset {
                set(word, 0);
            }
            for slot in slots {
                let word = &bitset[slot.index() / 64];
                set(word, get(word) | 1 << (slot.index() % 64));
            }
            full[0] = pack(at, words as u32);
            self.set_layout(2, 0);
        }
        set(&self.words[0], full[0]);
        set(&self.words[1], full[1]);
    }

    /// Updates the holders of a frame that grew from `old_len` blocks: full holders now hold its first part.
    pub(crate) fn grown(&mut self, old_len: u32) {
        let current = self.current();
        let full = current.full_slots(self.extents);
        if full.is_empty() {
            return;
        }
        self.set_full(&[]);
        for slot in full {
            let at = self.current().find_partial(self.extents, slot);
            let at = at.expect_err("a full holder must not be a partial one");
            self.insert_partial(at, slot, low_bits(old_len));
        }
    }

    /// Updates the holders of a frame that shrank to `new_len` blocks, behind which nobody held any block.
    pub(crate) fn shrunk(&mut self, new_len: u32) {
        let whole = low_bits(new_len);
        let current = self.current();
        let grown: Vec<Slot> = current
            .partials(self.extents)
            .filter(|&(_, mask)| mask == whole)
            .map(|(slot, _)| slot)
            .collect();
        for slot in grown {
            self.set_mask(slot, whole, new_len);
        }
    }

    /// Removes all holders and frees their extents.
    pub(crate) fn clear(&mut self) {
        self.set_full(&[]);
        let current = self.current();
        if current.partial_len() > 0 {
            self.extent_allocator
                .free(self.extents, current.partial, current.partial_class());
            self.set_list(0, 0, 0);
        }
    }
}

fn copy(from: &[AtomicU64], to: &[AtomicU64]) {
    for (from, to) in from.iter().zip(to) {
        set(to, get(from));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holders_are_a_map_of_masks(
            steps in proptest::collection::vec(
                (prop_oneof![0u32..70, 0u32..1000, 65_500u32..65_536], prop_oneof![Just(0u64), Just(0x3FF), 0u64..0x400]),
                0..200),
            active in proptest::collection::vec(any::<u64>(), 1024),
            matched in 1u32..=10,
        ) {
            const LEN: u32 = 10;
            let (extents, mut extent_allocator) = (Extents::default(), ExtentAllocator::default());
            let words: [AtomicU64; 4] = Default::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (slot, mask) in steps {
                let mut edit_holders = HoldersMut { words: &words, extents: &extents, extent_allocator: &mut extent_allocator };
                edit_holders.set_mask(Slot(slot), mask, LEN);
                model.remove(&slot);
                if mask != 0 {
                    model.insert(slot, mask);
                }
                let current = Holders::of(&words);
                for (&slot, &mask) in &model {
                    prop_assert_eq!(current.mask(&extents, Slot(slot), LEN), mask);
                }
                prop_assert_eq!(current.mask(&extents, Slot(slot), LEN), mask);
                let union = model.values().fold(0, |union, mask| union | mask);
                prop_assert_eq!(current.union(&extents, LEN), union);
                prop_assert_eq!(current.is_empty(&extents), model.is_empty());
                let full = model.values().filter(|&&mask| mask == low_bits(LEN)).count();
                prop_assert_eq!(current.full_len(&extents) as usize, full);
                prop_assert_eq!(current.partial_len(), model.len() - full);
            }
            let mut keep = vec![0; active.len()];
            let mut depth = vec![u32::MAX; 65_536];
            let lost = Holders::of(&words).filter_active(&extents, (&active, &mut keep), PromptRange { start: 100, len: matched }, &mut depth);
            for slot in 0..65_536u32 {
                let is = |words: &[u64]| words[slot as usize / 64] >> (slot % 64) & 1 == 1;
                let held = model.get(&slot).map_or(0, |mask| mask.trailing_ones());
                if is(&active) && held < matched {
                    prop_assert!(lost && !is(&keep));
                    prop_assert_eq!(depth[slot as usize], 100 + held);
                } else if lost {
                    prop_assert_eq!(is(&keep), is(&active));
                    prop_assert_eq!(depth[slot as usize], u32::MAX);
                }
            }
            HoldersMut { words: &words, extents: &extents, extent_allocator: &mut extent_allocator }.clear();
            prop_assert!(Holders::of(&words).is_empty(&extents));
        }
    }
}
