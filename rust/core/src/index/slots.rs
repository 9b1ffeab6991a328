//! A set of worker slots: one word while all are below 64, a short list while few are higher, else a bitset.

use super::Slot;

/// Slots of the short list.
const FEW: usize = 7;

/// See the module. 24 bytes; only the widest form allocates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotSet {
    /// Bit i is slot i.
    Word(u64),
    /// The first `len` entries, in no order.
    Few {
        /// How many.
        len: u8,
        /// Which.
        slots: [u16; FEW],
    },
    /// Bit i of word w is slot 64·w + i.
    Many(Box<[u64]>),
}

impl Default for SlotSet {
    fn default() -> Self {
        Self::Word(0)
    }
}

impl SlotSet {
    /// Whether the set has no slot.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Word(word) => *word == 0,
            Self::Few { len, .. } => *len == 0,
            Self::Many(words) => words.iter().all(|&word| word == 0),
        }
    }

    /// Whether it has more than `limit` slots other than `slot`.
    pub fn exceeds_beside(&self, slot: Slot, limit: u32) -> bool {
        self.len() - u32::from(self.contains(slot)) > limit
    }

    /// How many slots.
    pub fn len(&self) -> u32 {
        match self {
            Self::Word(word) => word.count_ones(),
            Self::Few { len, .. } => u32::from(*len),
            Self::Many(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// Whether `slot` is in.
    pub fn contains(&self, slot: Slot) -> bool {
        match self {
            Self::Few { len, slots } => slots[..usize::from(*len)].contains(&slot.as_u16()),
            Self::Word(_) | Self::Many(_) => {
                self.dense_word(slot.index() / 64) >> (slot.index() % 64) & 1 == 1
            }
        }
    }

    fn dense_word(&self, at: usize) -> u64 {
        match self {
            Self::Word(word) if at == 0 => *word,
            Self::Many(words) => words.get(at).copied().unwrap_or(0),
            Self::Word(_) | Self::Few { .. } => 0,
        }
    }

    /// Put `slot` in; whether it was not in before.
    pub fn insert(&mut self, slot: Slot) -> bool {
        if self.contains(slot) {
            return false;
        }
        match self {
            Self::Word(word) if slot.index() < 64 => *word |= 1 << slot.index(),
            Self::Few { len, slots } if usize::from(*len) < FEW => {
                slots[usize::from(*len)] = slot.as_u16();
                *len += 1;
            }
            Self::Many(words) if slot.index() / 64 < words.len() => {
                words[slot.index() / 64] |= 1 << (slot.index() % 64);
            }
            _ => {
                let mut all: Vec<Slot> = self.slots().collect();
                all.push(slot);
                *self = Self::from_slots(&all);
            }
        }
        true
    }

    fn from_slots(slots: &[Slot]) -> Self {
        let highest = slots.iter().map(|slot| slot.index()).max().unwrap_or(0);
        if highest < 64 {
            return Self::Word(slots.iter().fold(0, |word, slot| word | 1 << slot.index()));
        }
        if slots.len() <= FEW {
            let mut few = [0; FEW];
            for (entry, slot) in few.iter_mut().zip(slots) {
                *entry = slot.as_u16();
            }
            return Self::Few {
                len: slots.len() as u8,
                slots: few,
            };
        }
        let mut words = vec![0u64; highest / 64 + 1];
        for slot in slots {
            words[slot.index() / 64] |= 1 << (slot.index() % 64);
        }
        Self::Many(words.into_boxed_slice())
    }

    /// Take `slot` out; whether it was in.
    pub fn remove(&mut self, slot: Slot) -> bool {
        if !self.contains(slot) {
            return false;
        }
        match self {
            Self::Word(word) => *word &= !(1 << slot.index()),
            Self::Few { len, slots } => {
                let last = usize::from(*len) - 1;
                let at = slots[..=last].iter().position(|&entry| entry == slot.as_u16());
                slots.swap(at.expect("checked above"), last);
                *len -= 1;
                if *len == 0 {
                    *self = Self::default();
                }
            }
            Self::Many(words) => {
                words[slot.index() / 64] &= !(1 << (slot.index() % 64));
                if words.iter().map(|word| word.count_ones() as usize).sum::<usize>() <= FEW / 2 {
                    let left: Vec<Slot> = self.slots().collect();
                    *self = Self::from_slots(&left);
                }
            }
        }
        true
    }

    /// The slots; in order but for the short list.
    pub fn slots(&self) -> Box<dyn Iterator<Item = Slot> + '_> {
        match self {
            Self::Word(word) => Box::new(bits(*word).map(Slot)),
            Self::Few { len, slots } => Box::new(
                slots[..usize::from(*len)]
                    .iter()
                    .map(|&slot| Slot(u32::from(slot))),
            ),
            Self::Many(words) => Box::new(
                words
                    .iter()
                    .enumerate()
                    .flat_map(|(at, &word)| bits(word).map(move |bit| Slot(at as u32 * 64 + bit))),
            ),
        }
    }

    /// `keep` = `active` ∩ self, word by word; whether `active` loses any slot. `keep` must be as long as `active`.
    #[inline]
    pub fn intersect(&self, active: &[u64], keep: &mut [u64]) -> bool {
        match self {
            Self::Word(word) => {
                keep.fill(0);
                keep[0] = active[0] & word;
                keep[0] != active[0] || active[1..].iter().any(|&word| word != 0)
            }
            Self::Few { len, slots } => {
                keep.fill(0);
                for &slot in &slots[..usize::from(*len)] {
                    let (at, bit) = (usize::from(slot) / 64, 1 << (slot % 64));
                    keep[at] |= active[at] & bit;
                }
                keep.iter().zip(active).any(|(keep, active)| keep != active)
            }
            Self::Many(words) => {
                let mut lost = 0;
                let held = words.iter().copied().chain(std::iter::repeat(0));
                for ((keep, &active), held) in keep.iter_mut().zip(active).zip(held) {
                    *keep = active & held;
                    lost |= active & !held;
                }
                lost != 0
            }
        }
    }

    /// Bytes outside of the value itself.
    pub fn heap_bytes(&self) -> u64 {
        match self {
            Self::Many(words) => words.len() as u64 * 8,
            Self::Word(_) | Self::Few { .. } => 0,
        }
    }
}

/// Positions of the set bits, lowest first.
#[inline]
pub fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros();
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slot_set_is_a_set(
            steps in proptest::collection::vec((any::<bool>(), prop_oneof![0u32..70, 0u32..1000, 65_500u32..65_536]), 0..60),
            active in proptest::collection::vec(any::<u64>(), 1024),
        ) {
            let mut set = SlotSet::default();
            let mut model = BTreeSet::new();
            for (insert, slot) in steps {
                let slot = Slot(slot);
                if insert {
                    prop_assert_eq!(set.insert(slot), model.insert(slot));
                } else {
                    prop_assert_eq!(set.remove(slot), model.remove(&slot));
                }
                prop_assert_eq!(set.slots().collect::<BTreeSet<_>>(), model.clone());
                prop_assert_eq!((set.len() as usize, set.is_empty()), (model.len(), model.is_empty()));
            }
            let mut keep = vec![0; active.len()];
            let lost = set.intersect(&active, &mut keep);
            for slot in 0..65_536u32 {
                let is = |words: &[u64]| words[slot as usize / 64] >> (slot % 64) & 1 == 1;
                prop_assert_eq!(is(&keep), is(&active) && model.contains(&Slot(slot)));
            }
            prop_assert_eq!(lost, keep != active);
        }
    }
}
