//! The payload `kv-events`: a list of events with their workers, as msgpack or as JSON of a dump.
//!
//! The usual list is decoded in one go. When one event has an unexpected form, the list is decoded again,
//! event by event: unreadable events are counted, and the others stay.
//!
//! An event may concern memory that the worker does not own, or a tier that the core does not know. It keeps
//! its event id and changes nothing. The feed's ids then show no gap for it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier, WorkerId};

use super::Malformed;
use super::wire::{Bounded, Hash64};
use crate::msgpack::{self, Reader};
use crate::{BLOCKS_MAX, EVENTS_MAX};

/// One KV event with its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEvent {
    /// Worker of the event.
    pub worker: WorkerId,
    /// Position in the worker's own stream, from 1.
    pub event_id: u64,
    /// Change of the worker's cache; `None` for a tier or an owner other than the worker's own memory.
    pub event: Option<KvEvent>,
}

/// Events of one `kv-events` payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvEvents {
    /// Readable events, in order.
    pub events: Vec<WorkerEvent>,
    /// Events that cannot be read. Their changes of the cache are unknown.
    pub unreadable: usize,
}

/// Decodes a `kv-events` payload: a list of events. O(bytes).
///
/// An event of an unknown type is an event without a change. Any other event that does not have the expected form
/// is counted and left out, so the worker's event ids show a gap.
///
/// # Errors
/// [`Malformed::Payload`] when the payload is no list, or longer than [`EVENTS_MAX`].
pub fn decode_kv_events(payload: &[u8]) -> Result<KvEvents, Malformed> {
    if let Ok(wire) = rmp_serde::from_slice::<Bounded<WireEvent, EVENTS_MAX>>(payload) {
        return Ok(KvEvents {
            events: wire.0.into_iter().map(WireEvent::into_event).collect(),
            unreadable: 0,
        });
    }
    decode_one_by_one(payload).map_err(|_| Malformed::Payload)
}

/// Decodes a list in which at least one event has an unexpected form.
fn decode_one_by_one(payload: &[u8]) -> Result<KvEvents, msgpack::Malformed> {
    let mut reader = Reader::new(payload);
    let count = reader.array()?;
    if count > EVENTS_MAX {
        return Err(msgpack::Malformed::Limit {
            what: "events of a list",
            got: count,
            most: EVENTS_MAX,
        });
    }
    let mut decoded = KvEvents::default();
    for _ in 0..count {
        let from = payload.len() - reader.left();
        reader.skip()?;
        let bytes = &payload[from..payload.len() - reader.left()];
        if let Ok(event) = rmp_serde::from_slice::<WireEvent>(bytes) {
            decoded.events.push(event.into_event());
        } else if let Some(event) = without_change(bytes) {
            decoded.events.push(event);
        } else {
            decoded.unreadable += 1;
        }
    }
    Ok(decoded)
}

/// Decodes an event of an unknown type; `None` when the type is known or the event cannot be read.
fn without_change(bytes: &[u8]) -> Option<WorkerEvent> {
    let head: WireEventHead = rmp_serde::from_slice(bytes).ok()?;
    let is_known = matches!(head.event.data.0.as_str(), "stored" | "removed" | "cleared");
    (!is_known).then(|| WorkerEvent {
        worker: WorkerId::new(head.worker_id, head.event.dp_rank),
        event_id: head.event.event_id,
        event: None,
    })
}

/// Decodes the result of `KvRouter.dump_events()`: the same events as JSON.
///
/// # Errors
/// The text of the JSON error.
pub fn decode_dump(json: &str) -> Result<Vec<WorkerEvent>, String> {
    let wire: Vec<WireEvent> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    Ok(wire.into_iter().map(WireEvent::into_event).collect())
}

/// Event on the wire. Absent tier and owner mean the worker's own device memory.
#[derive(Deserialize)]
struct WireEvent {
    /// Id of the instance.
    worker_id: u64,
    /// Memory of the blocks; absent for device memory.
    #[serde(default)]
    storage_tier: Option<WireTier>,
    /// Owner of the memory; absent for the worker's own.
    #[serde(default)]
    residency_domain: Option<WireOwner>,
    /// The change, with its place in the stream.
    event: WireCacheEvent,
}

/// Memory on the wire, read without a copy of its name; `None` for a name that the core does not know.
struct WireTier(Option<Tier>);

impl<'de> Deserialize<'de> for WireTier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TierVisitor;
        impl Visitor<'_> for TierVisitor {
            type Value = WireTier;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a memory")
            }
            fn visit_str<E>(self, name: &str) -> Result<WireTier, E> {
                Ok(WireTier(match name {
                    "device" => Some(Tier::Device),
                    "host_pinned" | "host" => Some(Tier::Host),
                    "disk" => Some(Tier::Disk),
                    _ => None,
                }))
            }
        }
        deserializer.deserialize_str(TierVisitor)
    }
}

/// Owner of memory on the wire, read without a copy of its name.
struct WireOwner {
    /// Whether the owner is the worker of the event.
    is_worker: bool,
}

impl<'de> Deserialize<'de> for WireOwner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OwnerVisitor;
        impl Visitor<'_> for OwnerVisitor {
            type Value = WireOwner;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an owner")
            }
            fn visit_str<E>(self, name: &str) -> Result<WireOwner, E> {
                Ok(WireOwner {
                    is_worker: name == "worker",
                })
            }
        }
        deserializer.deserialize_str(OwnerVisitor)
    }
}

/// Cache event on the wire.
#[derive(Deserialize)]
struct WireCacheEvent {
    /// Place in the worker's own stream.
    event_id: u64,
    /// The change.
    data: WireData,
    /// Rank of the worker; 0 where absent.
    #[serde(default)]
    dp_rank: u32,
}

/// Event on the wire, without the content of its change.
#[derive(Deserialize)]
struct WireEventHead {
    worker_id: u64,
    event: WireCacheEventHead,
}

/// Cache event on the wire, without the content of its change.
#[derive(Deserialize)]
struct WireCacheEventHead {
    event_id: u64,
    data: ChangeName,
    #[serde(default)]
    dp_rank: u32,
}

/// Name of a change: a text, or the only key of a map.
struct ChangeName(String);

impl<'de> Deserialize<'de> for ChangeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = ChangeName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a map with one key")
            }
            fn visit_str<E>(self, name: &str) -> Result<ChangeName, E> {
                Ok(ChangeName(name.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ChangeName, A::Error> {
                let name = map
                    .next_key()?
                    .ok_or_else(|| A::Error::invalid_length(0, &self))?;
                map.next_value::<IgnoredAny>()?;
                if map.next_key::<IgnoredAny>()?.is_some() {
                    return Err(A::Error::invalid_length(2, &self));
                }
                Ok(ChangeName(name))
            }
        }
        deserializer.deserialize_any(NameVisitor)
    }
}

/// Change of a cache on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireData {
    Stored {
        #[serde(default)]
        parent_hash: Option<Hash64>,
        blocks: Bounded<WireBlock, BLOCKS_MAX>,
    },
    Removed {
        block_hashes: Bounded<Hash64, BLOCKS_MAX>,
    },
    Cleared,
}

/// Stored block on the wire.
#[derive(Deserialize)]
struct WireBlock {
    block_hash: Hash64,
    tokens_hash: Hash64,
}

impl WireEvent {
    /// The event in the words of the core.
    fn into_event(self) -> WorkerEvent {
        let tier = self
            .storage_tier
            .map_or(Some(Tier::Device), |WireTier(tier)| tier);
        let own = self.residency_domain.is_none_or(|owner| owner.is_worker);
        let event = tier.filter(|_| own).map(|tier| match self.event.data {
            WireData::Stored { parent_hash, blocks } => KvEvent::Stored {
                parent: parent_hash.map(|hash| EngineHash(hash.0)),
                blocks: blocks
                    .0
                    .into_iter()
                    .map(|block| StoredBlock {
                        engine_hash: EngineHash(block.block_hash.0),
                        local_hash: LocalHash(block.tokens_hash.0),
                    })
                    .collect(),
                tier,
            },
            WireData::Removed { block_hashes } => KvEvent::Removed {
                blocks: block_hashes
                    .0
                    .into_iter()
                    .map(|hash| EngineHash(hash.0))
                    .collect(),
                tier,
            },
            WireData::Cleared => KvEvent::Cleared,
        });
        WorkerEvent {
            worker: WorkerId::new(self.worker_id, self.event.dp_rank),
            event_id: self.event.event_id,
            event,
        }
    }
}
