//! One batch of events, as vLLM and `SGLang` write it.

use wardrop_core::{EngineHash, Tier};
use xxhash_rust::xxh3::xxh3_64;

use crate::msgpack::{Malformed, Reader};
use crate::{BLOCKS_MAX, EVENTS_MAX, FRAME_BYTES_MAX};

/// A decoded batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// When the engine made it, seconds of its clock.
    pub at_s: f64,
    /// The rank it speaks for, where it says.
    pub dp_rank: Option<u32>,
    /// In order.
    pub events: Vec<Event>,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Blocks were stored.
    Stored(Box<Stored>),
    /// Blocks were removed.
    Removed {
        /// Their names.
        hashes: Vec<EngineHash>,
        /// From where.
        tier: Tier,
        /// The KV cache group, 0 where there is only one.
        group: u64,
    },
    /// Everything was removed.
    Cleared,
    /// Of a type that is not known here.
    Other,
}

/// A stored event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Names of the blocks.
    pub hashes: Vec<EngineHash>,
    /// Name of the block before.
    pub parent: Option<EngineHash>,
    /// Token ids of all blocks.
    pub tokens: Vec<u32>,
    /// Tokens per block.
    pub block_size: u32,
    /// The adapter.
    pub lora_name: Option<String>,
    /// The salt, where it has a field of its own (`SGLang`): then every event of the chain carries it.
    pub cache_salt: Option<String>,
    /// What else is in each block's key: one text per block, empty for most.
    pub extra: Vec<String>,
    /// Where.
    pub tier: Tier,
    /// The KV cache group, 0 where there is only one.
    pub group: u64,
}

/// Positions of the fields in the array form.
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
const REMOVED_FIELDS: [&str; 3] = ["block_hashes", "medium", "group_idx"];

/// Decode one payload. Unknown keys, trailing fields and unknown events are stepped over.
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

fn event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
    if reader.is_map() {
        return map_event(reader);
    }
    let fields = reader.array()?;
    if fields == 0 {
        return Ok(Event::Other);
    }
    let tag = reader.bytes()?;
    let names: &[&str] = match tag {
        b"BlockStored" => &STORED_FIELDS,
        b"BlockRemoved" => &REMOVED_FIELDS,
        _ => &[],
    };
    let mut parts = Parts::default();
    for at in 0..fields - 1 {
        parts.read(names.get(at).unwrap_or(&"").as_bytes(), reader)?;
    }
    parts.finish(tag)
}

fn map_event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
    let entries = reader.map()?;
    let mut parts = Parts::default();
    let mut tag: &[u8] = b"";
    for _ in 0..entries {
        let key = reader.bytes()?;
        if key == b"type" {
            tag = reader.bytes()?;
        } else {
            parts.read(key, reader)?;
        }
    }
    parts.finish(tag)
}

/// The fields of either event, as they come.
#[derive(Default)]
struct Parts {
    stored: Stored,
    has_hashes: bool,
    has_tokens: bool,
}

impl Parts {
    fn read(&mut self, field: &[u8], reader: &mut Reader<'_>) -> Result<(), Malformed> {
        let stored = &mut self.stored;
        match field {
            b"block_hashes" => {
                stored.hashes = list(reader, "blocks of an event", BLOCKS_MAX, name)?;
                self.has_hashes = true;
            }
            b"parent_block_hash" => stored.parent = if reader.nil()? { None } else { Some(name(reader)?) },
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
            b"extra_keys" => stored.extra = if reader.nil()? { Vec::new() } else { extra(reader)? },
            b"group_idx" => stored.group = if reader.nil()? { 0 } else { reader.integer()? },
            _ => reader.skip()?,
        }
        Ok(())
    }

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
                    // The adapter is named in every block's key, too: there it says nothing new.
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

/// A block's name: a 64-bit number, or bytes (32 of them) that are hashed to one.
fn name(reader: &mut Reader<'_>) -> Result<EngineHash, Malformed> {
    if reader.is_bytes() {
        return Ok(EngineHash(xxh3_64(reader.bytes()?)));
    }
    reader.integer().map(EngineHash)
}

/// An array of at most `most` values. The array says how many, and no array can announce more than the frame has bytes left, so
/// the memory is a small multiple of the frame.
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

/// A token id; of a pair the first: where `SGLang` drafts with EAGLE it keys blocks by (token, next token).
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

fn token_id(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    u32::try_from(reader.integer()?).map_err(|_| Malformed::Limit {
        what: "a token id",
        got: usize::MAX,
        most: u32::MAX as usize,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn tier(medium: &[u8]) -> Tier {
    match medium {
        b"CPU" | b"CPU_PINNED" | b"CPU_TIER1" => Tier::Host,
        b"CPU_TIER2" | b"DISK" | b"NVME" | b"STORAGE" | b"EXTERNAL" | b"NETWORK" | b"REMOTE" | b"SHARED" => {
            Tier::Disk
        }
        _ => Tier::Device,
    }
}

/// One text per block: its extra keys, joined.
fn extra(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    list(reader, "extra keys of an event", BLOCKS_MAX, |reader| {
        if reader.nil()? {
            Ok(String::new())
        } else {
            keys(reader)
        }
    })
}

fn keys(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let count = if reader.is_array() { reader.array()? } else { 1 };
    let mut joined = String::new();
    for at in 0..count {
        if at > 0 {
            joined.push('\u{1f}');
        }
        if reader.is_bytes() {
            joined.push_str(&text(reader.bytes()?));
        } else if reader.is_array() {
            joined.push_str(&keys_within(reader)?);
        } else if !reader.nil()? {
            joined.push_str(&reader.integer()?.to_string());
        }
    }
    Ok(joined)
}

/// `[hash, offset]` of a multimodal object.
fn keys_within(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let count = reader.array()?;
    let mut joined = String::new();
    for _ in 0..count {
        joined.push('\u{1e}');
        if reader.is_bytes() {
            joined.push_str(&text(reader.bytes()?));
        } else {
            reader.skip()?; // where in the block it starts: the same object is the same content
        }
    }
    Ok(joined)
}
