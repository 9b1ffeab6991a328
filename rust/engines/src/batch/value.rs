//! Values inside an event: hashes, token ids, memories, kinds of groups and extra keys.
//!
//! Every function reads one msgpack value and refuses what cannot be true. Limits are checked before memory
//! is taken, and no error text has a token id or a key in it.

use wardrop_core::{EngineHash, Tier};
use xxhash_rust::xxh3::xxh3_64;

use super::GroupKind;
use crate::BLOCKS_MAX;
use crate::msgpack::{Malformed, Reader};

/// Reads a value with `read`, or skips it and returns `None` if it has another type.
pub(super) fn lenient<'a, T>(
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

/// Kind of a KV cache group as vLLM names it. Kinds that this version does not know count as other kinds.
pub(super) fn group_kind(name: &[u8]) -> GroupKind {
    match name {
        b"full_attention" | b"mla_attention" | b"sink_full_attention" => GroupKind::Attention,
        b"" => GroupKind::Unnamed,
        _ => GroupKind::Other,
    }
}

/// Engine hash of a block: a 64-bit number, or bytes (usually 32) reduced to 64 bits by a hash.
///
/// vLLM writes bytes when it hashes blocks by SHA-256. The reduction keeps equality, and the index needs
/// nothing else of the hash.
pub(super) fn engine_hash(reader: &mut Reader<'_>) -> Result<EngineHash, Malformed> {
    if reader.is_bytes() {
        return Ok(EngineHash(xxh3_64(reader.bytes()?)));
    }
    reader.integer().map(EngineHash)
}

/// An array of at most `most` values.
///
/// The reader refuses an array that announces more entries than the frame has bytes left. The memory is
/// therefore a small multiple of the frame.
pub(super) fn list<T>(
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
pub(super) fn token(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
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
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tier of a medium as vLLM and `SGLang` name it. Unknown media count as device memory.
pub(super) fn tier(medium: &[u8]) -> Tier {
    match medium {
        b"CPU" | b"CPU_PINNED" | b"CPU_TIER1" => Tier::Host,
        b"CPU_TIER2" | b"DISK" | b"NVME" | b"STORAGE" | b"EXTERNAL" | b"NETWORK" | b"REMOTE" | b"SHARED" => {
            Tier::Disk
        }
        _ => Tier::Device,
    }
}

/// One text per block: its extra keys, joined by a separator.
///
/// Keys are those of vLLM: adapter, salt, and the hash of a multimodal object. Each can change what
/// a block's tokens mean.
pub(super) fn extra_keys(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    list(reader, "extra keys of an event", BLOCKS_MAX, |reader| {
        if reader.nil()? {
            Ok(String::new())
        } else {
            block_keys(reader)
        }
    })
}

/// Extra keys of one block.
///
/// Unit separators join the keys, so that two lists of keys with equal concatenations stay different.
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
