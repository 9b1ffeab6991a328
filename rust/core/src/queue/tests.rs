//! What only the crate itself can count: how often a pump locks the router's state.

use super::*;
use crate::hash::LocalHash;
use crate::price::{Objective, PolicyConfig};
use crate::router::RouterConfig;
use crate::worker::{WorkerId, WorkerSpec};
use std::sync::atomic::Ordering;

const BLOCK: u32 = 64;

fn router(workers: u64) -> Router {
    let config = RouterConfig::new(BLOCK).with_policy(PolicyConfig::Toll(Objective::default()));
    let router = Router::new(config).expect("the configuration is valid");
    for instance in 0..workers {
        let spec = WorkerSpec::default().with_max_num_batched_tokens(8192);
        router
            .add_worker(WorkerId::new(instance, 0), spec)
            .expect("the worker is new");
    }
    router
}

fn request(id: u64) -> QueuedRequest {
    let hashes: Vec<LocalHash> = (0..100).map(|i| LocalHash(id * 1_000_003 + i)).collect();
    QueuedRequest::new(RequestId(id), hashes.into(), 100 * BLOCK)
}

/// Locks that `work` takes.
fn locks(router: &Router, work: impl FnOnce()) -> u64 {
    let before = router.locks.load(Ordering::Relaxed);
    work();
    router.locks.load(Ordering::Relaxed) - before
}

#[test]
fn pump_locks_the_state_once_per_pass_regardless_of_the_number_of_workers() {
    for workers in [1, 8, 64] {
        let router = router(workers);
        let mut queue = LateQueue::new(QueueConfig::default()).expect("the configuration is valid");
        let mut placed = Vec::new();
        // Every worker gets one prompt, each in a round of its own, and the last round finds no room.
        for id in 0..workers {
            let offered = locks(&router, || {
                queue
                    .offer(&router, request(id), 0.0)
                    .expect("a worker is available");
            });
            assert_eq!(offered, 2, "an offer locks for the id and for the match");
        }
        let filling = locks(&router, || {
            queue
                .pump(&router, 0.0, &mut placed)
                .expect("a worker is available");
        });
        assert_eq!((placed.len() as u64, filling), (workers, workers + 1));
        // Thirty wait and no worker has room: one round.
        for id in 0..30 {
            queue
                .offer(&router, request(1000 + id), 0.0)
                .expect("a worker is available");
        }
        let full = locks(&router, || {
            queue
                .pump(&router, 0.0, &mut placed)
                .expect("a worker is available");
        });
        assert_eq!((placed.len() as u64, full), (workers, 1));
        // A worker joins, so that every waiting request is matched again: still one lock per round.
        let spec = WorkerSpec::default();
        router
            .add_worker(WorkerId::new(workers, 0), spec)
            .expect("the worker is new");
        let joined = locks(&router, || {
            queue
                .pump(&router, 0.0, &mut placed)
                .expect("a worker is available");
        });
        assert_eq!((placed.len() as u64, joined), (workers + 1, 2));
    }
}
