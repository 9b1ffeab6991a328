//! Frames generated from a description, in every form that engines write, with the description that they
//! should decode to.

use proptest::prelude::*;
use rmp::encode as pack;
use wardrop_core::{EngineHash, Tier};
use wardrop_engines::{Adapter, Batch, Event, GroupKind, Stored};

/// Form of a frame.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "four independent choices")]
pub struct Form {
    /// Events as maps tagged `type`; otherwise as arrays with the tag first.
    pub maps: bool,
    /// Engine hashes as 32 bytes; otherwise as 64-bit numbers.
    pub long_names: bool,
    /// Numbers of 2⁶³ and above as signed numbers.
    pub signed: bool,
    /// Adds unknown fields.
    pub extras: bool,
}

/// Any form.
pub fn forms() -> impl Strategy<Value = Form> {
    any::<[bool; 4]>().prop_map(|[maps, long_names, signed, extras]| Form {
        maps,
        long_names,
        signed,
        extras,
    })
}

/// Any batch.
pub fn batches() -> impl Strategy<Value = Batch> {
    let events = prop::collection::vec(events(), 0..6);
    (0.0..1e9, prop::option::of(0u32..100), events).prop_map(|(at_s, dp_rank, events)| Batch {
        at_s: Some(at_s),
        dp_rank,
        events,
    })
}

fn tiers() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Device), Just(Tier::Host), Just(Tier::Disk)]
}

fn names() -> impl Strategy<Value = Vec<EngineHash>> {
    prop::collection::vec(any::<u64>().prop_map(EngineHash), 0..5)
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => stored(),
        2 => (names(), tiers(), 0u64..3).prop_map(|(hashes, tier, group)| Event::Removed { hashes, tier, group }),
        1 => Just(Event::Cleared),
        1 => Just(Event::Other),
    ]
}

fn stored() -> impl Strategy<Value = Event> {
    let adapter = prop_oneof![
        2 => Just(Adapter::Base),
        1 => "[a-z]{1,8}".prop_map(Adapter::Named),
        1 => Just(Adapter::Numbered),
    ];
    let kinds = prop_oneof![
        Just(GroupKind::Unnamed),
        Just(GroupKind::Attention),
        Just(GroupKind::Other)
    ];
    let parent = prop::option::of(any::<u64>().prop_map(EngineHash));
    (
        names(),
        parent,
        1u32..5,
        any::<u32>(),
        adapter,
        (tiers(), kinds),
        0u64..3,
    )
        .prop_map(
            |(hashes, parent, block_size, seed, adapter, (tier, kind), group)| {
                let tokens = 0..hashes.len() as u32 * block_size;
                Event::Stored(Box::new(Stored {
                    // The decoder drops the tokens of other kinds of groups.
                    tokens: if kind == GroupKind::Other {
                        Vec::new()
                    } else {
                        tokens.map(|at| seed.wrapping_mul(2 * at + 1)).collect()
                    },
                    hashes,
                    parent,
                    block_size,
                    adapter,
                    tier,
                    group,
                    kind,
                    ..Stored::default()
                }))
            },
        )
}

/// Bytes of a batch in a form. Engine hashes of 32 bytes are hashed by the decoder; [`name_of`] gives the
/// result.
pub fn encode(batch: &Batch, form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    pack::write_array_len(&mut out, 3 + u32::from(form.extras)).unwrap();
    pack::write_f64(&mut out, batch.at_s.expect("generated batches have a time")).unwrap();
    pack::write_array_len(&mut out, batch.events.len() as u32).unwrap();
    for event in &batch.events {
        encode_event(&mut out, event, form);
    }
    match batch.dp_rank {
        Some(rank) => write_number(&mut out, u64::from(rank)),
        None => pack::write_nil(&mut out).unwrap(),
    }
    if form.extras {
        junk(&mut out);
    }
    out
}

/// Engine hash that a name decodes to.
pub fn name_of(name: EngineHash, form: Form) -> EngineHash {
    if form.long_names {
        EngineHash(xxhash_rust::xxh3::xxh3_64(&long(name)))
    } else {
        name
    }
}

fn long(name: EngineHash) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&name.0.rotate_left(at as u32).to_le_bytes());
    }
    bytes
}

fn write_name(out: &mut Vec<u8>, name: EngineHash, form: Form) {
    if form.long_names {
        pack::write_bin(out, &long(name)).unwrap();
    } else if form.signed {
        pack::write_sint(out, name.0.cast_signed()).unwrap();
    } else {
        pack::write_uint(out, name.0).unwrap();
    }
}

/// A map in a map, floats and text, which the decoder must skip.
fn junk(out: &mut Vec<u8>) {
    pack::write_map_len(out, 2).unwrap();
    pack::write_str(out, "inner").unwrap();
    pack::write_array_len(out, 3).unwrap();
    pack::write_f32(out, 0.5).unwrap();
    pack::write_bool(out, true).unwrap();
    pack::write_ext_meta(out, 2, 7).unwrap();
    out.extend_from_slice(&[1, 2]);
    pack::write_str(out, "other").unwrap();
    pack::write_nil(out).unwrap();
}

const fn medium(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "GPU",
        Tier::Host => "CPU_PINNED",
        Tier::Disk => "DISK",
    }
}

/// Fields in the order of the array form; a closure writes each of them.
type Field<'a> = (&'static str, Box<dyn Fn(&mut Vec<u8>) + 'a>);

fn encode_event(out: &mut Vec<u8>, event: &Event, form: Form) {
    let (tag, fields): (&str, Vec<Field<'_>>) = match event {
        Event::Stored(stored) => ("BlockStored", stored_fields(stored, form)),
        Event::Removed { hashes, tier, group } => {
            ("BlockRemoved", removed_fields(hashes, *tier, *group, form))
        }
        Event::Cleared => ("AllBlocksCleared", vec![]),
        Event::Other | Event::Unusable(_) => ("BlockDreamt", vec![("dream", Box::new(junk))]),
    };
    let extras = u32::from(form.extras);
    let known = fields.len() as u32 + 1;
    if form.maps {
        pack::write_map_len(out, known + extras).unwrap();
        // The tag need not come first.
        let (early, late) = fields.split_at(fields.len() / 2);
        for field in early {
            write_field(out, field);
        }
        pack::write_str(out, "type").unwrap();
        pack::write_str(out, tag).unwrap();
        for field in late {
            write_field(out, field);
        }
        if form.extras {
            pack::write_str(out, "new_in_some_version").unwrap();
            junk(out);
        }
    } else {
        pack::write_array_len(out, known + extras).unwrap();
        pack::write_str(out, tag).unwrap();
        for (_, write) in &fields {
            write(out);
        }
        (0..extras).for_each(|_| junk(out));
    }
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    pack::write_uint(out, number).unwrap();
}

fn write_field(out: &mut Vec<u8>, (name, write): &Field<'_>) {
    pack::write_str(out, name).unwrap();
    write(out);
}

fn write_names(out: &mut Vec<u8>, names: &[EngineHash], form: Form) {
    pack::write_array_len(out, names.len() as u32).unwrap();
    for &name in names {
        write_name(out, name, form);
    }
}

fn stored_fields(stored: &Stored, form: Form) -> Vec<Field<'_>> {
    let text = |out: &mut Vec<u8>, text: Option<&str>| match text {
        Some(text) => pack::write_str(out, text).unwrap(),
        None => pack::write_nil(out).unwrap(),
    };
    vec![
        (
            "block_hashes",
            Box::new(move |out| write_names(out, &stored.hashes, form)),
        ),
        (
            "parent_block_hash",
            Box::new(move |out| match stored.parent {
                Some(parent) => write_name(out, parent, form),
                None => pack::write_nil(out).unwrap(),
            }),
        ),
        (
            "token_ids",
            Box::new(|out| {
                pack::write_array_len(out, stored.tokens.len() as u32).unwrap();
                for &token in &stored.tokens {
                    pack::write_uint(out, u64::from(token)).unwrap();
                }
            }),
        ),
        (
            "block_size",
            Box::new(|out| write_number(out, u64::from(stored.block_size))),
        ),
        (
            "lora_id",
            Box::new(|out| match stored.adapter {
                Adapter::Base => pack::write_nil(out).unwrap(),
                Adapter::Named(_) | Adapter::Numbered => write_number(out, 3),
            }),
        ),
        (
            "medium",
            Box::new(move |out| text(out, Some(medium(stored.tier)))),
        ),
        (
            "lora_name",
            Box::new(move |out| match &stored.adapter {
                Adapter::Named(name) => text(out, Some(name)),
                Adapter::Base | Adapter::Numbered => text(out, None),
            }),
        ),
        ("extra_keys", Box::new(|out| pack::write_nil(out).unwrap())),
        ("group_idx", Box::new(|out| write_number(out, stored.group))),
        (
            "kv_cache_spec_kind",
            Box::new(move |out| match stored.kind {
                GroupKind::Unnamed => text(out, None),
                GroupKind::Attention => text(out, Some("mla_attention")),
                GroupKind::Other => text(out, Some("sliding_window")),
            }),
        ),
    ]
}

fn removed_fields(names: &[EngineHash], tier: Tier, group: u64, form: Form) -> Vec<Field<'_>> {
    vec![
        ("block_hashes", Box::new(move |out| write_names(out, names, form))),
        (
            "medium",
            Box::new(move |out| pack::write_str(out, medium(tier)).unwrap()),
        ),
        ("group_idx", Box::new(move |out| write_number(out, group))),
    ]
}
