//! Memory limits of an index.
//!
//! The budget holds at every moment: a store counts what it may allocate before it allocates, and evicts
//! first where that is too much ([`super::evict`]).

/// Limits that an index keeps by eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Highest number of distinct blocks.
    pub blocks: u64,
    /// Highest number of bytes that the structures of the index take. An empty index takes a few kB.
    pub bytes: u64,
}
