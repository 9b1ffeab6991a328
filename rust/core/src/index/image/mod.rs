//! The index as bytes, for restarts: what was held is known again without asking every engine.
//!
//! ```text
//! magic "wdindex\0" | version u32 | hashing u64 | length u64 of the body | xxh3-64 u64 of the body | body
//! body     workers, frames (parents first), copies, aliases; each a count u32, then its entries
//! worker   instance u64 | rank u32 | position u64 (MAX: none)
//! frame    parent's number u32 (MAX: none) | parent's offset u8 | blocks u8 | locals u64.. | named u64 | a name u64 per bit of it
//!          | per tier: holders u32, each worker's number u16 and mask u64
//! copies   frame u32 | offset u8 | worker u16 | tier u8 | copies beyond the first u32
//! alias    frame u32 | offset u8 | worker u16 | name u64
//! ```
//!
//! Little-endian. What is read is believed in nothing: each count is held against the bytes that are left before anything is
//! taken for it, and each rule of the structure is checked. After an error the index is as empty as before.
//! O(blocks + holders).

mod reader;
mod restore;
mod save;

pub(super) use restore::read;
pub(super) use save::write;

use crate::worker::WorkerId;

const MAGIC: &[u8; 8] = b"wdindex\0";
/// Version of the form.
pub const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8;
const NONE: u32 = u32::MAX;

/// Why bytes are no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// They do not begin as one.
    #[error("not a saved index: the first bytes are others")]
    Magic,
    /// Of another version.
    #[error("a saved index of version {got}; this program reads version {VERSION}: start without it")]
    Version {
        /// Which.
        got: u32,
    },
    /// Its blocks were hashed in another way: block size, mode or key.
    #[error(
        "a saved index of blocks hashed in another way (block size, mode or key): start without it, or with the same configuration"
    )]
    Hashing,
    /// The end is missing, or something follows.
    #[error("a saved index of {expected} bytes, got {got}: the file is cut off or damaged")]
    Length {
        /// Bytes that it says it has.
        expected: u64,
        /// Bytes that there are.
        got: u64,
    },
    /// The bytes changed.
    #[error("a saved index whose checksum is wrong: the file is damaged")]
    Checksum,
    /// It breaks a rule of the index.
    #[error("a saved index that breaks a rule at byte {at}: {rule}")]
    Broken {
        /// Where.
        at: u64,
        /// Which.
        rule: &'static str,
    },
    /// There is something in the index already.
    #[error("an index with {blocks} blocks can not be restored into: restore before the first event")]
    NotEmpty {
        /// Distinct blocks in it.
        blocks: u64,
    },
    /// More blocks than the limit.
    #[error("a saved index that is larger than the limit of this one; raise the limit or start without it")]
    Full,
}

/// A worker of which something was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredWorker {
    /// Who.
    pub worker: WorkerId,
    /// Its blocks, per tier.
    pub blocks: [u64; 3],
    /// Where its feed stood, if that was told.
    pub position: Option<u64>,
}
