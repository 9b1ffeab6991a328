//! Hashes against values of `dynamo.llm.compute_block_hash_for_seq` 1.6.1. `tests/router/test_hashes.py`
//! compares random inputs with Dynamo itself.

use proptest::prelude::*;
use wardrop_core::{BlockHasher, HashKey, HashMode, HashScope, PromptHashes, local_hashes, sequence_hashes};

/// Adapter, namespace, block size, and the first two local hashes of [`prompt`].
type Golden = (Option<&'static str>, Option<&'static str>, u32, [u64; 2]);

const GOLDEN: &[Golden] = &[
    (None, None, 1, [0x8020_bf96_9d17_68ca, 0x35c4_7146_9985_525e]),
    (None, None, 16, [0x782a_bbf7_08a3_6f38, 0x1468_b0fe_3067_8a2b]),
    (None, None, 61, [0x5dad_3f8f_304f_8990, 0x61a7_83ed_d5b1_d0e5]),
    (None, None, 64, [0x68b8_3912_1370_7804, 0xc864_a788_83d0_5b0b]),
    (
        Some("adapter-a"),
        None,
        16,
        [0xd5ee_7cf6_72cb_c329, 0x851c_4e07_56a6_d989],
    ),
    (
        Some("adapter-a"),
        None,
        64,
        [0xdb73_e711_a55a_3bbd, 0x37b5_7044_e3f9_a1f5],
    ),
    (
        None,
        Some("tenant"),
        16,
        [0xf528_a997_f897_9848, 0xdebb_ca41_4f5d_cbef],
    ),
    (
        None,
        Some("tenant"),
        61,
        [0x3e45_9956_f8c4_2de1, 0x30fb_db0d_d3cf_4704],
    ),
    (
        Some("adapter-a"),
        Some("tenant"),
        16,
        [0x64f4_d515_0bad_1932, 0xc5f4_d672_b6f8_a653],
    ),
    (
        Some(""),
        Some(""),
        16,
        [0x782a_bbf7_08a3_6f38, 0x1468_b0fe_3067_8a2b],
    ),
];

fn prompt() -> Vec<u32> {
    (0..256).map(|i| (i * 31) % 8000 + 3).collect()
}

#[test]
fn local_hashes_equal_dynamos() {
    for &(lora_name, cache_namespace, block_size, expected) in GOLDEN {
        let hashes = local_hashes(
            &prompt(),
            block_size,
            &HashScope {
                lora_name,
                cache_namespace,
            },
        );
        assert_eq!(
            [hashes[0].0, hashes[1].0],
            expected,
            "block size {block_size}, {lora_name:?}, {cache_namespace:?}"
        );
        assert_eq!(hashes.len(), 256 / block_size as usize);
    }
}

#[test]
fn the_first_sequence_hash_is_the_local_hash() {
    let locals = local_hashes(&prompt(), 16, &HashScope::default());
    let chain = sequence_hashes(&locals);
    assert_eq!(chain[0].0, locals[0].0);
    assert_eq!(chain.len(), 16);
}

#[test]
fn a_sequence_hash_depends_on_every_block_before_it() {
    let locals = local_hashes(&prompt(), 16, &HashScope::default());
    let mut swapped = locals.clone();
    swapped.swap(0, 1);
    assert_eq!(sequence_hashes(&locals[..3])[2], sequence_hashes(&locals)[2]);
    assert_ne!(sequence_hashes(&swapped)[2], sequence_hashes(&locals)[2]);
}

#[test]
fn a_partial_block_has_no_hash() {
    assert!(local_hashes(&[1, 2, 3], 4, &HashScope::default()).is_empty());
    assert!(local_hashes(&[1, 2, 3], 0, &HashScope::default()).is_empty());
}

fn keyed(byte: u8, block_size: u32) -> BlockHasher {
    BlockHasher::new(HashMode::Keyed(HashKey::new([byte; 16])), block_size)
}

#[test]
fn a_keyed_hash_depends_on_key_scope_and_every_token() {
    for block_size in [1, 2, 3, 4, 5, 15, 16, 17, 64, 128] {
        let hasher = keyed(7, block_size);
        let block: Vec<u32> = prompt().into_iter().cycle().take(block_size as usize).collect();
        let hash = |tokens: &[u32], scope: HashScope<'_>| hasher.local_hashes(tokens, &scope)[0];
        let plain = hash(&block, HashScope::default());
        let mut seen = vec![
            plain,
            keyed(8, block_size).local_hashes(&block, &HashScope::default())[0],
        ];
        let scope = |lora_name, cache_namespace| HashScope {
            lora_name,
            cache_namespace,
        };
        seen.push(hash(&block, scope(Some("ab"), Some("c"))));
        seen.push(hash(&block, scope(Some("a"), Some("bc"))));
        seen.push(hash(&block, scope(None, Some("abc"))));
        seen.push(hash(&block, scope(Some("abc"), None)));
        for at in 0..block.len() {
            for bit in [0, 13, 31] {
                let mut other = block.clone();
                other[at] ^= 1 << bit;
                seen.push(hash(&other, HashScope::default()));
            }
        }
        let wanted = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), wanted, "block size {block_size}");
        assert_eq!(hash(&block, HashScope::default()), plain);
        assert_eq!(
            hash(&block, scope(Some(""), Some(""))),
            plain,
            "an empty name counts as no name"
        );
    }
}

#[test]
fn keyed_hashes_of_structured_blocks_do_not_collide() {
    // Blocks that differ in one low word, the worst input for a weak multiplication.
    let hasher = keyed(1, 16).scoped(&HashScope::default());
    let mut hashes = Vec::new();
    for word in 0..16 {
        for value in 1..20_000u32 {
            let mut block = [0u32; 16];
            block[word] = value;
            hasher.locals_into(&block, &mut hashes);
        }
    }
    let made = hashes.len();
    let ones: u32 = hashes.iter().map(|hash| hash.0.count_ones()).sum();
    let mean = f64::from(ones) / made as f64;
    assert!((31.9..32.1).contains(&mean), "{mean} of 64 bits set");
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), made);
}

#[test]
fn no_output_shows_a_key() {
    let key = HashKey::new(*b"very secret key!");
    let config = wardrop_core::RouterConfig::new(16).with_hash(HashMode::Keyed(key.clone()));
    let text = format!("{key:?} {config:?}");
    assert!(text.contains("HashKey(secret)"));
    assert!(!text.contains("118") && !text.contains("very"), "{text}");
    assert_ne!(key.fingerprint(), HashKey::new([0; 16]).fingerprint());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn a_prompt_hashed_in_parts_equals_the_prompt_hashed_at_once(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 0..70), 0..12),
        block_size in prop_oneof![Just(1u32), Just(3), Just(16), Just(64)],
        with_key in any::<bool>(),
        lora_name in prop_oneof![Just(None), Just(Some("adapter"))],
    ) {
        let hasher = if with_key { keyed(3, block_size) } else { BlockHasher::new(HashMode::Xxh3, block_size) };
        let scope = HashScope { lora_name, cache_namespace: None };
        let mut grown = PromptHashes::new(&hasher, &scope);
        for part in &parts {
            grown.extend(part);
        }
        let tokens: Vec<u32> = parts.concat();
        let locals = hasher.local_hashes(&tokens, &scope);
        prop_assert_eq!(grown.tokens(), tokens.len());
        prop_assert_eq!(grown.sequence(), &sequence_hashes(&locals)[..]);
        prop_assert_eq!(grown.locals(), &locals[..]);
        if !with_key {
            prop_assert_eq!(locals, local_hashes(&tokens, block_size, &scope));
        }
    }
}
