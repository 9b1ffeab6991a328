//! Hash tables whose growth is known in advance, as the memory budget needs it.
//!
//! A removal in `hashbrown` may leave a tombstone. A table full of tombstones grows although it has few
//! entries; the functions here rebuild it at the same size instead. Under churn of a fixed set, tables that
//! grow for tombstones doubled one after the other: that was most of the growth of an earlier index over 30
//! minutes (`docs/reports/core.md`).
//!
//! A growing table also exists twice for a moment, the old one beside the new one. The budget therefore asks
//! for twice the bytes before an insertion that may grow.

use std::hash::Hash;

use hashbrown::{HashMap, HashTable};
use rustc_hash::FxBuildHasher;

use super::frame::FrameId;

/// Mixes two words to a hash by a 128-bit product, as wyhash does.
///
/// Each input is combined with a constant first, so that an input of 0 does not make the product 0. The
/// result folds the high half of the product into the low half: both halves depend on all input bits.
#[inline]
pub(crate) const fn mix(a: u64, b: u64) -> u64 {
    let product = ((a ^ 0x9E37_79B9_7F4A_7C15) as u128) * ((b ^ 0xD6E8_FEB8_6659_FD93) as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Map that callers pass to [`make_room`] before every insertion.
pub(crate) type Map<K, V> = HashMap<K, V, FxBuildHasher>;

/// Makes room for one more entry. Without it, a map under churn takes twice the memory for the same number of
/// entries. O(1) amortised: a rebuild is paid for by the removals that left the tombstones.
pub(crate) fn make_room<K: Hash + Eq, V>(map: &mut Map<K, V>) {
    if map.len() < map.capacity() {
        return;
    }
    let buckets = map.allocation_size() / (size_of::<(K, V)>() + 1);
    // Full of tombstones: rebuild at the same size.
    if let Some(room) = room_without_marks(map.len(), buckets) {
        let mut anew = Map::with_capacity_and_hasher(room, FxBuildHasher);
        anew.extend(map.drain());
        *map = anew;
    }
}

/// Capacity of a rebuilt table of `buckets` buckets, if that is clearly more than `len`; else `None`: the
/// table must grow.
///
/// `hashbrown` fills seven of eight buckets. A sixteenth of that is kept free, or the next few insertions
/// would rebuild again.
fn room_without_marks(len: usize, buckets: usize) -> Option<usize> {
    let whole = buckets.checked_ilog2().map_or(0, |bits| 1 << bits);
    let room = whole / 8 * 7;
    (len < room - room / 16).then_some(room)
}

/// As [`make_room`], for a table. `false`: the next insertion makes the table grow.
fn make_table_room<T: Copy>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) -> bool {
    if table.len() < table.capacity() {
        return true;
    }
    let Some(room) = room_without_marks(table.len(), table.num_buckets()) else {
        return false;
    };
    let mut anew = HashTable::with_capacity(room);
    for &entry in table.iter() {
        anew.insert_unique(hash(&entry), entry, &hash);
    }
    *table = anew;
    true
}

/// Set of the frames in which one worker holds blocks. Four bytes and a control byte per bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrameSet {
    /// The frames. A table and not a set, so that growth can be asked for before an insertion.
    table: HashTable<FrameId>,
}

/// Hash of a frame id. Ids are dense, so they must be mixed before `hashbrown` takes its high bits.
fn hash(id: FrameId) -> u64 {
    mix(u64::from(id.0), 0)
}

impl FrameSet {
    /// Adds a frame; adding it twice changes nothing.
    pub(crate) fn insert(&mut self, id: FrameId) {
        make_table_room(&mut self.table, |&id| hash(id));
        self.table
            .entry(hash(id), |&other| other == id, |&other| hash(other))
            .or_insert(id);
    }

    /// Removes a frame; a missing frame changes nothing.
    pub(crate) fn remove(&mut self, id: FrameId) {
        if let Ok(entry) = self.table.find_entry(hash(id), |&other| other == id) {
            entry.remove();
        }
    }

    /// Whether the set has no frame.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The frames, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FrameId> + '_ {
        self.table.iter().copied()
    }

    /// Bytes of the table, from its capacity.
    pub(crate) fn bytes(&self) -> usize {
        self.table.allocation_size()
    }

    /// Bytes that one more insertion may allocate: the grown table beside the old one.
    pub(crate) fn growth_bytes(&mut self) -> u64 {
        if make_table_room(&mut self.table, |&id| hash(id)) {
            0
        } else {
            2 * self.bytes().max(64) as u64
        }
    }
}

/// Equality of the elements, regardless of order and capacity. Only the checks of tests compare two sets.
impl PartialEq for FrameSet {
    fn eq(&self, other: &Self) -> bool {
        let has = |id: FrameId| other.table.find(hash(id), |&other| other == id).is_some();
        self.table.len() == other.table.len() && self.iter().all(has)
    }
}
