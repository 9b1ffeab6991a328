//! Every decoder: generated frames decode to their description, and any bytes give an answer. `FUZZ_CASES=…`
//! sets the number of cases.

mod frame;

use frame::{Form, batches, encode, forms, name_of};
use proptest::prelude::*;
use wardrop_core::{
    BlockHasher, EngineHash, HashMode, HashScope, KvEvent, LocalHash, StoredBlock, Tier, WorkerId,
};
use wardrop_engines::dynamo::{
    KvEvents, WorkerEvent, decode_dump, decode_forward_pass, decode_frames, decode_kv_events,
};
use wardrop_engines::{Batch, CacheChange, Event, Feed, decode_batch};

fn config() -> ProptestConfig {
    let cases = std::env::var("FUZZ_CASES").map_or(2_000, |cases| cases.parse().expect("must be a number"));
    println!("{cases} cases");
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// The batch as it should decode, with the engine hashes that this form gives.
fn expected(batch: &Batch, form: Form) -> Batch {
    let rename = |names: &mut Vec<EngineHash>| names.iter_mut().for_each(|name| *name = name_of(*name, form));
    let mut batch = batch.clone();
    for event in &mut batch.events {
        match event {
            Event::Stored(stored) => {
                rename(&mut stored.hashes);
                stored.parent = stored.parent.map(|name| name_of(name, form));
            }
            Event::Removed { hashes, .. } => rename(hashes),
            Event::Cleared | Event::Other | Event::Unusable(_) => {}
        }
    }
    batch
}

/// Dynamo's events in the wire form of its publishers.
fn encode_dynamo(events: &[WorkerEvent], publisher: u64, sequence: u64) -> Vec<Vec<u8>> {
    let list: Vec<_> = events.iter().map(dynamo_value).collect();
    let payload = rmp_serde::to_vec_named(&list).unwrap();
    let envelope = serde_json::json!({"publisher_id": publisher, "sequence": sequence, "topic": "kv-events",
        "published_at": 1, "payload": payload});
    let envelope = rmp_serde::to_vec_named(&envelope).unwrap();
    let mut body = vec![1];
    body.extend_from_slice(&(envelope.len() as u32).to_be_bytes());
    body.extend_from_slice(&envelope);
    let number = |number: u64| number.to_be_bytes().to_vec();
    vec![b"kv-events".to_vec(), number(publisher), number(sequence), body]
}

fn dynamo_value(reported: &WorkerEvent) -> serde_json::Value {
    let name = |tier| ["device", "host_pinned", "disk"][Tier::index(tier)];
    let (tier, data) = match reported
        .event
        .as_ref()
        .expect("every event here is a worker's own")
    {
        KvEvent::Stored { parent, blocks, tier } => {
            let block = |block: &StoredBlock| {
                serde_json::json!({"block_hash": block.engine_hash.0, "tokens_hash": block.local_hash.0,
                    "mm_extra_info": null})
            };
            let blocks: Vec<_> = blocks.iter().map(block).collect();
            let stored = serde_json::json!({"parent_hash": parent.map(|name| name.0), "start_position": null,
                "blocks": blocks});
            (name(*tier), serde_json::json!({"stored": stored}))
        }
        KvEvent::Removed { blocks, tier } => {
            let names: Vec<u64> = blocks.iter().map(|name| name.0).collect();
            (
                name(*tier),
                serde_json::json!({"removed": {"block_hashes": names}}),
            )
        }
        KvEvent::Cleared => ("device", serde_json::json!("cleared")),
    };
    serde_json::json!({"worker_id": reported.worker.instance, "storage_tier": tier, "residency_domain": "worker",
        "event": {"event_id": reported.event_id, "dp_rank": reported.worker.dp_rank, "data": data}})
}

fn worker_events() -> impl Strategy<Value = WorkerEvent> {
    let tier = || prop_oneof![Just(Tier::Device), Just(Tier::Host), Just(Tier::Disk)];
    let names = || prop::collection::vec(any::<u64>().prop_map(EngineHash), 0..5);
    let block = (any::<u64>(), any::<u64>()).prop_map(|(name, local)| StoredBlock {
        engine_hash: EngineHash(name),
        local_hash: LocalHash(local),
    });
    let stored = (
        prop::option::of(any::<u64>()),
        prop::collection::vec(block, 0..5),
        tier(),
    );
    let event = prop_oneof![
        stored.prop_map(|(parent, blocks, tier)| KvEvent::Stored {
            parent: parent.map(EngineHash),
            blocks,
            tier
        }),
        (names(), tier()).prop_map(|(blocks, tier)| KvEvent::Removed { blocks, tier }),
        Just(KvEvent::Cleared),
    ];
    (any::<u64>(), any::<u32>(), any::<u64>(), event).prop_map(|(instance, dp_rank, event_id, event)| {
        WorkerEvent {
            worker: WorkerId::new(instance, dp_rank),
            event_id,
            event: Some(event),
        }
    })
}

fn all_decoders(bytes: &[u8]) {
    drop(decode_batch(bytes));
    drop(decode_kv_events(bytes));
    drop(decode_forward_pass(bytes));
    drop(decode_dump(&String::from_utf8_lossy(bytes)));
    let mut body = vec![1];
    body.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    body.extend_from_slice(bytes);
    drop(decode_frames(&[&[], &[0; 8][..], &[0; 8][..], &body]));
    drop(decode_frames(&[&[], &[0; 8][..], &[0; 8][..], bytes]));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_generated_batch_comes_back_in_every_form(batch in batches(), form in forms()) {
        prop_assert_eq!(decode_batch(&encode(&batch, form)), Ok(expected(&batch, form)));
    }

    #[test]
    fn a_generated_batch_that_was_cut_or_changed_gives_an_answer(
        batch in batches(),
        form in forms(),
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = encode(&batch, form);
        let whole = bytes.len();
        let cut = cut.index(whole);
        prop_assert!(decode_batch(&bytes[..cut]).is_err() || form.extras || batch.dp_rank.is_none());
        for (at, byte) in changes {
            bytes[at.index(whole)] = byte;
        }
        let hasher = BlockHasher::new(HashMode::Xxh3, 2);
        drop(Feed::new().take(&hasher, 0, &bytes));
        all_decoders(&bytes);
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        all_decoders(&bytes);
        // The same bytes behind a valid head, so that the inner decoders see them.
        let mut framed = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x91".to_vec();
        framed.extend_from_slice(&bytes);
        all_decoders(&framed);
    }

    #[test]
    fn dynamos_events_come_back(events in prop::collection::vec(worker_events(), 0..5), publisher in any::<u64>(), sequence in any::<u64>()) {
        let frames = encode_dynamo(&events, publisher, sequence);
        let envelope = decode_frames(&frames).unwrap();
        prop_assert_eq!((envelope.publisher_id, envelope.sequence), (publisher, sequence));
        let decoded = decode_kv_events(&envelope.payload).unwrap();
        prop_assert_eq!(decoded, KvEvents { events, unreadable: 0 });
    }

    #[test]
    fn an_odd_event_among_dynamos_events_costs_only_itself(
        events in prop::collection::vec(worker_events(), 1..5),
        at in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        // One event with changed bytes stands in the middle of good events.
        let encoded: Vec<Vec<u8>> = events.iter().map(|event| rmp_serde::to_vec_named(&dynamo_value(event)).unwrap()).collect();
        let at = at.index(encoded.len());
        let mut odd = encoded[at].clone();
        for (place, byte) in changes {
            let whole = odd.len();
            odd[place.index(whole)] = byte;
        }
        let mut payload = vec![0x90 | (encoded.len() as u8 + 1)];
        encoded[..at].iter().for_each(|event| payload.extend(event));
        payload.extend(&odd);
        encoded[at..].iter().for_each(|event| payload.extend(event));
        let decoded = decode_kv_events(&payload);
        // A changed length lets the odd event reach into its neighbours; the rest of the batch then has no
        // certain borders.
        if rmp_serde::from_slice::<serde_json::Value>(&odd).is_ok_and(|value| rmp_serde::to_vec_named(&value).is_ok_and(|again| again.len() == odd.len())) {
            let decoded = decoded.unwrap();
            prop_assert!(decoded.events.len() + decoded.unreadable == events.len() + 1);
            prop_assert_eq!(&decoded.events[..at], &events[..at]);
        }
    }

    #[test]
    fn dumps_that_were_changed_give_an_answer(
        events in prop::collection::vec(worker_events(), 0..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
    ) {
        let list: Vec<_> = events.iter().map(dynamo_value).collect();
        let mut json = serde_json::to_vec(&list).unwrap();
        prop_assert_eq!(decode_dump(&String::from_utf8_lossy(&json)), Ok(events));
        for (at, byte) in changes {
            let whole = json.len();
            json[at.index(whole)] = byte;
        }
        drop(decode_dump(&String::from_utf8_lossy(&json)));
    }

    #[test]
    fn dynamos_frames_that_were_changed_give_an_answer(
        events in prop::collection::vec(worker_events(), 0..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut frames = encode_dynamo(&events, 1, 2);
        for (at, byte) in changes {
            let whole = frames[3].len();
            frames[3][at.index(whole)] = byte;
        }
        if let Ok(envelope) = decode_frames(&frames) {
            all_decoders(&envelope.payload);
        }
    }
}

/// A frame as `SGLang` 0.5 writes it: maps, with the salt in a field of its own, in every event of a chain.
#[test]
fn a_salt_in_a_field_of_its_own_goes_into_every_block() {
    let page = |name: u8, parent: &[u8], token: u8| {
        let mut event = b"\x87\xa4type\xabBlockStored\xacblock_hashes\x91".to_vec();
        event.push(name);
        event.extend_from_slice(b"\xb1parent_block_hash");
        event.extend_from_slice(parent);
        event.extend_from_slice(b"\xa9token_ids\x92");
        event.extend_from_slice(&[token, token + 1]);
        event.extend_from_slice(b"\xaablock_size\x02\xa7lora_id\xc0\xaacache_salt\xa4mine");
        event
    };
    let mut bytes = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x92".to_vec();
    bytes.extend(page(5, b"\xc0", 10));
    bytes.extend(page(6, b"\x05", 12));
    bytes.push(0);
    let hasher = BlockHasher::new(HashMode::Xxh3, 2);
    let taken = Feed::new().take(&hasher, 0, &bytes).unwrap();
    let scope = HashScope {
        lora_name: None,
        cache_namespace: Some("mine"),
    };
    let wanted = hasher.local_hashes(&[10, 11, 12, 13], &scope);
    let stored: Vec<LocalHash> = taken.changes.iter().flat_map(locals_of).collect();
    assert_eq!(stored, wanted);
}

fn locals_of(change: &CacheChange) -> Vec<LocalHash> {
    match change {
        CacheChange::Event(KvEvent::Stored { blocks, .. }) => {
            blocks.iter().map(|block| block.local_hash).collect()
        }
        CacheChange::Event(_) | CacheChange::Copied { .. } => vec![],
    }
}

/// With EAGLE, `SGLang` writes pairs (token, next token).
#[test]
fn a_pair_of_tokens_decodes_to_its_first_token() {
    let bytes = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x91\x95\xabBlockStored\x91\x07\xc0\x92\x92\x01\x02\x92\x02\x03\x02\xc0";
    let batch = decode_batch(bytes).unwrap();
    let Event::Stored(stored) = &batch.events[0] else {
        panic!("it stores");
    };
    assert_eq!(stored.tokens, [1, 2]);
    let triple =
        b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x91\x95\xabBlockStored\x91\x07\xc0\x91\x93\x01\x02\x03\x01\xc0";
    let events = decode_batch(triple).unwrap().events;
    assert!(matches!(events[..], [Event::Unusable(_)]), "{events:?}");
}

#[test]
fn fuzz_of_changed_frames() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut sample = |strategy: &BoxedStrategy<Vec<u8>>| strategy.new_tree(&mut runner).unwrap().current();
    let engine = (batches(), forms())
        .prop_map(|(batch, form)| encode(&batch, form))
        .boxed();
    let dynamo = prop::collection::vec(worker_events(), 1..4)
        .prop_map(|events| encode_dynamo(&events, 1, 2).pop().unwrap())
        .boxed();
    let mut examples: Vec<Vec<u8>> = Vec::new();
    for _ in 0..100 {
        examples.push(sample(&engine));
        let body = sample(&dynamo);
        examples.push(body[5..].to_vec());
        examples.push(body);
    }
    let dump = serde_json::json!([{"worker_id": 1, "event": {"event_id": 1, "dp_rank": 0, "data": {"stored": {"parent_hash": null,
        "blocks": [{"block_hash": 1, "tokens_hash": 2}]}}}}]);
    examples.push(dump.to_string().into_bytes());
    wardrop_mutation::run("engine frames", &examples, |input, _| all_decoders(input));
}
