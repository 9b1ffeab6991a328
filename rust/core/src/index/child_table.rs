//! Child table: (parent block, local hash of the first block) → frame.
//!
//! A walk asks it where a prompt branches off, and at the root. Most steps follow the direct link in a
//! frame's header and never come here.
//!
//! Each bucket is a chain through the headers of its frames. The bucket word holds the first frame and a
//! 32-bit filter of the hashes in the chain. Most look-ups of a missing frame therefore touch no frame. A
//! prompt that no worker holds costs one cache miss that way. Buckets split one at a time as frames come (W.
//! Litwin's linear hashing, 1980): no insertion rehashes the whole table, and memory grows evenly.
//!
//! Linear hashing by example. With 6 buckets a hash is taken modulo 8. The buckets 6 and 7 do not exist yet,
//! so their hashes are taken modulo 4 and lie in 2 and 3. The next insertion beyond the limit adds bucket 6:
//! the frames of bucket 2 are dealt out to 2 and 6, and all other buckets stay.
//!
//! Readers hold no lock. Two things can go wrong, and each shows:
//!
//! * The writer reuses a frame of the chain under another key. The reader finds that the key belongs to
//!   another bucket.
//! * A bucket splits, and the wanted frame moves. The reader compares the version `splits` before it believes
//!   that a frame is missing.
//!
//! In both cases the answer is [`Find::Raced`], and the reader asks again. Cost: O(1) expected, one cache
//! miss per frame of the chain.

use std::sync::atomic::{AtomicU64, Ordering};

use super::arena::{Arena, get, high, low, pack};
use super::frame::{BlockId, FIRST_LOCAL, FrameId, LINKS, NEXT_IN_BUCKET, VERSION};
use super::hash_tables::mix;
use super::seqlock;

/// Headers of all frames, by frame id.
pub(super) type Headers = Arena<16>;

/// Buckets of an empty table.
const BUCKETS_MIN: u64 = 16;
/// Longest chain that a reader follows. A longer one means that the reader lost its chain to the writer.
///
/// A table has at most one frame per bucket on average, so a true chain of this length does not come up.
const CHAIN_MAX: u32 = 4096;

/// Hash table from keys to frames; the module describes it.
#[derive(Debug)]
pub(super) struct ChildTable {
    /// Per bucket: low half the id of the first frame plus 1, or 0; high half the filter of [`class_of`]
    /// bits.
    buckets: Arena<1>,
    /// Number of buckets. It only grows, and every bucket below it is reserved before it is counted.
    len: AtomicU64,
    /// Version of a [`seqlock`], odd while a bucket splits.
    splits: AtomicU64,
}

impl Default for ChildTable {
    fn default() -> Self {
        let buckets = Arena::new(BUCKETS_MIN.ilog2());
        buckets.reserve(BUCKETS_MIN as u32);
        Self {
            buckets,
            len: AtomicU64::new(BUCKETS_MIN),
            splits: AtomicU64::new(0),
        }
    }
}

/// Answer to a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Find {
    /// The frame had this key at the time of the look-up.
    Found(FrameId),
    /// No frame has this key.
    Missing,
    /// The writer interfered: ask again.
    Raced,
}

/// Hash of a key.
#[inline]
fn key_hash(parent: BlockId, local: u64) -> u64 {
    mix(u64::from(parent.get()), local)
}

/// Bucket of a hash in a table of `len` buckets, by linear hashing. The module has an example.
#[inline]
const fn bucket_of(hash: u64, len: u64) -> u32 {
    let wide = len.next_power_of_two();
    let bucket = hash & (wide - 1);
    (if bucket >= len {
        bucket & (wide / 2 - 1)
    } else {
        bucket
    }) as u32
}

/// Bit of a hash in the filter of its bucket: one of 32. It uses the highest bits, since the bucket uses the
/// lowest.
#[inline]
const fn class_of(hash: u64) -> u32 {
    1 << (hash >> 59)
}

impl ChildTable {
    /// The frame that continues from `parent` with local hash `local`. For readers and the writer.
    ///
    /// The writer never gets [`Find::Raced`], because no section is open while it asks.
    #[inline]
    pub(super) fn find(&self, headers: &Headers, parent: BlockId, local: u64) -> Find {
        let Some(splits) = seqlock::begin_read(&self.splits) else {
            return Find::Raced;
        };
        let hash = key_hash(parent, local);
        // Acquire: the buckets below this length are reserved.
        let len = self.len.load(Ordering::Acquire);
        let bucket = bucket_of(hash, len);
        let word = self.buckets.unit(bucket)[0].load(Ordering::Acquire);
        let mut link = if high(word) & class_of(hash) == 0 {
            0
        } else {
            low(word)
        };
        for _ in 0..CHAIN_MAX {
            let Some(id) = link.checked_sub(1) else {
                let settled = seqlock::is_valid(&self.splits, splits);
                return if settled { Find::Missing } else { Find::Raced };
            };
            let header = headers.unit(id);
            let Some(stamp) = seqlock::begin_read(&header[VERSION]) else {
                return Find::Raced;
            };
            let of = (
                BlockId::from_number(low(get(&header[LINKS]))),
                get(&header[FIRST_LOCAL]),
            );
            link = high(header[NEXT_IN_BUCKET].load(Ordering::Acquire));
            if !seqlock::is_valid(&header[VERSION], stamp) {
                return Find::Raced;
            }
            if of == (parent, local) {
                return Find::Found(FrameId(id));
            }
            // The frame moved to another chain: the writer reused it under a new key.
            if bucket_of(key_hash(of.0, of.1), len) != bucket {
                return Find::Raced;
            }
        }
        Find::Raced
    }

    /// Inserts a frame whose key is written. `frames` is the number of frames with it. Only for the writer.
    pub(super) fn insert(&self, headers: &Headers, id: FrameId, frames: usize) {
        let len = get(&self.len);
        if frames as u64 > len && len < u64::from(u32::MAX) {
            self.split(headers, len);
        }
        self.push(headers, id, get(&self.len));
    }

    /// Puts a frame at the head of its chain.
    ///
    /// Release: a reader that finds the frame in its bucket also sees the frame's key and successor.
    fn push(&self, headers: &Headers, id: FrameId, len: u64) {
        let header = headers.unit(id.0);
        let hash = Self::hash_of(header);
        let bucket = &self.buckets.unit(bucket_of(hash, len))[0];
        let word = get(bucket);
        Self::link(header, low(word));
        bucket.store(pack(id.0 + 1, high(word) | class_of(hash)), Ordering::Release);
    }

    /// Sets the successor of a frame in its chain.
    fn link(header: &[AtomicU64; 16], link: u32) {
        let refs = pack(low(get(&header[NEXT_IN_BUCKET])), link);
        header[NEXT_IN_BUCKET].store(refs, Ordering::Release);
    }

    /// Hash of the key in a header.
    fn hash_of(header: &[AtomicU64; 16]) -> u64 {
        key_hash(
            BlockId::from_number(low(get(&header[LINKS]))),
            get(&header[FIRST_LOCAL]),
        )
    }

    /// Splits the next bucket in order: its frames go to two buckets. O(chain).
    ///
    /// The old chain is emptied first and filled again frame by frame. A reader may look in between and miss
    /// a frame, which is why the whole split is a write section of `splits`.
    fn split(&self, headers: &Headers, len: u64) {
        let from = bucket_of(len, len);
        self.buckets.reserve(len as u32 + 1);
        let mut link = low(get(&self.buckets.unit(from)[0]));
        seqlock::begin_write(&self.splits);
        // Readers that find a frame missing check `splits` before they believe it.
        self.buckets.unit(from)[0].store(0, Ordering::Release);
        self.len.store(len + 1, Ordering::Release);
        while let Some(id) = link.checked_sub(1) {
            link = high(get(&headers.unit(id)[NEXT_IN_BUCKET]));
            self.push(headers, FrameId(id), len + 1);
        }
        seqlock::end_write(&self.splits, false);
    }

    /// Removes a frame whose key is still the one it was inserted with. Only for the writer.
    pub(super) fn remove(&self, headers: &Headers, id: FrameId) {
        let header = headers.unit(id.0);
        let bucket = &self
            .buckets
            .unit(bucket_of(Self::hash_of(header), get(&self.len)))[0];
        let after = high(get(&header[NEXT_IN_BUCKET]));
        let (mut first, mut classes) = (low(get(bucket)), 0);
        if first == id.0 + 1 {
            first = after;
        }
        // The filter is computed anew, so that hashes of removed frames do not wear it out.
        let mut link = first;
        while let Some(at) = link.checked_sub(1) {
            let header = headers.unit(at);
            classes |= class_of(Self::hash_of(header));
            link = high(get(&header[NEXT_IN_BUCKET]));
            if link == id.0 + 1 {
                Self::link(header, after);
                link = after;
            }
        }
        bucket.store(pack(first, classes), Ordering::Release);
    }

    /// Bytes of the buckets.
    pub(super) fn bytes(&self) -> u64 {
        get(&self.len) * 8
    }

    /// Number of frames in all chains. For tests; only for the writer.
    pub(super) fn count(&self, headers: &Headers) -> usize {
        let mut count = 0;
        for bucket in 0..get(&self.len) as u32 {
            let mut link = low(get(&self.buckets.unit(bucket)[0]));
            while let Some(id) = link.checked_sub(1) {
                count += 1;
                link = high(get(&headers.unit(id)[NEXT_IN_BUCKET]));
            }
        }
        count
    }
}
