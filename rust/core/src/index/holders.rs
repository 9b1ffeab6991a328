//! Who holds which blocks of one frame: the full holders as a set, the others with a mask of their blocks.

use super::Slot;
use super::slots::{SlotSet, bits};

/// The low `len` bits.
#[inline]
pub const fn low_bits(len: u32) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}

/// A holder of some blocks of a frame, not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Bit i: it holds block i. Neither empty nor full.
    pub mask: u64,
    /// Who.
    pub slot: u16,
}

/// See the module. A slot is in `full`, or in `partial`, or holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Those that hold every block of the frame.
    pub full: SlotSet,
    /// The others, by slot.
    pub partial: Vec<Partial>,
}

impl Holders {
    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.full.is_empty()
    }

    fn find(&self, slot: Slot) -> Result<usize, usize> {
        self.partial
            .binary_search_by_key(&slot.as_u16(), |partial| partial.slot)
    }

    /// Blocks of a frame of `len` that `slot` holds.
    pub fn mask(&self, slot: Slot, len: u32) -> u64 {
        if self.full.contains(slot) {
            return low_bits(len);
        }
        self.find(slot).map_or(0, |at| self.partial[at].mask)
    }

    /// Make `slot` hold exactly `mask` of a frame of `len`.
    pub fn set_mask(&mut self, slot: Slot, mask: u64, len: u32) {
        if mask == low_bits(len) {
            if self.full.insert(slot)
                && let Ok(at) = self.find(slot)
            {
                self.partial.remove(at);
            }
            return;
        }
        self.full.remove(slot);
        match (self.find(slot), mask) {
            (Ok(at), 0) => {
                self.partial.remove(at);
                if self.partial.is_empty() {
                    self.partial = Vec::new();
                }
            }
            (Ok(at), mask) => self.partial[at].mask = mask,
            (Err(_), 0) => {}
            (Err(at), mask) => {
                if self.partial.capacity() == 0 {
                    self.partial.reserve_exact(1);
                }
                self.partial.insert(
                    at,
                    Partial {
                        mask,
                        slot: slot.as_u16(),
                    },
                );
            }
        }
    }

    /// The frame grew from `old_len`: who held all of it holds its first part now.
    pub fn grown(&mut self, old_len: u32) {
        if self.full.is_empty() {
            return;
        }
        for slot in std::mem::take(&mut self.full).slots() {
            let at = self
                .find(slot)
                .expect_err("a full holder must not be a partial one");
            self.partial.insert(
                at,
                Partial {
                    mask: low_bits(old_len),
                    slot: slot.as_u16(),
                },
            );
        }
    }

    /// The frame shrank to `new_len`, past which nobody held anything.
    pub fn shrunk(&mut self, new_len: u32) {
        let whole = low_bits(new_len);
        let Self { full, partial } = self;
        partial.retain(|holder| {
            debug_assert!(holder.mask & !whole == 0, "a held block must not be cut off");
            if holder.mask == whole {
                full.insert(Slot(u32::from(holder.slot)));
            }
            holder.mask != whole
        });
    }

    /// Blocks of a frame of `len` that anybody holds.
    pub fn union(&self, len: u32) -> u64 {
        if !self.full.is_empty() {
            return low_bits(len);
        }
        self.partial.iter().fold(0, |union, partial| union | partial.mask)
    }

    /// Drop from `active` who does not hold the first `matched` blocks, and write how far each of them comes:
    /// `depth[slot] = start + leading blocks held`. A slot that comes no further than 0 is not written.
    ///
    /// `keep` is scratch of `active`'s length. O(words + slots that leave + partial holders).
    #[inline]
    pub fn retain(&self, active: &mut [u64], keep: &mut [u64], start: u32, matched: u32, depth: &mut [u32]) {
        if !self.full.intersect(active, keep) {
            return;
        }
        let mut partial = self.partial.iter().peekable();
        for (at, (active, keep)) in active.iter_mut().zip(keep).enumerate() {
            for bit in bits(*active & !*keep) {
                let slot = at * 64 + bit as usize;
                while partial
                    .next_if(|holder| usize::from(holder.slot) < slot)
                    .is_some()
                {}
                let held = match partial.peek() {
                    Some(holder) if usize::from(holder.slot) == slot => holder.mask.trailing_ones(),
                    _ => 0,
                };
                if held >= matched {
                    *keep |= 1 << bit;
                } else if start + held > 0 {
                    depth[slot] = start + held;
                }
            }
            *active = *keep;
        }
    }

    /// Bytes outside of the value itself.
    pub fn heap_bytes(&self) -> u64 {
        self.full.heap_bytes() + (self.partial.capacity() * size_of::<Partial>()) as u64
    }
}
