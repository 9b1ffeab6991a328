//! Layout of the engine-hash table: cache lines, groups of blocks, and the bits of an entry.
//!
//! The key of an engine hash is a mixed 64-bit value: its first bits choose the shard, the next ones the home
//! line. The prefix of a key is the part that a shard can restore from an entry and its line.
//!
//! ```text
//! key    | 6 bits: shard | key_bits: prefix                          | rest: not stored |
//! prefix | scaled to the home lines: line | low bits: tag             |
//! entry  | tag: 32 − group_bits           | group_bits: group + 1     |     0: free lane
//! ```
//!
//! Restoring a prefix from its entry is what saves memory (quotienting). A line covers a range of prefixes.
//! If the range is shorter than the tag is wide, only one prefix of the range has the entry's tag. So line
//! and tag together give the prefix back.
//!
//! Example with 10 home lines, 16-bit prefixes and 12-bit tags. A line covers 6,554 prefixes, and with the
//! three probe lines an entry stands for one of 26,214 prefixes. A tag of 12 bits distinguishes 4,096 of
//! them, too few. This layout therefore gets a prefix of at most 13 bits.

use super::super::frame::{BlockId, CHUNK_BLOCKS};

/// Binary logarithm of the number of shards. Each shard grows alone, so no insertion waits for the growth of
/// the whole table.
pub(super) const SHARD_BITS: u32 = 6;
/// Number of shards.
pub(super) const SHARDS: usize = 1 << SHARD_BITS;

/// Entries of a line.
pub(super) const LANES: usize = 16;
/// Lines after its home line in which an entry may lie. The further an entry may lie from its line, the more
/// bits of its key it must carry.
pub(super) const PROBE_LINES: u32 = 3;
/// Lines of a page: 16 KiB.
pub(super) const PAGE_LINES: u32 = 256;

/// One cache line of entries; 0 marks a free lane. An entry is never 0, because it holds a group number plus
/// 1.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(super) struct Line(pub [u32; LANES]);

/// `Ord::min` is not a `const fn`.
const fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// Eight adjacent blocks of a frame. Their engine hashes share a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockGroup(pub u32);

impl BlockGroup {
    /// Group of a block.
    pub(crate) const fn of(block: BlockId) -> Self {
        Self(block.get() / CHUNK_BLOCKS)
    }

    /// Block of the group at position `at`, below 8.
    pub(crate) const fn block(self, at: u32) -> BlockId {
        BlockId::from_number(self.0 * CHUNK_BLOCKS + at)
    }
}

/// Lines in pages of 256. The last page is as long as needed, so growth moves little and leaves no holes in
/// the allocator.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    /// Pages of [`PAGE_LINES`] lines each, except the last one.
    pages: Vec<Box<[Line]>>,
}

impl Lines {
    /// Makes sure that every line below `end` exists. Only the last page is copied; all others stay in place.
    pub(super) fn reserve(&mut self, end: u32) {
        let mut have = self.pages.last().map_or(0, |last| last.len());
        have += self.pages.len().saturating_sub(1) * PAGE_LINES as usize;
        let end = end as usize;
        while have < end {
            let before = have % PAGE_LINES as usize;
            let page = (before + end - have).min(PAGE_LINES as usize);
            let mut lines = vec![Line::default(); page].into_boxed_slice();
            if before > 0 {
                let last = self.pages.pop().expect("it has a part of a page");
                lines[..before].copy_from_slice(&last);
            }
            self.pages.push(lines);
            have += page - before;
        }
    }

    #[inline]
    pub(super) fn get(&self, line: u32) -> &Line {
        &self.pages[(line / PAGE_LINES) as usize][(line % PAGE_LINES) as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, line: u32) -> &mut Line {
        &mut self.pages[(line / PAGE_LINES) as usize][(line % PAGE_LINES) as usize]
    }
}

/// Lanes of a line for which `is` holds, as bits. A fixed loop of 16, which the compiler turns into vector
/// comparisons.
#[inline]
pub(super) fn lanes(line: &Line, is: impl Fn(u32) -> bool) -> u32 {
    let mut lanes = 0;
    for lane in 0..LANES {
        lanes |= u32::from(is(line.0[lane])) << lane;
    }
    lanes
}

#[inline]
pub(super) fn free_lanes(line: &Line) -> u32 {
    lanes(line, |entry| entry == 0)
}

/// Division of an entry's 32 bits, and the number of key bits that a shard can restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EntryLayout {
    /// Number of home lines; [`PROBE_LINES`] more lines follow. 0 in an empty shard.
    pub home_lines: u32,
    /// Low bits of an entry: number of its group plus 1. The remaining bits are the tag: the low bits of the
    /// prefix.
    pub group_bits: u32,
    /// Bits of the prefix.
    pub key_bits: u32,
}

impl EntryLayout {
    /// Layout with the longest prefix that an entry determines.
    ///
    /// An entry may lie in four lines, so the line gives two bits less than it otherwise would.
    pub(super) fn new(home_lines: u32, group_bits: u32) -> Self {
        Self {
            home_lines,
            group_bits,
            key_bits: min(
                home_lines.ilog2() + (u32::BITS - group_bits) - (PROBE_LINES + 1).ilog2(),
                u32::BITS,
            ),
        }
    }

    /// Limits of one shard with `home_lines` home lines: names in the shard, names in the whole table.
    ///
    /// Keys spread evenly, so the limit on the whole table makes the shards grow, and a shard with more names
    /// than others stays. Churn therefore makes nothing grow. The limit is 81 to 91 % of the lanes, different
    /// for each shard, so that the shards do not all grow at once.
    pub(super) const fn limits(home_lines: u32, of: usize) -> (u32, u64) {
        let lanes = home_lines as u64 * LANES as u64;
        (
            (lanes - lanes / 20) as u32,
            lanes * SHARDS as u64 * 880 / (968 + 2 * of as u64),
        )
    }

    /// Prefix of a key.
    #[inline]
    pub(super) const fn prefix(self, key: u64) -> u64 {
        (key << SHARD_BITS >> 1).wrapping_shr(63 - self.key_bits)
    }

    /// Home line of a prefix: the prefix scaled to the number of lines.
    #[inline]
    pub(super) const fn home(self, prefix: u64) -> u32 {
        (prefix.wrapping_mul(self.home_lines as u64)).wrapping_shr(self.key_bits) as u32
    }

    /// Tag of a prefix.
    #[inline]
    pub(super) const fn tag(self, prefix: u64) -> u32 {
        (prefix as u32) & u32::MAX.wrapping_shr(self.group_bits)
    }

    /// Entry for a prefix and a group.
    #[inline]
    pub(super) const fn entry(self, prefix: u64, group: BlockGroup) -> u32 {
        self.tag(prefix).wrapping_shl(self.group_bits) | (group.0 + 1)
    }

    /// Group of an entry.
    #[inline]
    pub(super) const fn group(self, entry: u32) -> BlockGroup {
        BlockGroup((entry & !u32::MAX.wrapping_shl(self.group_bits)) - 1)
    }

    /// Smallest prefix whose home is this line or a later one.
    pub(super) const fn first_of(self, line: u32) -> u64 {
        ((line as u64) << self.key_bits).div_ceil(self.home_lines as u64)
    }

    /// Prefix of an entry in the line before the one whose first prefix is `next_first`.
    ///
    /// Only one prefix with the entry's tag can lie in that line, so the entry determines it.
    #[inline]
    pub(super) const fn prefix_of(self, entry: u32, next_first: u64) -> u64 {
        let (last, tag) = (next_first - 1, (entry.wrapping_shr(self.group_bits)) as u64);
        last - (last.wrapping_sub(tag) & u32::MAX.wrapping_shr(self.group_bits) as u64)
    }
}
