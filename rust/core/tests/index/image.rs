//! Saved indexes: a restored index equals the saved one, and damaged or forged bytes are refused without
//! harm.

use proptest::prelude::*;
use wardrop_core::KvEvent;
use wardrop_core::index::{ImageError, Index, Prompt};
use xxhash_rust::xxh3::xxh3_64;

use crate::stream::{SLOTS, SLOTS_LEN, Step, Stream};
use crate::workers::{empty_index, worker_of};

const HASHING: u64 = 16;
const HEADER_BYTES: usize = 36;

fn step(index: &Index, what: &Step) -> Option<Result<(), wardrop_core::index::Refusal>> {
    match what {
        Step::Event(slot, event) => Some(index.apply(*slot, event)),
        Step::Leave(slot) => {
            index.remove_worker(*slot);
            None
        }
    }
}

fn filled(seed: u64, steps: usize) -> (Stream, Index) {
    let (mut stream, index) = (Stream::new(seed), empty_index());
    for _ in 0..steps {
        let what = stream.step();
        step(&index, &what);
    }
    (stream, index)
}

/// The image with a correct checksum, for damage that a checksum would hide.
fn sealed(mut image: Vec<u8>) -> Vec<u8> {
    if image.len() >= HEADER_BYTES {
        let (length, checksum) = (
            (image.len() - HEADER_BYTES) as u64,
            xxh3_64(&image[HEADER_BYTES..]),
        );
        image[20..28].copy_from_slice(&length.to_le_bytes());
        image[28..36].copy_from_slice(&checksum.to_le_bytes());
    }
    image
}

#[test]
fn a_restored_index_answers_and_changes_like_the_saved_one() {
    for seed in 0..300 {
        let (mut stream, saved) = filled(seed, 40);
        let image = saved.image(HASHING, |worker| Some(worker.instance + 1));
        let restored = empty_index();
        let found = restored.restore(&image, HASHING).unwrap();
        restored.check();
        assert_eq!(found.len(), SLOTS.len());
        for (worker, slot) in found.iter().zip(SLOTS) {
            assert_eq!(
                (worker.worker, worker.position),
                (worker_of(slot), Some(u64::from(slot.0) + 1))
            );
            assert_eq!(worker.blocks, saved.held_blocks(slot));
        }
        assert_eq!(restored.blocks(), saved.blocks(), "seed {seed}");
        assert_eq!(
            restored.image(HASHING, |worker| Some(worker.instance + 1)).len(),
            image.len()
        );
        for _ in 0..40 {
            let what = stream.step();
            assert_eq!(
                step(&restored, &what),
                step(&saved, &what),
                "seed {seed}: {what:?}"
            );
            let (locals, sequence) = stream.question();
            let prompt = Prompt { locals, sequence };
            assert_eq!(
                restored.find_matches(&prompt, SLOTS_LEN),
                saved.find_matches(&prompt, SLOTS_LEN),
                "seed {seed}: {what:?}"
            );
        }
        restored.check();
    }
}

#[test]
fn workers_that_are_not_registered_are_left_out() {
    let (mut stream, saved) = filled(3, 60);
    let image = saved.image(HASHING, |_| None);
    let restored = Index::new(1 << 20);
    restored.register(worker_of(SLOTS[0]), SLOTS[0]);
    let found = restored.restore(&image, HASHING).unwrap();
    restored.check();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].blocks, found[0].position),
        (saved.held_blocks(SLOTS[0]), None)
    );
    let (locals, sequence) = stream.question();
    let prompt = Prompt { locals, sequence };
    assert_eq!(
        restored.find_matches(&prompt, 1),
        saved.find_matches(&prompt, SLOTS_LEN)[..1]
    );
    restored.apply(SLOTS[0], &KvEvent::Cleared).unwrap();
    assert_eq!(restored.blocks(), 0);
}

#[test]
fn an_image_that_cannot_be_restored_is_refused_with_its_reason() {
    let (_, saved) = filled(5, 60);
    let image = saved.image(HASHING, |_| None);
    let refused = |image: &[u8], hashing| {
        let index = empty_index();
        let error = index.restore(image, hashing).unwrap_err();
        assert_eq!(index.blocks(), 0);
        error
    };
    assert_eq!(
        refused(b"something else, longer than any header", HASHING),
        ImageError::Magic
    );
    assert_eq!(refused(&image, HASHING + 1), ImageError::Hashing);
    assert!(matches!(
        refused(&image[..image.len() - 1], HASHING),
        ImageError::Length { .. }
    ));
    assert!(matches!(
        refused(&image[..20], HASHING),
        ImageError::Length { .. }
    ));
    let mut newer = image.clone();
    newer[8] = 9;
    assert_eq!(refused(&newer, HASHING), ImageError::Version { got: 9 });
    let mut damaged = image.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&damaged, HASHING), ImageError::Checksum);
    assert!(matches!(
        saved.restore(&image, HASHING),
        Err(ImageError::NotEmpty { .. })
    ));
    let small = Index::new(1);
    small.register(worker_of(SLOTS[0]), SLOTS[0]);
    assert_eq!(small.restore(&image, HASHING), Err(ImageError::Full));
    assert_eq!(small.blocks(), 0);
}

#[test]
fn a_count_beyond_the_bytes_allocates_nothing() {
    for at in [HEADER_BYTES, HEADER_BYTES + 4] {
        let mut image = vec![0; at];
        image[..8].copy_from_slice(b"wdindex\0");
        image[8..12].copy_from_slice(&1u32.to_le_bytes());
        image[12..20].copy_from_slice(&HASHING.to_le_bytes());
        image.extend([0xFF; 30]);
        assert!(matches!(
            empty_index().restore(&sealed(image), HASHING),
            Err(ImageError::Broken { .. })
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damage_is_refused_or_harmless(
        seed in 0u64..40,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut stream, saved) = filled(seed, 30);
        let mut image = saved.image(HASHING, |_| None);
        for (at, value) in changes {
            let at = HEADER_BYTES + at.index(image.len() - HEADER_BYTES);
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let restored = empty_index();
        let outcome = restored.restore(&sealed(image), HASHING);
        restored.check();
        prop_assert!(outcome.is_ok() || restored.blocks() == 0);
        for _ in 0..20 {
            let what = stream.step();
            step(&restored, &what);
        }
        restored.check();
        for slot in SLOTS {
            restored.remove_worker(slot);
        }
        prop_assert_eq!(restored.blocks(), 0);
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_header: bool) {
        let mut image = bytes;
        if with_header && image.len() >= HEADER_BYTES {
            image[..8].copy_from_slice(b"wdindex\0");
            image[8..12].copy_from_slice(&1u32.to_le_bytes());
            image[12..20].copy_from_slice(&HASHING.to_le_bytes());
            image = sealed(image);
        }
        let index = empty_index();
        let _ = index.restore(&image, HASHING);
        index.check();
    }
}

#[test]
fn fuzz_of_images() {
    let images: Vec<Vec<u8>> = (0..20)
        .map(|seed| {
            let (_, index) = filled(seed, 12);
            index.image(HASHING, |worker| Some(worker.instance + 1))
        })
        .filter(|image| image.len() < 4_000)
        .collect();
    let index = empty_index();
    wardrop_mutation::run("saved indexes", &images, |input, _| {
        let mut whole = input.to_vec();
        // Most changes are in the body; a broken head would hide the others.
        let head = images[0].len().min(20).min(whole.len());
        whole[..head].copy_from_slice(&images[0][..head]);
        if index.restore(&sealed(whole), HASHING).is_ok() {
            index.check();
            for slot in SLOTS {
                index.remove_worker(slot);
                index.register(worker_of(slot), slot);
            }
        }
        assert_eq!(index.blocks(), 0, "an index that was refused is empty");
    });
}
