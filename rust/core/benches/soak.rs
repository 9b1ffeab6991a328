//! Growth of resident memory under long churn: `make soak`. Exits with 1 on growth above 5 %. Prints JSON.
//!
//! * `soak cycles [100]`: fills an index with 1 M blocks and clears it, as often as the number says.
//! * `soak minutes [30]`: removes and stores prompts of a fixed live set, in random order, for that many minutes.
//! * `soak replacements [3000000]`: the same work without a router, with the bytes of each structure of the index.
//! * `soak holes [3000000]`: removes and stores parts of shared prompts, without a router. The paths stay, and
//!   their blocks come and go.

#[path = "fixture/resident.rs"]
mod resident;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use resident::resident_bytes;
use wardrop_core::index::{Index, Slot};
use wardrop_core::rng::Rng;
use wardrop_core::{
    EngineHash, KvEvent, LocalHash, RequestId, RouteRequest, Router, RouterConfig, SequenceHash, StoredBlock,
    Tier, WorkerId, WorkerSpec, sequence_hashes,
};

const WORKERS: u64 = 16;
const GROWTH_MAX: f64 = 1.05;

fn router() -> Router {
    let router = Router::new(RouterConfig::new(16)).expect("the defaults are valid");
    for worker in 0..WORKERS {
        router
            .add_worker(WorkerId::new(worker, 0), WorkerSpec::default())
            .expect("ids are distinct");
    }
    router
}

/// A prompt of one worker. Prompts whose numbers agree modulo 50 share their first 64 blocks.
struct Prompt {
    worker: WorkerId,
    locals: Vec<LocalHash>,
    sequence: Vec<SequenceHash>,
}

impl Prompt {
    fn new(of: u64, depth: usize) -> Self {
        let (mut stem, mut own) = (Rng::new(of % 50), Rng::new(1_000_000 + of));
        let local = |at| LocalHash(if at < 64 { stem.next_u64() } else { own.next_u64() });
        let locals: Vec<LocalHash> = (0..depth).map(local).collect();
        Self {
            worker: WorkerId::new(of % WORKERS, 0),
            sequence: sequence_hashes(&locals),
            locals,
        }
    }

    fn stored(&self) -> KvEvent {
        let block = |(&local_hash, name): (&LocalHash, &SequenceHash)| StoredBlock {
            engine_hash: EngineHash(name.0),
            local_hash,
        };
        let blocks = self.locals.iter().zip(&self.sequence).map(block).collect();
        KvEvent::Stored {
            parent: None,
            blocks,
            tier: Tier::Device,
        }
    }

    fn store(&self, router: &Router) {
        router
            .apply(self.worker, &self.stored())
            .expect("a prompt can be stored");
    }

    /// Removed events of all blocks, 37 blocks per event, in random order.
    fn removed(&self, rng: &mut Rng) -> Vec<KvEvent> {
        let mut names: Vec<EngineHash> = self.sequence.iter().map(|name| EngineHash(name.0)).collect();
        for at in (1..names.len()).rev() {
            names.swap(at, rng.below(at + 1));
        }
        let parts = names.chunks(37).map(|part| KvEvent::Removed {
            blocks: part.to_vec(),
            tier: Tier::Device,
        });
        parts.collect()
    }

    fn remove(&self, router: &Router, rng: &mut Rng) {
        for event in self.removed(rng) {
            router
                .apply(self.worker, &event)
                .expect("what is stored can be removed");
        }
    }
}

fn finish(what: &str, steps: u64, first: u64, highest: u64, last: u64) {
    let growth = highest as f64 / first as f64;
    println!(
        "{{\"what\": \"{what}\", \"steps\": {steps}, \"resident_first\": {first}, \"resident_highest\": {highest}, \
         \"resident_last\": {last}, \"growth\": {growth:.4}}}"
    );
    if growth > GROWTH_MAX {
        eprintln!("resident memory grew by {growth:.3}, more than {GROWTH_MAX}");
        std::process::exit(1);
    }
}

/// Compares memory at full index, from the third cycle on.
fn cycles(cycles: u64) {
    let router = router();
    let (mut first, mut highest, mut last) = (0, 0, 0);
    for cycle in 0..cycles {
        for of in 0..977 {
            Prompt::new(cycle * 1000 + of, 1024).store(&router);
        }
        last = resident_bytes();
        if cycle < 3 {
            first = last;
        }
        highest = highest.max(last);
        for worker in 0..WORKERS {
            router
                .apply(WorkerId::new(worker, 0), &KvEvent::Cleared)
                .expect("the worker is registered");
        }
        assert_eq!(
            router.snapshot().index.blocks,
            0,
            "nothing must be left of a cleared index"
        );
    }
    finish("cycles of 1 M blocks", cycles, first, highest, last);
}

/// Compares memory from the end of the first tenth of the time on.
fn minutes(minutes: f64) {
    let router = router();
    let mut rng = Rng::new(1);
    let mut live: Vec<Prompt> = (0..2000).map(|of| Prompt::new(of, 512)).collect();
    for prompt in &live {
        prompt.store(&router);
    }
    let blocks = router.snapshot().index.holdings;
    let (start, whole) = (Instant::now(), Duration::from_secs_f64(60.0 * minutes));
    let (mut first, mut highest, mut steps) = (0, 0, 0);
    let mut tenths: Vec<(u64, u64, u64)> = Vec::new();
    while start.elapsed() < whole {
        let at = rng.below(live.len());
        live[at].remove(&router, &mut rng);
        live[at] = Prompt::new(2000 + steps * 2000 + at as u64, 512);
        live[at].store(&router);
        let request = RouteRequest {
            request_id: Some(RequestId(steps)),
            local_hashes: &live[rng.below(2000)].locals,
            input_tokens: 8192,
            ..RouteRequest::default()
        };
        router
            .route(&request, steps as f64 * 1e-3)
            .expect("workers are there");
        router
            .release(RequestId(steps), steps as f64 * 1e-3)
            .expect("it is booked");
        steps += 1;
        if steps.is_multiple_of(256) {
            let now = resident_bytes();
            if start.elapsed() < whole / 10 {
                first = now;
            }
            highest = highest.max(now);
            if start.elapsed() > whole / 10 * (tenths.len() as u32 + 1) {
                tenths.push((steps, now, router.snapshot().index.bytes));
            }
        }
    }
    for (steps, resident, index) in tenths {
        println!("{{\"steps\": {steps}, \"resident\": {resident}, \"index_bytes\": {index}}}");
    }
    assert_eq!(
        router.snapshot().index.holdings,
        blocks,
        "the live set must keep its size"
    );
    finish(
        "replacements in a live set of 1 M blocks",
        steps,
        first,
        highest,
        resident_bytes(),
    );
}

/// Runs `step` as often as `steps` says. Compares memory from the end of the first tenth on, and prints the bytes of each
/// structure.
fn watch(what: &str, index: &Index, steps: u64, mut step: impl FnMut(u64)) {
    let (mut first, mut highest) = (0, 0);
    for at in 0..steps {
        step(at);
        if at % 256 == 0 || at + 1 == steps {
            let now = resident_bytes();
            if at < steps / 10 || first == 0 {
                first = now;
            }
            highest = highest.max(now);
        }
        if (at + 1).is_multiple_of((steps / 10).max(1)) {
            let footprint = serde_json::to_string(&index.footprint()).expect("numbers can be written");
            println!(
                "{{\"steps\": {}, \"resident\": {}, \"holdings\": {}, \"index_bytes\": {}, \"footprint\": {footprint}}}",
                at + 1,
                resident_bytes(),
                index.held().iter().flatten().sum::<u64>(),
                index.bytes()
            );
        }
    }
    finish(what, steps, first, highest, resident_bytes());
}

fn slot(prompt: &Prompt) -> Slot {
    Slot(prompt.worker.instance as u32)
}

fn replacements(steps: u64) {
    let index = Index::new(u64::MAX);
    let mut rng = Rng::new(1);
    let apply = |slot, event: &KvEvent| index.apply(slot, event).expect("the events are in order");
    let mut live: Vec<Prompt> = (0..2000).map(|of| Prompt::new(of, 512)).collect();
    for prompt in &live {
        apply(slot(prompt), &prompt.stored());
    }
    watch(
        "replacements in a live set of 1 M blocks, by the index alone",
        &index,
        steps,
        |step| {
            let at = rng.below(live.len());
            for event in live[at].removed(&mut rng) {
                apply(slot(&live[at]), &event);
            }
            live[at] = Prompt::new(2000 + step * 2000 + at as u64, 512);
            apply(slot(&live[at]), &live[at].stored());
        },
    );
}

/// 1,000 prompts that diverge at many places. A worker stores a random prefix of a prompt, or removes blocks from a
/// random place on: all of them, or a random share.
fn holes(steps: u64) {
    const DEPTH: usize = 1024;
    let index = Index::new(u64::MAX);
    let mut rng = Rng::new(1);
    let mut prompts: Vec<Vec<LocalHash>> = Vec::new();
    for of in 0..1000 {
        let mut locals = match prompts.len() {
            0 => Vec::new(),
            len if of % 20 == 0 => prompts[rng.below(len)][..0].to_vec(),
            len => prompts[len - 1 - rng.below(len.min(20))][..rng.below(DEPTH)].to_vec(),
        };
        locals.resize_with(DEPTH, || LocalHash(rng.next_u64()));
        prompts.push(locals);
    }
    let prompts: Vec<(Vec<LocalHash>, Vec<SequenceHash>)> = prompts
        .into_iter()
        .map(|locals| (locals.clone(), sequence_hashes(&locals)))
        .collect();
    let name = |hash: &SequenceHash| EngineHash(hash.0);
    // Blocks that each worker holds. This program stores each block once, so a set is enough.
    let mut held: Vec<HashSet<EngineHash>> = vec![HashSet::new(); WORKERS as usize];
    watch(
        "stores and removals on the same paths, by the index alone",
        &index,
        steps,
        |_| {
            let (worker, of) = (rng.below(WORKERS as usize), rng.below(prompts.len()));
            let (locals, sequence) = &prompts[of];
            let held = &mut held[worker];
            if rng.below(2) == 0 {
                let from = sequence
                    .iter()
                    .take_while(|&hash| held.contains(&name(hash)))
                    .count();
                let to = rng.below(DEPTH + 1);
                let to = (from..to)
                    .take_while(|&at| !held.contains(&name(&sequence[at])))
                    .count()
                    + from;
                let blocks: Vec<StoredBlock> = (from..to)
                    .map(|at| StoredBlock {
                        engine_hash: name(&sequence[at]),
                        local_hash: locals[at],
                    })
                    .collect();
                held.extend(blocks.iter().map(|block| block.engine_hash));
                let parent = from.checked_sub(1).map(|at| name(&sequence[at]));
                let tier = Tier::Device;
                let event = KvEvent::Stored { parent, blocks, tier };
                index
                    .apply(Slot(worker as u32), &event)
                    .expect("the parent is held");
            } else {
                let (from, every) = (rng.below(DEPTH), [1, 1, 2, 5][rng.below(4)]);
                let blocks: Vec<EngineHash> = sequence[from..]
                    .iter()
                    .map(name)
                    .filter(|block| held.contains(block) && rng.below(every) == 0)
                    .collect();
                for block in &blocks {
                    held.remove(block);
                }
                let tier = Tier::Device;
                let event = KvEvent::Removed { blocks, tier };
                index
                    .apply(Slot(worker as u32), &event)
                    .expect("the blocks are held");
            }
        },
    );
    index.check();
}

fn main() {
    // `cargo bench` adds `--bench` to the arguments.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let part = arguments.next().unwrap_or_default();
    let number = arguments
        .next()
        .map(|text| text.parse::<f64>().expect("must be a number"));
    match part.as_str() {
        "cycles" => cycles(number.unwrap_or(100.0) as u64),
        "minutes" => minutes(number.unwrap_or(30.0)),
        "replacements" => replacements(number.unwrap_or(3e6) as u64),
        "holes" => holes(number.unwrap_or(3e6) as u64),
        _ => println!("usage: soak cycles [100] | minutes [30] | replacements [3000000] | holes [3000000]"),
    }
}
