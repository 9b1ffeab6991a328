//! Dynamo's event plane: four frames, an envelope, a typed payload. Any bytes give a value or an error.
//!
//! Frames: topic | publisher (u64 BE) | sequence (u64 BE) | body. The body is `0x01`, a length (u32 BE) and a
//! msgpack envelope with the payload inside. The caller limits the bytes of a message; decoding takes a small
//! multiple of them. The decoder judges each event of a list alone, so one odd event costs only itself.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier, WorkerId};

use crate::msgpack::{self, Reader};
use crate::{BLOCKS_MAX, EVENTS_MAX};

/// Version byte of the envelope.
const VERSION: u8 = 1;
/// Bytes before the envelope: version and length.
const PREFIX_BYTES: usize = 5;

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

/// Payload of a message, with its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Id of the sender.
    pub publisher_id: u64,
    /// Position in the publisher's stream of this topic.
    pub sequence: u64,
    /// Payload, msgpack again.
    pub payload: Vec<u8>,
}

/// Envelope as msgpack.
#[derive(Deserialize)]
struct WireEnvelope {
    publisher_id: u64,
    sequence: u64,
    payload: Blob,
}

/// Decodes the frames of one message.
///
/// # Errors
/// [`Malformed`] when the frames do not have the form that the module describes.
pub fn decode_frames<F: AsRef<[u8]>>(frames: &[F]) -> Result<Envelope, Malformed> {
    let [_, publisher, sequence, body] = frames else {
        return Err(Malformed::Frames);
    };
    let number = |frame: &[u8]| {
        frame
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| Malformed::Length)
    };
    let publisher = number(publisher.as_ref())?;
    let sequence = number(sequence.as_ref())?;
    let body = body.as_ref();
    if body.len() < PREFIX_BYTES {
        return Err(Malformed::Length);
    }
    if body[0] != VERSION {
        return Err(Malformed::Version);
    }
    let length = u32::from_be_bytes([body[1], body[2], body[3], body[4]]) as usize;
    if length != body.len() - PREFIX_BYTES {
        return Err(Malformed::Length);
    }
    let envelope: WireEnvelope =
        rmp_serde::from_slice(&body[PREFIX_BYTES..]).map_err(|_| Malformed::Envelope)?;
    if envelope.publisher_id != publisher || envelope.sequence != sequence {
        return Err(Malformed::Envelope);
    }
    Ok(Envelope {
        publisher_id: publisher,
        sequence,
        payload: envelope.payload.0,
    })
}

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

/// Event on the wire.
#[derive(Deserialize)]
struct WireEvent {
    worker_id: u64,
    #[serde(default)]
    storage_tier: Option<String>,
    #[serde(default)]
    residency_domain: Option<String>,
    event: WireCacheEvent,
}

/// Cache event on the wire.
#[derive(Deserialize)]
struct WireCacheEvent {
    event_id: u64,
    data: WireData,
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
        let tier = match self.storage_tier.as_deref() {
            None | Some("device") => Some(Tier::Device),
            Some("host_pinned" | "host") => Some(Tier::Host),
            Some("disk") => Some(Tier::Disk),
            Some(_) => None,
        };
        let own = self
            .residency_domain
            .as_deref()
            .is_none_or(|domain| domain == "worker");
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

/// One engine step as the engine reports it: the most direct load signal.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ForwardPass {
    /// Id of the instance, in decimal.
    pub worker_id: String,
    /// Data-parallel rank.
    #[serde(default)]
    pub dp_rank: u32,
    /// Length of the step in seconds; 0 for a heartbeat.
    #[serde(default)]
    pub wall_time: f64,
    /// Requests that ran in the step.
    #[serde(default)]
    pub scheduled_requests: StepLoad,
    /// Requests that waited.
    #[serde(default)]
    pub queued_requests: StepLoad,
}

/// Requests and tokens of a step or of the engine's queue.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StepLoad {
    /// Requests in prefill.
    pub num_prefill_requests: u64,
    /// New prompt tokens of the requests in prefill.
    pub sum_prefill_tokens: u64,
    /// Prompt tokens of the requests in prefill that were cached before the step.
    pub sum_prefill_kv_tokens: u64,
    /// Requests in decode.
    pub num_decode_requests: u64,
    /// Context tokens of the requests in decode.
    pub sum_decode_kv_tokens: u64,
}

impl ForwardPass {
    /// Worker of the step; `None` when the instance id is not a number.
    pub fn worker(&self) -> Option<WorkerId> {
        Some(WorkerId::new(self.worker_id.parse().ok()?, self.dp_rank))
    }
}

/// Decodes a `forward-pass-metrics` payload.
///
/// # Errors
/// [`Malformed::Payload`] when the payload has another form.
pub fn decode_forward_pass(payload: &[u8]) -> Result<ForwardPass, Malformed> {
    rmp_serde::from_slice(payload).map_err(|_| Malformed::Payload)
}

/// 64-bit hash that some senders write as a signed number.
#[derive(Clone, Copy)]
struct Hash64(u64);

impl<'de> Deserialize<'de> for Hash64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = Hash64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }
            fn visit_u64<E>(self, value: u64) -> Result<Hash64, E> {
                Ok(Hash64(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Hash64, E> {
                Ok(Hash64(value.cast_unsigned()))
            }
        }
        deserializer.deserialize_any(HashVisitor)
    }
}

/// List of at most `MOST` entries, regardless of the announced length.
struct Bounded<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
            type Value = Bounded<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    if values.len() == MOST {
                        return Err(A::Error::invalid_length(MOST + 1, &self));
                    }
                    values.push(value);
                }
                Ok(Bounded(values))
            }
        }
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

/// Bytes, written as msgpack binary or as a list of numbers.
struct Blob(Vec<u8>);

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl<'de> Visitor<'de> for BlobVisitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, value: &[u8]) -> Result<Blob, E> {
                Ok(Blob(value.to_vec()))
            }
            fn visit_byte_buf<E>(self, value: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Blob, A::Error> {
                // The announced length reserves nothing: a short frame may announce a long list.
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element::<u64>()? {
                    bytes.push(u8::try_from(byte).map_err(A::Error::custom)?);
                }
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_any(BlobVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn frames(publisher: u64, sequence: u64, payload: &serde_json::Value) -> Vec<Vec<u8>> {
        #[derive(Serialize)]
        struct Out {
            publisher_id: u64,
            sequence: u64,
            published_at: u64,
            topic: &'static str,
            payload: Vec<u8>,
        }
        let payload = rmp_serde::to_vec_named(payload).unwrap();
        let out = Out {
            publisher_id: publisher,
            sequence,
            published_at: 1,
            topic: "kv-events",
            payload,
        };
        let envelope = rmp_serde::to_vec_named(&out).unwrap();
        let mut body = vec![VERSION];
        body.extend_from_slice(&(envelope.len() as u32).to_be_bytes());
        body.extend_from_slice(&envelope);
        vec![
            b"kv-events".to_vec(),
            publisher.to_be_bytes().to_vec(),
            sequence.to_be_bytes().to_vec(),
            body,
        ]
    }

    fn stored() -> serde_json::Value {
        json!([{"worker_id": 7, "storage_tier": "device", "residency_domain": "worker", "event": {"event_id": 3, "dp_rank": 1,
            "data": {"stored": {"parent_hash": null, "start_position": null,
                "blocks": [{"block_hash": u64::MAX, "tokens_hash": -1, "mm_extra_info": null}]}}}}])
    }

    #[test]
    fn a_stored_event_is_decoded() {
        let envelope = decode_frames(&frames(5, 9, &stored())).unwrap();
        assert_eq!((envelope.publisher_id, envelope.sequence), (5, 9));
        let events = decode_kv_events(&envelope.payload).unwrap().events;
        assert_eq!(events[0].worker, WorkerId::new(7, 1));
        assert_eq!(events[0].event_id, 3);
        let block = StoredBlock {
            engine_hash: EngineHash(u64::MAX),
            local_hash: LocalHash(u64::MAX),
        };
        assert_eq!(
            events[0].event,
            Some(KvEvent::Stored {
                parent: None,
                blocks: vec![block],
                tier: Tier::Device
            })
        );
    }

    #[test]
    fn a_cleared_event_is_decoded_as_text_and_as_map() {
        for data in [json!("cleared"), json!({"cleared": null})] {
            let list = json!([{"worker_id": 1, "event": {"event_id": 1, "data": data}}]);
            let events = decode_kv_events(&rmp_serde::to_vec_named(&list).unwrap())
                .unwrap()
                .events;
            assert_eq!(events[0].event, Some(KvEvent::Cleared));
        }
    }

    #[test]
    fn memory_of_other_owners_gives_no_event() {
        let mut list = stored();
        list[0]["residency_domain"] = json!("cache_owner");
        assert_eq!(
            decode_kv_events(&rmp_serde::to_vec_named(&list).unwrap())
                .unwrap()
                .events[0]
                .event,
            None
        );
    }

    #[test]
    fn an_odd_event_costs_only_itself() {
        let stored = stored();
        let mut list = json!([{"worker_id": 7, "event": {"event_id": 2, "data": {"moved": [1.5]}}}, "text",
            {"worker_id": 7, "event": {"event_id": 3, "data": {"removed": {"block_hashes": [0.5]}}}},
            {"worker_id": 7, "event": {"event_id": 4, "data": {"stored": null, "removed": null}}}]);
        list.as_array_mut().unwrap().push(stored[0].clone());
        let decoded = decode_kv_events(&rmp_serde::to_vec_named(&list).unwrap()).unwrap();
        assert_eq!(decoded.unreadable, 3);
        let [unknown, known] = &decoded.events[..] else {
            panic!("two events are readable");
        };
        assert_eq!((unknown.event_id, &unknown.event), (2, &None));
        assert!(matches!(known.event, Some(KvEvent::Stored { .. })));
    }

    #[test]
    fn an_envelope_that_contradicts_its_frames_is_refused() {
        let mut wire = frames(5, 9, &stored());
        wire[1] = 6u64.to_be_bytes().to_vec();
        assert_eq!(decode_frames(&wire), Err(Malformed::Envelope));
    }

    #[test]
    fn a_list_that_announces_four_billion_entries_allocates_nothing() {
        assert_eq!(
            decode_kv_events(&[0xdd, 0xff, 0xff, 0xff, 0xff]),
            Err(Malformed::Payload)
        );
        let mut body = vec![VERSION, 0, 0, 0, 0];
        body.extend_from_slice(&[0x83, 0xa7]);
        body.extend_from_slice(b"payload");
        body.extend_from_slice(&[0xdd, 0xff, 0xff, 0xff, 0xff]);
        let length = (body.len() - PREFIX_BYTES) as u32;
        body[1..5].copy_from_slice(&length.to_be_bytes());
        assert_eq!(
            decode_frames(&[vec![], vec![0; 8], vec![0; 8], body]),
            Err(Malformed::Envelope)
        );
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = vec![0x91; 100_000];
        assert_eq!(decode_kv_events(&deep), Err(Malformed::Payload));
        assert!(decode_forward_pass(&deep).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode_kv_events(&input);
            let _ = decode_forward_pass(&input);
            let _ = decode_frames(&[vec![], vec![0; 8], vec![0; 8], input.clone()]);
            let mut body = vec![VERSION];
            body.extend_from_slice(&(input.len() as u32).to_be_bytes());
            body.extend_from_slice(&input);
            let _ = decode_frames(&[vec![], vec![0; 8], vec![0; 8], body]);
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0usize..400, to in any::<u8>()) {
            let mut wire = frames(5, 9, &stored());
            let at = at % wire[3].len();
            wire[3][at] = to;
            if let Ok(envelope) = decode_frames(&wire) {
                let _ = decode_kv_events(&envelope.payload);
            }
        }
    }
}
