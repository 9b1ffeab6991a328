//! Writing the holders of one frame: a slot gains or loses blocks, the frame grows or shrinks.
//!
//! The layout follows the number of holders, so that most frames need no memory beyond their header:
//!
//! ```text
//! full holders     bitmap (slots below 64) ─▶ list (up to 8) ─▶ bitset in an extent; back at half of a list
//! partial holders  extents of 1, 2, 4, … entries: doubled when full, halved at a quarter
//! ```
//!
//! Growing at full and shrinking at a quarter keeps a holder that comes and goes from allocating each time.
//! Cost: O(partial holders) to insert or remove one, since their list is sorted and moves as words.
//!
//! Everything here runs inside a write section of the frame. Order inside the section is free: no reader
//! accepts a copy that it took meanwhile. Only freed extents need care, because their first words become
//! links. The section of the frame that had them is no longer valid then, so a reader that still looks there
//! throws its copy away.

use std::sync::atomic::AtomicU64;

use super::Slot;
use super::arena::{get, pack, set, set_high, set_low};
use super::extents::{ExtentAllocator, Extents, class_of};
use super::holders::{CLASS_SHIFT, FullLayout, Holders, LEN_SHIFT, LIST_LEN_SHIFT, LIST_SLOTS};
use super::slots::low_bits;

/// Write access to the holders of one frame, inside a write section of the frame's seqlock.
///
/// It serves both trees of the router and all three tiers: the words may lie in a header or in an extent.
pub(crate) struct HoldersMut<'a> {
    /// The four words. Their spare halves belong to the frame and are never touched here.
    pub words: &'a [AtomicU64],
    /// Words of all extents.
    pub extents: &'a Extents,
    /// Free extents.
    pub extent_allocator: &'a mut ExtentAllocator,
}

impl HoldersMut<'_> {
    /// The holders as they are now. A copy, so it is taken anew after each change.
    fn current(&self) -> Holders {
        Holders::of(self.words)
    }

    /// Replaces the shape half-word. The other half of its word holds the length and the flags of the frame.
    fn set_shape(&self, shape: u32) {
        set_high(&self.words[2], shape);
    }

    /// Makes `slot` hold exactly `mask` of a frame of `len` blocks.
    ///
    /// A whole mask makes a full holder, an empty one removes the slot, and any other makes a partial holder.
    /// `mask` has no bit at or above `len`. O(partial holders + words of a bitset).
    pub(crate) fn set_mask(&mut self, slot: Slot, mask: u64, len: u32) {
        let current = self.current();
        // A slot that is a full holder already stays one: nothing is written.
        if mask == low_bits(len) {
            if !current.is_full(self.extents, slot) {
                if let Ok(at) = current.find_partial(self.extents, slot) {
                    self.remove_partial(at);
                }
                self.insert_full(slot);
            }
            return;
        }
        // A slot is never in both sets, so it leaves the full holders before it joins the partial ones.
        self.remove_full(slot);
        match (self.current().find_partial(self.extents, slot), mask) {
            (Ok(at), 0) => self.remove_partial(at),
            (Ok(at), mask) => set(&current.partial_words(self.extents)[2 * at + 1], mask),
            (Err(_), 0) => {}
            (Err(at), mask) => self.insert_partial(at, slot, mask),
        }
    }

    /// Inserts an entry into the partial list, which moves to a larger extent when it is full.
    ///
    /// Entries move from the last to the first, so that no entry is overwritten before it moved.
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
    ///
    /// The list moves to half its size only at a quarter, and classes 0 and 1 never shrink: they are too
    /// small to matter.
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

    /// Replaces extent, size class and length of the partial list. The layout of the full holders stays.
    fn set_list(&self, partial_words: u32, class: u32, len: usize) {
        let kept = self.current().shape & ((1 << CLASS_SHIFT) - 1);
        self.set_shape(kept | class << CLASS_SHIFT | (len as u32) << LEN_SHIFT);
        set_low(&self.words[3], partial_words);
    }

    /// Replaces the layout of the full holders and the length of their list. The partial list stays.
    fn set_layout(&self, layout: u32, list_len: u32) {
        let kept = self.current().shape & !((1 << CLASS_SHIFT) - 1);
        self.set_shape(kept | layout | list_len << LIST_LEN_SHIFT);
    }

    /// Adds a full holder. A full list, or a slot beyond the bitmap or bitset, changes the layout.
    ///
    /// The caller made sure that the slot is no holder yet. O(1), or O(full holders) for a new layout.
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
    ///
    /// A list closes the gap by being written anew: it has eight entries at most.
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
                // At half of a list, not at a full one: a holder that comes and goes would change the layout each time.
                if current.full_len(self.extents) as usize <= LIST_SLOTS / 2 {
                    let left = current.full_slots(self.extents);
                    self.set_full(&left);
                }
            }
        }
    }

    /// Replaces the full holders, in the smallest layout that fits them. The extent of a former bitset is
    /// freed.
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
            // Extents have an even number of words, so the bitset uses both of the last pair.
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
    ///
    /// O(full holders · partial holders). The writer extends a frame only while few workers hold it whole.
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

    /// Updates the holders of a frame that shrank to `new_len` blocks, behind which no worker held a block.
    ///
    /// A partial holder of exactly the remaining blocks holds the whole frame now, and becomes a full holder.
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

    /// Removes all holders and frees their extents. The words then describe an empty bitmap.
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

/// Copies words to an extent that no reader uses yet. A fresh extent is reachable only once the shape names
/// it.
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
    use crate::index::frame::PromptRange;

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
