//! Messages of Dynamo's event plane: whole ones, odd ones and damaged ones.

use proptest::prelude::*;
use serde::Serialize;
use serde_json::json;
use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier, WorkerId};

use super::envelope::{PREFIX_BYTES, VERSION};
use super::*;

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
    let message = frames(5, 9, &stored());
    let envelope = decode_frames(&message).unwrap();
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
