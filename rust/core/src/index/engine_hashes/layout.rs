//! The entries of the table of names, in cache lines: where the parts of an entry and of a hash are.

use super::super::frame::{BlockId, CHUNK_BLOCKS};

/// Shards grow on their own, so that no insertion waits for all.
pub const SHARD_BITS: u32 = 6;
/// So many.
pub const SHARDS: usize = 1 << SHARD_BITS;

/// Entries of a line.
pub const LANES: usize = 16;
/// Lines after its home in which an entry may lie.
pub const PROBE_LINES: u32 = 3;
/// Lines of a page.
pub const PAGE_LINES: u32 = 256;

/// Entries, 0 where there is none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Line(pub [u32; LANES]);

const fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// Eight blocks of a frame, whose names lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockGroup(pub u32);

impl BlockGroup {
    /// That of a block.
    pub const fn of(block: BlockId) -> Self {
        Self(block.get() / CHUNK_BLOCKS)
    }

    /// The block of it at a place below 8.
    pub const fn block(self, at: u32) -> BlockId {
        BlockId::from_number(self.0 * CHUNK_BLOCKS + at)
    }
}

/// Lines in pages, the last of which is as long as needed: to grow moves little and leaves no holes with the allocator.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    pages: Vec<Box<[Line]>>,
}

impl Lines {
    /// Makes sure that every line below `end` is there.
    pub fn reserve(&mut self, end: u32) {
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
    pub fn get(&self, line: u32) -> &Line {
        &self.pages[(line / PAGE_LINES) as usize][(line % PAGE_LINES) as usize]
    }

    #[inline]
    pub fn get_mut(&mut self, line: u32) -> &mut Line {
        &mut self.pages[(line / PAGE_LINES) as usize][(line % PAGE_LINES) as usize]
    }
}

/// Of which lanes something is true, as bits.
#[inline]
pub fn lanes(line: &Line, is: impl Fn(u32) -> bool) -> u32 {
    let mut lanes = 0;
    for lane in 0..LANES {
        lanes |= u32::from(is(line.0[lane])) << lane;
    }
    lanes
}

#[inline]
pub fn free_lanes(line: &Line) -> u32 {
    lanes(line, |entry| entry == 0)
}

/// Where the parts of an entry and of a hash are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryLayout {
    /// Lines that are a home; [`PROBE_LINES`] more follow. 0: there is nothing yet.
    pub home_lines: u32,
    /// Low bits of an entry: its group's number + 1. The others: the low bits of what is known of its hash.
    pub group_bits: u32,
    /// How many bits of a hash are known.
    pub key_bits: u32,
}

impl EntryLayout {
    /// The most that can be known of hashes: where an entry may lie must leave no doubt of the bits that it does not have.
    pub fn new(home_lines: u32, group_bits: u32) -> Self {
        Self {
            home_lines,
            group_bits,
            key_bits: min(
                home_lines.ilog2() + (u32::BITS - group_bits) - (PROBE_LINES + 1).ilog2(),
                u32::BITS,
            ),
        }
    }

    /// What fits into so many homes of a shard.
    ///
    /// Names of the whole table, since hashes are spread evenly: a shard that happens to have more than the others stays as it is,
    /// and churn makes nothing grow. 81 to 91 % of the entries, another share for each shard, so that not all grow at once.
    pub const fn limits(home_lines: u32, of: usize) -> (u32, u64) {
        let lanes = home_lines as u64 * LANES as u64;
        (
            (lanes - lanes / 20) as u32,
            lanes * SHARDS as u64 * 880 / (968 + 2 * of as u64),
        )
    }

    /// The part of a hash that is known.
    #[inline]
    pub const fn prefix(self, key: u64) -> u64 {
        (key << SHARD_BITS >> 1).wrapping_shr(63 - self.key_bits)
    }

    #[inline]
    pub const fn home(self, prefix: u64) -> u32 {
        (prefix.wrapping_mul(self.home_lines as u64)).wrapping_shr(self.key_bits) as u32
    }

    #[inline]
    pub const fn tag(self, prefix: u64) -> u32 {
        (prefix as u32) & u32::MAX.wrapping_shr(self.group_bits)
    }

    #[inline]
    pub const fn entry(self, prefix: u64, group: BlockGroup) -> u32 {
        self.tag(prefix).wrapping_shl(self.group_bits) | (group.0 + 1)
    }

    #[inline]
    pub const fn group(self, entry: u32) -> BlockGroup {
        BlockGroup((entry & !u32::MAX.wrapping_shl(self.group_bits)) - 1)
    }

    /// The least hash whose home is this line or a later one.
    pub const fn first_of(self, line: u32) -> u64 {
        ((line as u64) << self.key_bits).div_ceil(self.home_lines as u64)
    }

    /// What is known of an entry in the line before that with this first hash: the only hash that may lie there with its tag.
    #[inline]
    pub const fn prefix_of(self, entry: u32, next_first: u64) -> u64 {
        let (last, tag) = (next_first - 1, (entry.wrapping_shr(self.group_bits)) as u64);
        last - (last.wrapping_sub(tag) & u32::MAX.wrapping_shr(self.group_bits) as u64)
    }
}
