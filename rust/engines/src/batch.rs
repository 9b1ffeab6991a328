//! Decoding one batch of events, as vLLM and `SGLang` write it. Cost: O(bytes of the batch).

use wardrop_core::{EngineHash, Tier};
use xxhash_rust::xxh3::xxh3_64;

use crate::msgpack::{Malformed, Reader};
use crate::{BLOCKS_MAX, EVENTS_MAX, FRAME_BYTES_MAX};

/// Decoded batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Time of the batch, seconds of the engine's clock.
    pub at_s: f64,
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
}

/// Fields of a stored event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Hashes by which the engine refers to the blocks.
    pub hashes: Vec<EngineHash>,
    /// Engine hash of the block before the first one.
    pub parent: Option<EngineHash>,
    /// Token ids of all blocks.
    pub tokens: Vec<u32>,
    /// Tokens per block.
    pub block_size: u32,
    /// Name of the `LoRA` adapter.
    pub lora_name: Option<String>,
    /// Cache salt, where it has a field of its own (`SGLang`). Every event of the chain then carries it.
    pub cache_salt: Option<String>,
    /// Further parts of each block's key: one text per block, empty for most blocks.
    pub extra: Vec<String>,
    /// Memory of the blocks.
    pub tier: Tier,
    /// KV cache group; 0 for an engine with one group.
    pub group: u64,
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

/// Decodes one payload. Skips unknown keys, trailing fields and unknown events.
///
/// # Errors
/// [`Malformed`] when the payload is no batch or exceeds a limit.
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
    let fields = reader.array()?;
    if fields < 2 {
        return Err(Malformed::Inconsistent {
            what: "fields of a batch",
            got: fields as u64,
            expected: 2,
        });
    }
    let at_s = reader.float()?;
    let events = list(&mut reader, "events of a batch", EVENTS_MAX, event)?;
    let dp_rank = if fields > 2 && !reader.nil()? {
        u32::try_from(reader.integer()?).ok()
    } else {
        None
    };
    Ok(Batch {
        at_s,
        dp_rank,
        events,
    })
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
                stored.tokens = list(reader, "tokens of an event", FRAME_BYTES_MAX, token)?;
                self.has_tokens = true;
            }
            b"block_size" => stored.block_size = u32::try_from(reader.integer()?).unwrap_or(u32::MAX),
            b"medium" => {
                stored.tier = if reader.nil()? {
                    Tier::Device
                } else {
                    tier(reader.bytes()?)
                }
            }
            b"lora_name" => {
                let none = reader.nil()?;
                stored.lora_name = if none { None } else { Some(text(reader.bytes()?)) };
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
            _ => reader.skip()?,
        }
        Ok(())
    }

    /// Builds the event of type `tag` from the fields.
    fn finish(self, tag: &[u8]) -> Result<Event, Malformed> {
        match tag {
            b"BlockStored" => {
                let event = "BlockStored";
                if !self.has_hashes {
                    return Err(Malformed::Missing {
                        event,
                        field: "block_hashes",
                    });
                }
                if !self.has_tokens {
                    return Err(Malformed::Missing {
                        event,
                        field: "token_ids",
                    });
                }
                let mut stored = self.stored;
                let expected = stored.hashes.len() as u64 * u64::from(stored.block_size);
                if stored.tokens.len() as u64 != expected {
                    let got = stored.tokens.len() as u64;
                    return Err(Malformed::Inconsistent {
                        what: "tokens of a stored event",
                        got,
                        expected,
                    });
                }
                if let Some(lora_name) = &stored.lora_name {
                    // Each block's key repeats the adapter, which the event already names.
                    for key in stored.extra.iter_mut().filter(|key| *key == lora_name) {
                        key.clear();
                    }
                }
                Ok(Event::Stored(Box::new(stored)))
            }
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

/// Token id of 32 bits.
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
