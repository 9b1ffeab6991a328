//! KV events as engines publish them, read into the core's [`wardrop_core::KvEvent`]s.
//!
//! ```text
//! three frames ─▶ Feed: sequence, incarnation ─▶ batch: typed events ─▶ hashes, salts, tiers ─▶ KvEvent
//! ```
//!
//! vLLM and `SGLang` share the format: topic | sequence (u64, big-endian) | msgpack `[time, [event, …], dp_rank]`, each event a map
//! tagged `type` or an array with the tag first. All sizes are limited before anything is allocated, a malformed frame is an
//! error and leaves the feed as it was, and no token id reaches an error text. Dynamo's event plane, which carries hashes and no tokens, is read by [`dynamo`].

mod batch;
pub mod dynamo;
mod feed;
mod msgpack;

pub use batch::{Batch, Event, Stored, decode_batch};
pub use feed::{Counters, Feed, Taken};
pub use msgpack::Malformed;

/// Bytes of a frame at most.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Events of a frame at most. `SGLang` sends one for every page of a prompt.
pub const EVENTS_MAX: usize = 1 << 18;

/// Blocks of an event at most: two million tokens in blocks of 16.
pub const BLOCKS_MAX: usize = 1 << 17;
