//! One cell: fill, compare, measure.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dynamo_kv_router::indexer::SyncIndexer;
use dynamo_kv_router::protocols::RouterEvent;
use serde_json::{Value, json};
use wardrop_core::rng::Rng;
use wardrop_core::{KvEvent, LocalHash, Router, WorkerId};

use crate::arm::{Answer, Change, Concurrent, Prompt, answer_in, answer_of, ours, radix, theirs, wardrop};
use crate::clock::{Cold, calls, cold, percentiles, resident_bytes, thread_cpu_ns, warm};

/// Who holds what of the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    One,
    All,
    Zipf,
    Miss,
    Diverge,
    Holes,
}

impl Pattern {
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "one" => Self::One,
            "all" => Self::All,
            "zipf" => Self::Zipf,
            "miss" => Self::Miss,
            "diverge" => Self::Diverge,
            "holes" => Self::Holes,
            _ => return None,
        })
    }
}

/// Holdings that the prompts of a cell may make.
const HOLDINGS_MAX: u64 = 16_000_000;
/// Above so many blocks Dynamo's concurrent tree is left out: two trees of its kind do not fit beside each other.
const CONCURRENT_BLOCKS_MAX: u64 = 6_000_000;
/// Chains of the background.
const CHAIN: usize = 1024;
const COLD_CALLS: usize = 60;
/// How long decisions are taken beside writes.
const WRITES_FOR: std::time::Duration = std::time::Duration::from_millis(300);

pub struct Cell {
    pub workers: u64,
    pub depth: usize,
    pub pattern: Pattern,
    pub blocks: u64,
    pub repeats: usize,
}

/// Events that are made before the clock runs and applied while it does.
struct Batch<E> {
    events: Vec<(u64, E)>,
    /// Processor time.
    spent_ns: u64,
}

impl<E> Default for Batch<E> {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            spent_ns: 0,
        }
    }
}

impl<E> Batch<E> {
    fn add(&mut self, worker: u64, event: E, apply: &mut impl FnMut(&mut Vec<(u64, E)>)) {
        self.events.push((worker, event));
        if self.events.len() == 64 {
            self.flush(apply);
        }
    }

    fn flush(&mut self, apply: &mut impl FnMut(&mut Vec<(u64, E)>)) {
        let before = thread_cpu_ns();
        apply(&mut self.events);
        self.spent_ns += thread_cpu_ns() - before;
    }
}

/// What a worker holds of a prompt: so many leading blocks, without these.
struct Holding {
    prompt: usize,
    worker: u64,
    blocks: usize,
    holes: Vec<usize>,
}

/// Prompts to ask for, with what is held of them.
struct Plan {
    held: Vec<Prompt>,
    asked: Vec<Prompt>,
    holdings: Vec<Holding>,
}

fn chain(seed: u64, depth: usize) -> Prompt {
    let mut rng = Rng::new(seed);
    Prompt::new((0..depth).map(|_| LocalHash(rng.next_u64())).collect())
}

impl Cell {
    fn holders(&self, prompt: u64) -> Vec<(u64, usize)> {
        let all = |depth: &dyn Fn(u64) -> usize| (0..self.workers).map(|rank| (rank, depth(rank))).collect();
        match self.pattern {
            Pattern::One | Pattern::Diverge => vec![(prompt % self.workers, self.depth)],
            Pattern::All => all(&|_| self.depth),
            Pattern::Zipf => all(&|rank| (self.depth as u64 / (rank + 1)) as usize),
            Pattern::Miss => vec![],
            Pattern::Holes => (0..self.workers.min(64)).map(|rank| (rank, self.depth)).collect(),
        }
    }

    fn plan(&self) -> Option<Plan> {
        let each: u64 = self.holders(0).iter().map(|(_, blocks)| *blocks as u64).sum();
        let prompts = (HOLDINGS_MAX / each.max(1)).min(64);
        if prompts == 0 {
            return None;
        }
        let mut rng = Rng::new(99);
        let held: Vec<Prompt> = (0..prompts).map(|of| chain(1 << 40 | of, self.depth)).collect();
        let mut holdings = Vec::new();
        for of in 0..prompts {
            for (worker, blocks) in self.holders(of).into_iter().filter(|(_, blocks)| *blocks > 0) {
                let hole = |_: &usize| self.pattern == Pattern::Holes && rng.below(50) == 0;
                holdings.push(Holding {
                    prompt: of as usize,
                    worker,
                    blocks,
                    holes: (0..blocks).filter(hole).collect(),
                });
            }
        }
        let asked = held.iter().map(|held| self.question(held)).collect();
        Some(Plan {
            held,
            asked,
            holdings,
        })
    }

    /// The prompt itself, or one that leaves it in the middle of a run.
    fn question(&self, held: &Prompt) -> Prompt {
        let mut locals = held.locals.clone();
        if self.pattern == Pattern::Diverge {
            for local in &mut locals[self.depth * 5 / 8..] {
                local.0 ^= 1;
            }
        }
        Prompt::new(locals)
    }

    fn expected(&self, plan: &Plan) -> Vec<Answer> {
        let mut answers = vec![Answer::new(); plan.asked.len()];
        for holding in &plan.holdings {
            let end = holding.holes.first().copied().unwrap_or(holding.blocks);
            let shared = if self.pattern == Pattern::Diverge {
                self.depth * 5 / 8
            } else {
                self.depth
            };
            if end.min(shared) > 0 {
                answers[holding.prompt].insert(holding.worker, end.min(shared) as u32);
            }
        }
        answers
    }

    /// Tell an index everything: the background, then the prompts' holders.
    fn fill(&self, plan: &Plan, mut apply: impl FnMut(u64, &Change<'_>)) {
        for of in 0..self.blocks / CHAIN as u64 {
            let background = chain(of, CHAIN);
            apply(of % self.workers, &Change::Stored(&background, CHAIN));
        }
        for holding in &plan.holdings {
            let prompt = &plan.held[holding.prompt];
            apply(holding.worker, &Change::Stored(prompt, holding.blocks));
            if !holding.holes.is_empty() {
                apply(holding.worker, &Change::Removed(prompt, &holding.holes));
            }
        }
    }

    fn stored_blocks(&self, plan: &Plan) -> u64 {
        let prompts: usize = plan.holdings.iter().map(|holding| holding.blocks).sum();
        self.blocks / CHAIN as u64 * CHAIN as u64 + prompts as u64
    }

    /// The figures of the cell; `None` when its prompts are too many holdings.
    pub fn run(&self) -> Option<Value> {
        let plan = self.plan()?;
        let expected = self.expected(&plan);
        let pattern = format!("{:?}", self.pattern).to_lowercase();
        let mut result = json!({"workers": self.workers, "depth": self.depth, "pattern": pattern,
            "blocks": self.blocks, "prompts": plan.asked.len(), "repeats": self.repeats,
            "stored": self.stored_blocks(&plan)});
        result["wardrop"] = self.measure_wardrop(&plan, &expected);
        result["radix_tree"] = self.measure_radix(&plan, &expected);
        if self.blocks <= CONCURRENT_BLOCKS_MAX {
            result["concurrent_tree"] = self.measure_concurrent(&plan, &expected);
        }
        Some(result)
    }

    fn measure_wardrop(&self, plan: &Plan, expected: &[Answer]) -> Value {
        let (router, before) = (wardrop(self.workers), resident_bytes());
        let mut batch = Batch::default();
        let mut apply = |events: &mut Vec<(u64, KvEvent)>| {
            for (worker, event) in events.drain(..) {
                let applied = router.apply(WorkerId::new(worker, 0), &event);
                applied.expect("the events are in order");
            }
        };
        self.fill(plan, |worker, change| batch.add(worker, ours(change), &mut apply));
        batch.flush(&mut apply);
        let stored = self.stored_blocks(plan).max(1);
        let bytes = resident_bytes().saturating_sub(before);
        for (asked, expected) in plan.asked.iter().zip(expected) {
            assert_eq!(
                answer_of(&router, asked),
                *expected,
                "the answer must be what was stored"
            );
            for with_sequence in [false, true] {
                let decision = router
                    .route(&asked.request(with_sequence), 0.0)
                    .expect("workers are there");
                let best = expected.values().copied().max().unwrap_or(0);
                assert_eq!(
                    decision.overlap_blocks, best,
                    "an idle fleet must send it to the longest match"
                );
            }
        }
        let n = plan.asked.len();
        let mut flush = Cold::new();
        let touch = |i: usize| touch(&plan.asked[i % n]);
        json!({
            "find": warm(self.repeats, |i| router.find_matches(&plan.asked[i % n].locals)),
            "route": warm(self.repeats, |i| router.route(&plan.asked[i % n].request(false), 0.0)),
            "route_sequence": warm(self.repeats, |i| router.route(&plan.asked[i % n].request(true), 0.0)),
            "route_cold": cold(COLD_CALLS, &mut flush, &touch, |i| router.route(&plan.asked[i % n].request(false), 0.0)),
            "route_sequence_cold": cold(COLD_CALLS, &mut flush, &touch, |i| router.route(&plan.asked[i % n].request(true), 0.0)),
            "during_writes": during_writes(&router, plan, self.repeats),
            "bytes_per_holding": bytes as f64 / stored as f64,
            "apply_ns_per_block": batch.spent_ns as f64 / stored as f64,
        })
    }

    fn measure_radix(&self, plan: &Plan, expected: &[Answer]) -> Value {
        let (mut tree, before) = (radix(), resident_bytes());
        let mut batch = Batch::default();
        let mut apply = |events: &mut Vec<(u64, RouterEvent)>| {
            for (_, event) in events.drain(..) {
                tree.apply_event(event).expect("the events are in order");
            }
        };
        self.fill(plan, |worker, change| {
            batch.add(worker, theirs(worker, change), &mut apply)
        });
        batch.flush(&mut apply);
        let stored = self.stored_blocks(plan).max(1);
        let bytes = resident_bytes().saturating_sub(before);
        let agrees =
            plan.asked.iter().zip(expected).all(|(asked, expected)| {
                answer_in(&tree.find_matches(asked.theirs.clone(), false)) == *expected
            });
        // Its lookup takes the prompt by value: the copies are made before the clock starts.
        let n = plan.asked.len();
        let mut copies: Vec<_> = (0..2 * self.repeats + 200)
            .map(|i| plan.asked[i % n].theirs.clone())
            .collect();
        let found = calls(self.repeats, |_| {
            tree.find_matches(copies.pop().unwrap_or_default(), false)
        });
        let mut copies: Vec<_> = (0..COLD_CALLS)
            .map(|i| plan.asked[i % n].theirs.clone())
            .collect();
        let mut flush = Cold::new();
        json!({
            "find": found,
            "find_cold": cold(COLD_CALLS, &mut flush, |i| touch(&plan.asked[i % n]), |_| tree.find_matches(copies.pop().unwrap_or_default(), false)),
            "agrees": agrees,
            "bytes_per_holding": bytes as f64 / stored as f64,
            "apply_ns_per_block": batch.spent_ns as f64 / stored as f64,
        })
    }

    fn measure_concurrent(&self, plan: &Plan, expected: &[Answer]) -> Value {
        let (index, before) = (Concurrent::new(), resident_bytes());
        self.fill(plan, |worker, change| index.apply(theirs(worker, change)));
        let n = plan.asked.len();
        let settled = index.settle(&plan.asked[n - 1], &expected[n - 1]);
        let stored = self.stored_blocks(plan).max(1);
        let bytes = resident_bytes().saturating_sub(before);
        let ask = |at: usize| index.tree.find_matches(&plan.asked[at].theirs, false);
        let agrees = settled && (0..n).all(|at| answer_in(&ask(at)) == expected[at]);
        let mut flush = Cold::new();
        let touch = |i: usize| touch(&plan.asked[i % n]);
        json!({
            "find": warm(self.repeats, |i| ask(i % n)),
            "find_cold": cold(COLD_CALLS, &mut flush, &touch, |i| ask(i % n)),
            "agrees": agrees,
            "bytes_per_holding": bytes as f64 / stored as f64,
        })
    }
}

/// Read the request: it is in hand when it is routed.
fn touch(prompt: &Prompt) {
    let locals: u64 = prompt.locals.iter().fold(0, |sum, local| sum ^ local.0);
    let sequence: u64 = prompt.sequence.iter().fold(0, |sum, hash| sum ^ hash.0);
    let theirs: u64 = prompt.theirs.iter().fold(0, |sum, local| sum ^ local.0);
    std::hint::black_box(locals ^ sequence ^ theirs);
}

/// Decisions while another thread stores and removes other prompts as fast as it can.
fn during_writes(router: &Router, plan: &Plan, repeats: usize) -> Value {
    let churned: Vec<Prompt> = (0..32).map(|of| chain(1 << 50 | of, 512)).collect();
    let places: Vec<usize> = (0..512).collect();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let changes = |prompt| [Change::Stored(prompt, 512), Change::Removed(prompt, &places)];
            let events: Vec<_> = churned
                .iter()
                .flat_map(changes)
                .map(|change| ours(&change))
                .collect();
            let spread = WorkerId::new(0, 0);
            while !stop.load(Ordering::Relaxed) {
                for event in &events {
                    router.apply(spread, event).expect("the events are in order");
                    written.fetch_add(512, Ordering::Relaxed);
                }
            }
        });
        while written.load(Ordering::Relaxed) < 4 * 512 {
            std::thread::yield_now();
        }
        let n = plan.asked.len();
        let (from, start) = (written.load(Ordering::Relaxed), std::time::Instant::now());
        let mut spent = Vec::with_capacity(repeats);
        for i in 0.. {
            if i >= repeats && start.elapsed() > WRITES_FOR {
                break;
            }
            let start = std::time::Instant::now();
            std::hint::black_box(router.route(&plan.asked[i % n].request(false), 0.0))
                .expect("workers are there");
            spent.push(start.elapsed().as_nanos() as u64);
        }
        let rate = (written.load(Ordering::Relaxed) - from) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let mut result = percentiles(spent);
        result["blocks_written_per_s"] = json!(rate.round());
        result
    })
}
