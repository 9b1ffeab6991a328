//! Hash tables whose memory is known before it is taken.

use hashbrown::HashTable;

use super::children::mix;
use super::paths::FrameId;

/// Bytes that one more entry takes from the system while the table grows, old and new together.
///
/// A table that is full of the marks of removed entries is made anew instead: to grow would take twice the memory for them.
pub fn growth_bytes<T: Copy>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) -> u64 {
    if table.len() < table.capacity() {
        return 0;
    }
    let room = table.num_buckets() / 8 * 7;
    if table.len() >= room - room / 16 {
        return 2 * table.allocation_size().max(64) as u64;
    }
    let mut anew = HashTable::with_capacity(room);
    for &entry in table.iter() {
        anew.insert_unique(hash(&entry), entry, &hash);
    }
    *table = anew;
    0
}

/// The frames in which a worker holds something.
#[derive(Clone, Debug, Default)]
pub struct FrameSet {
    table: HashTable<FrameId>,
}

fn hash(id: FrameId) -> u64 {
    mix(u64::from(id.0), 0)
}

impl FrameSet {
    /// Puts a frame in, if it is not.
    pub fn insert(&mut self, id: FrameId) {
        self.table
            .entry(hash(id), |&other| other == id, |&other| hash(other))
            .or_insert(id);
    }

    /// Takes a frame out, if it is in.
    pub fn remove(&mut self, id: FrameId) {
        if let Ok(entry) = self.table.find_entry(hash(id), |&other| other == id) {
            entry.remove();
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The frames, in no order.
    pub fn iter(&self) -> impl Iterator<Item = FrameId> + '_ {
        self.table.iter().copied()
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.table.allocation_size()
    }

    /// See [`growth_bytes`].
    pub fn growth_bytes(&mut self) -> u64 {
        growth_bytes(&mut self.table, |&id| hash(id))
    }
}

impl PartialEq for FrameSet {
    fn eq(&self, other: &Self) -> bool {
        let has = |id: FrameId| other.table.find(hash(id), |&other| other == id).is_some();
        self.table.len() == other.table.len() && self.iter().all(has)
    }
}
