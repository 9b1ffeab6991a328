//! Memory of a decoder, measured by a counting allocator: a small multiple of the frame, regardless of
//! announced lengths.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use wardrop_engines::dynamo::{decode_frames, decode_kv_events};
use wardrop_engines::{FRAME_BYTES_MAX, decode_batch};

/// Allocator that counts the live bytes of each thread and their peak.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.with(|live| {
        live.set(live.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system's allocator; the counters are cells of the thread and allocate
// nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Peak of `work` above its start, bytes.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> usize {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    drop(work());
    (PEAK.with(Cell::get) - before).cast_unsigned()
}

/// Bytes that a decoder may allocate for a frame. The worst case is an event of one byte.
const fn allowance(frame: usize) -> usize {
    4096 + 64 * frame
}

fn check(bytes: &[u8]) {
    for (name, peak) in [
        ("batch", peak_bytes(|| decode_batch(bytes))),
        ("events", peak_bytes(|| decode_kv_events(bytes))),
    ] {
        assert!(
            peak <= allowance(bytes.len()),
            "{name}: {peak} bytes for a frame of {}",
            bytes.len()
        );
    }
    let mut body = vec![1];
    body.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    body.extend_from_slice(bytes);
    let frames = [&[], &[0; 8][..], &[0; 8][..], &body];
    let peak = peak_bytes(|| decode_frames(&frames));
    assert!(
        peak <= allowance(bytes.len()),
        "frames: {peak} bytes for a frame of {}",
        bytes.len()
    );
}

const HEAD: &[u8] = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0";

/// A frame of the largest size: `head`, then an array of `fill` bytes as long as the rest.
fn giant(head: &[u8], fill: u8) -> Vec<u8> {
    let mut bytes = head.to_vec();
    let rest = FRAME_BYTES_MAX - head.len() - 5;
    bytes.push(0xdd);
    bytes.extend_from_slice(&(rest as u32).to_be_bytes());
    bytes.resize(FRAME_BYTES_MAX, fill);
    bytes
}

#[test]
fn the_largest_frames_of_the_smallest_values_take_a_small_multiple_of_their_size() {
    let stored = [HEAD, b"\x91\x81\xacblock_hashes"].concat();
    let tokens = [HEAD, b"\x91\x81\xa9token_ids"].concat();
    let extra = [HEAD, b"\x91\x81\xaaextra_keys"].concat();
    for (head, fill) in [
        (HEAD, 0x80),
        (HEAD, 0x90),
        (HEAD, 0xc0),
        (&stored[..], 7),
        (&tokens[..], 7),
        (&extra[..], 0xc0),
        (&extra[..], 0x91),
        (&[][..], 0x80),
        (&[][..], 0x93),
    ] {
        let bytes = giant(head, fill);
        for (name, peak) in [
            ("batch", peak_bytes(|| decode_batch(&bytes))),
            ("events", peak_bytes(|| decode_kv_events(&bytes))),
        ] {
            assert!(
                peak <= 8 * FRAME_BYTES_MAX,
                "{name}: {peak} bytes for {fill:#x} behind {} bytes",
                head.len()
            );
        }
    }
}

#[test]
fn a_frame_above_the_limit_is_refused_before_anything_is_allocated() {
    let bytes = vec![0x90; FRAME_BYTES_MAX + 1];
    assert_eq!(peak_bytes(|| assert!(decode_batch(&bytes).is_err())), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]
    #[test]
    fn any_bytes_take_a_small_multiple_of_them(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        lie in prop::array::uniform4(any::<u8>()),
    ) {
        check(&bytes);
        check(&[HEAD, &[0xdd][..], &lie, &bytes].concat());
        check(&[&[0xdd][..], &lie, &bytes].concat());
        check(&[HEAD, b"\x91\x81\xacblock_hashes\xdd", &lie[..], &bytes].concat());
    }
}
