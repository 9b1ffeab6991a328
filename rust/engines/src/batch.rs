//! Decoding one batch of events, as vLLM and `SGLang` write it. Cost: O(bytes of the batch).
//!
//! The decoder judges each event alone. An event with an unusable field becomes [`Event::Unusable`], and the
//! other events of the batch stay usable. Only a batch whose outer form is broken is refused as a whole.

use wardrop_core::{EngineHash, Tier};
use xxhash_rust::xxh3::xxh3_64;

use crate::msgpack::{Malformed, Reader};
use crate::{BLOCKS_MAX, EVENTS_MAX, FRAME_BYTES_MAX};

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

/// Names of a stored event's fields in the array form, by position after the tag.
const STORED_FIELDS: [&str; 11] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "",
];
/// Names of a removed event's fields in the array form, by position after the tag.
const REMOVED_FIELDS: [&str; 3] = ["block_hashes", "medium", "group_idx"];

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

/// Reads a value with `read`, or skips it and returns `None` if it has another type.
fn lenient<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    let start = reader.clone();
    if let Ok(value) = read(reader) {
        return Ok(Some(value));
    }
    *reader = start;
    reader.skip()?;
    Ok(None)
}

/// Decodes one event, in the array or the map form.
fn event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
    if reader.is_map() {
        return map_event(reader);
    }
    let len = reader.array()?;
    if len == 0 {
        return Ok(Event::Other);
    }
    if !reader.is_bytes() {
        for _ in 0..len {
            reader.skip()?;
        }
        return Ok(Event::Other);
    }
    let tag = reader.bytes()?;
    let names: &[&str] = match tag {
        b"BlockStored" => &STORED_FIELDS,
        b"BlockRemoved" => &REMOVED_FIELDS,
        _ => &[],
    };
    let mut fields = EventFields::default();
    for at in 0..len - 1 {
        fields.read(names.get(at).unwrap_or(&"").as_bytes(), reader)?;
    }
    fields.finish(tag)
}

/// Decodes one event in the map form.
fn map_event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
    let entries = reader.map()?;
    let mut fields = EventFields::default();
    let mut tag: &[u8] = b"";
    for _ in 0..entries {
        if !reader.is_bytes() {
            reader.skip()?;
            reader.skip()?;
            continue;
        }
        let key = reader.bytes()?;
        if key == b"type" {
            tag = reader.bytes()?;
        } else {
            fields.read(key, reader)?;
        }
    }
    fields.finish(tag)
}

/// Fields of an event, collected before its type is known: a map may carry its tag last.
#[derive(Default)]
struct EventFields {
    stored: Stored,
    has_hashes: bool,
    has_tokens: bool,
    /// Whether the event has a number of an adapter.
    has_lora_id: bool,
}

impl EventFields {
    /// Reads one field by name.
    fn read(&mut self, field: &[u8], reader: &mut Reader<'_>) -> Result<(), Malformed> {
        let stored = &mut self.stored;
        match field {
            b"block_hashes" => {
                stored.hashes = list(reader, "blocks of an event", BLOCKS_MAX, engine_hash)?;
                self.has_hashes = true;
            }
            b"parent_block_hash" => {
                stored.parent = if reader.nil()? {
                    None
                } else {
                    Some(engine_hash(reader)?)
                }
            }
            b"token_ids" => {
                stored.tokens = if reader.nil()? {
                    Vec::new()
                } else {
                    list(reader, "tokens of an event", FRAME_BYTES_MAX, token)?
                };
                self.has_tokens = true;
            }
            b"block_size" => {
                let size = if reader.nil()? { 0 } else { reader.integer()? };
                stored.block_size = u32::try_from(size).unwrap_or(u32::MAX);
            }
            b"medium" => {
                stored.tier = if reader.nil()? {
                    Tier::Device
                } else {
                    tier(reader.bytes()?)
                }
            }
            b"lora_id" => {
                self.has_lora_id = !reader.nil()?;
                if self.has_lora_id {
                    reader.skip()?;
                }
            }
            b"lora_name" => {
                stored.adapter = if reader.nil()? {
                    Adapter::Base
                } else {
                    Adapter::Named(text(reader.bytes()?))
                };
            }
            b"cache_salt" => {
                let none = reader.nil()?;
                stored.cache_salt = if none { None } else { Some(text(reader.bytes()?)) };
            }
            b"extra_keys" => {
                stored.extra = if reader.nil()? {
                    Vec::new()
                } else {
                    extra_keys(reader)?
                }
            }
            b"group_idx" => stored.group = if reader.nil()? { 0 } else { reader.integer()? },
            b"kv_cache_spec_kind" => {
                stored.kind = if reader.nil()? {
                    GroupKind::Unnamed
                } else {
                    group_kind(reader.bytes()?)
                }
            }
            _ => reader.skip()?,
        }
        Ok(())
    }

    /// Builds the event of type `tag` from the fields.
    fn finish(self, tag: &[u8]) -> Result<Event, Malformed> {
        match tag {
            b"BlockStored" => self.finish_stored(),
            b"BlockRemoved" if !self.has_hashes => Err(Malformed::Missing {
                event: "BlockRemoved",
                field: "block_hashes",
            }),
            b"BlockRemoved" => {
                let Stored {
                    hashes, tier, group, ..
                } = self.stored;
                Ok(Event::Removed { hashes, tier, group })
            }
            b"AllBlocksCleared" => Ok(Event::Cleared),
            _ => Ok(Event::Other),
        }
    }
}

impl EventFields {
    /// Builds a stored event.
    fn finish_stored(self) -> Result<Event, Malformed> {
        let missing = |field| Malformed::Missing {
            event: "BlockStored",
            field,
        };
        let mut stored = self.stored;
        if self.has_lora_id && stored.adapter == Adapter::Base {
            stored.adapter = Adapter::Numbered;
        }
        if !self.has_hashes {
            return Err(missing("block_hashes"));
        }
        if !self.has_tokens {
            return Err(missing("token_ids"));
        }
        if stored.kind == GroupKind::Other {
            // Such a group reports the tokens of its whole span beside fewer hashes, which the index does not read.
            stored.tokens = Vec::new();
            return Ok(Event::Stored(Box::new(stored)));
        }
        let expected = stored.hashes.len() as u64 * u64::from(stored.block_size);
        let got = stored.tokens.len() as u64;
        if got != expected && !stored.is_copy() {
            return Err(Malformed::Inconsistent {
                what: "tokens of a stored event",
                got,
                expected,
            });
        }
        if let Adapter::Named(lora_name) = &stored.adapter {
            // Each block's key repeats the adapter, which the event already names.
            for key in stored.extra.iter_mut().filter(|key| *key == lora_name) {
                key.clear();
            }
        }
        Ok(Event::Stored(Box::new(stored)))
    }
}

/// Kind of a KV cache group as vLLM names it. Kinds that this version does not know count as other kinds.
fn group_kind(name: &[u8]) -> GroupKind {
    match name {
        b"full_attention" | b"mla_attention" | b"sink_full_attention" => GroupKind::Attention,
        b"" => GroupKind::Unnamed,
        _ => GroupKind::Other,
    }
}

/// Engine hash of a block: a 64-bit number, or bytes (usually 32) reduced to 64 bits by a hash.
fn engine_hash(reader: &mut Reader<'_>) -> Result<EngineHash, Malformed> {
    if reader.is_bytes() {
        return Ok(EngineHash(xxh3_64(reader.bytes()?)));
    }
    reader.integer().map(EngineHash)
}

/// An array of at most `most` values.
///
/// The reader refuses an array that announces more entries than the frame has bytes left. The memory is
/// therefore a small multiple of the frame.
fn list<T>(
    reader: &mut Reader<'_>,
    what: &'static str,
    most: usize,
    mut value: impl FnMut(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = reader.array()?;
    if count > most {
        return Err(Malformed::Limit {
            what,
            got: count,
            most,
        });
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(value(reader)?);
    }
    Ok(values)
}

/// Token id. Of a pair the first token counts: with EAGLE drafts, `SGLang` keys blocks by (token, next
/// token).
#[inline]
fn token(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    if let Some(token) = reader.small() {
        return Ok(token);
    }
    if reader.is_array() {
        let most = 2;
        let got = reader.array()?;
        if got != most {
            return Err(Malformed::Limit {
                what: "tokens of a pair",
                got,
                most,
            });
        }
        let first = token_id(reader)?;
        token_id(reader)?;
        return Ok(first);
    }
    token_id(reader)
}

/// Token id of 32 bits. A negative number, which engines use for tokens without an id, exceeds the limit.
fn token_id(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    u32::try_from(reader.integer()?).map_err(|_| Malformed::Limit {
        what: "a token id",
        got: usize::MAX,
        most: u32::MAX as usize,
    })
}

/// Text of bytes; invalid UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tier of a medium as vLLM and `SGLang` name it. Unknown media count as device memory.
fn tier(medium: &[u8]) -> Tier {
    match medium {
        b"CPU" | b"CPU_PINNED" | b"CPU_TIER1" => Tier::Host,
        b"CPU_TIER2" | b"DISK" | b"NVME" | b"STORAGE" | b"EXTERNAL" | b"NETWORK" | b"REMOTE" | b"SHARED" => {
            Tier::Disk
        }
        _ => Tier::Device,
    }
}

/// One text per block: its extra keys, joined by a separator.
fn extra_keys(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    list(reader, "extra keys of an event", BLOCKS_MAX, |reader| {
        if reader.nil()? {
            Ok(String::new())
        } else {
            block_keys(reader)
        }
    })
}

/// Extra keys of one block.
fn block_keys(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let count = if reader.is_array() { reader.array()? } else { 1 };
    let mut joined = String::new();
    for at in 0..count {
        if at > 0 {
            joined.push('\u{1f}');
        }
        if reader.is_bytes() {
            joined.push_str(&text(reader.bytes()?));
        } else if reader.is_array() {
            joined.push_str(&multimodal_key(reader)?);
        } else if !reader.nil()? {
            joined.push_str(&reader.integer()?.to_string());
        }
    }
    Ok(joined)
}

/// Extra key `[hash, offset]` of a multimodal object.
fn multimodal_key(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let count = reader.array()?;
    let mut joined = String::new();
    for _ in 0..count {
        joined.push('\u{1e}');
        if reader.is_bytes() {
            joined.push_str(&text(reader.bytes()?));
        } else {
            reader.skip()?; // the offset: an equal object is equal content wherever it starts
        }
    }
    Ok(joined)
}
