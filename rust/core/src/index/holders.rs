//! Who holds which blocks of one frame: the full holders as a set, the others with a mask of their blocks.
//!
//! Four words, and stretches of [`Extents`] where they do not suffice:
//!
//! ```text
//! 0, 1  full holders: one word of bits while all slots are below 64, else up to 8 slots of 16 bits, else a stretch with a bitset
//! 2     high half: form, entries of the short list, size class and entries of the partial list
//! 3     low half: the partial list, (slot, mask) by slot
//! ```
//!
//! Readers copy the words out inside a section of the frame's [`super::seqlock`] and look into the stretches inside the same.

use std::sync::atomic::AtomicU64;

use super::Slot;
use super::arena::{get, high, low, pack, set, set_high, set_low};
use super::extents::{ExtentAllocator, Extents, class_of};
use super::path_tree::PromptRange;
use super::slots::{bits, low_bits};

/// Slots of the short list.
const FEW: usize = 8;

/// How the full holders are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Bit i of the first word is slot i.
    Word,
    /// So many slots of 16 bits.
    Few(u32),
    /// A stretch, and its words: bit i of word w is slot 64·w + i.
    Many(u32, usize),
}

/// A set of holders, copied out. A slot is a full holder, or a partial one, or holds nothing.
#[derive(Clone, Copy, Debug)]
pub struct Holders {
    full: [u64; 2],
    shape: u32,
    partial: u32,
}

const FORM_BITS: u32 = 0b11;
const FEW_SHIFT: u32 = 2;
const CLASS_SHIFT: u32 = 6;
const LEN_SHIFT: u32 = 11;

impl Holders {
    /// As the words say. For a reader true only if its section is valid.
    #[inline]
    pub fn of(words: &[AtomicU64]) -> Self {
        Self {
            full: [get(&words[0]), get(&words[1])],
            shape: high(get(&words[2])),
            partial: low(get(&words[3])),
        }
    }

    #[inline]
    const fn form(&self) -> Form {
        match self.shape & FORM_BITS {
            0 => Form::Word,
            1 => Form::Few(self.shape >> FEW_SHIFT & 15),
            _ => Form::Many(low(self.full[0]), high(self.full[0]) as usize),
        }
    }

    /// Partial holders.
    #[inline]
    pub const fn partial_len(&self) -> usize {
        (self.shape >> LEN_SHIFT) as usize
    }

    const fn partial_class(&self) -> u32 {
        self.shape >> CLASS_SHIFT & 31
    }

    #[inline]
    const fn few(&self, at: u32) -> u16 {
        (self.full[(at / 4) as usize] >> (16 * (at % 4))) as u16
    }

    #[inline]
    fn list<'a>(&self, extents: &'a Extents) -> &'a [AtomicU64] {
        if self.partial_len() == 0 {
            return &[];
        }
        extents.words(self.partial, 2 * self.partial_len())
    }

    /// Partial holders with their masks, by slot.
    pub fn partials<'a>(&self, extents: &'a Extents) -> impl Iterator<Item = (Slot, u64)> + 'a {
        let list = self.list(extents).chunks_exact(2);
        list.map(|entry| (Slot(get(&entry[0]) as u32), get(&entry[1])))
    }

    fn find(&self, extents: &Extents, slot: Slot) -> Result<usize, usize> {
        let list = self.list(extents);
        let (mut from, mut to) = (0, self.partial_len());
        while from < to {
            let middle = usize::midpoint(from, to);
            match (get(&list[2 * middle]) as u32).cmp(&slot.0) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        Err(from)
    }

    /// Whether nobody is a full holder.
    pub fn full_is_empty(&self, extents: &Extents) -> bool {
        match self.form() {
            Form::Word => self.full[0] == 0,
            Form::Few(len) => len == 0,
            Form::Many(at, words) => extents.words(at, words).iter().all(|word| get(word) == 0),
        }
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self, extents: &Extents) -> bool {
        self.partial_len() == 0 && self.full_is_empty(extents)
    }

    /// Full holders.
    pub fn full_len(&self, extents: &Extents) -> u32 {
        match self.form() {
            Form::Word => self.full[0].count_ones(),
            Form::Few(len) => len,
            Form::Many(at, words) => extents
                .words(at, words)
                .iter()
                .map(|word| get(word).count_ones())
                .sum(),
        }
    }

    /// Whether `slot` is a full holder.
    pub fn is_full(&self, extents: &Extents, slot: Slot) -> bool {
        let bit = slot.index() % 64;
        match self.form() {
            Form::Word => slot.index() < 64 && self.full[0] >> bit & 1 == 1,
            Form::Few(len) => (0..len).any(|at| self.few(at) == slot.as_u16()),
            Form::Many(at, words) => {
                slot.index() / 64 < words && get(&extents.words(at, words)[slot.index() / 64]) >> bit & 1 == 1
            }
        }
    }

    /// Whether there are more than `limit` full holders other than `slot`.
    pub fn exceeds_beside(&self, extents: &Extents, slot: Slot, limit: u32) -> bool {
        self.full_len(extents) - u32::from(self.is_full(extents, slot)) > limit
    }

    /// The full holders; in order but for the short list.
    pub fn full_slots(&self, extents: &Extents) -> Vec<Slot> {
        match self.form() {
            Form::Word => bits(self.full[0]).map(Slot).collect(),
            Form::Few(len) => (0..len).map(|at| Slot(u32::from(self.few(at)))).collect(),
            Form::Many(at, words) => (0..)
                .zip(extents.words(at, words))
                .flat_map(|(at, word)| bits(get(word)).map(move |bit| Slot(at * 64 + bit)))
                .collect(),
        }
    }

    /// Blocks of a frame of `len` that `slot` holds.
    pub fn mask(&self, extents: &Extents, slot: Slot, len: u32) -> u64 {
        if self.is_full(extents, slot) {
            return low_bits(len);
        }
        let list = self.list(extents);
        self.find(extents, slot).map_or(0, |at| get(&list[2 * at + 1]))
    }

    /// Blocks of a frame of `len` that anybody holds.
    pub fn union(&self, extents: &Extents, len: u32) -> u64 {
        if !self.full_is_empty(extents) {
            return low_bits(len);
        }
        self.partials(extents).fold(0, |union, (_, mask)| union | mask)
    }

    /// `keep` = `active` ∩ full holders, word by word; whether `active` loses any slot. `keep` must be as long as `active`.
    #[inline]
    fn intersect(&self, extents: &Extents, active: &[u64], keep: &mut [u64]) -> bool {
        match self.form() {
            Form::Word => {
                let held = active[0] & self.full[0];
                let lost = held != active[0] || active[1..].iter().any(|&word| word != 0);
                if lost {
                    keep.fill(0);
                    keep[0] = held;
                }
                lost
            }
            Form::Few(len) => {
                keep.fill(0);
                for at in 0..len {
                    let slot = usize::from(self.few(at));
                    if let (Some(keep), Some(active)) = (keep.get_mut(slot / 64), active.get(slot / 64)) {
                        *keep |= active & 1 << (slot % 64);
                    }
                }
                keep.iter().zip(active).any(|(keep, active)| keep != active)
            }
            Form::Many(at, words) => {
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

    /// Put into `keep` who of `active` holds the first `matched` blocks, and write how far each of the others comes:
    /// `depth[slot] = start + leading blocks held`. `false`: everybody holds them, and `keep` has no meaning.
    ///
    /// May be done again for the same frame: what was written is then written over. O(words + slots that leave + partial
    /// holders).
    #[inline]
    pub fn filter_active(
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
        // Partial holders of interest, with the blocks they hold from the start; others of the list are passed over.
        let partial = || {
            let of_list = self.list(extents).chunks_exact(2);
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

/// `depth[bit] = value` for every bit of a word.
#[inline]
pub(super) fn write_depth(word: u64, value: u32, depth: &mut [u32]) {
    // Where most are set, one stroke over all of them is cheaper, but it must leave the others alone.
    if word == u64::MAX {
        depth[..64].fill(value);
    } else {
        for bit in bits(word) {
            depth[bit as usize] = value;
        }
    }
}

/// The writer's hand on the holders of one frame. Inside a section of the frame's seqlock.
pub struct HoldersMut<'a> {
    /// The words.
    pub words: &'a [AtomicU64],
    /// Where stretches are.
    pub extents: &'a Extents,
    /// Which are free.
    pub extent_allocator: &'a mut ExtentAllocator,
}

impl HoldersMut<'_> {
    fn now(&self) -> Holders {
        Holders::of(self.words)
    }

    fn set_shape(&self, shape: u32) {
        set_high(&self.words[2], shape);
    }

    /// Make `slot` hold exactly `mask` of a frame of `len`.
    pub fn set_mask(&mut self, slot: Slot, mask: u64, len: u32) {
        let now = self.now();
        if mask == low_bits(len) {
            if !now.is_full(self.extents, slot) {
                if let Ok(at) = now.find(self.extents, slot) {
                    self.remove_partial(at);
                }
                self.insert_full(slot);
            }
            return;
        }
        self.remove_full(slot);
        match (self.now().find(self.extents, slot), mask) {
            (Ok(at), 0) => self.remove_partial(at),
            (Ok(at), mask) => set(&now.list(self.extents)[2 * at + 1], mask),
            (Err(_), 0) => {}
            (Err(at), mask) => self.insert_partial(at, slot, mask),
        }
    }

    fn insert_partial(&mut self, at: usize, slot: Slot, mask: u64) {
        let now = self.now();
        let len = now.partial_len();
        let (mut list, mut class) = (now.partial, now.partial_class());
        if len == 0 {
            (list, class) = (self.extent_allocator.allocate(self.extents, 0), 0);
        } else if len == 1 << class {
            class += 1;
            list = self.extent_allocator.allocate(self.extents, class);
            copy(now.list(self.extents), self.extents.words(list, 2 * len));
            self.extent_allocator.free(self.extents, now.partial, class - 1);
        }
        let words = self.extents.words(list, 2 * (len + 1));
        for word in (2 * at..2 * len).rev() {
            set(&words[word + 2], get(&words[word]));
        }
        set(&words[2 * at], u64::from(slot.0));
        set(&words[2 * at + 1], mask);
        self.set_list(list, class, len + 1);
    }

    fn remove_partial(&mut self, at: usize) {
        let now = self.now();
        let (len, class) = (now.partial_len(), now.partial_class());
        let words = now.list(self.extents);
        for word in 2 * at + 2..2 * len {
            set(&words[word - 2], get(&words[word]));
        }
        if len == 1 {
            self.extent_allocator.free(self.extents, now.partial, class);
            self.set_list(0, 0, 0);
        } else if class >= 2 && len - 1 <= 1 << (class - 2) {
            let list = self.extent_allocator.allocate(self.extents, class - 1);
            copy(&words[..2 * (len - 1)], self.extents.words(list, 2 * (len - 1)));
            self.extent_allocator.free(self.extents, now.partial, class);
            self.set_list(list, class - 1, len - 1);
        } else {
            self.set_list(now.partial, class, len - 1);
        }
    }

    fn set_list(&self, list: u32, class: u32, len: usize) {
        let kept = self.now().shape & ((1 << CLASS_SHIFT) - 1);
        self.set_shape(kept | class << CLASS_SHIFT | (len as u32) << LEN_SHIFT);
        set_low(&self.words[3], list);
    }

    fn set_form(&self, form: u32, few: u32) {
        let kept = self.now().shape & !((1 << CLASS_SHIFT) - 1);
        self.set_shape(kept | form | few << FEW_SHIFT);
    }

    fn insert_full(&mut self, slot: Slot) {
        let now = self.now();
        match now.form() {
            Form::Word if slot.index() < 64 => set(&self.words[0], now.full[0] | 1 << slot.index()),
            Form::Few(len) if (len as usize) < FEW => {
                let word = &self.words[(len / 4) as usize];
                set(word, get(word) | u64::from(slot.as_u16()) << (16 * (len % 4)));
                self.set_form(1, len + 1);
            }
            Form::Many(at, words) if slot.index() / 64 < words => {
                let word = &self.extents.words(at, words)[slot.index() / 64];
                set(word, get(word) | 1 << (slot.index() % 64));
            }
            _ => {
                let mut all = now.full_slots(self.extents);
                all.push(slot);
                self.set_full(&all);
            }
        }
    }

    /// Takes `slot` from the full holders, if it is one.
    fn remove_full(&mut self, slot: Slot) {
        let now = self.now();
        if !now.is_full(self.extents, slot) {
            return;
        }
        match now.form() {
            Form::Word => set(&self.words[0], now.full[0] & !(1 << slot.index())),
            Form::Few(_) => {
                let mut left = now.full_slots(self.extents);
                left.retain(|&other| other != slot);
                self.set_full(&left);
            }
            Form::Many(at, words) => {
                let bitset = self.extents.words(at, words);
                let word = &bitset[slot.index() / 64];
                set(word, get(word) & !(1 << (slot.index() % 64)));
                if now.full_len(self.extents) as usize <= FEW / 2 {
                    let left = now.full_slots(self.extents);
                    self.set_full(&left);
                }
            }
        }
    }

    /// Replaces the full holders.
    fn set_full(&mut self, slots: &[Slot]) {
        if let Form::Many(at, words) = self.now().form() {
            self.extent_allocator.free(self.extents, at, class_of(words));
        }
        let highest = slots.iter().map(|slot| slot.index()).max().unwrap_or(0);
        let mut full = [0; 2];
        if highest < 64 {
            full[0] = slots.iter().fold(0, |word, slot| word | 1 << slot.index());
            self.set_form(0, 0);
        } else if slots.len() <= FEW {
            for (at, slot) in slots.iter().enumerate() {
                full[at / 4] |= u64::from(slot.as_u16()) << (16 * (at % 4));
            }
            self.set_form(1, slots.len() as u32);
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
            self.set_form(2, 0);
        }
        set(&self.words[0], full[0]);
        set(&self.words[1], full[1]);
    }

    /// The frame grew from `old_len`: who held all of it holds its first part now.
    pub fn grown(&mut self, old_len: u32) {
        let now = self.now();
        let full = now.full_slots(self.extents);
        if full.is_empty() {
            return;
        }
        self.set_full(&[]);
        for slot in full {
            let at = self.now().find(self.extents, slot);
            let at = at.expect_err("a full holder must not be a partial one");
            self.insert_partial(at, slot, low_bits(old_len));
        }
    }

    /// The frame shrank to `new_len`, past which nobody held anything.
    pub fn shrunk(&mut self, new_len: u32) {
        let whole = low_bits(new_len);
        let now = self.now();
        let grown: Vec<Slot> = now
            .partials(self.extents)
            .filter(|&(_, mask)| mask == whole)
            .map(|(slot, _)| slot)
            .collect();
        for slot in grown {
            self.set_mask(slot, whole, new_len);
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.set_full(&[]);
        let now = self.now();
        if now.partial_len() > 0 {
            self.extent_allocator
                .free(self.extents, now.partial, now.partial_class());
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
                let now = Holders::of(&words);
                for (&slot, &mask) in &model {
                    prop_assert_eq!(now.mask(&extents, Slot(slot), LEN), mask);
                }
                prop_assert_eq!(now.mask(&extents, Slot(slot), LEN), mask);
                let union = model.values().fold(0, |union, mask| union | mask);
                prop_assert_eq!(now.union(&extents, LEN), union);
                prop_assert_eq!(now.is_empty(&extents), model.is_empty());
                let full = model.values().filter(|&&mask| mask == low_bits(LEN)).count();
                prop_assert_eq!(now.full_len(&extents) as usize, full);
                prop_assert_eq!(now.partial_len(), model.len() - full);
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
