//! The index as bytes, so that a restarted router knows its workers' caches at once.
//!
//! ```text
//! magic "wdindex\0" | version u32 | hashing u64 | body length u64 | xxh3-64 of the body u64 | body
//! body     workers, frames (parents first), copies, aliases; each a count u32, then its entries
//! worker   instance u64 | rank u32 | feed position u64 (MAX: none)
//! frame    parent's number u32 (MAX: root) | parent's offset u8 | blocks u8 | local hashes u64..
//!          | blocks with a common engine hash as bits u64 | an engine hash u64 per bit
//!          | per tier: holders u32, each with worker number u16 and mask u64
//! copies   frame u32 | offset u8 | worker u16 | tier u8 | copies beyond the first u32
//! alias    frame u32 | offset u8 | worker u16 | engine hash u64
//! ```
//!
//! All numbers are little-endian. The reader trusts nothing: it compares each count with the bytes that are
//! left before it allocates, and checks each rule of the structure. After an error the index is as empty as
//! before. O(blocks + holders).
//!
//! The image has hashes, and no tokens and no key. It can be wrong about a worker that restarted meanwhile.
//! So it carries the position of each worker's feed, and the caller decides by the next event whether to
//! believe the blocks (`docs/explanation/prefix-index.md`).
//!
//! `save.rs` writes an image, `restore.rs` reads one, `reader.rs` has the checks of single numbers. The wire
//! format is also described in `docs/reference/wire-formats.md`; a change of it needs a new [`VERSION`].

mod reader;
mod restore;
mod save;

pub(super) use restore::read;
pub(super) use save::write;

use crate::worker::WorkerId;

/// First bytes of every image. Another file is refused before anything else of it is read.
const MAGIC: &[u8; 8] = b"wdindex\0";
/// Version of the format. An image of another version is refused, since the index can be learned again from
/// events.
pub(super) const VERSION: u32 = 1;
/// Bytes before the body: magic, version, hashing, length, checksum.
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8;
/// Parent number of a frame at the root. No frame has this number: an image has fewer frames.
const NONE: u32 = u32::MAX;

/// Reason why bytes cannot be restored as an index.
///
/// Each text says what was received, what is expected, and what to do. The remedy is always at hand: start
/// without the image, and learn the blocks from events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The first bytes are not the magic.
    #[error("not a saved index: expected a file that begins with \"wdindex\"; start without it")]
    Magic,
    /// The image has another version.
    #[error("a saved index of version {got}, expected version {VERSION}; start without it")]
    Version {
        /// Version of the image.
        got: u32,
    },
    /// The blocks were hashed with another block size, mode or key.
    #[error(
        "a saved index whose blocks were hashed with another block size, mode or key; start with the same configuration, or without the saved index"
    )]
    Hashing,
    /// The image ends early, or bytes follow it.
    #[error(
        "a saved index of {got} bytes, expected {expected}: the file is cut off or damaged; start without it"
    )]
    Length {
        /// Bytes that the header announces.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// The checksum of the body is wrong.
    #[error("a saved index with a wrong checksum: the file is damaged; start without it")]
    Checksum,
    /// An entry breaks a rule of the index.
    #[error("a saved index breaks a rule at byte {at}: {rule}; start without it")]
    Broken {
        /// Position of the entry in the image, in bytes.
        at: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// The index to restore into is not empty.
    #[error("the index already has {blocks} blocks, expected none; restore before the first event")]
    NotEmpty {
        /// Distinct blocks in the index.
        blocks: u64,
    },
    /// The image has more blocks than the index may hold.
    #[error(
        "the saved index has more blocks than this index may hold; raise index_max_blocks or start without it"
    )]
    Full,
}

/// A worker whose blocks were restored. The caller compares `position` with the next event of the worker's
/// feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredWorker {
    /// Id of the worker.
    pub worker: WorkerId,
    /// Blocks of the worker: device, host, disk.
    pub blocks: [u64; 3],
    /// Position of the worker's feed at the time of saving, if it was known.
    pub position: Option<u64>,
}
