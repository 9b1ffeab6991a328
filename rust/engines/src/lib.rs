//! KV events as engines publish them, converted to the core's [`wardrop_core::KvEvent`]s.
//!
//! ```text
//! three frames ─▶ Feed: sequence, restarts ─▶ batch: typed events ─▶ hashes, salts, tiers ─▶ KvEvent
//! ```
//!
//! vLLM and `SGLang` share the format: topic | sequence (u64, big-endian) | msgpack `[time, [event, …],
//! dp_rank]`. Each event is a map tagged `type`, or an array with the tag first. Every size is checked before
//! it allocates memory. A malformed frame is an error and leaves the feed as it was. No error text contains a
//! token id.
//!
//! Dynamo's event plane carries hashes without tokens; [`dynamo`] decodes it.
//!
//! Formats of engines stop in this crate. The core knows events, and the service knows sockets, replay and
//! trust.
//!
//! Bounds: a frame has [`FRAME_BYTES_MAX`], [`EVENTS_MAX`] and [`BLOCKS_MAX`]; decoding takes a
//! small multiple of its bytes. Complexity: O(bytes of the frame).

mod batch;
pub mod dynamo;
mod feed;
mod msgpack;

pub use batch::{Adapter, Batch, Event, GroupKind, Stored, decode_batch};
pub use feed::{CacheChange, Counters, Feed, FrameEvents};
pub use msgpack::Malformed;

/// Highest number of bytes in a frame.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Highest number of events in a frame. `SGLang` sends one event per page of a prompt.
pub const EVENTS_MAX: usize = 1 << 18;

/// Highest number of blocks in an event: two million tokens in blocks of 16.
pub const BLOCKS_MAX: usize = 1 << 17;
