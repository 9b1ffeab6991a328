//! Memory limits of an index.

/// What an index may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Distinct blocks.
    pub blocks: u64,
    /// Bytes of its structures. An empty index has a few kB.
    pub bytes: u64,
}
