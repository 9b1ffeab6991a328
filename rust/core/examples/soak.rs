//! Does memory stay flat? `make soak`: exits with 1 when resident memory grew by more than 5 %. Prints JSON.
//!
//! `soak cycles [100]`: an index is filled with 1 M blocks and cleared, so many times.
//! `soak minutes [30]`: prompts of a fixed live set are removed and stored anew, in random order and with holes, for so long.

use std::time::{Duration, Instant};

use wardrop_core::rng::Rng;
use wardrop_core::{
    EngineHash, KvEvent, LocalHash, RequestId, RouteRequest, Router, RouterConfig, SequenceHash, StoredBlock,
    Tier, WorkerId, WorkerSpec, sequence_hashes,
};

const WORKERS: u64 = 16;
const GROWTH_MAX: f64 = 1.05;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn router() -> Router {
    let router = Router::new(RouterConfig::new(16)).expect("the defaults are valid");
    for worker in 0..WORKERS {
        router
            .add_worker(WorkerId::new(worker, 0), WorkerSpec::default())
            .expect("ids are distinct");
    }
    router
}

/// A prompt that shares its first 64 blocks with its family.
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

    fn store(&self, router: &Router) {
        let block = |(&local_hash, name): (&LocalHash, &SequenceHash)| StoredBlock {
            engine_hash: EngineHash(name.0),
            local_hash,
        };
        let blocks = self.locals.iter().zip(&self.sequence).map(block).collect();
        let event = KvEvent::Stored {
            parent: None,
            blocks,
            tier: Tier::Device,
        };
        router.apply(self.worker, &event).expect("a prompt can be stored");
    }

    /// All blocks, a few at a time, in random order.
    fn remove(&self, router: &Router, rng: &mut Rng) {
        let mut names: Vec<EngineHash> = self.sequence.iter().map(|name| EngineHash(name.0)).collect();
        for at in (1..names.len()).rev() {
            names.swap(at, rng.below(at + 1));
        }
        for part in names.chunks(37) {
            let event = KvEvent::Removed {
                blocks: part.to_vec(),
                tier: Tier::Device,
            };
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

/// Memory is compared at full index, from the third cycle on.
fn cycles(cycles: u64) {
    let router = router();
    let (mut first, mut highest, mut last) = (0, 0, 0);
    for cycle in 0..cycles {
        for of in 0..977 {
            Prompt::new(cycle * 1000 + of, 1024).store(&router);
        }
        last = resident();
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

/// Memory is compared from the first tenth of the time on.
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
            let now = resident();
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
        resident(),
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().unwrap_or_default();
    let number = arguments
        .next()
        .map(|text| text.parse::<f64>().expect("must be a number"));
    match part.as_str() {
        "cycles" => cycles(number.unwrap_or(100.0) as u64),
        "minutes" => minutes(number.unwrap_or(30.0)),
        _ => {
            eprintln!("usage: soak cycles [100] | minutes [30]");
            std::process::exit(2);
        }
    }
}
