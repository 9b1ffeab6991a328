//! Blocks per second from vLLM's event frames into the index, without Python. Prints JSON.
//!
//! `cargo bench -p wardrop-engines --bench frames -- [BLOCKS_PER_FRAME] [BLOCKS]`, by default 1 and 1,000,000.
//! 32 conversations of 512 blocks each grow in turns, frame by frame, as an engine writes them while it decodes.

use wardrop_core::{BlockHasher, HashMode, Router, RouterConfig, WorkerId, WorkerSpec};
use wardrop_engines::Feed;

const BLOCK_SIZE: usize = 16;
const DEPTH: u64 = 512;
const CONVERSATIONS: u64 = 32;

/// Processor seconds of this process, in steps of 10 ms. Unlike wall time, other processes do not add to it.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// A frame in vLLM's array form that stores blocks `from..to` of conversation `of`.
fn frame(of: u64, from: u64, to: u64) -> Vec<u8> {
    let name = |at: u64| of * 1_000_003 + at + 1;
    let mut bytes = Vec::new();
    let written = "writing to memory succeeds";
    rmp::encode::write_array_len(&mut bytes, 3).expect(written);
    rmp::encode::write_f64(&mut bytes, 1.5).expect(written);
    rmp::encode::write_array_len(&mut bytes, 1).expect(written);
    rmp::encode::write_array_len(&mut bytes, 7).expect(written);
    rmp::encode::write_str(&mut bytes, "BlockStored").expect(written);
    rmp::encode::write_array_len(&mut bytes, (to - from) as u32).expect(written);
    for at in from..to {
        rmp::encode::write_uint(&mut bytes, name(at).wrapping_mul(0x9E37_79B9_7F4A_7C15)).expect(written);
    }
    match from.checked_sub(1) {
        Some(parent) => drop(rmp::encode::write_uint(
            &mut bytes,
            name(parent).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        )),
        None => rmp::encode::write_nil(&mut bytes).expect(written),
    }
    let tokens = (to - from) * BLOCK_SIZE as u64;
    rmp::encode::write_array_len(&mut bytes, tokens as u32).expect(written);
    for at in 0..tokens {
        let token = (name(from) * 31 + at * 7) % 100_000;
        rmp::encode::write_uint(&mut bytes, token).expect(written);
    }
    rmp::encode::write_uint(&mut bytes, BLOCK_SIZE as u64).expect(written);
    rmp::encode::write_nil(&mut bytes).expect(written);
    rmp::encode::write_str(&mut bytes, "GPU").expect(written);
    rmp::encode::write_uint(&mut bytes, 0).expect(written);
    bytes
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench") // `cargo bench` adds it
        .map(|text| text.parse().expect("must be a number"));
    let (per_frame, blocks) = (
        arguments.next().unwrap_or(1).clamp(1, DEPTH),
        arguments.next().unwrap_or(1_000_000),
    );
    let router = Router::new(RouterConfig::new(BLOCK_SIZE as u32)).expect("the defaults are valid");
    let worker = WorkerId::new(1, 0);
    router
        .add_worker(worker, WorkerSpec::default())
        .expect("ids are distinct");
    let hasher = BlockHasher::new(HashMode::Xxh3, BLOCK_SIZE as u32);
    // All frames exist before the clock starts, because the clock ticks only every 10 ms.
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for first in (0..blocks / DEPTH).step_by(CONVERSATIONS as usize) {
        for from in (0..DEPTH).step_by(per_frame as usize) {
            let turn = first..first + CONVERSATIONS;
            frames.extend(turn.map(|of| frame(of, from, (from + per_frame).min(DEPTH))));
        }
    }
    let mut feed = Feed::new();
    let start = processor_s();
    for (sequence, payload) in (0..).zip(&frames) {
        let taken = feed.take(&hasher, sequence, payload).expect("the frame is valid");
        for change in &taken.changes {
            change.apply(&router, worker).expect("the parent is held");
        }
    }
    let seconds = processor_s() - start;
    let stored = router.snapshot().index.holdings;
    println!(
        "{{\"blocks_per_frame\": {per_frame}, \"blocks\": {stored}, \"blocks_per_cpu_s\": {:.0}}}",
        stored as f64 / seconds
    );
}
