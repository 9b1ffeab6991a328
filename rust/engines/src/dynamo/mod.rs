//! Dynamo's event plane: four frames, an envelope, a typed payload. Any bytes give a value or an error.
//!
//! ```text
//! frames   topic | publisher (u64 BE) | sequence (u64 BE) | body          envelope.rs
//! body     0x01 | length (u32 BE) | msgpack envelope with the payload inside
//! payload  kv-events: a list of events                                    kv_events.rs
//!          forward-pass-metrics: one step of an engine                    forward_pass.rs
//! ```
//!
//! The caller limits the bytes of a message; decoding takes a small multiple of them. The decoder judges each
//! event of a list alone, so one odd event costs only itself. `wire.rs` has the types that more than one
//! payload uses.
//!
//! Source: the event plane of Dynamo 1.6.1. The service's feeds and the native frontend read it
//! with these functions.

mod envelope;
mod forward_pass;
mod kv_events;
#[cfg(test)]
mod tests;
mod wire;

pub use envelope::{Envelope, decode_frames};
pub use forward_pass::{ForwardPass, StepLoad, decode_forward_pass};
pub use kv_events::{KvEvents, WorkerEvent, decode_dump, decode_kv_events};

/// Reason for refusing a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message does not have four frames.
    #[error(
        "expected four frames: topic, publisher, sequence, envelope; check that the publisher is a Dynamo event plane"
    )]
    Frames,
    /// Publisher or sequence is not eight bytes, or the length prefix is wrong.
    #[error("expected 8 bytes each for publisher and sequence, and an envelope of the announced length")]
    Length,
    /// The envelope has another version.
    #[error("unknown envelope version, expected 1; use a Dynamo release that this version supports")]
    Version,
    /// The envelope cannot be read, or contradicts the frames.
    #[error("the envelope is not the expected msgpack map, or contradicts the frames")]
    Envelope,
    /// The payload cannot be read.
    #[error("the payload is not msgpack of the form that its topic has")]
    Payload,
}
