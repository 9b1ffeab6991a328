//! Hashes against values that `dynamo.llm.compute_block_hash_for_seq` 1.6.1 gave.
//! Random inputs are compared with Dynamo itself in `tests/router/test_hashes.py`.

use wardrop_core::{HashScope, local_hashes, sequence_hashes};

/// (adapter, namespace, block size, the first two local hashes of [`prompt`])
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
