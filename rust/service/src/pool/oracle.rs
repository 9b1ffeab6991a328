//! Test of the index against the truth of the engines, under random faults of feeds and dumps.
//!
//! The oracle is a set of blocks per worker, changed where the engine changes its cache. The pool sees the same changes
//! through a lossy feed. After a silence, each worker's blocks equal the set, or the pool marks the worker.

use std::collections::BTreeSet;
use std::sync::Arc;

use wardrop_core::{EngineHash, KvEvent, LocalHash, RouterConfig, StoredBlock, Tier, WorkerId};
use wardrop_engines::dynamo::WorkerEvent;

use super::feed::EventSource;
use super::{HealthOptions, Role, TrustOptions, WorkerPool, WorkerUpsert};

const WORKERS: u64 = 3;
const BLOCKS: u64 = 12;

/// Random numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// One engine and the truth about its cache.
struct Engine {
    id: WorkerId,
    publisher: u64,
    last_id: u64,
    blocks: BTreeSet<u64>,
}

/// Counts of the faults that fired.
#[derive(Debug, Default)]
struct Faults {
    lost: u32,
    repeated: u32,
    restarts: u32,
    restarts_in_mid_stream: u32,
    old_writers: u32,
    interruptions: u32,
    dumps: u32,
    gaps_during_dumps: u32,
    hung_dumps: u32,
    forgotten: u64,
}

struct Fleet {
    pool: WorkerPool,
    engines: Vec<Engine>,
    random: Random,
    now_s: f64,
    next_publisher: u64,
    /// Planted fault: lost events take no event id, so no gap shows them.
    hides_gaps: bool,
    faults: Faults,
}

fn stored(block: u64) -> KvEvent {
    KvEvent::Stored {
        parent: None,
        blocks: vec![StoredBlock {
            engine_hash: EngineHash(block),
            local_hash: LocalHash(block),
        }],
        tier: Tier::Device,
    }
}

impl Fleet {
    fn new(seed: u64, hides_gaps: bool) -> Self {
        let options = HealthOptions {
            silence_s: 1e9,
            quarantine_s: 1.0,
            trust: TrustOptions::new(30.0),
        };
        let pool = WorkerPool::new(Arc::from("m"), Role::Aggregated, RouterConfig::new(16), options).unwrap();
        let engines = (0..WORKERS).map(|instance| {
            let json = format!(r#"{{"model": "m", "role": "aggregated", "instance": {instance}}}"#);
            let upsert: WorkerUpsert = serde_json::from_str(&json).unwrap();
            pool.upsert(&upsert).unwrap();
            Engine {
                id: WorkerId::new(instance, 0),
                publisher: 100 + instance,
                last_id: 0,
                blocks: BTreeSet::new(),
            }
        });
        let engines = engines.collect();
        Self {
            pool,
            engines,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now_s: 1.0,
            next_publisher: 1000,
            hides_gaps,
            faults: Faults::default(),
        }
    }

    fn send(&self, id: WorkerId, publisher: u64, event_id: u64, event: KvEvent) {
        let event = WorkerEvent {
            worker: id,
            event_id,
            event: Some(event),
        };
        let source = EventSource {
            publisher,
            owner: None,
        };
        self.pool.apply(vec![event], source, self.now_s);
    }

    /// Changes the cache of one engine and publishes the change, unless it is lost. Returns whether it was lost.
    fn change(&mut self, at: usize) -> bool {
        let block = self.random.below(BLOCKS);
        let engine = &mut self.engines[at];
        let event = if engine.blocks.remove(&block) {
            KvEvent::Removed {
                blocks: vec![EngineHash(block)],
                tier: Tier::Device,
            }
        } else {
            engine.blocks.insert(block);
            stored(block)
        };
        let is_lost = self.random.below(12) == 0;
        let engine = &mut self.engines[at];
        if !(is_lost && self.hides_gaps) {
            engine.last_id += 1;
        }
        if is_lost {
            self.faults.lost += 1;
            return true;
        }
        let (id, publisher, event_id) = (engine.id, engine.publisher, engine.last_id);
        self.send(id, publisher, event_id, event.clone());
        if self.random.below(10) == 0 {
            self.faults.repeated += 1;
            self.send(id, publisher, event_id, event);
        }
        false
    }

    /// Restarts an engine under the same id. Its first events may be lost, so its sequence may begin anywhere.
    fn restart(&mut self, at: usize) {
        self.next_publisher += 1;
        let skipped = self.random.below(2) * self.random.below(30);
        let engine = &mut self.engines[at];
        let former = (engine.publisher, engine.last_id);
        engine.publisher = self.next_publisher;
        engine.blocks.clear();
        engine.last_id = 0;
        self.faults.restarts += 1;
        if skipped > 0 {
            self.faults.restarts_in_mid_stream += 1;
            engine.last_id = skipped;
            engine.blocks = (0..skipped.min(BLOCKS)).collect();
        }
        let id = engine.id;
        self.change(at);
        if self.random.below(2) == 0 {
            // The old process still runs and publishes.
            self.faults.old_writers += 1;
            self.send(id, former.0, former.1 + 1, stored(BLOCKS + 5));
        }
    }

    /// The blocks of all engines, as a dump lists them.
    fn truth(&self) -> Vec<WorkerEvent> {
        let blocks = |engine: &Engine| {
            let events = engine.blocks.iter().map(|&block| WorkerEvent {
                worker: engine.id,
                event_id: 0,
                event: Some(stored(block)),
            });
            events.collect::<Vec<_>>()
        };
        self.engines.iter().flat_map(blocks).collect()
    }

    /// Reads a dump while the engines change their caches.
    fn dump(&mut self) {
        self.pool.begin_dump();
        for _ in 0..self.random.below(3) {
            let at = self.random.below(WORKERS) as usize;
            self.faults.gaps_during_dumps += u32::from(self.change(at));
        }
        let dump = self.truth();
        for _ in 0..self.random.below(4) {
            let at = self.random.below(WORKERS) as usize;
            self.faults.gaps_during_dumps += u32::from(self.change(at));
        }
        if self.random.below(5) == 0 {
            self.faults.hung_dumps += 1;
            return;
        }
        self.faults.dumps += 1;
        self.pool.load_dump(dump);
    }

    fn step(&mut self) {
        let at = self.random.below(WORKERS) as usize;
        match self.random.below(40) {
            0 => self.restart(at),
            1 => {
                self.faults.interruptions += 1;
                let engine = &self.engines[at];
                self.pool.feed_interrupted(None, Some(engine.publisher));
                let lost = self.random.below(3);
                for _ in 0..lost {
                    let block = self.random.below(BLOCKS);
                    let engine = &mut self.engines[at];
                    engine.blocks.insert(block);
                    engine.last_id += u64::from(!self.hides_gaps);
                }
            }
            2 | 3 => self.dump(),
            4 => {
                self.now_s += self.random.below(50) as f64;
                self.pool.sweep(self.now_s);
            }
            _ => {
                self.change(at);
            }
        }
        self.now_s += 0.01;
    }

    /// Workers whose blocks differ from the truth although the pool trusts them.
    fn violations(&self) -> Vec<WorkerId> {
        let reports = self.pool.report(self.now_s);
        let is_wrong = |engine: &&Engine| {
            let report = reports
                .iter()
                .find(|report| report.instance == engine.id.instance)
                .unwrap();
            let is_trusted = report.synced && !report.tail_unchecked;
            let held = |block: &u64| {
                let found = self.pool.router.find_matches(&[LocalHash(*block)]);
                found
                    .iter()
                    .any(|overlap| overlap.worker == engine.id && overlap.device == 1)
            };
            let indexed: BTreeSet<u64> = (0..BLOCKS + 10).filter(held).collect();
            is_trusted && (indexed != engine.blocks || report.held_blocks[0] != engine.blocks.len() as u64)
        };
        self.engines
            .iter()
            .filter(is_wrong)
            .map(|engine| engine.id)
            .collect()
    }

    /// Lets the feeds fall silent for long enough that the end of each stream counts as unchecked.
    fn fall_silent(&mut self) {
        self.now_s += 40.0;
        self.pool.sweep(self.now_s);
    }
}

#[test]
fn index_equals_the_truth_or_is_marked_under_random_faults() {
    let mut sums = Faults::default();
    for seed in 1..=400 {
        let mut fleet = Fleet::new(seed, false);
        for _ in 0..5 {
            for _ in 0..60 {
                fleet.step();
            }
            fleet.fall_silent();
            assert_eq!(fleet.violations(), [], "seed {seed}: {:?}", fleet.faults);
        }
        fleet.pool.begin_dump();
        fleet.pool.load_dump(fleet.truth());
        assert_eq!(fleet.violations(), [], "seed {seed} after the last dump");
        let reports = fleet.pool.report(fleet.now_s);
        assert!(
            reports.iter().all(|report| report.synced),
            "seed {seed}: a whole dump heals every worker"
        );
        let faults = &fleet.faults;
        sums.lost += faults.lost;
        sums.repeated += faults.repeated;
        sums.restarts += faults.restarts;
        sums.restarts_in_mid_stream += faults.restarts_in_mid_stream;
        sums.old_writers += faults.old_writers;
        sums.interruptions += faults.interruptions;
        sums.dumps += faults.dumps;
        sums.gaps_during_dumps += faults.gaps_during_dumps;
        sums.hung_dumps += faults.hung_dumps;
        sums.forgotten += reports.iter().map(|report| report.forgotten).sum::<u64>();
    }
    println!("{sums:?}");
    let fired = [
        sums.lost,
        sums.repeated,
        sums.restarts,
        sums.restarts_in_mid_stream,
        sums.old_writers,
        sums.interruptions,
        sums.dumps,
        sums.gaps_during_dumps,
        sums.hung_dumps,
        sums.forgotten as u32,
    ];
    assert!(
        fired.iter().all(|&count| count > 50),
        "every fault fires: {sums:?}"
    );
}

/// Negative control: with losses that leave no gap, the index differs from the truth, and the oracle sees it.
#[test]
fn oracle_sees_losses_that_leave_no_gap() {
    let mut violations = 0;
    for seed in 1..=50 {
        let mut fleet = Fleet::new(seed, true);
        for _ in 0..200 {
            fleet.step();
        }
        violations += fleet.violations().len();
    }
    assert!(violations > 10, "{violations} violations");
}
