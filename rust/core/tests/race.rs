//! Readers against a writer at full speed, on real threads.
//!
//! A log of what each worker held at each time judges every answer. Justified: each counted block was held by
//! that worker at some moment of the read. Complete: every block held during the whole read is counted,
//! unless the read ended early. Bounded: a read takes bounded time, and the index counts each read that ended
//! early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wardrop_core::rng::Rng;
use wardrop_core::{
    EngineHash, KvEvent, LocalHash, RouteRequest, Router, RouterConfig, SequenceHash, StoredBlock, Tier,
    WorkerId, WorkerSpec, sequence_hashes,
};

const WORKERS: usize = 6;
const FAMILIES: usize = 4;
const BLOCKS: usize = 150;
/// Number of first blocks that each family shares with the first family.
const SHARED: [usize; FAMILIES] = [BLOCKS, 10, 70, 130];

const NOW: u64 = u64::MAX;

/// Times at which a worker held each block.
struct Log {
    /// `NOW`: perhaps held. Else the tick since which the block is gone; 0 if it was never held.
    may: Vec<AtomicU64>,
    /// Tick since which the block is held; `NOW`: perhaps not held.
    sure: Vec<AtomicU64>,
}

struct Scene {
    router: Router,
    tick: AtomicU64,
    logs: Vec<Log>,
    families: Vec<(Vec<LocalHash>, Vec<SequenceHash>)>,
    stop: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
}

fn id(worker: usize) -> WorkerId {
    WorkerId::new(worker as u64 + 1, 0)
}

impl Scene {
    fn new() -> Self {
        let family = |of: usize| {
            let local = |at| {
                LocalHash(if at < SHARED[of] {
                    at as u64
                } else {
                    (1000 * of + at) as u64
                })
            };
            let locals: Vec<LocalHash> = (0..BLOCKS).map(local).collect();
            let sequence = sequence_hashes(&locals);
            (locals, sequence)
        };
        let log = |_| Log {
            may: (0..FAMILIES * BLOCKS).map(|_| AtomicU64::new(0)).collect(),
            sure: (0..FAMILIES * BLOCKS).map(|_| AtomicU64::new(NOW)).collect(),
        };
        Self {
            router: Router::new(RouterConfig::new(16)).unwrap(),
            tick: AtomicU64::new(1),
            logs: (0..WORKERS).map(log).collect(),
            families: (0..FAMILIES).map(family).collect(),
            stop: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Number of a block: families share the numbers of the first family's blocks.
    fn block(family: usize, at: usize) -> usize {
        if at < SHARED[family] {
            at
        } else {
            family * BLOCKS + at
        }
    }

    fn next_tick(&self) -> u64 {
        self.tick.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn read_once(&self, rng: &mut Rng, reader: usize) {
        let of = rng.below(FAMILIES);
        let (locals, sequence) = &self.families[of];
        let surely = |worker: usize| -> Vec<u64> {
            let since =
                (0..BLOCKS).map(|at| self.logs[worker].sure[Self::block(of, at)].load(Ordering::SeqCst));
            since.take_while(|&since| since != NOW).collect()
        };
        let before: Vec<Vec<u64>> = (0..WORKERS).map(surely).collect();
        let given_up = self.router.counters().reads_given_up;
        let start = self.tick.load(Ordering::SeqCst);
        let mut depth = [0; WORKERS];
        if reader.is_multiple_of(2) {
            for found in self.router.find_matches(locals) {
                depth[found.worker.instance as usize - 1] = found.device as usize;
            }
        } else {
            let request = RouteRequest {
                local_hashes: locals,
                sequence_hashes: if rng.below(2) == 0 { sequence } else { &[] },
                input_tokens: 16 * BLOCKS as u32,
                explain: true,
                ..RouteRequest::default()
            };
            if let Ok(decision) = self.router.route(&request, 0.0) {
                for candidate in decision.candidates {
                    depth[candidate.worker.instance as usize - 1] = candidate.device_blocks as usize;
                }
            } else {
                return;
            }
        }
        for (worker, &depth) in depth.iter().enumerate() {
            for at in 0..depth {
                let gone = self.logs[worker].may[Self::block(of, at)].load(Ordering::SeqCst);
                assert!(
                    gone > start,
                    "worker {worker} is credited with {depth} blocks of family {of}, but block {at} was gone at {gone}, \
                     before {start}"
                );
            }
            let after = surely(worker);
            let all_through = before[worker]
                .iter()
                .zip(&after)
                .take_while(|(a, b)| a == b)
                .count();
            let all_through = before[worker][..all_through]
                .iter()
                .take_while(|&&since| since <= start)
                .count();
            if depth < all_through {
                let gave_up = self.router.counters().reads_given_up > given_up;
                assert!(
                    gave_up,
                    "worker {worker} held {all_through} blocks of family {of} all the time, {depth} were found"
                );
            }
        }
        self.read.fetch_add(1, Ordering::Relaxed);
    }
}

/// One thread that changes workers; no other thread changes its workers.
struct Writer<'a> {
    scene: &'a Scene,
    rng: Rng,
    mine: Vec<usize>,
    /// Blocks of each registered worker.
    held: Vec<Option<Vec<bool>>>,
}

impl Writer<'_> {
    fn name(&self, family: usize, at: usize) -> EngineHash {
        EngineHash(self.scene.families[family].1[at].0)
    }

    fn announce(&self, worker: usize, blocks: &[usize]) {
        for &block in blocks {
            self.scene.logs[worker].may[block].store(NOW, Ordering::SeqCst);
        }
    }

    fn confirm(&self, worker: usize, blocks: &[usize]) {
        let tick = self.scene.next_tick();
        for &block in blocks {
            self.scene.logs[worker].sure[block].store(tick, Ordering::SeqCst);
        }
    }

    fn doubt(&self, worker: usize, blocks: &[usize]) {
        for &block in blocks {
            self.scene.logs[worker].sure[block].store(NOW, Ordering::SeqCst);
        }
    }

    fn forget(&self, worker: usize, blocks: &[usize]) {
        let tick = self.scene.next_tick();
        for &block in blocks {
            self.scene.logs[worker].may[block].store(tick, Ordering::SeqCst);
        }
    }

    /// Stores the missing blocks of a family, from the first gap up to `len`.
    fn store(&mut self, worker: usize, family: usize, len: usize) {
        let held = self.held[worker].as_ref().expect("it is registered");
        let has = |at: usize| held[Scene::block(family, at)];
        let from = (0..BLOCKS).take_while(|&at| has(at)).count();
        let to = (from..len.max(from))
            .take_while(|&at| !has(at))
            .last()
            .map_or(from, |at| at + 1);
        if from == to {
            return;
        }
        let blocks: Vec<usize> = (from..to).map(|at| Scene::block(family, at)).collect();
        let stored = |at: usize| StoredBlock {
            engine_hash: self.name(family, at),
            local_hash: self.scene.families[family].0[at],
        };
        let event = KvEvent::Stored {
            parent: from.checked_sub(1).map(|parent| self.name(family, parent)),
            blocks: (from..to).map(stored).collect(),
            tier: Tier::Device,
        };
        self.announce(worker, &blocks);
        self.scene.router.apply(id(worker), &event).unwrap();
        self.confirm(worker, &blocks);
        let held = self.held[worker].as_mut().expect("it is registered");
        for block in blocks {
            held[block] = true;
        }
    }

    fn remove(&mut self, worker: usize, family: usize, range: std::ops::Range<usize>) {
        let held = self.held[worker].as_mut().expect("it is registered");
        let places: Vec<usize> = range.rev().filter(|&at| held[Scene::block(family, at)]).collect();
        let blocks: Vec<usize> = places.iter().map(|&at| Scene::block(family, at)).collect();
        for &block in &blocks {
            held[block] = false;
        }
        let event = KvEvent::Removed {
            blocks: places.iter().map(|&at| self.name(family, at)).collect(),
            tier: Tier::Device,
        };
        self.doubt(worker, &blocks);
        self.scene.router.apply(id(worker), &event).unwrap();
        self.forget(worker, &blocks);
    }

    fn empty(&mut self, worker: usize, leave: bool) {
        let all: Vec<usize> = (0..FAMILIES * BLOCKS).collect();
        self.doubt(worker, &all);
        if leave {
            self.scene.router.remove_worker(id(worker)).unwrap();
        } else {
            self.scene.router.apply(id(worker), &KvEvent::Cleared).unwrap();
        }
        let held = self.held[worker].take().expect("it is registered");
        let gone: Vec<usize> = all.into_iter().filter(|&block| held[block]).collect();
        self.forget(worker, &gone);
        self.held[worker] = (!leave).then(|| vec![false; FAMILIES * BLOCKS]);
    }

    fn write_once(&mut self) {
        let worker = self.mine[self.rng.below(self.mine.len())];
        let (family, at) = (self.rng.below(FAMILIES), self.rng.below(BLOCKS));
        if self.held[worker].is_none() {
            self.scene
                .router
                .add_worker(id(worker), WorkerSpec::default())
                .unwrap();
            self.held[worker] = Some(vec![false; FAMILIES * BLOCKS]);
            return;
        }
        match self.rng.below(16) {
            0..8 => self.store(worker, family, at + 1),
            8..12 => self.remove(worker, family, at..BLOCKS),
            12..14 => self.remove(worker, family, at..(at + 3).min(BLOCKS)),
            14 => self.empty(worker, false),
            _ => self.empty(worker, true),
        }
        self.scene.written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs readers and writers; returns (reads, writes, reads that ended early).
fn race(time: Duration, readers: usize, writers: usize) -> (u64, u64, u64) {
    let scene = Scene::new();
    std::thread::scope(|scope| {
        for reader in 0..readers {
            let scene = &scene;
            scope.spawn(move || {
                let mut rng = Rng::new(100 + reader as u64);
                while !scene.stop.load(Ordering::Relaxed) {
                    scene.read_once(&mut rng, reader);
                }
            });
        }
        for of in 0..writers {
            let scene = &scene;
            scope.spawn(move || {
                let mut writer = Writer {
                    scene,
                    rng: Rng::new(of as u64),
                    mine: (0..WORKERS).filter(|worker| worker % writers == of).collect(),
                    held: vec![None; WORKERS],
                };
                while !scene.stop.load(Ordering::Relaxed) {
                    writer.write_once();
                }
            });
        }
        std::thread::sleep(time);
        scene.stop.store(true, Ordering::Relaxed);
    });
    (
        scene.read.into_inner(),
        scene.written.into_inner(),
        scene.router.counters().reads_given_up,
    )
}

fn judge(time: Duration) {
    for (readers, writers) in [(3, 1), (2, 2)] {
        let start = Instant::now();
        let (reads, writes, given_up) = race(time, readers, writers);
        println!(
            "{readers} readers, {writers} writers: {reads} reads, {writes} writes, {given_up} reads gave up"
        );
        assert!(reads > 100 && writes > 100, "both sides must get on");
        assert!(given_up <= reads / 100, "a read must seldom give up");
        assert!(
            start.elapsed() < 4 * time + Duration::from_secs(5),
            "a read must not wait for writers"
        );
    }
}

#[test]
fn every_answer_during_writes_is_justified_and_complete() {
    judge(Duration::from_secs(1));
}

#[test]
#[ignore = "two minutes"]
fn every_answer_during_a_long_race_is_justified_and_complete() {
    judge(Duration::from_secs(60));
}
