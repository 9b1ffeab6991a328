//! Decoding one batch of events, as vLLM and `SGLang` write it. Cost: O(bytes of the batch).
//!
//! The decoder judges each event alone. An event with an unusable field becomes [`Event::Unusable`], and the
//! other events of the batch stay usable. Only a batch whose outer form is broken is refused as a whole.

mod event;
mod value;

use wardrop_core::{EngineHash, Tier};

use self::event::event;
use self::value::{lenient, list};
use crate::msgpack::{Malformed, Reader};
use crate::{EVENTS_MAX, FRAME_BYTES_MAX};

/// Decoded batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Time of the batch, seconds of the engine's clock; `None` where the batch has no finite time.
    pub at_s: Option<f64>,
    /// Data-parallel rank of the worker, where the batch has one.
    pub dp_rank: Option<u32>,
    /// Events, in order.
    pub events: Vec<Event>,
}

/// One event of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The engine stored blocks.
    Stored(Box<Stored>),
    /// The engine removed blocks.
    Removed {
        /// Hashes by which the engine refers to the blocks.
        hashes: Vec<EngineHash>,
        /// Memory of the blocks.
        tier: Tier,
        /// KV cache group; 0 for an engine with one group.
        group: u64,
    },
    /// The engine removed all blocks.
    Cleared,
    /// An event of an unknown type.
    Other,
    /// A stored or removed event with a field that cannot be used.
    Unusable(Malformed),
}

/// Kind of a KV cache group, as far as the index needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupKind {
    /// The event does not name a kind. Engines with one group name none.
    #[default]
    Unnamed,
    /// Attention over the whole prompt: a stored block makes the prefix reusable.
    Attention,
    /// Another kind, such as a sliding window or Mamba: its blocks alone make no prefix reusable.
    Other,
}

/// Adapter of a stored event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// The blocks belong to the base model.
    #[default]
    Base,
    /// The blocks belong to the adapter with this name.
    Named(String),
    /// The blocks belong to an adapter that has only a number, which no request names.
    Numbered,
}

/// Fields of a stored event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Hashes by which the engine refers to the blocks.
    pub hashes: Vec<EngineHash>,
    /// Engine hash of the block before the first one.
    pub parent: Option<EngineHash>,
    /// Token ids of all blocks. Empty for a copy: blocks that the engine announced before, now in `tier` too.
    pub tokens: Vec<u32>,
    /// Tokens per block; 0 where a copy has no block size.
    pub block_size: u32,
    /// `LoRA` adapter of the blocks.
    pub adapter: Adapter,
    /// Cache salt, where it has a field of its own (`SGLang`). Every event of the chain then carries it.
    pub cache_salt: Option<String>,
    /// Further parts of each block's key: one text per block, empty for most blocks.
    pub extra: Vec<String>,
    /// Memory of the blocks.
    pub tier: Tier,
    /// KV cache group; 0 for an engine with one group.
    pub group: u64,
    /// Kind of the KV cache group.
    pub kind: GroupKind,
}

impl Stored {
    /// Whether the event announces copies of known blocks in another memory.
    pub const fn is_copy(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Decodes one payload: an array `[time, events, rank]`, or a map with the keys `ts`, `events` and
/// `data_parallel_rank` or `attn_dp_rank`. Skips unknown keys, trailing fields and unknown events.
///
/// # Errors
/// [`Malformed`] when the payload is no batch or exceeds a limit. A single unusable event is no error.
pub fn decode_batch(payload: &[u8]) -> Result<Batch, Malformed> {
    if payload.len() > FRAME_BYTES_MAX {
        let (got, most) = (payload.len(), FRAME_BYTES_MAX);
        return Err(Malformed::Limit {
            what: "bytes of a frame",
            got,
            most,
        });
    }
    let mut reader = Reader::new(payload);
    if reader.is_map() {
        return map_batch(&mut reader);
    }
    let fields = reader.array()?;
    if fields < 2 {
        return Err(Malformed::Inconsistent {
            what: "fields of a batch",
            got: fields as u64,
            expected: 2,
        });
    }
    let at_s = time(&mut reader)?;
    let events = events(&mut reader)?;
    let dp_rank = if fields > 2 { rank(&mut reader)? } else { None };
    Ok(Batch {
        at_s,
        dp_rank,
        events,
    })
}

/// Decodes a batch in the map form.
fn map_batch(reader: &mut Reader<'_>) -> Result<Batch, Malformed> {
    let mut batch = Batch::default();
    let mut has_events = false;
    for _ in 0..reader.map()? {
        if !reader.is_bytes() {
            reader.skip()?;
            reader.skip()?;
            continue;
        }
        match reader.bytes()? {
            b"ts" => batch.at_s = time(reader)?,
            b"events" => {
                batch.events = events(reader)?;
                has_events = true;
            }
            b"data_parallel_rank" | b"attn_dp_rank" => batch.dp_rank = rank(reader)?,
            _ => reader.skip()?,
        }
    }
    if has_events {
        Ok(batch)
    } else {
        Err(Malformed::Missing {
            event: "batch",
            field: "events",
        })
    }
}

/// Events of a batch.
fn events(reader: &mut Reader<'_>) -> Result<Vec<Event>, Malformed> {
    list(reader, "events of a batch", EVENTS_MAX, |reader| {
        let start = reader.clone();
        event(reader).or_else(|malformed| {
            *reader = start;
            reader.skip()?;
            Ok(Event::Unusable(malformed))
        })
    })
}

/// Time of a batch; `None` for a value that is no finite number.
fn time(reader: &mut Reader<'_>) -> Result<Option<f64>, Malformed> {
    let at_s = lenient(reader, Reader::float)?;
    Ok(at_s.filter(|at_s| at_s.is_finite()))
}

/// Rank of a batch; `None` for a value that is no rank.
fn rank(reader: &mut Reader<'_>) -> Result<Option<u32>, Malformed> {
    let rank = lenient(reader, Reader::integer)?;
    Ok(rank.and_then(|rank| u32::try_from(rank).ok()))
}
