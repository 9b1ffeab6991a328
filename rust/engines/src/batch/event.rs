//! One event of a batch, in the map or the array form, and its fields.
//!
//! Newer vLLM writes a map tagged `type`, and the tag may come last. Older versions write an array with the
//! tag first and the fields by position. Both end in [`EventFields`], which collects the fields and builds
//! the event once its type is known.
//!
//! A field that is absent or nil has its default. A field that this version does not know is skipped. A field
//! that cannot be read makes this event unusable, and no other.

use wardrop_core::Tier;

use super::value::{engine_hash, extra_keys, group_kind, list, text, tier, token};
use super::{Adapter, Event, GroupKind, Stored};
use crate::msgpack::{Malformed, Reader};
use crate::{BLOCKS_MAX, FRAME_BYTES_MAX};

/// Names of a stored event's fields in the array form, by position after the tag.
///
/// Order of vLLM's `BlockStored`; later versions append fields. The empty name at the end is
/// skipped as unknown.
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

/// Decodes one event, in the array or the map form.
pub(super) fn event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
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
///
/// Fields of a removed event are collected in `stored` too: both types share hashes, memory and group.
#[derive(Default)]
struct EventFields {
    /// The fields read so far.
    stored: Stored,
    /// Whether the event has hashes. An empty list of hashes is not the same as none.
    has_hashes: bool,
    /// Whether the event has token ids. Copies have the field with nil in it.
    has_tokens: bool,
    /// Whether the event has a number of an adapter.
    has_lora_id: bool,
}

impl EventFields {
    /// Reads one field by name.
    ///
    /// A name that this version does not know skips its value.
    ///
    /// # Errors
    /// [`Malformed`] with the position of a value of another type, or the limit that it exceeds.
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
    ///
    ///
    /// # Errors
    /// [`Malformed::Missing`] or [`Malformed::Inconsistent`]; an unknown tag is [`Event::Other`].
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
    ///
    /// # Errors
    /// [`Malformed::Missing`] without hashes or token ids. [`Malformed::Inconsistent`] when the tokens do not
    /// fill the blocks exactly: hashing them would give blocks that no prompt has.
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
