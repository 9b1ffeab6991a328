//! Tests of the time for which bulk changes keep decisions from the pool's lock.
//!
//! The lock is taken again and again while blocks are loaded, cleared or removed. Its longest wait is compared with the whole
//! change, because a wait in milliseconds says nothing on a busy machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wardrop_core::{EngineHash, KvEvent, LocalHash, RouterConfig, StoredBlock, Tier, WorkerId};
use wardrop_engines::dynamo::WorkerEvent;

use super::bulk::slices;
use super::{HealthOptions, Role, TrustOptions, WorkerPool, WorkerUpsert};

const BLOCKS: u64 = 400_000;

fn pool() -> WorkerPool {
    let options = HealthOptions {
        silence_s: 1e6,
        quarantine_s: 1.0,
        trust: TrustOptions::new(1e6),
    };
    let pool =
        WorkerPool::new(Arc::from("m"), Role::Aggregated, RouterConfig::new(16), options).expect("a pool");
    let worker = WorkerUpsert {
        model: "m".into(),
        role: Role::Aggregated,
        instance: 1,
        dp_start: 0,
        dp_size: 1,
        total_kv_blocks: None,
        max_num_seqs: None,
        max_num_batched_tokens: None,
    };
    pool.upsert(&worker).expect("a worker");
    pool
}

/// One chain of blocks, as a dump reports it.
fn dump() -> Vec<WorkerEvent> {
    let blocks = (1..=BLOCKS).map(|name| StoredBlock {
        engine_hash: EngineHash(name),
        local_hash: LocalHash(name),
    });
    vec![WorkerEvent {
        worker: WorkerId::new(1, 0),
        event_id: BLOCKS,
        event: Some(KvEvent::Stored {
            parent: None,
            blocks: blocks.collect(),
            tier: Tier::Device,
        }),
    }]
}

/// The time of a change, and the longest wait for the pool's lock beside it.
fn longest_wait(pool: &WorkerPool, change: impl FnOnce()) -> (Duration, Duration) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                drop(pool.state.lock());
                longest = longest.max(asked.elapsed());
                std::thread::sleep(Duration::from_micros(50));
            }
            longest
        });
        let started = Instant::now();
        change();
        let whole = started.elapsed();
        is_over.store(true, Ordering::Relaxed);
        (whole, watching.join().expect("the watcher ends"))
    })
}

/// The usual time of one hold of the lock, by its median: a thread that loses its processor inside a hold does not count.
#[test]
fn a_slice_of_a_bulk_change_holds_the_lock_for_less_than_a_millisecond() {
    let pool = pool();
    let id = WorkerId::new(1, 0);
    let event = dump()
        .pop()
        .and_then(|reported| reported.event)
        .expect("one event");
    let mut holds: Vec<Duration> = Vec::new();
    for slice in slices(event) {
        let started = Instant::now();
        let state = pool.state.lock();
        state.router.apply(id, &slice).expect("the worker is known");
        drop(state);
        holds.push(started.elapsed());
    }
    holds.sort();
    let at = |share: f64| holds[((holds.len() - 1) as f64 * share) as usize];
    println!(
        "{} slices: median {:?}, p90 {:?}, p99 {:?}",
        holds.len(),
        at(0.5),
        at(0.9),
        at(0.99)
    );
    assert!(at(0.5) < Duration::from_millis(1));
}

#[test]
fn bulk_changes_let_decisions_pass() {
    let pool = pool();
    let mut holds = Vec::new();
    pool.begin_dump();
    let blocks = dump();
    holds.push((
        "load",
        longest_wait(&pool, || {
            let _ = pool.load_dump(blocks);
        }),
    ));
    let held = pool.report(0.0)[0].held_blocks[0];
    assert_eq!(held, BLOCKS, "the dump is loaded");
    holds.push((
        "remove",
        longest_wait(&pool, || {
            pool.remove(1).expect("the worker is known");
        }),
    ));
    assert_eq!(pool.size(), 0);
    for (change, (whole, longest)) in holds {
        println!("{change} of {BLOCKS} blocks: {whole:?}, longest wait for the lock {longest:?}");
        assert!(
            longest < whole / 3 || longest < Duration::from_millis(1),
            "{change}: {longest:?} of {whole:?}"
        );
    }
}
