//! Differential fuzzing of the index: `make fuzz`, or `FUZZ_SEEDS=… cargo test --test fuzz -- --ignored
//! --nocapture`.
//!
//! Runs `FUZZ_SEEDS` streams (default 100,000) from seed `FUZZ_FROM` (default 1,000,000) on, over all cores.
//! A failure prints its seed; `FUZZ_SEEDS=1 FUZZ_FROM=seed` runs that stream alone.

#[path = "index/differential.rs"]
mod differential;
#[path = "index/stream.rs"]
mod stream;

use std::sync::atomic::{AtomicU64, Ordering};

use wardrop_core::index::Index;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("must be a number"))
}

#[test]
#[ignore = "minutes: run by `make fuzz`"]
fn the_index_answers_like_the_reference_for_many_seeds() {
    let (from, seeds) = (setting("FUZZ_FROM", 1_000_000), setting("FUZZ_SEEDS", 100_000));
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= seeds {
                return;
            }
            let seed = from + at;
            let plain = differential::differential(seed, 60, &mut Index::new(u64::MAX));
            let restored = if seed.is_multiple_of(8) {
                differential::differential(seed, 60, &mut differential::Restarting::new())
            } else {
                Ok(())
            };
            if let Err(difference) = plain.and(restored) {
                panic!("seed {seed}: {difference}");
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    println!(
        "{seeds} streams of 60 steps agree, from seed {from} on, {} of them through restarts, too",
        (from..from + seeds).filter(|seed| seed.is_multiple_of(8)).count()
    );
}
